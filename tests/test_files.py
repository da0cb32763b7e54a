"""Atomic writes, JSON files, cached arrays, and digests of old runs."""

import hashlib
import json

import numpy as np
import pytest

from td_jax import errors
from td_jax import types
from td_jax.storage import array_cache
from td_jax.storage import checkpoint
from td_jax.storage import files


@pytest.mark.parametrize('content', ['naïve\n', b'\x00\xff'])
def test_a_write_replaces_the_file(tmp_path, content):
  file = tmp_path / 'x.json'
  file.write_text('before, and longer than what follows')
  files.write_atomically(file, content)
  expected = content.encode() if isinstance(content, str) else content
  assert file.read_bytes() == expected
  assert list(tmp_path.iterdir()) == [file]


def test_a_failed_write_leaves_the_old_file(tmp_path):
  file = tmp_path / 'x.json'
  file.write_text('before')
  with (
    pytest.raises(
      errors.IOFailedError, match=r'could not write .*x\.json: No space'
    ),
    files.replacing(file) as opened,
  ):
    opened.write(b'half')
    assert len(list(tmp_path.glob('*.part'))) == 1
    raise OSError(28, 'No space left on device')
  assert file.read_text() == 'before'
  assert list(tmp_path.iterdir()) == [file]


def test_other_errors_pass_through_and_leave_nothing(tmp_path):
  with pytest.raises(KeyError), files.replacing(tmp_path / 'x') as opened:
    opened.write(b'half')
    raise KeyError('x')
  assert list(tmp_path.iterdir()) == []


def test_an_absent_folder_is_one_line(tmp_path):
  file = tmp_path / 'absent' / 'x.json'
  with pytest.raises(errors.IOFailedError) as caught:
    files.write_atomically(file, '')
  assert str(caught.value) == (
    f'could not write {file}: No such file or directory.'
  )


def test_json_comes_back(tmp_path):
  file = tmp_path / 'config.json'
  files.write_atomically(file, '{"a": [1, 2]}')
  assert files.read_json(file) == {'a': [1, 2]}


@pytest.mark.parametrize('text', [None, '', '{"a"', '[1]', '\udcff'])
def test_damaged_json_is_one_line(tmp_path, text):
  file = tmp_path / 'config.json'
  if text is not None:
    file.write_bytes(text.encode(errors='surrogateescape'))
  with pytest.raises(errors.DataError, match=r'is .* the folder of a run') as e:
    files.read_json(file)
  assert str(e.value).startswith(f'{file} cannot be read (')
  assert '\n' not in str(e.value)


# Digests. The constants were computed with the code of commit 5085e1a, whose
# checkpoints and results store them.


def test_a_digest_is_that_of_the_concatenated_bytes():
  array = np.arange(6, dtype='<i4').reshape(2, 3)
  expected = hashlib.sha256()
  expected.update('é'.encode())
  expected.update(b'\x00')
  expected.update(array.T.tobytes())
  expected.update(json.dumps({'a': [1], 'b': 0.5}).encode())
  got = files.sha256('é', b'\x00', array.T, {'b': 0.5, 'a': (1,)})
  assert got == expected.hexdigest()
  with pytest.raises(TypeError, match='JSON'):
    files.sha256(object())


def test_digests_of_checkpoints_are_those_of_old_runs():
  leaves = {
    'params.a.kernel': np.arange(6, dtype=np.float32).reshape(2, 3),
    'step': np.asarray(np.int32(7)),
    'key': np.array([1, 2], np.uint32),
  }
  assert checkpoint._digest(leaves) == (
    '5d9d9747f34f9fa828b425070cc8581e8a6102cacd2f9f1bb3369699e1382e1e'
  )
  transposed = np.arange(6, dtype=np.float32).reshape(2, 3).T
  assert checkpoint._digest({'a': transposed}) == (
    '9e5525c200f4b16be23443fb74a45ef4083cb154281e73379eba43ac7917fe68'
  )
  record = {'step': 3, 'name': 'Misérables', 'items': {'b': [1, 2], 'a': 0.5}}
  assert files.sha256(record) == (
    'b669d8c044343f6a17fe5ba61cd04ef9074b775ea15cfae46f8af76c04fa45e1'
  )


# Caches.


def _make(calls, value=0.0):
  def make():
    calls.append(value)
    return {'scores': np.arange(3.0) + value}

  return make


def test_a_cache_computes_once_for_each_digest(tmp_path):
  calls = []
  for digest in ('a' * 64, 'a' * 64, 'b' * 64):
    cache = array_cache.Cache(
      tmp_path / 'new', digest, writes=True, log=types.no_log
    )
    np.testing.assert_array_equal(
      cache.get('head', _make(calls))['scores'], [0, 1, 2]
    )
  assert len(calls) == 2
  # Old runs find their files under these names.
  assert sorted(file.name for file in (tmp_path / 'new').iterdir()) == [
    f'head-{"a" * 16}.npz',
    f'head-{"b" * 16}.npz',
  ]


def test_a_reading_cache_writes_nothing(tmp_path):
  calls = []
  cache = array_cache.Cache(tmp_path, 'a', writes=False, log=types.no_log)
  for _ in range(2):
    cache.get('head', _make(calls))
  assert len(calls) == 2 and list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_computed_again(tmp_path):
  calls, lines = [], []
  cache = array_cache.Cache(tmp_path, 'a', writes=True, log=lines.append)
  cache.get('head', _make(calls))
  (file,) = tmp_path.iterdir()
  file.write_bytes(file.read_bytes()[:40])
  cache.get('head', _make(calls))
  cache.get('head', _make(calls))
  assert len(calls) == 2
  assert len(lines) == 1
  assert lines[0].startswith(f'warning: {file} is ignored: ')


def test_no_cache_computes_every_time():
  calls = []
  for value in (0.0, 1.0):
    got = array_cache.NO_CACHE.get('head', _make(calls, value))
    assert got['scores'][0] == value
  assert calls == [0.0, 1.0]
