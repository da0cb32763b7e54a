"""FLOPs of matrix products and convolutions, counted by walking a jaxpr.

The compiler's own count, `cost_analysis()['flops']`, takes the body of a loop
once, however often it runs. Here a multiplication and an addition are two
FLOPs, and elementwise operations are left out, as is usual for MFU.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from jax.extend import core
from jax.interpreters import partial_eval
import numpy as np

# The name scope that `jax.checkpoint` gives to recomputed operations.
_RECOMPUTATION = 'rematted_computation'


@dataclasses.dataclass(frozen=True)
class Flops:
  """FLOPs of a whole program, before it is partitioned over devices."""

  model: int = 0  # What the algorithm asks for: the numerator of MFU.
  hardware: int = 0  # `model`, and what rematerialisation computes again.
  unbounded: int = 0  # Loops of unknown length, whose body is counted once.

  def __add__(self, other: 'Flops') -> 'Flops':
    return Flops(
      self.model + other.model,
      self.hardware + other.hardware,
      self.unbounded + other.unbounded,
    )

  def times(self, count: int) -> 'Flops':
    """The FLOPs of `count` runs of the same loops."""
    return Flops(self.model * count, self.hardware * count, self.unbounded)


def count(program: core.ClosedJaxpr) -> Flops:
  """FLOPs of `program`, which is the result of `jax.make_jaxpr(f)(...)`.

  Dead code is left out. A scan counts as often as it runs, a cond as its
  largest branch, and the body of a shard_map once for each device.
  """
  # Tracing leaves operations whose results no output needs. XLA removes them.
  outputs = [True] * len(program.jaxpr.outvars)
  jaxpr, _ = partial_eval.dce_jaxpr(program.jaxpr, outputs)
  return _jaxpr_flops(jaxpr, recomputed=False)


def _jaxpr_flops(jaxpr: core.Jaxpr, *, recomputed: bool) -> Flops:
  """FLOPs of a jaxpr; `recomputed` if it runs inside a rematerialisation."""
  total = Flops()
  for equation in jaxpr.eqns:
    # Inner jaxprs have name stacks of their own, so the flag is handed down.
    total += _equation_flops(
      equation,
      recomputed=recomputed
      or _RECOMPUTATION in str(equation.source_info.name_stack),
    )
  return total


def _equation_flops(equation: core.JaxprEqn, *, recomputed: bool) -> Flops:
  name, params = equation.primitive.name, equation.params
  if name in ('dot_general', 'conv_general_dilated'):
    flops = _dot(equation) if name == 'dot_general' else _conv(equation)
    return Flops(model=0 if recomputed else flops, hardware=flops)
  parts = [
    _jaxpr_flops(inner, recomputed=recomputed)
    for inner in _inner_jaxprs(params)
  ]
  if name == 'cond':
    return max(parts, key=lambda part: part.hardware)
  total = sum(parts, Flops())
  if name == 'scan':
    return total.times(params['length'])
  if name == 'while' and total.hardware:
    return total + Flops(unbounded=1)
  if name == 'shard_map':
    # The body has the shapes of one device. Axes that an enclosing shard_map
    # has mapped already must not be counted twice.
    sizes = params['mesh'].shape
    mapped = params['newly_manual_axes']
    return total.times(math.prod(sizes[axis] for axis in mapped))
  return total


def _inner_jaxprs(params: Mapping[str, Any]) -> Iterator[core.Jaxpr]:
  """The jaxprs among the parameters of an equation."""
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, core.Jaxpr):
        yield item


def _shape(variable: Any) -> tuple[int, ...]:
  return variable.aval.shape


def _dot(equation: core.JaxprEqn) -> int:
  (contracted, _), _ = equation.params['dimension_numbers']
  left = _shape(equation.invars[0])
  depth = math.prod(left[axis] for axis in contracted)
  return 2 * math.prod(_shape(equation.outvars[0])) * depth


def _conv(equation: core.JaxprEqn) -> int:
  """FLOPs without the products with padding and with the holes of dilation."""
  params = equation.params
  numbers = params['dimension_numbers']
  image, kernel = map(_shape, equation.invars[:2])
  output = _shape(equation.outvars[0])
  pairs = 1  # (output position, tap) pairs whose tap meets a pixel.
  for axis, (low, _) in enumerate(params['padding']):
    length = image[numbers.lhs_spec[2 + axis]]
    taps = np.arange(kernel[numbers.rhs_spec[2 + axis]])
    positions = np.arange(output[numbers.out_spec[2 + axis]])
    # [positions, taps]: where a tap falls in the dilated, unpadded image.
    at = (
      positions[:, None] * params['window_strides'][axis]
      + taps[None] * params['rhs_dilation'][axis]
      - low
    )
    dilation = params['lhs_dilation'][axis]
    pairs *= np.sum(
      (at >= 0) & (at <= (length - 1) * dilation) & (at % dilation == 0)
    ).item()
  examples = image[numbers.lhs_spec[0]] // params['batch_group_count']
  features_in = kernel[numbers.rhs_spec[1]]  # In one feature group.
  features_out = output[numbers.out_spec[1]]
  return 2 * examples * features_in * features_out * pairs
