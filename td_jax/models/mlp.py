"""The paper's recommender: embeddings, then an MLP (section 6.2).

The input is 300 wide: 100 for the user, 100 for the movie, 50 for the words of
its title and 50 for its genres, both as bags. Layer i is H_i of section 3.1.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp

from td_jax import errors
from td_jax import types
from td_jax.models import layers
from td_jax.models import split as split_lib

UNKNOWN = 0  # Id of users and movies without a rating in training.
PADDING = 0  # Fills the places of a title after its last word.


def check(name: str, settings: Any, inputs: Mapping[str, Any]) -> None:
  """Raises a ConfigError for settings of `MLP` that cannot work."""
  del inputs  # An MLP does not depend on the sizes of its inputs.
  split_lib.check(f'{name}.split', settings.split, len(settings.hidden) + 1)
  for rate in ('dropout', 'unknown_rate'):
    errors.check_rate(f'{name}.{rate}', settings[rate])


def token_axes(settings: Any, inputs: Mapping[str, Any]) -> tuple[int, ...]:
  """The token axes of the states: none, they are [b, d]."""
  del settings, inputs  # They are the same for every MLP.
  return ()


class MLP(nn.Module):
  """A `split.Network` that predicts ratings: ReLU layers, then one number.

  `x` has `user` int [b], `movie` int [b] (0 is unknown), `title` int [b, w]
  (0 is padding) and `genres` float [b, g] (rows sum to 1).
  """

  users: int  # Rows of the user table, including the unknown user.
  movies: int  # Rows of the movie table, including the unknown movie.
  words: int  # Rows of the word table, including padding.
  hidden: tuple[int, ...]  # Widths of the ReLU layers.
  split: tuple[int, int]  # (l, h) of section 3.1.
  dropout: float  # Rate on the input of every layer except the first.
  unknown_rate: float  # Rate at which training replaces an id by UNKNOWN.
  mean: float  # Initial bias of the output: the mean rating.
  id_width: int = 100
  bag_width: int = 50

  def setup(self) -> None:
    # Checkpoints contain these attributes' names. `drop` has no parameters,
    # but its name enters the random keys of dropout.
    self.user = nn.Embed(self.users, self.id_width)
    self.movie = nn.Embed(self.movies, self.id_width)
    self.title = nn.Embed(self.words, self.bag_width)
    self.genres = nn.Dense(self.bag_width, use_bias=False)
    self.layers = [nn.Dense(width) for width in self.hidden]
    self.head = nn.Dense(1, bias_init=nn.initializers.constant(self.mean))
    self.drop = layers.Dropout(self.dropout)

  def __call__(
    self, x: Mapping[str, types.Array], *, train: bool
  ) -> tuple[split_lib.Low, split_lib.High, types.PerExample]:
    """Returns (low, high, output) for inputs `x`."""
    return split_lib.forward(self, x, train=train)

  def low(self, x: Mapping[str, types.Array], *, train: bool) -> split_lib.Low:
    """H[1..l](x): [b, d]."""
    first, *rest = self.layers[: self.split[0]]
    return self._run(rest, nn.relu(first(self._embed(x, train))), train)

  def interpret(self, low: split_lib.Low, *, train: bool) -> split_lib.High:
    """H[l+1..h](low): [b, d]."""
    return self._run(self.layers[slice(*self.split)], low, train)

  def output(self, high: split_lib.High, *, train: bool) -> types.PerExample:
    """H[h+1..n](high): ratings [b]."""
    high = self._run(self.layers[self.split[1] :], high, train)
    return self.head(self.drop(high, deterministic=not train))[:, 0]

  def _run(
    self, layers: Sequence[nn.Module], hidden: types.Array, train: bool
  ) -> types.Array:
    for layer in layers:
      hidden = nn.relu(layer(self.drop(hidden, deterministic=not train)))
    return hidden

  def _embed(self, x: Mapping[str, types.Array], train: bool) -> types.Hidden:
    user, movie = x['user'], x['movie']
    if train and self.unknown_rate:
      # Ids are hidden at random so that the UNKNOWN rows are trained too, to
      # predict well when only the other inputs are informative. Users and
      # movies are hidden independently of each other.
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


def _mean_of_words(table: types.Array, words: types.Array) -> types.Array:
  """Mean [b, d] of the rows of `words` [b, w]; 0 for a title without words."""
  is_word = (words != PADDING).astype(table.dtype)
  share = is_word / jnp.maximum(jnp.sum(is_word, axis=1, keepdims=True), 1)
  return _weighted_rows(table, words, share)


@jax.custom_vjp
def _weighted_rows(table: types.Array, words: types.Array, share: types.Array):
  """Sum over w of share [b, w] times the rows [d] of `words` [b, w]: [b, d]."""
  # This adds word by word because on a CPU one sum over the middle axis of
  # [b, w, d] takes twice as long as the rest of the training step.
  return sum(
    table[words[:, w]] * share[:, w, None] for w in range(words.shape[1])
  )


def _weighted_rows_forward(
  table: types.Array, words: types.Array, share: types.Array
) -> tuple[types.Array, tuple[types.Array, types.Array, types.Array]]:
  return _weighted_rows(table, words, share), (table, words, share)


def _weighted_rows_backward(
  residuals: tuple[types.Array, types.Array, types.Array], grad: types.Array
) -> tuple[types.Array, None, None]:
  # JAX's own gradient of the sum above would make a whole table for each word
  # and add the tables up. One scatter-add makes a single table.
  table, words, share = residuals
  each = grad[:, None] * share[..., None]  # [b, w, d]
  return jnp.zeros_like(table).at[words].add(each), None, None


_weighted_rows.defvjp(_weighted_rows_forward, _weighted_rows_backward)
