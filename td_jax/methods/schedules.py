"""Schedules over the steps of a run: learning rates and loss weights."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import numpy as jnp
import optax

from td_jax import types
from td_jax.configs import allowed

# A number, or knots ((step, value), ...) that straight lines connect. Before the
# first knot and after the last one the value is constant.
Spec = float | int | Sequence[Sequence[float | int]]


def is_weight(spec: Any) -> bool:
  """Whether `spec`, which may be anything, is a weight >= 0 at every step."""
  if _VALUE.holds(spec):
    return True
  if not isinstance(spec, (tuple, list)) or not all(map(_KNOT.holds, spec)):
    return False
  steps = [step for step, _ in spec]
  return bool(steps) and steps == sorted(set(steps))


_VALUE = allowed.number(at_least=0)
_KNOT = allowed.several(_VALUE, 'a step and a value', 2)
WEIGHT = allowed.Allowed(
  'a number at least 0, or knots such as ((0, 1.0), (500, 0.0)) with rising '
  'steps and values at least 0',
  is_weight,
)


def build(spec: Spec, *, start: int = 0) -> float | optax.Schedule:
  """Turns a spec into a constant or a schedule.

  Args:
    spec: A number or knots. The steps of knots count from step 0, not from
      `start`.
    start: The weight is 0 before this step.

  Returns:
    A float if the weight never changes, otherwise a function of the step.
  """
  if isinstance(spec, (int, float)):
    # A constant stays a Python number, so that a term whose weight is 0 can be
    # left out of the program.
    if not start or not spec:
      return float(spec)
    knots = ((0, spec),)
  else:
    knots = tuple(spec)
  steps = jnp.asarray([step for step, _ in knots], jnp.float32)
  values = jnp.asarray([value for _, value in knots], jnp.float32)

  def schedule(step: jax.typing.ArrayLike) -> types.Array:
    now = jnp.asarray(step)
    value = jnp.interp(now.astype(jnp.float32), steps, values)
    return jnp.where(now < start, 0.0, value)

  return schedule


def learning_rate(
  peak: float, *, warmup: int, decay: str, steps: int
) -> optax.Schedule:
  """A learning rate that rises linearly to its peak and then decays.

  Args:
    peak: The largest learning rate.
    warmup: Steps of the linear rise from 0; 0 starts at the peak.
    decay: 'cosine', down to 0 at step `steps`, or 'constant'.
    steps: Steps of the whole run, the warm-up included.
  """
  if decay == 'cosine':
    after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1))
  else:
    after = optax.constant_schedule(peak)
  if not warmup:
    return after
  rise = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([rise, after], [warmup])
