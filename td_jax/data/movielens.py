"""MovieLens-100K: rating prediction for the movies of one genre (section 6.2).

Ratings come sorted by (timestamp, user, movie). The first 90% are for training,
the last 10% for the test, cut before any choice of genre; validation is the
last 10% of the training part, and is trained on too where `config.refit_on_validation` says
so. `config.data.train_fraction` ends the training part earlier, to validate on another
time. A movie belongs to every genre it lists.

An id that the network's own training rows do not hold is row 0, the unknown
one: 86% of the test rows have an id never seen in the fitted rows.
"""

import re
from typing import NamedTuple

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import feed
from td_jax.data import sources
from td_jax.data import task

# The 8 with most training ratings, densest first: the paper's Genre 1 to 8.
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
TRAIN, FIT = 0.9, 0.9  # Of all ratings; of those, for fitting.


class Parts(NamedTuple):
  """Row numbers, in the order of time."""

  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray


def check(config: types.Config) -> None:
  """Raises a ConfigError; a genre is looked up in the data, later."""
  train_fraction = config.data.train_fraction
  if not 0 < train_fraction <= 1:
    raise errors.ConfigError(
      f'config.data.train_fraction is {train_fraction}; it is a share of the training ratings, '
      'above 0 and at most 1.'
    )


def load(config: types.Config, *, log=print) -> task.Task:
  """The task of `config.data`: all genres, or one.

  Raises:
    errors.ConfigError: no such genre.
    errors.DataError: the dataset cannot be had, or a split is empty.
  """
  ratings = sources.movielens_100k(config.data.dir, log=log)
  genre = config.data.genre
  everything = parts(ratings, train_fraction=config.data.train_fraction)
  selecting = parts(ratings, genre, train_fraction=config.data.train_fraction)
  for name, rows in selecting._asdict().items():
    if not len(rows):
      raise errors.DataError(
        f'MovieLens has no {name} rows for config.data.genre={genre!r}; '
        f'dense genres are {", ".join(GENRES)}.'
      )
  chosen = selecting
  if config.refit_on_validation:
    everything, chosen = _refit(everything), _refit(selecting)
  student = _vocabulary(ratings, chosen.train)
  teacher = _vocabulary(ratings, everything.train)
  words = _words(ratings, everything.train)

  def split(part):
    rows = getattr(chosen, part)
    batch = types.Batch(
      x=_features(ratings, rows, student, words),
      teacher_x=_features(ratings, rows, teacher, words),
      y=ratings.rating[rows],
      mask=np.ones(len(rows), np.float32),
    )
    # As long for every genre: then their programs are one, compiled once.
    return feed.padded(batch, len(getattr(everything, part)))

  return task.Task(
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
    task_loss='squared_error',
    metric='rmse',
    fingerprint=ratings.fingerprint,
    baselines=lambda: _baselines(ratings, selecting, chosen),
  )


def parts(
  ratings: sources.Ratings, genre: str = '', *, train_fraction: float = 1.0
) -> Parts:
  """Cuts ratings by time, then keeps the rows of `genre` ('': all).

  Of the training part only the first share `train_fraction` is there.
  """
  test = int(len(ratings.rating) * TRAIN)
  end = int(test * train_fraction)
  fit = int(end * FIT)
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


def _refit(chosen):
  """Validation rows become training rows."""
  return chosen._replace(
    train=np.concatenate([chosen.train, chosen.validation]),
    validation=chosen.validation[:0],
  )


def _vocabulary(ratings, rows):
  """(users, movies): for each id its row of the tables, 0 if not in `rows`."""
  tables = []
  for ids in (ratings.user_id, ratings.movie_id):
    table = np.zeros(ids.max() + 1, np.int32)
    known = np.unique(ids[rows])
    table[known] = known
    tables.append(table)
  return tables


def _words(ratings, rows):
  """Words of every movie's title, int32 [movies, w]; 0 is none.

  The vocabulary is that of the movies in `rows`; the year is a word too.
  """
  titles = [re.findall(r"[\w']+", title.lower()) for title in ratings.titles]
  known = np.unique(ratings.movie_id[rows])
  vocabulary = sorted({word for movie in known for word in titles[movie]})
  number = {word: i + 1 for i, word in enumerate(vocabulary)}
  table = np.zeros((len(titles), max(map(len, titles))), np.int32)
  for movie, title in enumerate(titles):
    found = [number[word] for word in title if word in number]
    table[movie, : len(found)] = found
  return table


def _features(ratings, rows, vocabulary, words):
  users, movies = vocabulary
  movie = ratings.movie_id[rows]
  genres = ratings.genres[movie].astype(np.float32)
  return {
    'user': users[ratings.user_id[rows]],
    'movie': movies[movie],
    'title': words[movie],
    'genres': genres / np.maximum(genres.sum(axis=1, keepdims=True), 1),
  }


def _baselines(ratings, selecting, chosen):
  """Validation and test RMSE of two models that need no network.

  `mean rating` answers the mean of the training rows. `user+movie bias` adds a
  bias a user and a bias a movie, fitted by ridge regression whose penalty is
  chosen on validation.
  """

  def rmse(fit, rows):
    mean, user, movie = fit
    guess = mean + user[ratings.user_id[rows]] + movie[ratings.movie_id[rows]]
    return float(np.sqrt(np.mean((guess - ratings.rating[rows]) ** 2)))

  def validation(penalty):
    fit = _biases(ratings, selecting.train, penalty)
    return rmse(fit, selecting.validation)

  best = min((0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30), key=validation)
  # Without biases to speak of, the mean is left.
  return {
    name: {
      'validation': validation(penalty),
      'test': rmse(_biases(ratings, chosen.train, penalty), chosen.test),
    }
    for name, penalty in (('mean rating', np.inf), ('user+movie bias', best))
  }


def _biases(ratings, rows, penalty, sweeps=30):
  """(mean, user, movie): ridge regression of the rating, by turns."""
  ids = (ratings.user_id[rows], ratings.movie_id[rows])
  sizes = (ratings.user_id.max() + 1, len(ratings.titles))
  mean = ratings.rating[rows].mean()
  biases = [np.zeros(size) for size in sizes]
  for _ in range(sweeps):
    for own, other in ((1, 0), (0, 1)):
      rest = ratings.rating[rows] - mean - biases[other][ids[other]]
      total = np.bincount(ids[own], rest, minlength=sizes[own])
      count = np.bincount(ids[own], minlength=sizes[own])
      biases[own] = total / (count + penalty)
  return mean, *biases
