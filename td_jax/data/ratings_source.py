"""The ratings that a config names: MovieLens-100K, or a larger one from TFDS."""

from td_jax import errors
from td_jax import types
from td_jax.data import dataset
from td_jax.data import ratings as ratings_lib
from td_jax.data import sources
from td_jax.data import tfds as tfds_lib
from td_jax.storage import array_cache
from td_jax.storage import paths

# TFDS's configs with titles, genres and timestamps.
DATASETS = (
  sources.DATASET,
  'movielens/1m-ratings',
  'movielens/20m-ratings',
  'movielens/25m-ratings',
  'movielens/latest-small-ratings',
)


def load(
  name: str, data_dir: str = '', *, log: types.Log = print
) -> ratings_lib.Ratings:
  """Reads all ratings of a dataset.

  MovieLens-100K comes from any of the sources of `sources.movielens_100k`. The
  larger datasets must have been prepared by TFDS; they are then cached in
  columns, from which a start takes seconds and no TensorFlow.

  Args:
    name: One of `DATASETS`.
    data_dir: A TFDS data folder; '' is TFDS's own default.
    log: Receives the name of the source, and warnings.

  Raises:
    errors.ConfigError: There is no such dataset.
    errors.DataError: It is absent (the message names the command that prepares
      it) or damaged.
  """
  errors.choose('config.data.dataset', name, DATASETS)
  if name == sources.DATASET:
    if data_dir:
      sources.check_named(data_dir)
    return sources.movielens_100k(data_dir, log=log)
  folder = tfds_lib.find(name, data_dir)
  if paths.is_remote(folder):
    raise errors.DataError(
      f'{name} is read from local folders only, not from {folder}: copy it, and '
      'set config.data.dir.'
    )
  file = f'{name.replace("/", "-")}-{folder.name}.npz'
  cache = tfds_lib.data_dir(data_dir) / dataset.CACHE / file
  if cache.exists():
    try:
      # Our caches are not compressed.
      ratings = ratings_lib.read_cache(cache, most_bytes=cache.stat().st_size)
      log(f'{name}: columnar cache {cache}')
      return ratings
    # A file can be damaged in more ways than can be listed.
    except Exception as error:
      log(f'{name}: warning: {cache} is ignored: {errors.one_line(error)}')
  log(f'{name}: prepared TFDS data {folder}')
  ratings = ratings_lib.read_tfds(folder, name)
  array_cache.save(cache, ratings._asdict(), log=log)
  return ratings
