"""Starts a run on made-up ratings in the layout of MovieLens-1M, and measures it.

  python benchmarks/large_ratings.py --rows=1000000 --out=results/large_ratings.json
  python benchmarks/large_ratings.py --rows=10000000 --csv --out=results/large_csv.json

TFDS's files, or a CSV file, are written once to --data_dir. The seconds are those of a
process that has them: reading the files, or the cache in columns that the first start
with TFDS's leaves, and all until the first step has been made. Memory is the peak of
the process and the bytes of the columns that stay on the device.
"""

import argparse
from collections.abc import Iterator
import json
import pathlib
import resource
import time
from typing import Any

import jax
import numpy as np

from td_jax import data
from td_jax import types
from td_jax.configs import movielens as movielens_config
from td_jax.configs import ratings as ratings_config
from td_jax.run import command_line
from td_jax.run import completion
from td_jax.run import environment
from td_jax.run import pipeline
from td_jax.storage import files

NAME = 'movielens/1m-ratings'
_BLOCK = 1 << 20  # Rows of a CSV file that are written at a time.
# Sizes of MovieLens-1M.
_USERS, _MOVIES = 6040, 3952
_GENRES = ('Action', 'Comedy', 'Drama', 'War')


def write(root: pathlib.Path, rows: int) -> None:
  """Writes made-up ratings as TFDS would."""
  import tensorflow_datasets as tfds

  rng = np.random.default_rng(0)
  users = rng.integers(1, _USERS + 1, rows)
  movies = rng.integers(1, _MOVIES + 1, rows)
  ratings = rng.integers(1, 6, rows)
  times = rng.integers(0, 10**9, rows)
  text = tfds.features.Tensor(shape=(), dtype=np.str_)

  def examples() -> Iterator[tuple[int, dict[str, Any]]]:
    for row in range(rows):
      movie = int(movies[row])
      yield (
        row,
        {
          'user_id': str(users[row]),
          'movie_id': str(movie),
          'movie_title': f'The Film Number {movie} ({1950 + movie % 50})',
          'movie_genres': [movie % len(_GENRES)],
          'user_rating': float(ratings[row]),
          'timestamp': int(times[row]),
        },
      )

  tfds.dataset_builders.store_as_tfds_dataset(
    name='movielens',
    config='1m-ratings',
    version='0.1.1',
    features=tfds.features.FeaturesDict(
      {
        'user_id': text,
        'movie_id': text,
        'movie_title': text,
        'movie_genres': tfds.features.Sequence(
          tfds.features.ClassLabel(names=_GENRES)
        ),
        'user_rating': np.float32,
        'timestamp': np.int64,
      }
    ),
    split_datasets={'train': list(examples())},
    data_dir=str(root),
    file_format='tfrecord',
    download_config=tfds.download.DownloadConfig(
      num_shards=4, try_download_gcs=False
    ),
  )


def write_csv(file: pathlib.Path, rows: int) -> None:
  """Writes made-up ratings in the columns of MovieLens-25M."""
  import pyarrow as pa
  from pyarrow import csv

  rng = np.random.default_rng(0)
  names = ('userId', 'movieId', 'rating', 'timestamp')
  file.parent.mkdir(parents=True, exist_ok=True)
  with csv.CSVWriter(
    file, pa.schema([(name, pa.int64()) for name in names])
  ) as to:
    for start in range(0, rows, _BLOCK):
      count = min(_BLOCK, rows - start)
      highest = (_USERS * 10, _MOVIES * 10, 5, 10**9)
      columns = [rng.integers(1, high + 1, count) for high in highest]
      to.write_table(pa.table(dict(zip(names, columns, strict=True))))


def tfds_config(root: pathlib.Path, genre: str) -> types.Config:
  """A student of one genre of the files of `write`."""
  config = movielens_config.get_config(f'method=scratch,genre={genre}')
  config.data.dataset, config.data.dir = NAME, str(root)
  config.refit_on_validation = False
  return config


def measure(config: types.Config) -> dict[str, float]:
  """Seconds and bytes of a start, up to the first step."""
  config.seeds = 1
  config = completion.complete(config, log=types.no_log)
  domain = data.DOMAINS[config.domain]
  began = time.monotonic()
  domain.read(config, log=types.no_log)
  read = time.monotonic() - began
  experiment = pipeline.prepare(config)
  state, _ = experiment.train(
    experiment.state, experiment.fixed, experiment.rows(0, 1)
  )
  jax.block_until_ready(state)
  columns = jax.tree.leaves(experiment.fixed[1])
  return {
    'read_seconds': read,
    'first_step_seconds': time.monotonic() - began,
    'column_bytes': int(sum(leaf.nbytes for leaf in columns)),
    'peak_bytes': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
  }


def _command(args: argparse.Namespace, log: types.Log) -> None:
  there = args.data_dir / (f'{args.rows}.csv' if args.csv else NAME)
  if not there.exists():
    log(f'writing {args.rows} ratings to {there}, once')
    (write_csv if args.csv else write)(
      there if args.csv else args.data_dir, args.rows
    )
  if args.csv:
    config = ratings_config.get_config(f'data={there},method=scratch')
  else:
    config = tfds_config(args.data_dir, args.genre)
  found = {'rows': args.rows, 'file_bytes': _size(there), **measure(config)}
  rows = {'layout': 'csv' if args.csv else 'tfds', **found}
  rows |= environment.environment()
  print(json.dumps(rows, indent=1))
  if args.out:
    files.write_atomically(args.out, json.dumps(rows, indent=1) + '\n')


def _size(place: pathlib.Path) -> int:
  return sum(
    file.stat().st_size for file in (place, *place.rglob('*')) if file.is_file()
  )


def main() -> None:
  """Measures a start on made-up ratings."""
  parser = command_line.Parser(description='Ratings by the million.')
  parser.add_argument('--rows', default=1_000_000, type=int, help='ratings')
  parser.add_argument(
    '--data_dir',
    default='runs/large_ratings',
    type=pathlib.Path,
    help='where the made-up ratings are, or will be',
  )
  parser.add_argument(
    '--genre', default='Drama', help="the task of TFDS's files"
  )
  parser.add_argument('--csv', action='store_true', help='a CSV file')
  parser.add_argument('--out', type=pathlib.Path, help='a JSON file')
  command_line.run(parser, _command)


if __name__ == '__main__':
  main()
