"""From the ids of a user and a movie to the inputs of a network.

A batch stores table rows, and the compiled step adds the words and genres of the
movie. After training the same is done for ids that the run's folder names: `keep`
makes the arrays that go there, and `Encoder` reads them.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import Any
from typing import NamedTuple

from jax import numpy as jnp
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import feed
from td_jax.data import ratings as ratings_lib

Pair = tuple[Any, Any]  # The ids of a user and a movie.


class Vocabulary(NamedTuple):
  """The table row of each id; 0, the unknown row, for ids never trained on."""

  users: np.ndarray  # int32 [U]
  movies: np.ndarray  # int32 [M]


class Facts(NamedTuple):
  """What networks read of a movie, known or not. M movies."""

  words: np.ndarray  # int32 [M, w]: the words of its title; 0 is padding.
  genres: np.ndarray  # float32 [M, g]; rows sum to 1, or to 0 without a genre.


def facts(ratings: ratings_lib.Ratings, rows: np.ndarray) -> Facts:
  """The facts of all movies; the vocabulary is that of the movies in `rows`.

  The year of a title is a word, too.
  """
  titles = [re.findall(r"[\w']+", title.lower()) for title in ratings.titles]
  known = np.unique(ratings.movie_id[rows])
  vocabulary = sorted({word for movie in known for word in titles[movie]})
  number = {word: i + 1 for i, word in enumerate(vocabulary)}
  words = np.zeros((len(titles), max(map(len, titles))), np.int32)
  for movie, title in enumerate(titles):
    numbers = [number[word] for word in title if word in number]
    words[movie, : len(numbers)] = numbers
  shares = ratings.genres.astype(np.float32)
  shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1)
  return Facts(words, shares)


def make_batch(facts: Facts) -> feed.MakeBatch:
  """Adds the movies' titles and genres to a batch, see `models.mlp.MLP`."""

  def whole(x: types.PyTree) -> types.PyTree:
    title, genres = (
      jnp.asarray(table).at[x['facts']].get(mode='promise_in_bounds')
      for table in facts
    )
    return {
      'user': x['user'],
      'movie': x['movie'],
      'title': title,
      'genres': genres,
    }

  def make(
    columns: types.PyTree, ids: types.PyTree, key: types.Key | None
  ) -> types.Batch:
    batch = feed.take(columns, ids, key)
    return batch._replace(
      x=whole(batch.x),
      teacher_x={name: whole(x) for name, x in batch.teacher_x.items()},
    )

  return make


def keep(
  ratings: ratings_lib.Ratings, vocabulary: Vocabulary, facts: Facts
) -> dict[str, np.ndarray]:
  """The arrays that `Encoder` needs, by name.

  Users that are not in the vocabulary are left out. Movies that are not still
  have a title and genres.
  """
  users = np.flatnonzero(vocabulary.users)
  return {
    'users': users.astype(str),
    'user_rows': vocabulary.users[users],
    # Number 0 is a movie of which nothing is known, as in `Ratings`.
    'movies': np.asarray(['', *map(str, range(1, len(ratings.titles)))]),
    'movie_rows': _padded(vocabulary.movies, len(ratings.titles)),
    'titles': np.asarray(ratings.titles),
    'words': facts.words,
    'genres': facts.genres,
  }


class Encoder:
  """Pairs of ids -> the inputs of a network; what is unknown, and titles."""

  blank: Pair = ('', '')  # A pair of nobody and nothing, for shapes.

  def __init__(self, kept: Mapping[str, np.ndarray]):
    """Takes the arrays that `keep` has made."""
    self._users = dict(
      zip(kept['users'].tolist(), kept['user_rows'].tolist(), strict=True)
    )
    self._movies = {name: i for i, name in enumerate(kept['movies'].tolist())}
    self._titles = kept['titles']
    self._tables = {
      'movie': kept['movie_rows'],
      'title': kept['words'],
      'genres': kept['genres'],
    }

  def __call__(self, pairs: Sequence[Any]) -> types.PyTree:
    """Leaves [n, ...] of pairs [n]; ids may be text or numbers.

    Raises:
      errors.DataError: An example is no pair.
    """
    return self.inside(self.arrays(pairs))

  def arrays(self, pairs: Sequence[Any]) -> dict[str, np.ndarray]:
    """What the host makes of pairs: numbers, `user` and `movie`, int32 [n]."""
    for pair in pairs:
      if isinstance(pair, str) or len(pair) != 2:
        raise errors.DataError(
          f'ratings are predicted for pairs of a user and a movie, such as '
          f"('1', '50'), and not for {pair!r}."
        )
    users = [self._users.get(str(user), 0) for user, _ in pairs]
    movies = [self._movies.get(str(movie), 0) for _, movie in pairs]
    return {
      'user': np.asarray(users, np.int32),
      'movie': np.asarray(movies, np.int32),
    }

  def inside(self, arrays: Mapping[str, Any]) -> types.PyTree:
    """What a compiled program makes of them: the input of a network."""
    return {'user': jnp.asarray(arrays['user'])} | {
      name: jnp.asarray(table)[arrays['movie']]
      for name, table in self._tables.items()
    }

  @property
  def numbers(self) -> dict[str, dict[str, int]]:
    """{'user': {id: number}, 'movie': {id: number}}; others have number 0."""
    return {'user': self._users, 'movie': self._movies}

  def unknown(self, pair: Pair) -> list[str]:
    """Which ids of a pair no training example had: 'user', 'movie'."""
    user, movie = map(str, pair)
    rows = {
      'user': self._users.get(user, 0),
      'movie': self._tables['movie'][self._movies.get(movie, 0)],
    }
    return [name for name, row in rows.items() if not row]

  def title(self, movie: Any) -> str:
    """The title of a movie; '' if there is no such movie."""
    return str(self._titles[self._movies.get(str(movie), 0)])


def _padded(table: np.ndarray, length: int) -> np.ndarray:
  return np.pad(table, (0, length - len(table)))
