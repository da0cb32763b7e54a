"""MovieLens-100K: rating prediction for the movies of one genre (section 6.2).

Ratings are sorted by (timestamp, user, movie). The first 90% are for training
and the last 10% for testing, cut before any genre is selected. Validation is
the last 10% of the training part; with `config.refit_on_validation` the final
networks train on it too. `config.data.train_fraction` ends the training part
earlier, to validate on another window of time. A movie belongs to every genre
it lists.

Ids that do not occur in a network's own training rows share row 0, the unknown
row: 86% of the test rows have an id that the fitted rows never saw.
"""

import re
from typing import NamedTuple

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import feed
from td_jax.data import sources
from td_jax.data import task as task_lib

TASK_LOSS = 'squared_error'
# The 8 genres with most training ratings, densest first: the paper's Genre 1
# to 8.
GENRES = (
  'Drama',
  'Comedy',
  'Action',
  'Thriller',
  'Romance',
  'Adventure',
  'Sci-Fi',
  'War',
)
_TRAIN_SHARE = 0.9  # Share of all ratings; the rest is the test split.
_FIT_SHARE = 0.9  # Share of the training part; the rest is validation.
_PENALTIES = (0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30)
_SWEEPS = 30  # Alternations after which the biases no longer change.
_Biases = tuple[np.floating, np.ndarray, np.ndarray]  # (mean, users, movies)


class Parts(NamedTuple):
  """Row numbers of the three splits, in the order of time."""

  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray


def check(config: types.Config) -> None:
  """Raises a ConfigError; genres are checked against the data, later."""
  fraction = config.data.train_fraction
  if not 0 < fraction <= 1:
    raise errors.ConfigError(
      f'config.data.train_fraction is {fraction}; it is a share of the '
      'training ratings, above 0 and at most 1.'
    )


def use_all_genres(config: types.Config) -> None:
  """Makes the run of `config` use the ratings of all genres."""
  config.data.genre = ''


def read(config: types.Config, *, log: types.Log = print) -> sources.Ratings:
  """Reads all ratings.

  Raises:
    errors.DataError: The dataset cannot be obtained.
  """
  return sources.movielens_100k(config.data.dir, log=log)


def load(config: types.Config, *, log: types.Log = print) -> task_lib.Task:
  """Reads the ratings and makes the task of `config`."""
  return task(config, read(config, log=log))


def task(config: types.Config, ratings: sources.Ratings) -> task_lib.Task:
  """The task of `config.data`: all genres, or a single one.

  Raises:
    errors.ConfigError: There is no such genre.
    errors.DataError: A split is empty.
  """
  genre, fraction = config.data.genre, config.data.train_fraction
  all_genres = parts(ratings, train_fraction=fraction)
  before_refit = parts(ratings, genre, train_fraction=fraction)
  for name, rows in before_refit._asdict().items():
    if not len(rows):
      raise errors.DataError(
        f'MovieLens has no {name} rows for config.data.genre={genre!r}; '
        f'dense genres are {", ".join(GENRES)}.'
      )
  chosen = before_refit
  if config.refit_on_validation:
    all_genres, chosen = _refit(all_genres), _refit(before_refit)
  student = _vocabulary(ratings, chosen.train)
  # The teacher has trained on all genres, so it knows more ids.
  teacher = _vocabulary(ratings, all_genres.train)
  words = _words(ratings, all_genres.train)

  def split(name: str) -> types.Batch:
    rows = getattr(chosen, name)
    batch = types.Batch(
      x=_features(ratings, rows, student, words),
      teacher_x={types.TEACHER: _features(ratings, rows, teacher, words)},
      y=ratings.rating[rows],
      mask=np.ones(len(rows), np.float32),
    )
    # All genres are padded to one length, so that they share one compiled
    # program.
    return feed.padded(batch, len(getattr(all_genres, name)))

  return task_lib.Task(
    name=genre or 'all genres',
    metadata={'genre': genre},
    train=split('train'),
    validation=None if config.refit_on_validation else split('validation'),
    test=split('test'),
    model_args={
      'users': int(ratings.user_id.max()) + 1,
      'movies': len(ratings.titles),
      'words': int(words.max()) + 1,
      'mean': float(ratings.rating[chosen.train].mean()),
    },
    task_loss=TASK_LOSS,
    metric='rmse',
    fingerprint=ratings.fingerprint,
    baselines=lambda: _baselines(ratings, before_refit, chosen),
  )


