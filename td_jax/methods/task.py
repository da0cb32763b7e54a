"""L(y, y_g): the loss of the downstream task."""

from td_jax.methods import base
from td_jax.methods import losses


def task(task_loss: losses.Distance) -> base.Method:
  """The loss of the student's output against the labels.

  Args:
    task_loss: A value of `losses.TASK_LOSSES`.
  """
  return base.stateless(
    lambda lesson: (task_loss(lesson.student.output, lesson.batch.y), {}),
    needs={base.Need.LABELS},
  )
