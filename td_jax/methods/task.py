"""L(y, y_g): the downstream task's own cost."""

from td_jax.methods import base
from td_jax.methods import losses


def task(cost: losses.Distance) -> base.Method:
  """The student learns from the labels; `cost` is of `losses.TASK_LOSSES`."""
  return base.stateless(
    lambda lesson: (cost(lesson.student.output, lesson.batch.y), {})
  )
