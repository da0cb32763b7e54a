"""Schedules over the steps of a run: learning rates and loss weights."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import numpy as jnp
import optax

from td_jax import errors
from td_jax import types

# A number, or knots ((step, value), ...) that straight lines connect. Before the
# first knot and after the last one the value is constant.
Spec = float | int | Sequence[Sequence[float | int]]


def check_weight(name: str, spec: Any) -> None:
  """Raises a ConfigError unless `spec` is a weight >= 0 at every step.

  Args:
    name: The weight's key in the config, for the message.
    spec: A value from the command line, so anything.
  """
  try:
    if isinstance(spec, (int, float)):
      is_valid = 0 <= spec < float('inf')  # False for NaN as well.
    else:
      steps = [step for step, _ in spec]
      is_valid = (
        bool(steps)
        and steps == sorted(set(steps))
        and all(0 <= value < float('inf') for _, value in spec)
      )
  except (TypeError, ValueError):
    # Not a sequence of pairs, or not of numbers.
    is_valid = False
  if not is_valid:
    raise errors.ConfigError(
      f'{name} is {spec!r}; a weight is a number >= 0, or knots such as '
      '((0, 1.0), (500, 0.0)) with rising steps and values >= 0.'
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
