"""The split contract: any network seen as low -> high -> output.

Section 3.1 cuts a network of n layers twice, after layers l < h:

  low = H[1..l](x)    high = H[l+1..h](low)    output = H[h+1..n](high)

The middle part is *interpreting*: it can be run on any low state, also on one
that was decoded from a message. A network that can be split is a Linen module
with the methods `low`, `interpret` and `output`, each taking `train`.
"""

from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn

from td_jax import errors
from td_jax import types
from td_jax.models import layers

Interpret = Callable[[types.Hidden, types.Key | None], types.Hidden]


class Side(NamedTuple):
  """One network on one batch."""

  states: types.States
  output: types.Array  # [b] ratings or [b, classes] logits
  interpret: Interpret  # (low, dropout key or None) -> high


def check(name: str, split: tuple[int, int], layers: int) -> None:
  """Raises a ConfigError unless 1 <= l < h < layers."""
  low, high = split
  if not 1 <= low < high < layers:
    raise errors.ConfigError(
      f'{name} is ({low}, {high}); a split (l, h) of {layers} layers needs '
      f'1 <= l < h <= {layers - 1}.'
    )


def interpreter(
  model: nn.Module, variables: types.PyTree, *, train: bool
) -> Interpret:
  """low -> high of `model` with these weights; dropout only if `train`."""

  def interpret(low, key):
    return layers.apply(
      model,
      variables,
      low,
      key=key if train else None,
      method='interpret',
    )

  return interpret


def side(
  model: nn.Module,
  variables: types.PyTree,
  x: types.PyTree,
  *,
  key: types.Key | None = None,
) -> Side:
  """Runs `model` on `x`, as in training if there is a dropout key."""
  low, high, output = layers.apply(model, variables, x, key=key)
  return Side(
    states=types.States(low, high),
    output=output,
    interpret=interpreter(model, variables, train=key is not None),
  )
