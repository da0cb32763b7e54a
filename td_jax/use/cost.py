"""What a network costs in use: parameters, bytes, FLOPs and latency."""

from collections.abc import Mapping
import statistics
import time
from typing import NamedTuple

from flax import linen as nn
import jax
import numpy as np

from td_jax import types
from td_jax.models import layers
from td_jax.tpu_cost import flops as flops_lib

BATCHES = (1, 32)
_RUNS = 10  # The latency is the median of these.


class Cost(NamedTuple):
  """The cost of a network on this machine."""

  parameters: int
  bytes: int  # Of its parameters.
  flops: int  # Of the matrix products of one example.
  seconds: Mapping[int, float]  # {batch: time of a forward pass}


def measure(model: nn.Module, variables: types.PyTree, x: types.PyTree) -> Cost:
  """The cost of a network.

  Args:
    model: The network.
    variables: Its variables.
    x: The input of one example, leaves [1, ...].
  """
  leaves = jax.tree.leaves(variables)
  apply = jax.jit(lambda variables, x: layers.apply(model, variables, x)[-1])
  seconds = {}
  for batch in BATCHES:
    repeated = jax.tree.map(
      lambda leaf, batch=batch: np.repeat(np.asarray(leaf), batch, axis=0), x
    )
    jax.block_until_ready(apply(variables, repeated))  # Compiles.
    times = []
    for _ in range(_RUNS):
      start = time.perf_counter()
      jax.block_until_ready(apply(variables, repeated))
      times.append(time.perf_counter() - start)
    seconds[batch] = statistics.median(times)
  return Cost(
    parameters=sum(leaf.size for leaf in leaves),
    bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
    flops=flops(model, variables, x),
    seconds=seconds,
  )


def flops(model: nn.Module, variables: types.PyTree, x: types.PyTree) -> int:
  """FLOPs of the matrix products of a network on `x`.

  `variables` and `x` may be `jax.ShapeDtypeStruct`s.
  """
  program = jax.make_jaxpr(lambda v, x: layers.apply(model, v, x)[-1])
  return flops_lib.count(program(variables, x)).model


def table(costs: Mapping[str, Cost]) -> list[list[str]]:
  """A header and a row for each of {name: cost}, as text."""
  head = ['', 'parameters', 'MB', 'MFLOPs an example']
  head += [f'ms at batch {batch}' for batch in BATCHES]
  return [
    head,
    *(
      [
        name,
        f'{cost.parameters:,}',
        _millions(cost.bytes),
        _millions(cost.flops),
        *(f'{1000 * cost.seconds[batch]:.2f}' for batch in BATCHES),
      ]
      for name, cost in costs.items()
    ),
  ]


def _millions(count: int) -> str:
  # Small students have a few thousand parameters.
  return f'{count / 1e6:,.1f}' if count >= 1e6 else f'{count / 1e6:.4f}'
