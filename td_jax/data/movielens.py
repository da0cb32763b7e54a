"""MovieLens: rating prediction for the movies of one genre (section 6.2).

Ratings are sorted by (timestamp, user, movie). The first 90% are for training
and the last 10% for testing, cut before any genre is selected. Validation is
the last 10% of the training part; with `config.refit_on_validation` the final
networks train on it too. `config.data.train_fraction` ends the training part
earlier, to validate on another window of time. A movie belongs to every genre
it lists.

Ids that do not occur in a network's own training rows share row 0, the unknown
row: 86% of the test rows have an id that the fitted rows never saw.

`config.data.labels` hides ratings of the training part from the students, and
with `config.teacher.labels='kept'` from the teacher too. Validation keeps all
of its ratings. `config.data.unlabelled` lets students see pairs of user and
movie without a rating: the pairs of the hidden ratings, or random pairs.
"""

from typing import NamedTuple

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import feed
from td_jax.data import labels
from td_jax.data import rating_inputs
from td_jax.data import ratings as ratings_lib
from td_jax.data import ratings_source
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
# Whose labels a teacher of our own learns from: all ratings, as in the paper, or
# the kept ones alone.
TEACHER_LABELS = ('all', 'kept')
_UNLABELLED = ('none', 'rest', 'pairs')
_PAIRS_STREAM = 1  # Separates the draw of pairs from that of labels.


class Parts(NamedTuple):
  """Row numbers of the three splits, in the order of time."""

  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray


def check(config: types.Config) -> None:
  """Raises a ConfigError; genres are checked against the data, later."""
  errors.choose(
    'config.data.dataset', config.data.dataset, ratings_source.DATASETS
  )
  fraction = config.data.train_fraction
  if not 0 < fraction <= 1:
    raise errors.ConfigError(
      f'config.data.train_fraction is {fraction}; it is a share of the '
      'training ratings, above 0 and at most 1.'
    )
  labels.check(config.data, _UNLABELLED)
  errors.choose('config.teacher.labels', config.teacher.labels, TEACHER_LABELS)
  if (
    config.method == types.TEACHER
    and config.data.labels.share < 1
    and config.teacher.labels == 'all'
  ):
    raise errors.ConfigError(
      f'config.data.labels.share is {config.data.labels.share}, but '
      "config.teacher.labels='all' gives a teacher all labels; choose 'kept'."
    )
  if config.data.unlabelled.pairs < 0:
    raise errors.ConfigError(
      f'config.data.unlabelled.pairs is {config.data.unlabelled.pairs}; it must '
      'be at least 1, or 0 for as many as there are training ratings.'
    )


def use_all_genres(config: types.Config) -> None:
  """Makes the run of `config` use the ratings of all genres.

  With `teacher.labels='kept'` those that are hidden in its genre stay hidden.
  """
  hides = config.teacher.labels == 'kept' and config.data.labels.share < 1
  if hides:
    config.data.labels.genre = config.data.labels.genre or config.data.genre
  else:
    config.data.labels.share = 1.0
  config.data.genre = ''


def read(
  config: types.Config, *, log: types.Log = print
) -> ratings_lib.Ratings:
  """Reads all ratings.

  Raises:
    errors.DataError: The dataset cannot be obtained.
  """
  return ratings_source.load(config.data.dataset, config.data.dir, log=log)


def load(config: types.Config, *, log: types.Log = print) -> task_lib.Task:
  """Reads the ratings and makes the task of `config`."""
  return task(config, read(config, log=log))


