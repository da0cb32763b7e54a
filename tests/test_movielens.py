"""MovieLens: no row leaks, and the controls are what they say."""

import conftest
import jax
import numpy as np
import pytest

from td_jax import errors
from td_jax.data import baselines
from td_jax.data import movielens
from td_jax.data import sources


def _load(genre='', ratings=None, refit_on_validation=False):
  """The task of `small_ratings`, or of others, without padding."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sources, 'movielens_100k', lambda *a, **k: ratings)
    config = conftest.small_config()
    config.data.genre, config.refit_on_validation = genre, refit_on_validation
    task = movielens.load(config, log=lambda line: None)
  return task._replace(
    **{
      name: split and conftest.real(split)
      for name in ('train', 'validation', 'test')
      for split in [getattr(task, name)]
    }
  )


def _inputs(task, split):
  """The student's inputs of a whole split, as NumPy."""
  columns = getattr(task, split)
  batch = task.examples(columns, np.arange(len(columns.y)))
  return jax.device_get(batch.x)


@pytest.fixture
def small():
  return conftest.small_ratings()


@pytest.fixture(scope='module')
def real():
  root = sources._data_root('')
  if not sources._cache_path(root).exists() and not sources._prepared_folder(
    root
  ):
    pytest.skip(f'MovieLens-100K is not prepared in {root}')
  return sources.movielens_100k(log=lambda line: None)


@pytest.fixture(scope='module')
def real_drama(real):
  return _load('Drama', real)


def _assert_in_time(ratings, parts):
  for before, after in (
    (parts.train, parts.validation),
    (parts.validation, parts.test),
  ):
    assert ratings.timestamp[before].max() <= ratings.timestamp[after].min()
    assert before.max() < after.min()
  rows = np.concatenate(parts)
  assert len(np.unique(rows)) == len(rows)


def test_small_splits(small):
  parts = movielens.parts(small)
  assert [len(part) for part in parts] == [1215, 135, 150]
  _assert_in_time(small, parts)
  for genre in small.genre_names:
    chosen = movielens.parts(small, genre)
    _assert_in_time(small, chosen)
    column = small.genre_names.index(genre)
    for mine, everyones in zip(chosen, parts, strict=True):
      # Exactly those of the genre: the cut in time comes first.
      keep = small.genres[small.movie_id[everyones], column]
      np.testing.assert_array_equal(mine, everyones[keep])


def test_an_earlier_window_leaves_the_test_alone(small):
  parts = movielens.parts(small, train_fraction=0.8)
  # 1350 x 0.8, of it nine tenths, and the test of before.
  assert [len(part) for part in parts] == [972, 108, 150]
  _assert_in_time(small, parts)
  np.testing.assert_array_equal(parts.test, movielens.parts(small).test)


def test_unknown_genre(small):
  with pytest.raises(errors.ConfigError, match="Did you mean 'Drama'"):
    movielens.parts(small, 'Dramas')


def test_real_splits(real):
  parts = movielens.parts(real)
  assert [len(part) for part in parts] == [81_000, 9_000, 10_000]
  for genre in ('', *movielens.GENRES):
    _assert_in_time(real, movielens.parts(real, genre))


def test_rows_come_in_order_of_time(real, small):
  keys = np.lexsort((real.movie_id, real.user_id, real.timestamp))
  np.testing.assert_array_equal(keys, np.arange(100_000))
  assert np.all(np.diff(small.timestamp) >= 0)


def test_the_genres_are_the_densest(real):
  rows = movielens.parts(real).train
  counts = real.genres[real.movie_id[rows]].sum(axis=0)
  order = np.argsort(-counts, kind='stable')
  names = tuple(real.genre_names[i] for i in order[:8].tolist())
  assert names == movielens.GENRES
  assert counts[order[7]] > counts[order[8]]


