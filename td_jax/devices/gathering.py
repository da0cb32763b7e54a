"""All-gathering of FSDP parameters where they are used.

Layers pass their kernels through `all_gather_param`. It does nothing, unless
`parallel.py` traces the program inside `gathered_params`.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import contextvars
from typing import Any

import jax

from td_jax import types

_Gather = Callable[[types.Array], types.Array]
# A context variable, because Flax modules cannot be handed another argument
# through every layer.
_GATHER: contextvars.ContextVar[_Gather] = contextvars.ContextVar(
  'gather', default=lambda param: param
)


@contextlib.contextmanager
def gathered_params(gather: _Gather) -> Iterator[None]:
  """Makes `all_gather_param` apply `gather`, which may constrain shardings.

  The gradient is not constrained: it is cheapest to scatter it while it is
  summed over devices.
  """
  # The default VJP would constrain the gradient as well.
  all_gather = jax.custom_vjp(gather)
  all_gather.defvjp(
    lambda param: (gather(param), None), lambda _, grad: (grad,)
  )
  token = _GATHER.set(all_gather)
  try:
    yield
  finally:
    _GATHER.reset(token)


def all_gather_param(param: Any) -> Any:
  """Returns the whole of a parameter that may be sharded over devices.

  Without this, XLA may gather the batch instead of the much smaller kernel.
  """
  return _GATHER.get()(param)
