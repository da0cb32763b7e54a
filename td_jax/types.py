"""Dimension letters, array aliases and the batch.

  b  examples of a batch            m  width of a message
  t  tokens of an example           d  width of a hidden state
  k  iterations of a conversation   n  examples of a split

States and messages are `[b, d]` for an MLP and `[b, t, d]` for a ViT; what is
written for either leaves the middle open, as `*b`.
"""

from typing import Any
from typing import NamedTuple

import jax
from jax import numpy as jnp
import jaxtyping as jt

Array = jax.Array
Config = Any  # An ml_collections.ConfigDict; its fields have no static type.
PyTree = Any
Path = Any  # A pathlib.Path, or an epath.Path of a bucket.
Key = jax.Array  # One typed JAX random key, as of `jax.random.key`.

PerExample = jt.Float[jt.Array, ' b']
Hidden = jt.Float[jt.Array, '*b d']
Message = jt.Float[jt.Array, '*b m']
Scalar = jt.Float[jt.Array, '']
Metrics = dict[str, Array]


class States(NamedTuple):
  """The two hidden states that speakers talk about (section 3.1)."""

  low: Hidden  # s: H[1..l](x)
  high: Hidden  # e: H[l+1..h](low)


class Batch(NamedTuple):
  """Examples side by side; with n for b, a whole split in columns."""

  x: PyTree  # Leaves [b, ...]: what the student sees.
  y: PyTree  # [b], the label: a rating, or a class.
  mask: PyTree  # float32 [b]: 1 counts, 0 is padding.
  teacher_x: PyTree = None  # What the teacher sees; None: the same as x.
  teacher_states: PyTree = None  # (States, output [b, ...]) computed before.

  @property
  def seen_by_teacher(self) -> PyTree:
    """The teacher's input."""
    return self.x if self.teacher_x is None else self.teacher_x

  def take(self, index: PyTree) -> 'Batch':
    """Rows `index` [b], none out of bounds, of a split held in columns."""

    def rows(column):
      return jnp.asarray(column).at[index].get(mode='promise_in_bounds')

    return jax.tree.map(rows, self)
