"""Which parameters of a sharded state are gathered before a device uses them.

With FSDP a device holds a piece of each large parameter. Layers pass every
parameter that they compute with through `all_gather_param`; `parallel` decides,
for the time that it traces a program, what this does to them. Layers therefore
need not know whether a state is sharded.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import contextvars
from typing import Any

import jax

from td_jax import types

Gather = Callable[[types.Array], types.Array]

# A context variable, not an argument: Linen calls layers, so an argument would
# have to pass through every module of every network.
_gather: contextvars.ContextVar[Gather] = contextvars.ContextVar(
  'gather', default=lambda param: param
)


@contextlib.contextmanager
def gathered_params(gather: Gather) -> Iterator[None]:
  """A context in which `all_gather_param` applies `gather`.

  `gather` usually constrains an array to be replicated. It must not change any
  value: the gradient passes through unchanged and unconstrained.
  """
  # Differentiating a sharding constraint would put the same constraint on the
  # gradient, and XLA would all-reduce it. Unconstrained, it is reduced and
  # scattered in one operation, to the devices that hold the pieces.
  all_gather = jax.custom_vjp(gather)
  all_gather.defvjp(
    lambda param: (gather(param), None),
    lambda _, grad: (grad,),
  )
  token = _gather.set(all_gather)
  try:
    yield
  finally:
    _gather.reset(token)


def all_gather_param(param: Any) -> Any:
  """Returns the whole of `param`; outside of `gathered_params`, `param` itself.

  Without this constraint XLA may leave a parameter in pieces and gather the
  activations of the whole batch instead.
  """
  return _gather.get()(param)
