"""Distillation methods by name: which terms stand beside the task's cost.

A new term is a file, a builder here and a line in `METHODS`.
"""

from collections.abc import Callable
import functools

from td_jax import errors
from td_jax import types
from td_jax.methods import base
from td_jax.methods import channel
from td_jax.methods import feature
from td_jax.methods import hint
from td_jax.methods import logit
from td_jax.methods import losses
from td_jax.methods import schedules
from td_jax.methods import talking
from td_jax.methods import task

Weigh = Callable[[schedules.Spec], base.Weight]
Term = tuple[base.Weight, base.Method]


def _distance(name: str, distill) -> losses.Distance:
  if name == 'kl':
    return functools.partial(losses.kl, temperature=distill.temperature)
  return losses.DISTANCES[name]


def _logit(config, weigh: Weigh) -> Term:
  distill = config.distill
  distance = _distance(distill.logit_distance, distill)
  return weigh(distill.weights.logit), logit.logit(distance)


def _feature(config, weigh: Weigh) -> Term:
  distill = config.distill
  return weigh(distill.weights.feature), feature.feature(
    encoder=channel.Encoder(
      hidden=distill.hidden, message=distill.message, dropout=distill.dropout
    ),
    distance=_distance(distill.distance, distill),
    fixed_teacher=distill.feature_target == 'teacher',
  )


def _hint(config, weigh: Weigh) -> Term:
  distill = config.distill
  return weigh(distill.weights.hint), hint.hint(
    hidden=distill.hidden,
    dropout=distill.dropout,
    distance=_distance(distill.distance, distill),
    original=distill.hint_direction == 'original',
  )


def _talking(config, weigh: Weigh) -> Term:
  distill = config.distill
  return 1.0, talking.talking(
    weights=talking.Weights(
      interact=weigh(distill.weights.interact),
      message=weigh(distill.weights.message),
      state=weigh(distill.weights.state),
    ),
    hidden=distill.hidden,
    message=distill.message,
    dropout=distill.dropout,
    distance=_distance(distill.distance, distill),
    student_encodes_high=distill.student_encodes == 'low_and_high',
    k=config.k,
    original_target=distill.interact_target == 'original',
    noise=distill.noise,
    remat=distill.remat,
    unroll=distill.unroll,
  )


METHODS: dict[str, dict[str, Callable[..., Term]]] = {
  'scratch': {},
  'ld': {'logit': _logit},
  'fd': {'feature': _feature},
  'fitnet': {'hint': _hint},
  'hybrid': {'logit': _logit, 'feature': _feature},
  'td': {'talk': _talking},
  'td_ld': {'logit': _logit, 'talk': _talking},
}


def build(
  name: str, *, config: types.Config, cost: str, start: int = 0
) -> base.Method:
  """The method `name` of `METHODS`.

  Args:
    name: Of `METHODS`.
    config: A whole one; `k` and `distill` are read.
    cost: The task's own, of `losses.TASK_LOSSES`.
    start: Step before which the student learns from its task alone.

  Returns:
    task + the method's terms.

  Raises:
    errors.ConfigError: a distance of logits where the outputs are ratings.
  """
  logit_distance = config.distill.logit_distance
  if (
    cost == 'squared_error'
    and 'logit' in METHODS[name]
    and logit_distance != 'l2'
  ):
    raise errors.ConfigError(
      f'config.distill.logit_distance is {logit_distance!r}, which says '
      "nothing of one number a row; for ratings it must be 'l2'."
    )
  weigh = functools.partial(schedules.build, start=start)
  terms = {term: make(config, weigh) for term, make in METHODS[name].items()}
  return base.combine(task=(1.0, task.task(losses.TASK_LOSSES[cost])), **terms)


def needs_teacher(name: str) -> bool:
  """Whether the method looks at a teacher at all."""
  return bool(METHODS.get(name))  # The teacher's own run has none.


def needs_output(name: str) -> bool:
  """Whether the method looks at a teacher's outputs, besides its states."""
  return 'logit' in METHODS[name]
