"""The paper's recommender: embeddings, then an MLP (section 6.2).

The input of the paper is 300 wide: 100 for the user, 100 for the movie, 50 for the
words of its title and 50 for its genres, both as bags. Other tables may lack any of
them, and add categories and numbers. Layer i is H_i of section 3.1.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp

from td_jax import types
from td_jax.configs import allowed
from td_jax.models import layers
from td_jax.models import split as split_lib

UNKNOWN = 0  # The row shared by users and movies not seen in training.
PADDING = 0  # Fills up titles that have fewer words.
ALLOWED = {
  'hidden': allowed.several(
    allowed.WIDTH,
    f'the widths of the layers, whole numbers from 1 to {allowed.WIDEST}, such '
    'as (128, 64)',
  ),
  'split': allowed.SPLIT,
  'dropout': allowed.RATE,
  'unknown_rate': allowed.RATE,
}


def check(field: str, settings: Any, inputs: Mapping[str, Any]) -> None:
  """Raises a ConfigError for settings of `MLP` that cannot work."""
  del inputs  # Any table of ratings will do.
  allowed.check_all(field, settings, ALLOWED)
  split_lib.check(f'{field}.split', settings.split, len(settings.hidden) + 1)


def tokens(settings: Any, inputs: Mapping[str, Any]) -> tuple[int, ...]:
  """The token axes of the states: none."""
  del settings, inputs
  return ()


class MLP(split_lib.Network):
  """Ratings, or classes, from ids, bags and numbers; ReLU layers.

  `x` has, as far as they exist, `user` int [b], `movie` int [b] and `category_0`, ...
  int [b] (0 is unknown), `title` int [b, w] (0 is padding), `genres` float [b, g]
  (rows sum to 1) and `numbers` float [b, f].
  """

  hidden: tuple[int, ...]  # Widths of the ReLU layers.
  split: tuple[int, int]  # (l, h) of section 3.1.
  dropout: float  # On the input of every layer but the first.
  unknown_rate: float  # Chance to replace an id by `UNKNOWN` in training.
  # Rows of the tables, including the unknown one; 0: there is none.
  users: int = 0
  movies: int = 0
  words: int = 0
  categories: tuple[int, ...] = ()
  tagged: bool = True  # Whether `x` has genres.
  classes: int = 0  # Width of the output; 0: one number.
  mean: float = 0.0  # The initial output: the mean rating.
  unit: float = 1.0  # What the last layer's output is multiplied by.
  id_width: int = 100
  bag_width: int = 50

  def setup(self):
    if self.users:
      self.user = nn.Embed(self.users, self.id_width)
    if self.movies:
      self.movie = nn.Embed(self.movies, self.id_width)
    # A table of a few values needs no wide rows.
    self.category = [
      nn.Embed(rows, min(rows, self.id_width)) for rows in self.categories
    ]
    if self.words:
      self.title = nn.Embed(self.words, self.bag_width)
    if self.tagged:
      self.genres = nn.Dense(self.bag_width, use_bias=False)
    self.layers = [nn.Dense(width) for width in self.hidden]
    self.head = nn.Dense(
      self.classes or 1,
      bias_init=nn.initializers.constant(self.mean / self.unit),
    )
    self.drop = layers.Dropout(self.dropout)

  def low(self, x: types.PyTree, *, train: bool) -> types.Hidden:
    """`H[1..l](x)`."""
    first, *rest = self.layers[: self.split[0]]
    return self._run(rest, nn.relu(first(self._embed(x, train))), train)

  def interpret(self, low: types.Array, *, train: bool) -> types.Hidden:
    """`H[l+1..h](low)`."""
    return self._run(self.layers[slice(*self.split)], low, train)

  def output(self, high: types.Hidden, *, train: bool) -> types.Array:
    """`H[h+1..n](high)`: ratings [b], or logits [b, classes]."""
    high = self._run(self.layers[self.split[1] :], high, train)
    output = self.head(self.drop(high, deterministic=not train))
    return output if self.classes else output[:, 0] * self.unit

  def _run(
    self, dense_layers: Sequence[nn.Module], hidden: types.Array, train: bool
  ) -> types.Array:
    for layer in dense_layers:
      hidden = nn.relu(layer(self.drop(hidden, deterministic=not train)))
    return hidden

  def _embed(self, x: types.PyTree, train: bool) -> types.Array:
    tables = {}
    if self.users:
      tables['user'] = self.user
    if self.movies:
      tables['movie'] = self.movie
    tables |= {f'category_{i}': table for i, table in enumerate(self.category)}
    ids = {name: x[name] for name in tables}
    if train and self.unknown_rate and ids:
      # Most test rows have an unseen id, so the unknown rows must be trained;
      # in training data every id is known.
      examples = len(next(iter(ids.values())))
      hide = layers.chance(
        self.make_rng('dropout'), self.unknown_rate, (len(ids), examples)
      )
      ids = {
        name: jnp.where(hidden, UNKNOWN, rows)
        for hidden, (name, rows) in zip(hide, ids.items(), strict=True)
      }
    parts = [tables[name].embedding[rows] for name, rows in ids.items()]
    if self.words:
      parts.append(_mean_of_words(self.title.embedding, x['title']))
    if self.tagged:
      parts.append(self.genres(x['genres']))
    if 'numbers' in x:
      parts.append(x['numbers'])
    return jnp.concatenate(parts, axis=-1)


def _mean_of_words(table: types.PyTree, words: types.PyTree) -> types.Array:
  """The mean [b, d] of the rows of `words` [b, w]; 0 without any word."""
  is_word = (words != PADDING).astype(table.dtype)
  share = is_word / jnp.maximum(jnp.sum(is_word, axis=1, keepdims=True), 1)
  return _weighted_rows(table, words, share)


@jax.custom_vjp
def _weighted_rows(
  table: types.PyTree, words: types.PyTree, share: types.Array
) -> types.Array:
  """The sum over w of share [b, w] times the rows of `words` [b, w]: [b, d]."""
  # One word at a time: on a CPU, summing over the middle axis of [b, w, d]
  # takes twice as long as the rest of the step.
  total = table[words[:, 0]] * share[:, 0, None]
  for w in range(1, words.shape[1]):
    total += table[words[:, w]] * share[:, w, None]
  return total


def _weighted_rows_forward(
  table: types.PyTree, words: types.PyTree, share: types.Array
) -> tuple[types.Array, tuple[types.Array, ...]]:
  return _weighted_rows(table, words, share), (table, words, share)


def _weighted_rows_backward(
  saved: tuple[types.Array, ...], grad: types.Array
) -> tuple[types.Array, None, None]:
  # JAX alone would add up one whole table of gradients per word.
  table, words, share = saved
  each = grad[:, None] * share[..., None]  # [b, w, d]
  return jnp.zeros_like(table).at[words].add(each), None, None


_weighted_rows.defvjp(_weighted_rows_forward, _weighted_rows_backward)
