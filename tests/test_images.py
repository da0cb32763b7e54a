"""Image datasets as columns: the cache, subsets, and the real CIFAR."""

import hashlib
import itertools
import os
import pathlib
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import tiny_images

from td_jax import errors
from td_jax.data import host_pipeline
from td_jax.data import image_folder
from td_jax.data import images
from td_jax.data import labels as labels_lib
from td_jax.data import records
from td_jax.data import tfds

REPOSITORY = pathlib.Path(__file__).parents[1]
KINDS = ('image_folder', 'array_record', 'tfrecord')


@pytest.fixture(params=KINDS)
def where(request, tmp_path):
  """(name, data_dir) of a dataset of png files."""
  if request.param == 'image_folder':
    tiny_images.folder(tmp_path, encode=tiny_images.png)
    return 'image_folder', str(tmp_path)
  tiny_images.prepare(
    tmp_path,
    file_format=request.param,
    examples=tiny_images.examples(encode=tiny_images.png),
  )
  return 'tiny', str(tmp_path)


def _load(where, spec='train', **options):
  lines = []
  columns = images.load_columns(
    where[0], spec, data_dir=where[1], log=lines.append, **options
  )
  return columns, lines


def _assert_same(one, two):
  for a, b in zip(one, two, strict=True):
    np.testing.assert_array_equal(a, b)


def _cache(where):
  return next((pathlib.Path(where[1]) / 'td_jax').glob('*train.npz'))


def test_columns_are_the_decoded_records(where):
  columns, lines = _load(where)
  assert 'decoding the 23 images of train' in lines[0]
  assert columns.images.shape == (23, 24, 32, 3)
  assert columns.images.dtype == np.uint8
  assert columns.labels.dtype == np.int32
  assert columns.class_names == tiny_images.NAMES
  expected = {
    tiny_images.pixels(seed).tobytes(): seed % 3 for seed in range(23)
  }
  got = {
    image.tobytes(): label
    for image, label in zip(columns.images, columns.labels, strict=True)
  }
  assert got == expected
  # In the order of the records.
  source = records.load(*where).records('train')
  read = source.read(np.arange(23))
  np.testing.assert_array_equal(columns.labels, [row.label for row in read])


def test_second_load_is_from_the_cache(where):
  first, _ = _load(where)
  second, lines = _load(where)
  assert lines == []
  _assert_same(first, second)
  assert [path.name for path in _cache(where).parent.iterdir()] == [
    _cache(where).name
  ]


def test_slices_divide_the_split(where):
  whole, _ = _load(where)
  head, _ = _load(where, 'train[:60%]')
  tail, _ = _load(where, 'train[60%:]')
  assert len(head.labels) == 14
  for name in ('images', 'labels'):
    parts = [getattr(head, name), getattr(tail, name)]
    np.testing.assert_array_equal(np.concatenate(parts), getattr(whole, name))
  prints = {part.fingerprint for part in (whole, head, tail)}
  assert len(prints) == 3
  assert _load(where, 'train[:14]')[0].fingerprint == head.fingerprint


def test_limit_selects_a_balanced_subset(where):
  whole, _ = _load(where)
  part, _ = _load(where, limit=12, seed=1)
  np.testing.assert_array_equal(np.bincount(part.labels), [4, 4, 4])
  pairs = list(zip(*_pairs(whole), strict=True))
  assert all(pair in pairs for pair in zip(*_pairs(part), strict=True))
  again, _ = _load(where, limit=12, seed=1)
  _assert_same(part, again)
  other, _ = _load(where, limit=12, seed=2)
  assert other.fingerprint != part.fingerprint
  with pytest.raises(errors.ConfigError, match=r'limit is 24, but .* has 23'):
    _load(where, limit=24)


def test_fingerprints_are_those_of_old_runs(tmp_path, monkeypatch):
  # From commit 5085e1a: results store fingerprints, and resuming compares them.
  pixels = np.arange(6 * 2 * 2 * 3, dtype=np.uint8).reshape(6, 2, 2, 3)
  columns = images._columns(
    pixels, np.array([0, 1, 2, 0, 1, 2], np.int32), tiny_images.NAMES
  )
  monkeypatch.setattr(images, '_decode', lambda *_, **__: columns)
  for label in ('cat', 'dog'):
    (tmp_path / 'train' / label).mkdir(parents=True)
  (tmp_path / 'train' / 'cat' / 'a.jpg').write_bytes(b'x')
  where = 'image_folder', str(tmp_path)
  whole, _ = _load(where)
  assert whole.fingerprint == (
    '6025f8fcb6d5ecea9526967f1e62a104342b37cee7281e80c643d1e8228ef6c1'
  )
  subset, _ = _load(where, 'train[1:]', limit=3, seed=1)
  assert subset.labels.tolist() == [2, 0, 1]
  assert subset.fingerprint == (
    'af066b87953d728fb08f54183fdf7d58108c7f2f8b435befe4ed558c3d4c2950'
  )


