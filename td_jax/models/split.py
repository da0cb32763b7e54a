"""The protocol of networks that a method can train: low -> high -> output.

Section 3.1 cuts a network of n layers twice, after layers l < h:

  low = H[1..l](x)    high = H[l+1..h](low)    output = H[h+1..n](high)

The middle part is *interpreting*. It can run on any low state, in particular
on one that was decoded from a message.
"""

from collections.abc import Callable
import typing
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jaxtyping as jt

from td_jax import errors
from td_jax import types
from td_jax.models import layers

# Both states have the same leading axes `*b`, which jaxtyping checks in tests;
# their widths may differ.
Low = jt.Float[jt.Array, '*b d_low']
High = jt.Float[jt.Array, '*b d_high']
Interpret = Callable[[Low, types.Key | None], High]


@typing.runtime_checkable
class Network(typing.Protocol):
  """A Linen module that can be split; all its methods take `train`.

  With b for examples and d for widths, which may differ between the states:

    x       the student's or teacher's input, a pytree with leaves [b, ...]
    low     float32 [b, *tokens, d_low]
    high    float32 [b, *tokens, d_high]
    output  float32 [b] (ratings) or [b, classes] (logits)

  `low` and `high` must have the same token axes, none for an MLP and (t,) for
  a ViT, because an encoder concatenates both states of each token.
  """

  def low(self, x: Any, *, train: bool) -> Low:
    """H[1..l](x)."""
    ...

  def interpret(self, low: Low, *, train: bool) -> High:
    """H[l+1..h](low)."""
    ...

  def output(self, high: High, *, train: bool) -> types.Array:
    """H[h+1..n](high)."""
    ...

  def __call__(self, x: Any, *, train: bool) -> tuple[Low, High, types.Array]:
    """Returns `forward(self, x, train=train)`."""
    ...


class Side(NamedTuple):
  """One network's run on one batch."""

  states: types.States
  output: types.Array  # [b] ratings or [b, classes] logits
  interpret: Interpret  # (low, dropout key or None) -> high


def forward(
  network: Network, x: Any, *, train: bool
) -> tuple[Low, High, types.Array]:
  """Runs a whole network: (low, high, output) for input `x`."""
  low = network.low(x, train=train)
  high = network.interpret(low, train=train)
  return low, high, network.output(high, train=train)


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
  """Returns low -> high of `model`; it applies dropout only if `train`."""

  def interpret(low: Low, key: types.Key | None) -> High:
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
  """Runs `model` on `x`, with dropout if there is a `key`."""
  low, high, output = layers.apply(model, variables, x, key=key)
  return Side(
    states=types.States(low, high),
    output=output,
    interpret=interpreter(model, variables, train=key is not None),
  )


def precomputed(
  states: types.States,
  output: types.Array,
  model: nn.Module,
  variables: types.PyTree,
) -> Side:
  """The side of a frozen network whose states and output were cached.

  Interpreting still runs the network: messages change with every step, so what
  is decoded from them cannot be cached.
  """
  return Side(
    states=states,
    output=output,
    interpret=interpreter(model, variables, train=False),
  )
