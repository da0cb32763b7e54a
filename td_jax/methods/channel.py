"""Encoders and decoders: states -> message -> states (sections 3.1, 6.2).

Both are Dense -> ReLU -> LayerNorm -> Dropout -> Dense, applied to the last
axis. So an MLP sends one message [b, m] per example, and a ViT sends one per
token, [b, t, m].
"""

from collections.abc import Sequence

from flax import linen as nn
from jax import numpy as jnp
import jaxtyping as jt

from td_jax import types
from td_jax.models import layers


class Encoder(nn.Module):
  """E: a network's states, concatenated -> one message."""

  hidden: int  # Width of the ReLU layer.
  message: int  # Width of the message.
  dropout: float  # Rate.

  @nn.compact
  def __call__(
    self, states: Sequence[jt.Float[jt.Array, '*b _']], *, train: bool
  ) -> types.Message:
    concatenated = jnp.concatenate(states, axis=-1)
    return _translate(self, concatenated, width=self.message, train=train)


class Decoder(nn.Module):
  """D: one message -> low and high states."""

  hidden: int  # Width of the ReLU layer.
  widths: tuple[int, int]  # Widths of the low and of the high state.
  dropout: float  # Rate.

  @nn.compact
  def __call__(self, message: types.Message, *, train: bool) -> types.States:
    # One network decodes both states, so they share its ReLU layer.
    decoded = _translate(self, message, width=sum(self.widths), train=train)
    return types.States(*jnp.split(decoded, [self.widths[0]], axis=-1))


def _translate(
  module: Encoder | Decoder, values: types.Array, *, width: int, train: bool
) -> types.Array:
  """Dense -> ReLU -> LayerNorm -> Dropout -> Dense, in `module`'s scope."""
  values = nn.relu(layers.Dense(module.hidden)(values))
  values = nn.LayerNorm()(values)
  values = layers.Dropout(module.dropout)(values, deterministic=not train)
  # No norm after this layer: a decoder must reach the raw scale of the states.
  return layers.Dense(width)(values)
