"""L_logit = d(y_g, y_h): label distillation (Hinton et al., 2015)."""

from td_jax.methods import base
from td_jax.methods import losses


def logit(distance: losses.Distance) -> base.Method:
  """The student's output follows the teacher's, [b] or [b, classes]."""
  # Ratings [b] become [b, 1]: a distance works on the last axis.

  def loss(lesson):
    outputs = [
      side.output.reshape(len(side.output), -1)
      for side in (lesson.student, lesson.teacher)
    ]
    return distance(*outputs), {}

  return base.stateless(loss)
