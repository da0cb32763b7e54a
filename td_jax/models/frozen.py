"""Frozen networks that td_jax has no class for: functions, or stored answers."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
from jax import numpy as jnp
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.models import layers
from td_jax.models import split


class Frozen(NamedTuple):
  """A network whose parameters never change.

  Attributes:
    params: Any tree of arrays, the first argument of all functions.
    output: (params, high) -> ratings [b], logits [b, classes] or features [b, d].
      Without `low` and `interpret` it is (params, x) -> the same.
    low: (params, x) -> the low state [b, d] or [b, t, d].
    interpret: (params, low) -> the high state [b, e] or [b, t, e].
  """

  params: types.PyTree
  output: Callable[[Any, Any], types.Array]
  low: Callable[[Any, Any], types.Array] | None = None
  interpret: Callable[[Any, Any], types.Array] | None = None


class Network(split.Network):
  """A network that is no Linen module itself.

  Its variables are {'params': {'network': ..., 'head': {'kernel', 'bias'}}}; the head
  is a linear layer on the output, and may be absent.
  """

  @property
  def has_states(self) -> bool:
    """Whether the network has hidden states, or only an output."""
    raise NotImplementedError

  @property
  def _own(self) -> Any:
    return self.get_variable('params', 'network')

  def _with_head(self, output: Any) -> Any:
    if not self.has_variable('params', 'head'):
      return output
    head: Any = self.get_variable('params', 'head')
    return output @ head['kernel'] + head['bias'][None]


class Functions(Network):
  """The functions of a `Frozen`, as a network. `check` looks at what they return."""

  functions: tuple[Any, Any, Any]  # low, interpret and output.

  @property
  def has_states(self) -> bool:
    return self.functions[0] is not None

  def low(self, x: types.PyTree, *, train: bool) -> Any:
    del train  # Frozen.
    return self.functions[0](self._own, x)

  def interpret(self, low: Any, *, train: bool) -> Any:
    del train  # Frozen.
    return self.functions[1](self._own, low)

  def output(self, high: types.PyTree, *, train: bool) -> Any:
    del train  # Frozen.
    return self._with_head(self.functions[2](self._own, high))

  def __call__(self, x: types.PyTree, *, train: bool) -> tuple[Any, Any, Any]:
    if self.has_states:
      return super().__call__(x, train=train)
    nothing = split.no_states(x)
    return nothing, nothing, self.output(x, train=train)


class Lookup(Network):
  """What was computed elsewhere: numbers of rows [b] -> states and outputs.

  `network` among its variables are the arrays of `data.answers`.
  """

  has_low_and_high: bool

  @property
  def has_states(self) -> bool:
    return self.has_low_and_high

  def __call__(
    self, x: types.PyTree, *, train: bool
  ) -> tuple[types.Array, types.Array, types.Array]:
    del train  # Frozen.

    def taken(name: str) -> types.Array:
      return jnp.asarray(self._own[name]).at[x].get(mode='promise_in_bounds')

    low = high = split.no_states(x)
    if self.has_states:
      low, high = taken('low'), taken('high')
    return low, high, self._with_head(taken('output'))


def network(made: Any) -> tuple[Functions, dict[str, Any]]:
  """The network and the variables of what a user's function made.

  Args:
    made: A `Frozen`; or (module, variables), a Linen module with the methods of
      `split.Network`.

  Raises:
    errors.ConfigError: It is something else.
  """
  if isinstance(made, tuple) and len(made) == 2 and _is_network(made[0]):
    module, own = made
    made = Frozen(own, *_methods(module))
  if not isinstance(made, Frozen):
    what = type(made).__name__
    if isinstance(made, tuple):
      what = f'({", ".join(type(part).__name__ for part in made)})'
    raise errors.ConfigError(
      f'it is {what}; it must be a td_jax.Frozen, or (module, variables) with a Linen '
      'module that has the methods low, interpret and output'
    )
  if (made.low is None) != (made.interpret is None):
    raise errors.ConfigError(
      'its td_jax.Frozen has only one of low and interpret; give both, or neither'
    )
  try:
    params = jax.tree.map(jnp.asarray, made.params)
  except TypeError as e:
    raise errors.ConfigError(
      f'its params are no tree of arrays: {errors.one_line(e)}'
    ) from e
  functions = Functions((made.low, made.interpret, made.output))
  return functions, variables(params)


def variables(params: types.PyTree) -> dict[str, Any]:
  """The variables of a `Network` without a head."""
  # The loop maps over a teacher's leaves, so there has to be one.
  return {'params': {'network': params, 'unused': np.zeros(1, np.float32)}}


def check(
  model: split.Network,
  variables: Mapping[str, Any],
  x: types.PyTree,
  *,
  classes: int | None,
) -> None:
  """Raises a ConfigError if the network does not work on inputs `x` [b, ...].

  Args:
    model: The network.
    variables: Its variables.
    x: Inputs, or their shapes.
    classes: The width of its outputs [b, classes]; 0 for [b]; None for features of
      any width.
  """
  try:
    states_and_output = jax.eval_shape(
      lambda variables, x: layers.apply(model, variables, x), variables, x
    )
  except Exception as e:  # A user's function may raise anything.
    raise errors.ConfigError(
      f'its network fails on inputs {_shapes(x)}: {errors.one_line(e)}'
    ) from e
  batch = jax.tree.leaves(x)[0].shape[0]
  parts = dict(zip(('low', 'high', 'output'), states_and_output, strict=True))
  for name, array in parts.items():
    if not hasattr(array, 'shape'):
      raise errors.ConfigError(
        f'its {name} is {type(array).__name__}; it must be one array'
      )
  output = parts.pop('output')
  wanted = f'[b, {classes}]' if classes else '[b]'
  fits = output.shape == ((batch, classes) if classes else (batch,))
  if classes is None:
    wanted, fits = '[b, features]', output.ndim == 2 and len(output) == batch
  if not fits:
    raise errors.ConfigError(
      f'its output has shape {_by_example(output, batch)}; it must be {wanted}, for '
      f'{"features" if classes is None else "classes" if classes else "numbers"}'
    )
  for name, state in parts.items():
    if state.ndim not in (2, 3) or len(state) != batch:
      raise errors.ConfigError(
        f'its {name} state has shape {_by_example(state, batch)}; it must be [b, d] '
        'or [b, tokens, d]'
      )


def _by_example(array: Any, batch: int) -> str:
  """A shape with b in the place of the number of examples, such as [b, 3]."""
  sizes: list[Any] = list(array.shape)
  if sizes and sizes[0] == batch:
    sizes[0] = 'b'
  return f'[{", ".join(map(str, sizes))}]'


def _is_network(module: Any) -> bool:
  return all(
    callable(getattr(module, name, None))
    for name in ('low', 'interpret', 'output', 'apply')
  )


def _methods(module: Any) -> tuple[Any, Any, Any]:
  """(output, low, interpret) of a Linen module, as functions of its variables."""

  def method(name: str) -> Callable[[Any, Any], Any]:
    return lambda variables, value: layers.apply(
      module, variables, value, method=name
    )

  return method('output'), method('low'), method('interpret')


def _shapes(x: types.PyTree) -> str:
  return ', '.join(
    f'[{", ".join(map(str, ("b", *leaf.shape[1:])))}] {leaf.dtype}'
    for leaf in jax.tree.leaves(x)
  )
