"""Ratings of other sizes than MovieLens-100K, in the form that TFDS prepares."""

import conftest
import numpy as np
import pytest
import tensorflow_datasets as tfds

from td_jax import errors
from td_jax import types
from td_jax.data import movielens
from td_jax.data import ratings as ratings_lib
from td_jax.data import ratings_source
from td_jax.data import sources

NAME = 'movielens/1m-ratings'
LABELS = ('Action', 'Drama', 'War')


def _rows(count):
  rng = np.random.default_rng(0)
  for key in range(count):
    movie = int(rng.integers(1, 40))
    yield (
      key,
      {
        'user_id': str(rng.integers(1, 50)),
        'movie_id': str(movie),
        'movie_title': f'Film {movie} (1995)',
        'movie_genres': [movie % 3, 1],
        'user_rating': float(rng.integers(1, 11)) / 2,
        'timestamp': int(rng.integers(10**9)),
      },
    )


@pytest.fixture(scope='module', params=['array_record', 'tfrecord'])
def prepared(request, tmp_path_factory):
  """(TFDS's data folder, the rows)"""
  root = tmp_path_factory.mktemp(request.param)
  rows = list(_rows(700))
  tfds.dataset_builders.store_as_tfds_dataset(
    name='movielens',
    config='1m-ratings',
    version='0.1.1',
    features=tfds.features.FeaturesDict(
      {
        'user_id': tfds.features.Tensor(shape=(), dtype=np.str_),
        'movie_id': tfds.features.Tensor(shape=(), dtype=np.str_),
        'movie_title': tfds.features.Tensor(shape=(), dtype=np.str_),
        'movie_genres': tfds.features.Sequence(
          tfds.features.ClassLabel(names=LABELS)
        ),
        'user_rating': np.float32,
        'timestamp': np.int64,
      }
    ),
    split_datasets={'train': rows},
    data_dir=str(root),
    file_format=request.param,
    download_config=tfds.download.DownloadConfig(
      num_shards=3, try_download_gcs=False
    ),
  )
  return root, [row for _, row in rows]


def test_rows_are_those_of_tfds(prepared, monkeypatch):
  """Also in several parts; the second time from the cache."""
  root, rows = prepared
  lines = []
  first = ratings_source.load(NAME, str(root), log=lines.append)
  assert 'prepared TFDS data' in lines[-1]
  again = ratings_source.load(NAME, str(root), log=lines.append)
  assert 'columnar cache' in lines[-1]
  (cache,) = (root / 'td_jax').glob('movielens-1m-ratings-0.1.1.npz')
  cache.unlink()
  monkeypatch.setattr(ratings_lib, '_ROWS', 97)
  parts = ratings_source.load(NAME, str(root), log=types.no_log)
  assert first.fingerprint == again.fingerprint == parts.fingerprint
  found = sorted(
    zip(
      first.timestamp.tolist(),
      first.user_id.tolist(),
      first.movie_id.tolist(),
      first.rating.tolist(),
      strict=True,
    )
  )
  assert found == sorted(
    (
      row['timestamp'],
      int(row['user_id']),
      int(row['movie_id']),
      row['user_rating'],
    )
    for row in rows
  )
  assert first.titles[7] == 'Film 7 (1995)'
  assert first.genre_names == LABELS
  assert first.genres[5].tolist() == [False, True, True]
  # A damaged cache is read anew.
  cache.write_bytes(b'PK')
  third = ratings_source.load(NAME, str(root), log=lines.append)
  assert third.fingerprint == first.fingerprint
  assert any('is ignored' in line for line in lines)


def test_a_config_names_the_dataset(prepared):
  root, rows = prepared
  config = conftest.small_config(
    'genre=War', **{'data.dataset': NAME, 'data.dir': str(root)}
  )
  movielens.check(config)
  task = movielens.load(config, log=types.no_log)
  kept = conftest.real(task.train)
  wars = [row for row in rows if int(row['movie_id']) % 3 == 2]
  assert 0.6 * len(wars) < len(kept.y) < len(wars)


def test_absent_and_unknown_datasets(tmp_path):
  with pytest.raises(errors.DataError, match=r"tfds\.load\('movielens/25m"):
    ratings_source.load('movielens/25m-ratings', str(tmp_path))
  with pytest.raises(errors.ConfigError, match="mean 'movielens/1m-ratings'"):
    ratings_source.load('movielens/1m-rating', str(tmp_path))


@pytest.mark.parametrize('name', ['', 'ratings.csv', 'typo', '/dev/null'])
def test_a_named_folder_without_the_ratings(tmp_path, name):
  """It may hold others, which nothing must replace."""
  (tmp_path / 'ratings.csv').write_text('user,item,rating\n')
  place = str(tmp_path / name)
  with pytest.raises(errors.DataError, match='--config=ratings:data=FILE') as e:
    ratings_source.load(sources.DATASET, place, log=types.no_log)
  assert repr(place.rstrip('/')) in str(e.value) and '\n' not in str(e.value)
