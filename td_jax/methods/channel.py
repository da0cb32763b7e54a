"""Encoders and decoders: states -> message -> states (sections 3.1, 6.2).

Both are Dense -> ReLU -> LayerNorm -> Dropout -> Dense. The output is not
normalised: a decoder must reach the raw scale of the states it decodes to.
All work on the last axis, so a message of a ViT is one per token.
"""

from collections.abc import Sequence

from flax import linen as nn
from jax import numpy as jnp
import jaxtyping as jt

from td_jax import types
from td_jax.models import layers


class Encoder(nn.Module):
  """States side by side -> one message."""

  hidden: int
  message: int
  dropout: float

  @nn.compact
  def __call__(
    self, states: Sequence[jt.Float[jt.Array, '*b _']], *, train: bool
  ) -> types.Message:
    together = jnp.concatenate(states, axis=-1)
    return _translate(self, together, width=self.message, train=train)


class Decoder(nn.Module):
  """One message -> low and high states of the given widths."""

  hidden: int
  widths: tuple[int, int]
  dropout: float

  @nn.compact
  def __call__(self, message: types.Message, *, train: bool) -> types.States:
    together = _translate(self, message, width=sum(self.widths), train=train)
    return types.States(*jnp.split(together, [self.widths[0]], axis=-1))


def _translate(module, values, *, width, train):
  """Dense -> ReLU -> LayerNorm -> Dropout -> Dense, in `module`'s scope."""
  values = nn.relu(layers.Dense(module.hidden)(values))
  values = nn.LayerNorm()(values)
  values = layers.Dropout(module.dropout)(values, deterministic=not train)
  return layers.Dense(width)(values)
