"""L_dkd = T^2 (alpha TCKD + beta NCKD): decoupled knowledge distillation.

Zhao et al., 2022 (arXiv 2203.08679), equation 7. TCKD is the KL divergence of
the pair (target class, all other classes), NCKD that of the distribution over
the other classes alone.
"""

import jax
from jax import numpy as jnp
import jaxtyping as jt

from td_jax import types
from td_jax.methods import base
from td_jax.methods import losses

Logits = jt.Float[jt.Array, 'b classes']
# A logit that removes a class. The authors subtract 1000, which leaves a
# probability that can underflow to log(0); here everything stays in log space.
_REMOVED = -1e30


def dkd(*, alpha: float, beta: float, temperature: float) -> base.Method:
  """The divergence from the teacher's outputs, split at the target class.

  Args:
    alpha: The weight of the target class.
    beta: The weight of the other classes.
    temperature: T, by which the logits of both networks are divided.
  """

  def loss(lesson: base.Lesson) -> tuple[types.PerExample, base.Terms]:
    target, others = divergences(
      lesson.student.output / temperature,
      lesson.teacher.output / temperature,
      lesson.batch.y,
    )
    cost = temperature**2 * (alpha * target + beta * others)
    return cost, {'target': target, 'others': others}

  return base.stateless(
    loss,
    needs={
      base.Need.TEACHER,
      base.Need.TEACHER_OUTPUT,
      base.Need.LABELS,
      base.Need.CLASS_LABELS,
    },
  )


def divergences(
  student: Logits, teacher: Logits, labels: jt.Int[jt.Array, ' b']
) -> tuple[types.PerExample, types.PerExample]:
  """(TCKD, NCKD) of logits that are divided by the temperature already."""
  is_target = jax.nn.one_hot(labels, student.shape[-1], dtype=bool)
  student_pair, student_others = _log_parts(student, is_target)
  teacher_pair, teacher_others = _log_parts(teacher, is_target)
  return (
    losses.divergence(teacher_pair, student_pair),
    losses.divergence(teacher_others, student_others),
  )


def _log_parts(
  logits: Logits, is_target: jt.Bool[jt.Array, 'b classes']
) -> tuple[types.Array, types.Array]:
  """Log probabilities of (target, rest) [b, 2] and of the rest [b, classes]."""
  log_p = jax.nn.log_softmax(logits)
  target = jnp.sum(log_p, axis=-1, where=is_target)
  rest = jnp.where(is_target, _REMOVED, log_p)
  # log(1 - p) of an unlikely target is nearly 0, and the rounding errors of a
  # sum over many classes would hide it; log1p(-p) is exact there. For a likely
  # target 1 - p may round to 0, but the sum does not.
  unlikely = target < jnp.log(0.5)
  # -1 keeps the gradient of log1p finite where the sum is chosen.
  p_target = jnp.exp(jnp.where(unlikely, target, -1.0))
  log_rest = jnp.where(
    unlikely, jnp.log1p(-p_target), jax.nn.logsumexp(rest, axis=-1)
  )
  return jnp.stack([target, log_rest], axis=-1), jax.nn.log_softmax(rest)
