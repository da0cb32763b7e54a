"""L_logit = d(y_g, y_h): label distillation (Hinton et al., 2015)."""

import chex

from td_jax import types
from td_jax.methods import base
from td_jax.methods import losses


def logit(distance: losses.Distance) -> base.Method:
  """The distance between the outputs of student and teacher.

  Args:
    distance: d, of outputs [b, classes], or [b, 1] for ratings.
  """

  def loss(lesson: base.Lesson) -> tuple[types.PerExample, base.Terms]:
    # Distances take the last axis, so ratings [b] become [b, 1].
    student, teacher = (
      side.output.reshape(len(side.output), -1)
      for side in (lesson.student, lesson.teacher)
    )
    # A teacher of one output would be compared with each class of the student.
    chex.assert_equal_shape([student, teacher])
    return distance(student, teacher), {}

  return base.stateless(
    loss, needs={base.Need.TEACHER, base.Need.TEACHER_OUTPUT}
  )