def test_most_test_rows_are_of_the_unknown(real, real_drama):
  """86%; of the users of the test, 71% have no row in the first 90% either."""
  parts = movielens.parts(real)
  seen = [np.unique(ids[parts.train]) for ids in (real.user_id, real.movie_id)]
  known = [
    np.isin(ids[parts.test], old)
    for ids, old in zip((real.user_id, real.movie_id), seen, strict=True)
  ]
  share = 1 - np.mean(known[0] & known[1])
  assert round(share, 2) == 0.86
  first = np.concatenate([parts.train, parts.validation])
  users = np.isin(real.user_id[parts.test], real.user_id[first])
  assert round(1 - np.mean(users), 2) == 0.71
  task = _load('', real)
  unknown = (task.test.x['user'] == 0) | (task.test.x['movie'] == 0)
  np.testing.assert_array_equal(unknown, ~(known[0] & known[1]))
  # No training row is unknown, and Drama's student knows less than its
  # teacher.
  for x in (
    task.train.x,
    real_drama.train.x,
    real_drama.train.teacher_x['teacher'],
  ):
    assert x['user'].min() > 0
    assert x['movie'].min() > 0
  mine, teachers = real_drama.test.x, real_drama.test.teacher_x['teacher']
  assert np.sum(mine['user'] == 0) > np.sum(teachers['user'] == 0) > 0


def test_ids_are_those_of_the_training_rows(small):
  task = _load('War', small)
  chosen, everything = movielens.parts(small, 'War'), movielens.parts(small)
  for teacher, rows in (('', chosen.train), ('teacher', everything.train)):
    for name, ids in (('user', small.user_id), ('movie', small.movie_id)):
      known = set(ids[rows].tolist())
      for split, part in zip(
        (task.train, task.validation, task.test), chosen, strict=True
      ):
        expected = [i if i in known else 0 for i in ids[part].tolist()]
        x = split.input_of(teacher) if teacher else split.x
        assert x[name].tolist() == expected


def test_an_id_of_the_test_only_is_unknown_to_both(small):
  small.user_id[:] = np.maximum(small.user_id, 2)
  rows = movielens.parts(small, 'War').test
  small.user_id[rows[3]] = 1
  task = _load('War', small)
  assert (
    task.test.x['user'][3] == task.test.teacher_x['teacher']['user'][3] == 0
  )
  assert task.model_args['users'] == 41
  # Seen in training, but not in the student's genre.
  drama = set(movielens.parts(small).train) - set(
    movielens.parts(small, 'War').train
  )
  small.user_id[min(drama)] = 1
  task = _load('War', small)
  assert task.test.x['user'][3] == 0
  assert task.test.teacher_x['teacher']['user'][3] == 1


def test_words_come_from_the_training_rows(small):
  titles = list(small.titles)
  for movie in range(1, len(titles)):
    titles[movie] = f'Old {movie % 3} (1995)'
  # Movie 30 is only in the test; movie 29 is trained on.
  small.movie_id[:] = np.minimum(small.movie_id, 29)
  small.movie_id[-1] = 30
  titles[30] = "Old Brand-New Film's (1996)"
  titles[29] = 'Old Seen'
  task = _load('', small._replace(titles=tuple(titles)))
  test, train = _inputs(task, 'test'), _inputs(task, 'train')
  words = test['title'][-1]
  assert task.model_args['words'] == 1 + len(
    {'old', '0', '1', '2', '1995', 'seen'}
  )
  assert words.tolist() == [
    test['title'][test['movie'] == 29][0][0],
    0,
    0,
    0,
    0,
  ]
  assert train['title'].max() < task.model_args['words']


def test_genres_are_shares(small):
  task = _load('War', small)
  shares = _inputs(task, 'train')['genres']
  np.testing.assert_allclose(shares.sum(axis=1), 1, rtol=1e-6)
  rows = movielens.parts(small, 'War').train
  np.testing.assert_array_equal(shares > 0, small.genres[small.movie_id[rows]])
  assert np.all(shares[:, 1] > 0)


def test_labels_and_mean(small):
  task = _load('War', small)
  chosen = movielens.parts(small, 'War')
  for split, rows in zip(
    (task.train, task.validation, task.test), chosen, strict=True
  ):
    np.testing.assert_array_equal(split.y, small.rating[rows])
    np.testing.assert_array_equal(split.mask, np.ones(len(rows)))
  assert task.model_args['mean'] == pytest.approx(
    np.mean(small.rating[chosen.train], dtype=np.float64)
  )