def test_caches_of_old_runs_are_used(tmp_path):
  # Their names and stamps are those of commit 5085e1a.
  folder = tiny_images.prepare(
    tmp_path,
    file_format='tfrecord',
    examples=tiny_images.examples(encode=tiny_images.png),
  )
  info = (folder / 'dataset_info.json').read_bytes()
  file, stamp = images._cache('tiny', str(tmp_path), 'train')
  assert file == tmp_path / 'td_jax' / 'tiny-1.2.3-train.npz'
  assert stamp == hashlib.sha256(info).hexdigest()


def _pairs(columns):
  return [image.tobytes() for image in columns.images], columns.labels.tolist()


def test_smaller_limits_select_subsets_of_larger_ones():
  labels = np.random.default_rng(0).integers(0, 7, 500)
  chosen = [
    set(labels_lib.balanced(labels, limit, seed=5).tolist())
    for limit in (1, 7, 30, 200, 500)
  ]
  for small, large in itertools.pairwise(chosen):
    assert small < large
  assert np.bincount(labels[list(chosen[1])]).tolist() == [1] * 7
  counts = np.bincount(labels[list(chosen[3])])
  assert counts.max() - counts.min() <= 1
  assert len(chosen[4]) == 500
  # When a class runs out, the others fill its turns.
  scarce = np.array([0] * 3 + [1] * 50)
  picked = labels_lib.balanced(scarce, 20, seed=0)
  assert np.bincount(scarce[picked]).tolist() == [3, 17]
  assert (np.diff(picked) > 0).all()


def test_changed_data_do_not_come_from_the_old_cache(tmp_path):
  where = 'image_folder', str(tmp_path)
  tiny_images.folder(tmp_path, encode=tiny_images.png)
  first, _ = _load(where)
  file = next((tmp_path / 'train' / 'dog').iterdir())
  file.unlink()
  second, lines = _load(where)
  assert len(second.labels) == 22
  assert 'it was made of other data' in lines[0]
  assert second.fingerprint != first.fingerprint


@pytest.mark.parametrize('damage', ['cut', 'flipped', 'empty'])
def test_damaged_cache_is_made_again(tmp_path, damage):
  where = 'image_folder', str(tmp_path)
  tiny_images.folder(tmp_path, encode=tiny_images.png)
  first, _ = _load(where)
  cache = _cache(where)
  data = bytearray(cache.read_bytes())
  position = bytes(data).index(first.images[5].tobytes())
  data[position] ^= 1
  data = {'cut': data[:position], 'flipped': data, 'empty': b''}[damage]
  cache.write_bytes(data)
  second, lines = _load(where)
  assert f'warning: {cache} is ignored' in lines[0]
  _assert_same(first, second)
  assert _load(where)[1] == []


def test_forged_caches_are_refused(tmp_path):
  where = 'image_folder', str(tmp_path)
  tiny_images.folder(tmp_path, encode=tiny_images.png)
  first, _ = _load(where)
  with np.load(_cache(where)) as stored:
    parts = dict(stored)
  parts['labels'] = parts['labels'][::-1].copy()
  np.savez(_cache(where), **parts)
  second, lines = _load(where)
  assert 'not those that were stored' in lines[0]
  _assert_same(first, second)


def test_folder_that_cannot_be_written_is_not_fatal(tmp_path, monkeypatch):
  where = 'image_folder', str(tmp_path)
  tiny_images.folder(tmp_path, encode=tiny_images.png)

  def disk_full(*arguments, **keywords):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(np, 'savez', disk_full)
  columns, lines = _load(where)
  assert len(columns.labels) == 23
  assert 'No space left on device' in lines[1]
  assert list((tmp_path / 'td_jax').iterdir()) == []


def test_images_that_differ_in_size_have_to_be_streamed(tmp_path):
  tiny_images.folder(tmp_path, encode=tiny_images.png)
  (tmp_path / 'train' / 'dog' / 'x.png').write_bytes(tiny_images.png(99, 5, 5))
  with pytest.raises(errors.DataError, match='have to be streamed'):
    _load(('image_folder', str(tmp_path)))


def test_corrupt_image_is_named(tmp_path):
  tiny_images.folder(tmp_path, encode=tiny_images.png)
  bad = tmp_path / 'train' / 'dog' / '007.png'
  bad.write_bytes(bad.read_bytes()[:50])
  with pytest.raises(errors.DataError, match=f'{bad}. is corrupt') as caught:
    _load(('image_folder', str(tmp_path)))
  assert caught.value.exit_code == 65 and '\n' not in str(caught.value)
  other = tmp_path / 'train' / 'cat' / '003.png'
  other.write_bytes(b'')
  with pytest.raises(
    errors.DataError, match=r'So are 1 more: \S+\. Replace'
  ) as e:
    _load(('image_folder', str(tmp_path)))
  assert str(bad) in str(e.value) and str(other) in str(e.value)


