"""The paper's recommender: embeddings, then an MLP (section 6.2).

The input is 300 wide: 100 for the user, 100 for the movie, 50 for the words of
its title and 50 for its genres, both as bags. Layer i is H_i of section 3.1.
"""

from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp

from td_jax import errors
from td_jax import types
from td_jax.models import layers
from td_jax.models import split

UNKNOWN = 0  # The row of users and movies that were not seen in training.
PADDING = 0  # The word that is none.


def check(name: str, settings: Any) -> None:
  """Raises a ConfigError for settings of `MLP` that cannot work."""
  split.check(f'{name}.split', settings.split, len(settings.hidden) + 1)
  for rate in ('dropout', 'unknown_rate'):
    errors.check_rate(f'{name}.{rate}', settings[rate])


class MLP(nn.Module):
  """Ratings from ids and bags; ReLU layers, then one number.

  `x` has `user` int [b], `movie` int [b] (0 is unknown), `title` int [b, w]
  (0 is padding) and `genres` float [b, g] (rows sum to 1).
  """

  users: int  # Rows of the tables, the unknown one included.
  movies: int
  words: int
  hidden: tuple[int, ...]  # Widths of the ReLU layers.
  split: tuple[int, int]  # (l, h) of section 3.1.
  dropout: float  # On what enters every layer but the first.
  unknown_rate: float  # Chance of an id to be hidden, in training.
  mean: float  # The output's initial bias: the mean rating.
  id_width: int = 100
  bag_width: int = 50

  def setup(self):
    self.user = nn.Embed(self.users, self.id_width)
    self.movie = nn.Embed(self.movies, self.id_width)
    self.title = nn.Embed(self.words, self.bag_width)
    self.genres = nn.Dense(self.bag_width, use_bias=False)
    self.layers = [nn.Dense(width) for width in self.hidden]
    self.head = nn.Dense(1, bias_init=nn.initializers.constant(self.mean))
    self.drop = layers.Dropout(self.dropout)

  def __call__(self, x, *, train: bool):
    """Returns (low, high, output) for inputs `x`."""
    low = self.low(x, train=train)
    high = self.interpret(low, train=train)
    return low, high, self.output(high, train=train)

  def low(self, x, *, train: bool) -> types.Hidden:
    """H[1..l](x)."""
    first, *rest = self.layers[: self.split[0]]
    return self._run(rest, nn.relu(first(self._embed(x, train))), train)

  def interpret(self, low, *, train: bool) -> types.Hidden:
    """H[l+1..h](low)."""
    return self._run(self.layers[slice(*self.split)], low, train)

  def output(self, high, *, train: bool) -> types.PerExample:
    """H[h+1..n](high): ratings [b]."""
    high = self._run(self.layers[self.split[1] :], high, train)
    return self.head(self.drop(high, deterministic=not train))[:, 0]

  def _run(self, layers, hidden, train):
    for layer in layers:
      hidden = nn.relu(layer(self.drop(hidden, deterministic=not train)))
    return hidden

  def _embed(self, x, train):
    user, movie = x['user'], x['movie']
    if train and self.unknown_rate:
      # So the unknown rows learn what is left when an id says nothing.
      hide = layers.chance(
        self.make_rng('dropout'), self.unknown_rate, (2, len(user))
      )
      user = jnp.where(hide[0], UNKNOWN, user)
      movie = jnp.where(hide[1], UNKNOWN, movie)
    return jnp.concatenate(
      [
        self.user.embedding[user],
        self.movie.embedding[movie],
        _mean_of_words(self.title.embedding, x['title']),
        self.genres(x['genres']),
      ],
      axis=-1,
    )


def _mean_of_words(table, words):
  """Mean of the rows [b, d] that `words` [b, w] name; 0 where it has none."""
  is_word = (words != PADDING).astype(table.dtype)
  share = is_word / jnp.maximum(jnp.sum(is_word, axis=1, keepdims=True), 1)
  return _weighted_rows(table, words, share)


@jax.custom_vjp
def _weighted_rows(table, words, share):
  """Sum over w of share [b, w] times the rows [d] of `words` [b, w]: [b, d]."""
  # Word by word: a sum over the middle axis of [b, w, d] takes twice as long
  # as the rest of the step on a CPU.
  return sum(
    table[words[:, w]] * share[:, w, None] for w in range(words.shape[1])
  )


def _weighted_rows_forward(table, words, share):
  return _weighted_rows(table, words, share), (table, words, share)


def _weighted_rows_backward(saved, grad):
  # By itself JAX would add the words up in a table each.
  table, words, share = saved
  each = grad[:, None] * share[..., None]  # [b, w, d]
  return jnp.zeros_like(table).at[words].add(each), None, None


_weighted_rows.defvjp(_weighted_rows_forward, _weighted_rows_backward)