def _ridge(ratings, rows, penalty):
  """User and movie biases by one least-squares solve: (users, movies)."""
  users, movies = ratings.user_id.max() + 1, len(ratings.titles)
  y = ratings.rating[rows].astype(np.float64)
  design = np.zeros((len(rows) + users + movies, users + movies))
  at = np.arange(len(rows))
  design[at, ratings.user_id[rows]] = 1
  design[at, users + ratings.movie_id[rows]] = 1
  design[len(rows) :] = np.sqrt(penalty) * np.eye(users + movies)
  target = np.concatenate([y - y.mean(), np.zeros(users + movies)])
  solved = np.linalg.lstsq(design, target, rcond=None)[0]
  return solved[:users], solved[users:]


def _rmse(ratings, rows, mean, biases):
  guess = (
    mean + biases[0][ratings.user_id[rows]] + biases[1][ratings.movie_id[rows]]
  )
  return float(np.sqrt(np.mean((guess - ratings.rating[rows]) ** 2)))


@pytest.mark.parametrize('genre', ['', 'War'])
def test_controls_equal_least_squares(small, genre):
  chosen = movielens.parts(small, genre)
  got = _load(genre, small).baselines()
  mean = small.rating[chosen.train].mean(dtype=np.float64)
  flat = (np.zeros(41), np.zeros(31))
  for name, rows in (('validation', chosen.validation), ('test', chosen.test)):
    assert got['mean rating'][name] == pytest.approx(
      _rmse(small, rows, mean, flat), rel=1e-6
    )
  # The penalty is chosen on validation, among those the module tries.
  fits = [
    _ridge(small, chosen.train, penalty)
    for penalty in (0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30)
  ]
  best = min(fits, key=lambda fit: _rmse(small, chosen.validation, mean, fit))
  for name, rows in (('validation', chosen.validation), ('test', chosen.test)):
    assert got['user+movie bias'][name] == pytest.approx(
      _rmse(small, rows, mean, best), rel=1e-4
    )
  assert got['user+movie bias']['test'] < got['mean rating']['test'] - 0.1


def test_sweeps_are_enough(small):
  rows = movielens.parts(small).train
  # What is left at the least is a shift from users to movies.
  for penalty, apart in ((0.5, 3e-3), (5, 1e-4), (30, 1e-4)):
    for ours, exact in zip(
      baselines.biases(movielens.table(small), rows, penalty)[1].values(),
      _ridge(small, rows, penalty),
      strict=True,
    ):
      np.testing.assert_allclose(ours, exact, atol=apart)


def test_real_controls(real_drama):
  """Drama: better than the mean, and by as much as was measured before."""
  controls = real_drama.baselines()
  assert controls['user+movie bias']['test'] < controls['mean rating']['test']
  assert 0.9 < controls['user+movie bias']['test'] < 1.2


def test_refit_trains_on_validation_too(small):
  """And knows the ids of its rows; the test split is the same."""
  before, after = (
    _load('War', small),
    _load('War', small, refit_on_validation=True),
  )
  assert after.validation is None
  for name in ('y', 'mask'):
    np.testing.assert_array_equal(
      getattr(after.train, name),
      np.concatenate(
        [getattr(before.train, name), getattr(before.validation, name)]
      ),
    )
  np.testing.assert_array_equal(after.test.y, before.test.y)
  small.user_id[movielens.parts(small, 'War').validation[0]] = 41
  small.user_id[movielens.parts(small, 'War').test[0]] = 41
  assert _load('War', small).test.x['user'][0] == 0
  assert _load('War', small, refit_on_validation=True).test.x['user'][0] == 41


def test_splits_of_all_genres_are_as_long(small, monkeypatch):
  """So that one compiled program serves them all."""
  monkeypatch.setattr(sources, 'movielens_100k', lambda *a, **k: small)
  shapes = []
  for genre in ('', 'War', 'Drama'):
    config = conftest.small_config()
    config.data.genre = genre
    task = movielens.load(config, log=lambda line: None)
    splits = (task.train, task.validation, task.test)
    shapes.append([[leaf.shape for leaf in jax.tree.leaves(s)] for s in splits])
  assert shapes[0] == shapes[1] == shapes[2]
