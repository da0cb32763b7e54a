"""Numbers that change with the step: learning rates and loss weights."""

from collections.abc import Sequence
from typing import Any

from jax import numpy as jnp
import optax

from td_jax import errors

# A number, or knots ((step, value), ...) joined by straight lines.
Spec = float | int | Sequence[Sequence[float | int]]


def check_weight(name: str, spec: Any) -> None:
  """Raises a ConfigError unless `spec` is a weight >= 0 at every step."""
  try:
    if isinstance(spec, (int, float)):
      good = 0 <= spec < float('inf')
    else:
      steps = [step for step, _ in spec]
      good = (
        bool(steps)
        and steps == sorted(set(steps))
        and all(0 <= value < float('inf') for _, value in spec)
      )
  except (TypeError, ValueError):
    good = False
  if not good:
    raise errors.ConfigError(
      f'{name} is {spec!r}; a weight is a number >= 0, or knots such as '
      '((0, 1.0), (500, 0.0)) with rising steps and values >= 0.'
    )


def build(spec: Spec, *, start: int = 0) -> float | optax.Schedule:
  """The schedule of `spec`, 0 before step `start`; numbers stay numbers."""
  if isinstance(spec, (int, float)):
    if not start or not spec:
      return float(spec)
    knots = ((0, spec),)
  else:
    knots = tuple(spec)
  steps = jnp.asarray([step for step, _ in knots], jnp.float32)
  values = jnp.asarray([value for _, value in knots], jnp.float32)

  def schedule(step):
    value = jnp.interp(jnp.asarray(step, jnp.float32), steps, values)
    return jnp.where(step < start, 0.0, value)

  return schedule


def learning_rate(
  peak: float, *, warmup: int, decay: str, steps: int
) -> optax.Schedule:
  """Linear warm-up to `peak`, then 'cosine' down to 0, or 'constant'."""
  if decay == 'cosine':
    after = optax.cosine_decay_schedule(peak, max(steps - warmup, 1))
  else:
    after = optax.constant_schedule(peak)
  if not warmup:
    return after
  rise = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([rise, after], [warmup])