def parts(
  ratings: sources.Ratings, genre: str = '', *, train_fraction: float = 1.0
) -> Parts:
  """Cuts the ratings by time, then selects the rows of `genre` ('': all).

  The training part ends after its first `train_fraction`.
  """
  test = int(len(ratings.rating) * _TRAIN_SHARE)
  end = int(test * train_fraction)
  fit = int(end * _FIT_SHARE)
  if genre:
    errors.choose('config.data.genre', genre, ratings.genre_names)
    column = ratings.genre_names.index(genre)
    keep = ratings.genres[ratings.movie_id, column]
  else:
    keep = np.ones(len(ratings.rating), bool)
  rows = np.arange(len(keep))
  return Parts(
    *(part[keep[part]] for part in (rows[:fit], rows[fit:end], rows[test:]))
  )


def _refit(parts: Parts) -> Parts:
  """Moves the validation rows into the training rows."""
  return parts._replace(
    train=np.concatenate([parts.train, parts.validation]),
    validation=parts.validation[:0],
  )


def _vocabulary(ratings: sources.Ratings, rows: np.ndarray) -> list[np.ndarray]:
  """[users, movies]: the table row of each id, 0 if it is not in `rows`."""
  tables = []
  for ids in (ratings.user_id, ratings.movie_id):
    table = np.zeros(ids.max() + 1, np.int32)
    known = np.unique(ids[rows])
    table[known] = known
    tables.append(table)
  return tables


def _words(ratings: sources.Ratings, rows: np.ndarray) -> np.ndarray:
  """The words of each movie's title, int32 [movies, w]; 0 is padding.

  The vocabulary comes from the movies in `rows`; the year is a word too.
  """
  titles = [re.findall(r"[\w']+", title.lower()) for title in ratings.titles]
  known = np.unique(ratings.movie_id[rows])
  vocabulary = sorted({word for movie in known for word in titles[movie]})
  number = {word: i + 1 for i, word in enumerate(vocabulary)}
  table = np.zeros((len(titles), max(map(len, titles))), np.int32)
  for movie, title in enumerate(titles):
    numbers = [number[word] for word in title if word in number]
    table[movie, : len(numbers)] = numbers
  return table


def _features(
  ratings: sources.Ratings,
  rows: np.ndarray,
  vocabulary: list[np.ndarray],
  words: np.ndarray,
) -> dict[str, np.ndarray]:
  """The input of a network, see `models.mlp.MLP`."""
  users, movies = vocabulary
  movie = ratings.movie_id[rows]
  genres = ratings.genres[movie].astype(np.float32)
  return {
    'user': users[ratings.user_id[rows]],
    'movie': movies[movie],
    'title': words[movie],
    'genres': genres / np.maximum(genres.sum(axis=1, keepdims=True), 1),
  }


def _baselines(
  ratings: sources.Ratings, before_refit: Parts, chosen: Parts
) -> dict[str, dict[str, float]]:
  """Validation and test RMSE of two models without a network.

  `mean rating` predicts the mean of the training rows. `user+movie bias` adds
  a bias for each user and each movie, fitted by ridge regression; validation
  chooses the penalty.
  """

  def rmse(biases: _Biases, rows: np.ndarray) -> float:
    mean, user, movie = biases
    predicted = (
      mean + user[ratings.user_id[rows]] + movie[ratings.movie_id[rows]]
    )
    return float(np.sqrt(np.mean((predicted - ratings.rating[rows]) ** 2)))

  def validation(penalty: float | int) -> float:
    biases = _biases(ratings, before_refit.train, penalty)
    return rmse(biases, before_refit.validation)

  best = min(_PENALTIES, key=validation)
  # An infinite penalty leaves the mean alone.
  return {
    name: {
      'validation': validation(penalty),
      'test': rmse(_biases(ratings, chosen.train, penalty), chosen.test),
    }
    for name, penalty in (('mean rating', np.inf), ('user+movie bias', best))
  }


def _biases(
  ratings: sources.Ratings, rows: np.ndarray, penalty: float | int
) -> _Biases:
  """(mean, user biases, movie biases), by alternating ridge regression."""
  ids = (ratings.user_id[rows], ratings.movie_id[rows])
  sizes = (ratings.user_id.max() + 1, len(ratings.titles))
  mean = ratings.rating[rows].mean()
  biases = [np.zeros(size) for size in sizes]
  for _ in range(_SWEEPS):
    for own, other in ((1, 0), (0, 1)):
      residual = ratings.rating[rows] - mean - biases[other][ids[other]]
      total = np.bincount(ids[own], residual, minlength=sizes[own])
      count = np.bincount(ids[own], minlength=sizes[own])
      biases[own] = total / (count + penalty)
  user, movie = biases
  return mean, user, movie