def test_an_unreadable_file_is_not_a_corrupt_image(tmp_path, monkeypatch):
  tiny_images.folder(tmp_path, encode=tiny_images.png)
  # A folder fails as a file on a broken disk does, once it is listed.
  monkeypatch.setattr(image_folder, '_stat', os.stat)
  (tmp_path / 'train' / 'dog' / '999.png').mkdir()
  with pytest.raises(errors.IOFailedError, match=r'999\.png. cannot be') as e:
    _load(('image_folder', str(tmp_path)))
  assert e.value.exit_code == 74 and '\n' not in str(e.value)


@pytest.mark.parametrize('kind', ['array_record', 'tfrecord'])
def test_a_lost_file_is_named(tmp_path, kind):
  folder = tiny_images.prepare(
    tmp_path,
    file_format=kind,
    examples=tiny_images.examples(encode=tiny_images.png),
  )
  file = sorted(folder.glob('tiny-train*'))[1]
  file.unlink()
  with pytest.raises(
    errors.IOFailedError, match=f'{file.name}. cannot be'
  ) as e:
    _load(('tiny', str(tmp_path)))
  assert 'record 8 of' in str(e.value) and '\n' not in str(e.value)


def test_a_dangling_link_is_named(tmp_path):
  tiny_images.folder(tmp_path, encode=tiny_images.png)
  (tmp_path / 'train' / 'dog' / 'x.png').symlink_to('nowhere')
  with pytest.raises(errors.DataError, match=r'x\.png cannot be read: No such'):
    _load(('image_folder', str(tmp_path)))


def test_images_without_labels_are_refused(tmp_path):
  examples = tiny_images.examples(encode=tiny_images.png)
  examples['train'] = [(image, -1) for image, _ in examples['train']]
  tiny_images.prepare(tmp_path, file_format='tfrecord', examples=examples)
  with pytest.raises(errors.DataError, match=r'record 0 .*has no label') as e:
    _load(('tiny', str(tmp_path)))
  assert 'choose another split' in str(e.value)
  source = records.load('tiny', str(tmp_path)).records('train')
  run = host_pipeline.evaluation(
    source, batch_size=4, size=8, skip_corrupt=True
  )
  with pytest.raises(errors.DataError, match=r'record 0 .*has no label'):
    run.batch(0)


def test_absent_dataset_and_split(tmp_path, where):
  with pytest.raises(errors.DataError, match='is not prepared'):
    _load(('cifar10', str(tmp_path / 'none')))
  with pytest.raises(errors.ConfigError, match='split of'):
    _load(where, 'validation')
  with pytest.raises(errors.ConfigError, match='not of the form'):
    _load(where, 'train[:98')


# The real ones.


def _cifar(name):
  try:
    tfds.find(name)
  except errors.DataError as error:
    pytest.skip(str(error))
  return name


@pytest.mark.parametrize(
  ('name', 'classes'), [('cifar10', 10), ('cifar100', 100)]
)
def test_cifar(name, classes):
  train = images.load_columns(_cifar(name), 'train[:98%]')
  validation = images.load_columns(name, 'train[98%:]')
  test = images.load_columns(name, 'test')
  sizes = [part.images.shape for part in (train, validation, test)]
  assert sizes == [(n, 32, 32, 3) for n in (49_000, 1_000, 10_000)]
  assert np.bincount(test.labels).tolist() == [10_000 // classes] * classes
  both = np.concatenate([train.labels, validation.labels])
  assert np.bincount(both).tolist() == [50_000 // classes] * classes
  assert len(train.class_names) == classes
  # The published mean of CIFAR's channels, the same for both to 2 grey levels.
  mean = test.images.mean(axis=(0, 1, 2)) / 255
  published = {10: (0.494, 0.485, 0.450), 100: (0.509, 0.487, 0.442)}[classes]
  np.testing.assert_allclose(mean, published, atol=0.004)


def test_cached_cifar_loads_in_a_second_without_tensorflow():
  name = _cifar('cifar10')
  for split in ('train', 'test'):
    images.load_columns(name, split)
  code = """
    import sys
    from td_jax.data import images
    for spec in ('train[:98%]', 'train[98%:]', 'test'):
      images.load_columns('cifar10', spec)
    print(sorted({'tensorflow', 'tensorflow_datasets'} & set(sys.modules)))
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)],
    cwd=REPOSITORY,
    env={**os.environ, 'PYTHONPATH': str(REPOSITORY)},
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == '[]\n'
  start = time.process_time()
  for spec in ('train[:98%]', 'train[98%:]', 'test'):
    images.load_columns(name, spec)
  assert time.process_time() - start < 1
