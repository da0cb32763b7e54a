"""FLOPs of matrix products and convolutions, counted by walking a jaxpr.

The compiler's own count, `cost_analysis()['flops']`, takes the body of a loop
once, however often it runs. A multiplication and an addition are two FLOPs;
elementwise operations are left out, as is usual for MFU.
"""

from collections.abc import Iterator
import dataclasses
import math
from typing import Any

from jax.extend import core
from jax.interpreters import partial_eval
import numpy as np

# What `jax.checkpoint` names the part of a backward pass that it computes again.
_AGAIN = 'rematted_computation'


@dataclasses.dataclass(frozen=True)
class Flops:
  """Of a whole program, before it is spread over devices."""

  model: int = 0  # What the algorithm asks for: the numerator of MFU.
  hardware: int = 0  # With what rematerialisation computes again.
  unbounded: int = 0  # Loops of unknown length, whose body was counted once.

  def __add__(self, other: 'Flops') -> 'Flops':
    return Flops(
      self.model + other.model,
      self.hardware + other.hardware,
      self.unbounded + other.unbounded,
    )

  def times(self, count: int) -> 'Flops':
    return Flops(self.model * count, self.hardware * count, self.unbounded)


def count(program: core.ClosedJaxpr) -> Flops:
  """FLOPs of `program`, as of `jax.make_jaxpr(f)(...)`, without dead code.

  A scan counts as often as it runs, a cond as its largest branch, and what is
  mapped over devices by shard_map once for each.
  """
  outputs = [True] * len(program.jaxpr.outvars)
  jaxpr, _ = partial_eval.dce_jaxpr(program.jaxpr, outputs)
  return _walk(jaxpr, again=False)


def _walk(jaxpr, *, again):
  """FLOPs of a jaxpr; `again` if all of it is being computed once more."""
  total = Flops()
  for equation in jaxpr.eqns:
    here = again or _AGAIN in str(equation.source_info.name_stack)
    total += _equation(equation, again=here)
  return total


def _equation(equation, *, again):
  name, params = equation.primitive.name, equation.params
  if name in ('dot_general', 'conv_general_dilated'):
    one = _dot(equation) if name == 'dot_general' else _conv(equation)
    return Flops(model=0 if again else one, hardware=one)
  parts = [_walk(inner, again=again) for inner in _inner(params)]
  if name == 'cond':
    return max(parts, key=lambda part: part.hardware)
  total = sum(parts, Flops())
  if name == 'scan':
    return total.times(params['length'])
  if name == 'while' and total.hardware:
    return total + Flops(unbounded=1)
  if name == 'shard_map':
    sizes = params['mesh'].shape
    mapped = params['newly_manual_axes']
    return total.times(math.prod(sizes[axis] for axis in mapped))
  return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  """The jaxprs that an equation has among its parameters."""
  for value in params.values():
    for one in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(one, core.ClosedJaxpr):
        yield one.jaxpr
      elif isinstance(one, core.Jaxpr):
        yield one


def _dot(equation):
  (contracted, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  depth = math.prod(left[axis] for axis in contracted)
  return 2 * math.prod(equation.outvars[0].aval.shape) * depth


def _conv(equation):
  """Products with padding and with the holes of dilation are not counted."""
  params = equation.params
  numbers = params['dimension_numbers']
  image, kernel = (variable.aval.shape for variable in equation.invars[:2])
  output = equation.outvars[0].aval.shape
  pairs = 1
  for axis, (low, _) in enumerate(params['padding']):
    # Where in the dilated image each tap of the kernel falls, by output place.
    size = image[numbers.lhs_spec[2 + axis]]
    taps = np.arange(kernel[numbers.rhs_spec[2 + axis]])
    places = np.arange(output[numbers.out_spec[2 + axis]])
    at = (
      places[:, None] * params['window_strides'][axis]
      + taps[None] * params['rhs_dilation'][axis]
      - low
    )
    holes = params['lhs_dilation'][axis]
    pairs *= np.sum(
      (at >= 0) & (at <= (size - 1) * holes) & (at % holes == 0)
    ).item()
  examples = image[numbers.lhs_spec[0]] // params['batch_group_count']
  features_in = kernel[numbers.rhs_spec[1]]  # Of one feature group.
  features_out = output[numbers.out_spec[1]]
  return 2 * examples * features_in * features_out * pairs
