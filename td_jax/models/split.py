"""The split of a network into low -> high -> output.

Section 3.1 cuts a network of n layers twice, after layers l < h:

      low = H[1..l](x)    high = H[l+1..h](low)    output = H[h+1..n](high)

The middle part is *interpreting*. It can be applied to any low state, also to
one that was decoded from a message.
"""

from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn
import jax
from jax import numpy as jnp

from td_jax import errors
from td_jax import types
from td_jax.models import layers

# (state, dropout key or None) -> the next state, or the output.
Interpret = Callable[[types.Hidden, types.Key | None], types.Hidden]


class Network(nn.Module):
  """The interface of a network that takes part in a conversation.

  Low and high states are [b, d] or [b, t, d]. Their widths may differ, but
  their tokens may not: a message is encoded from both, token by token.
  """

  def low(self, x: types.PyTree, *, train: bool) -> types.Hidden:
    """`H[1..l](x)`."""
    raise NotImplementedError

  def interpret(self, low: types.Array, *, train: bool) -> types.Hidden:
    """`H[l+1..h](low)`."""
    raise NotImplementedError

  def output(self, high: types.Hidden, *, train: bool) -> types.Array:
    """`H[h+1..n](high)`: ratings [b] or logits [b, classes]."""
    raise NotImplementedError

  def __call__(
    self, x: types.PyTree, *, train: bool
  ) -> tuple[types.Array, types.Array, types.Array]:
    """(low, high, output) on inputs `x`."""
    low = self.low(x, train=train)
    high = self.interpret(low, train=train)
    return low, high, self.output(high, train=train)


def no_states(x: types.PyTree) -> types.Hidden:
  """States [b, 0] of a network that has an output alone, for inputs [b, ...]."""
  return jnp.zeros((jax.tree.leaves(x)[0].shape[0], 0))


class Side(NamedTuple):
  """One network on one batch."""

  states: types.States
  output: types.Array  # [b] ratings or [b, classes] logits
  interpret: Interpret  # low -> high
  output_of: Interpret  # high -> output


def check(field: str, split: tuple[int, int], depth: int) -> None:
  """Raises a ConfigError unless 1 <= l < h < depth."""
  low, high = split
  if not 1 <= low < high < depth:
    raise errors.ConfigError(
      f'{field} is ({low}, {high}); a split (l, h) of {depth} layers needs '
      f'1 <= l < h <= {depth - 1}.'
    )


def part(
  model: nn.Module, variables: types.PyTree, method: str, *, train: bool
) -> Interpret:
  """A method of `model` with these weights; dropout only if `train`."""

  def run(state: types.Array, key: types.Key | None) -> types.Array:
    return layers.apply(
      model,
      variables,
      state,
      key=key if train else None,
      method=method,
    )

  return run


def _side(
  states: types.States,
  output: types.Array,
  model: nn.Module,
  variables: types.PyTree,
  *,
  train: bool,
) -> Side:
  interpret, output_of = (
    part(model, variables, method, train=train)
    for method in ('interpret', 'output')
  )
  return Side(states, output, interpret, output_of)


def side(
  model: nn.Module,
  variables: types.PyTree,
  x: types.PyTree,
  *,
  key: types.Key | None = None,
) -> Side:
  """Runs `model` on `x`; a dropout key means that it is being trained."""
  low, high, output = layers.apply(model, variables, x, key=key)
  states = types.States(low, high)
  return _side(states, output, model, variables, train=key is not None)


def precomputed(
  states: types.States,
  output: types.Array,
  model: nn.Module,
  variables: types.PyTree,
) -> Side:
  """A frozen network whose states on the batch are known already."""
  # It still interprets states that are decoded from messages.
  return _side(states, output, model, variables, train=False)


def tokens(states: types.States) -> tuple[int, ...]:
  """The token axes of states: () or (t,).

  Raises:
    errors.ConfigError: Low and high states have different tokens.
  """
  low, high = (tuple(state.shape[1:-1]) for state in states)
  if low != high:
    raise errors.ConfigError(
      f'a network has low states with tokens {low} and high states with tokens '
      f'{high}; a message is encoded from both, token by token, so split the '
      'network where they agree.'
    )
  return low
