"""Dimension letters, array aliases and the batch.

  b  examples in a batch            m  width of a message
  t  tokens of an example           d  width of a hidden state
  k  iterations of a conversation   n  examples in a split

States and messages are `[b, d]` for an MLP and `[b, t, d]` for a ViT; types
that hold for both leave the middle axes open, as `*b`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
from jax import numpy as jnp
import jaxtyping as jt

Array = jax.Array
Config = Any  # An ml_collections.ConfigDict; its fields have no static type.
PyTree = Any
Path = Any  # A pathlib.Path, or an epath.Path of a bucket.
Key = jax.Array  # One typed JAX random key, as made by `jax.random.key`.
Log = Callable[[str], None]  # Receives one line of text for the user.

TEACHER = 'teacher'  # The name of the teacher that config.teacher describes.

PerExample = jt.Float[jt.Array, ' b']
Hidden = jt.Float[jt.Array, '*b d']
Message = jt.Float[jt.Array, '*b m']
Metrics = dict[str, Array]


def no_log(line: str) -> None:
  """A `Log` that discards its lines."""
  del line


class States(NamedTuple):
  """The two hidden states that a conversation is about (section 3.1)."""

  low: Hidden  # s: H[1..l](x)
  high: Hidden  # e: H[l+1..h](low)


class Batch(NamedTuple):
  """Examples side by side; with n for b, a whole split in columns."""

  x: PyTree  # Leaves [b, ...]: the student's input.
  y: PyTree  # [b], the label: a rating, or a class.
  mask: PyTree  # float32 [b]: 1 counts, 0 is padding.
  # The input of each teacher, by name; a teacher that is absent sees x.
  teacher_x: Mapping[str, PyTree] = {}
  # (States, output [b, ...]) of each teacher, by name, if precomputed.
  teacher_states: Mapping[str, PyTree] = {}
  # float32 [b]: 1 where y is a label, 0 where there is none and y is 0; None:
  # every example has a label.
  labelled: PyTree = None

  def input_of(self, teacher: str) -> PyTree:
    """The input of the teacher with this name."""
    return self.teacher_x.get(teacher, self.x)

  def take(self, index: PyTree) -> 'Batch':
    """Gathers rows `index` [b], all in bounds, of a split in columns."""

    def rows(column: PyTree) -> Array:
      return jnp.asarray(column).at[index].get(mode='promise_in_bounds')

    return jax.tree.map(rows, self)
