"""MovieLens: rating prediction for the movies of one genre (section 6.2).

Ratings are sorted by (timestamp, user, movie). The first 90% are for training
and the last 10% for testing, cut before any genre is selected. Validation is
the last 10% of the training part; with `config.refit_on_validation` the final
networks train on it too. `config.data.train_fraction` ends the training part
earlier, to validate on another window of time. A movie belongs to every genre
it lists.

Ids that do not occur in a network's own training rows share row 0, the unknown
row: 86% of the test rows have an id that the fitted rows never saw.
"""

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.configs import allowed
from td_jax.data import labels
from td_jax.data import ratings as ratings_lib
from td_jax.data import ratings_source
from td_jax.data import table as table_lib
from td_jax.data import table_task
from td_jax.data import task as task_lib

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
# Those of every version of MovieLens, as TFDS names them; '' stands for all.
_GENRE = allowed.one_of(
  (
    *(
      '',
      '(no genres listed)',
      'Animation',
      'Children',
      'Crime',
      'Documentary',
    ),
    *('Fantasy', 'Film-Noir', 'Horror', 'IMAX', 'Musical', 'Mystery'),
    *('Unknown', 'Western', *GENRES),
  )
)
ALLOWED = {
  'data.dataset': allowed.one_of(ratings_source.DATASETS),
  'data.dir': allowed.text(),
  'data.genre': _GENRE,
  'data.train_fraction': allowed.number(above=0, at_most=1),
  'data.labels.genre': _GENRE,
  **labels.keys(table_task.UNLABELLED),
  **table_task.ALLOWED,
}


def check(config: types.Config) -> None:
  """Raises a ConfigError for settings that cannot work."""
  table_task.check(config)


def use_all_genres(config: types.Config) -> None:
  """Makes the run of `config` use the ratings of all genres."""
  table_task.use_all_tasks(config, 'genre')


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
  genre = config.data.genre
  return table_task.task(
    config,
    table(ratings),
    table_task.Selection(
      name=genre or 'all genres',
      rows=_of_genre(ratings, genre),
      hideable=_of_genre(ratings, config.data.labels.genre or genre),
      whose=f'of {config.data.dataset} with config.data.genre={genre!r}; dense '
      f'genres are {", ".join(GENRES)}',
    ),
    cuts=table_task.Cuts(fraction=config.data.train_fraction),
    standardise=False,
    metadata={'genre': genre},
  )


def table(ratings: ratings_lib.Ratings) -> table_lib.Table:
  """The ratings as a table, whose items are movies with titles and genres."""
  users = range(1, int(ratings.user_id.max()) + 1)
  return table_lib.Table(
    ids={table_lib.USER: ratings.user_id, table_lib.ITEM: ratings.movie_id},
    names={
      table_lib.USER: ('', *map(str, users)),
      table_lib.ITEM: ('', *map(str, range(1, len(ratings.titles)))),
    },
    numbers=np.zeros((len(ratings.rating), 0), np.float32),
    target=ratings.rating,
    fingerprint=ratings.fingerprint,
    columns={table_lib.USER: 'user', table_lib.ITEM: 'movie'},
    titles=ratings.titles,
    tags=ratings.genres,
  )


def parts(
  ratings: ratings_lib.Ratings, genre: str = '', *, train_fraction: float = 1.0
) -> table_task.Parts:
  """Cuts the ratings by time, then selects the rows of `genre` ('': all).

  The training part ends after its first `train_fraction`.
  """
  return table_task.parts(
    len(ratings.rating),
    _of_genre(ratings, genre),
    table_task.Cuts(fraction=train_fraction),
  )


def _of_genre(ratings: ratings_lib.Ratings, genre: str) -> np.ndarray:
  """bool [N]: the ratings of a genre's movies; '' stands for all."""
  if not genre:
    return np.ones(len(ratings.rating), bool)
  errors.choose('config.data.genre', genre, ratings.genre_names)
  return ratings.genres[ratings.movie_id, ratings.genre_names.index(genre)]
