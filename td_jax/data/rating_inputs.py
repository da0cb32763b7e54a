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
    'movies': np.arange(len(ratings.titles)).astype(str)[1:],
    'movie_rows': _padded(vocabulary.movies, len(ratings.titles))[1:],
    'titles': np.asarray(ratings.titles[1:]),
    'words': facts.words[1:],
    'genres': facts.genres[1:],
  }


class Encoder:
  """Pairs of ids -> the inputs of a network; what is unknown, and titles."""

  blank: Pair = ('', '')  # A pair of nobody and nothing, for shapes.

  def __init__(self, kept: Mapping[str, np.ndarray]):
    """Takes the arrays that `keep` has made."""
    self._kept = kept
    self._users = dict(
      zip(kept['users'].tolist(), kept['user_rows'].tolist(), strict=True)
    )
    self._movies = {name: i for i, name in enumerate(kept['movies'].tolist())}

  def __call__(self, pairs: Sequence[Any]) -> types.PyTree:
    """Leaves [n, ...] of pairs [n]; ids may be text or numbers.

    Raises:
      errors.DataError: An example is no pair.
    """
    for pair in pairs:
      if isinstance(pair, str) or len(pair) != 2:
        raise errors.DataError(
          f'ratings are predicted for pairs of a user and a movie, such as '
          f"('1', '50'), and not for {pair!r}."
        )
    users = [str(user) for user, _ in pairs]
    movies = [str(movie) for _, movie in pairs]
    index = np.asarray([self._movies.get(movie, -1) for movie in movies])
    known = (index >= 0).astype(np.int32)
    return {
      'user': np.asarray([self._users.get(u, 0) for u in users], np.int32),
      'movie': self._kept['movie_rows'][index] * known,
      'title': self._kept['words'][index] * known[:, None],
      'genres': self._kept['genres'][index] * known[:, None].astype(np.float32),
    }

  def unknown(self, pair: Pair) -> list[str]:
    """Which ids of a pair no training example had: 'user', 'movie'."""
    user, movie = map(str, pair)
    index = self._movies.get(movie)
    return ['user'] * (user not in self._users) + ['movie'] * (
      index is None or not self._kept['movie_rows'][index]
    )

  def title(self, movie: Any) -> str:
    """The title of a movie; '' if there is no such movie."""
    index = self._movies.get(str(movie))
    return '' if index is None else str(self._kept['titles'][index])


def _padded(table: np.ndarray, length: int) -> np.ndarray:
  return np.pad(table, (0, length - len(table)))
