"""A student that the caller of `td_jax.distill` gives: any Linen module."""

from collections.abc import Mapping
import inspect
from typing import Any

from flax import linen as nn

from td_jax import errors
from td_jax import types
from td_jax.configs import allowed
from td_jax.models import split

_METHODS = ('low', 'interpret', 'output')
ALLOWED = {'description': allowed.text()}


class Given(split.Network):
  """The network of a module.

  With methods `low`, `interpret` and `output` it has hidden states; with `__call__`
  alone it has an output.
  """

  module: nn.Module
  classes: int = 0  # The width of its output [b, classes]; 0: it is [b].
  description: str = ''  # Which module it is, as configs say it.

  @property
  def has_states(self) -> bool:
    """Whether the module has hidden states."""
    return all(callable(getattr(self.module, name, None)) for name in _METHODS)

  def low(self, x: types.PyTree, *, train: bool) -> types.Hidden:
    return self._call(self.module.low, x, train)  # pyright: ignore

  def interpret(self, low: types.Array, *, train: bool) -> types.Hidden:
    return self._call(self.module.interpret, low, train)  # pyright: ignore

  def output(self, high: types.Hidden, *, train: bool) -> types.Array:
    return self._call(self.module.output, high, train)  # pyright: ignore

  def __call__(
    self, x: types.PyTree, *, train: bool
  ) -> tuple[types.Array, types.Array, types.Array]:
    if self.has_states:
      return super().__call__(x, train=train)
    nothing = split.no_states(x)
    return nothing, nothing, self._call(self.module, x, train)

  def _call(self, method: Any, value: Any, train: bool) -> Any:
    """Calls a method, which may do without the argument `train`."""
    if 'train' in inspect.signature(method).parameters:
      return method(value, train=train)
    return method(value)


def check(name: str, settings: Any, inputs: Mapping[str, Any]) -> None:
  """Nothing to check: a config has no settings of such a network."""
  del name, settings, inputs


def tokens(settings: Any, inputs: Mapping[str, Any]) -> tuple[int, ...]:
  """Raises a ConfigError: only the data show the tokens of its states."""
  del settings, inputs
  raise errors.ConfigError(
    "model.name is 'given', whose tokens are known once it runs."
  )