def task(config: types.Config, ratings: ratings_lib.Ratings) -> task_lib.Task:
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
        f'{config.data.dataset} has no {name} rows for config.data.genre={genre!r}; '
        f'dense genres are {", ".join(GENRES)}.'
      )
  chosen = before_refit
  if config.refit_on_validation:
    all_genres, chosen = _refit(all_genres), _refit(before_refit)
  hidden = _hidden(config, ratings)
  kept, seen_by_teacher = _without(chosen, hidden), all_genres
  if config.teacher.labels == 'kept':
    seen_by_teacher = _without(all_genres, hidden)
  if not len(kept.train):
    raise errors.DataError(
      f'config.data.labels.share={config.data.labels.share} keeps none of the '
      f'{len(chosen.train)} training ratings of {genre or "all genres"}.'
    )
  pairs = _unlabelled_pairs(config, ratings, chosen.train, kept.train)
  student = _vocabulary(ratings, _pairs_of(ratings, kept.train), *pairs)
  # The teacher has trained on all genres, so it knows more ids.
  teacher = _vocabulary(ratings, _pairs_of(ratings, seen_by_teacher.train))
  facts = rating_inputs.facts(ratings, all_genres.train)

  def columns(pairs: _Pairs, rating: np.ndarray) -> types.Batch:
    return types.Batch(
      x=_ids(pairs, student),
      teacher_x={types.TEACHER: _ids(pairs, teacher)},
      y=rating,
      mask=np.ones(len(rating), np.float32),
    )

  def split(name: str) -> types.Batch:
    rows = getattr(kept, name)
    return columns(_pairs_of(ratings, rows), ratings.rating[rows])

  # All genres and shares of labels are padded to one length, so that they share
  # one compiled program.
  longest = {name: len(rows) for name, rows in all_genres._asdict().items()}
  train, unlabelled = split('train'), None
  if not pairs:
    train = feed.padded(train, longest['train'])
  for each in pairs:
    total = longest['train']
    if config.data.unlabelled.source == 'pairs':
      total += max(total, len(each.user))
    batch = columns(each, np.zeros(len(each.user), np.float32))
    unlabelled = feed.Unlabelled(
      feed.padded(batch, total - len(kept.train)), config.data.unlabelled.share
    )
  return task_lib.Task(
    name=genre or 'all genres',
    metadata={
      'genre': genre,
      'labels': len(kept.train),
      'unlabelled': sum(len(each.user) for each in pairs),
    },
    train=train,
    validation=None
    if config.refit_on_validation
    else feed.padded(split('validation'), longest['validation']),
    test=feed.padded(split('test'), longest['test']),
    unlabelled=unlabelled,
    make_batch=rating_inputs.make_batch(facts),
    model_args={
      'users': int(ratings.user_id.max()) + 1,
      'movies': len(ratings.titles),
      'words': int(facts.words.max()) + 1,
      'mean': float(ratings.rating[kept.train].mean()),
    },
    task_loss=TASK_LOSS,
    metric='rmse',
    fingerprint=ratings.fingerprint,
    baselines=lambda: _baselines(ratings, _without(before_refit, hidden), kept),
    inputs=lambda: rating_inputs.keep(ratings, student, facts),
  )


def parts(
  ratings: ratings_lib.Ratings, genre: str = '', *, train_fraction: float = 1.0
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


def _hidden(config: types.Config, ratings: ratings_lib.Ratings) -> np.ndarray:
  """bool [N]: the training ratings that `config.data.labels` hides.

  Each split keeps its share on its own, so that a refit hides the same ratings
  as the run before it. A smaller share is a subset of a larger one.
  """
  data = config.data
  hidden = np.zeros(len(ratings.rating), bool)
  order = np.random.default_rng(data.labels.draw).random(len(hidden))
  part = parts(
    ratings,
    data.labels.genre or data.genre,
    train_fraction=data.train_fraction,
  )
  # Without a refit the ratings of the validation split only judge.
  for rows in (part.train, part.validation):
    ranked = rows[np.argsort(order[rows])]
    hidden[ranked[round(data.labels.share * len(rows)) :]] = True
  return hidden


def _without(parts: Parts, hidden: np.ndarray) -> Parts:
  """Leaves out the hidden rows of the training split."""
  return parts._replace(train=parts.train[~hidden[parts.train]])


class _Pairs(NamedTuple):
  """Pairs of a user and a movie, int32 [n] each."""

  user: np.ndarray
  movie: np.ndarray


def _pairs_of(ratings: ratings_lib.Ratings, rows: np.ndarray) -> _Pairs:
  return _Pairs(ratings.user_id[rows], ratings.movie_id[rows])


def _unlabelled_pairs(
  config: types.Config,
  ratings: ratings_lib.Ratings,
  seen: np.ndarray,
  kept: np.ndarray,
) -> list[_Pairs]:
  """[the pairs that students see without a rating], or []."""
  settings = config.data.unlabelled
  if settings.source == 'none':
    return []
  if settings.source == 'rest':
    rest = np.setdiff1d(seen, kept)
    if not len(rest):
      raise errors.ConfigError(
        "config.data.unlabelled.source is 'rest', but config.data.labels.share "
        f'is {config.data.labels.share}, which hides no rating; choose '
        "'pairs', or a smaller share."
      )
    return [_pairs_of(ratings, rest)]
  rng = np.random.default_rng((config.data.labels.draw, _PAIRS_STREAM))
  count = settings.pairs or len(seen)
  known = _pairs_of(ratings, seen)
  return [_Pairs(*(rng.choice(np.unique(ids), count) for ids in known))]


def _vocabulary(
  ratings: ratings_lib.Ratings, *known: _Pairs
) -> rating_inputs.Vocabulary:
  """The ids in `known`, which keep their numbers as rows."""
  tables = []
  for field, ids in enumerate((ratings.user_id, ratings.movie_id)):
    table = np.zeros(ids.max() + 1, np.int32)
    for pairs in known:
      table[pairs[field]] = pairs[field]
    tables.append(table)
  return rating_inputs.Vocabulary(*tables)


def _ids(
  pairs: _Pairs, vocabulary: rating_inputs.Vocabulary
) -> dict[str, np.ndarray]:
  """What is stored of each example: 12 bytes for each network."""
  return {
    'user': vocabulary.users[pairs.user],
    'movie': vocabulary.movies[pairs.movie],
    'facts': pairs.movie.astype(np.int32),  # A row of the movies' table.
  }


def _baselines(
  ratings: ratings_lib.Ratings, before_refit: Parts, chosen: Parts
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
  ratings: ratings_lib.Ratings, rows: np.ndarray, penalty: float | int
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
