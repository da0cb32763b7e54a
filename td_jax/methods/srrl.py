"""L_srrl = d(z'_g, z_h) + w d(y_h(e'_g), y_h(e_h)): the teacher's head on the student.

Yang et al., 2021 (softmax regression representation learning, ICLR). e'_g is the
student's high state after a linear connector, z' its mean over tokens, and y_h the rest
of the frozen teacher: it must make of the student's state what it makes of its own. d is
the mean squared difference. The authors end the connector with batch normalisation and a
ReLU, for CNNs whose features are positive; a transformer's are not.
"""

from typing import Any

from flax import linen as nn

from td_jax import types
from td_jax.methods import base
from td_jax.methods import losses
from td_jax.models import layers


def srrl(*, classifier: float) -> base.Method:
  """The distance between features, and between what the teacher makes of them.

  Args:
    classifier: w, the weight of the teacher's outputs.
  """

  def connector(lesson: base.Lesson) -> nn.Module:
    return layers.Dense(lesson.teacher.states.high.shape[-1])

  def init(rng: types.Key, lesson: base.Lesson) -> types.PyTree:
    base.check_tokens(lesson)
    return connector(lesson).init(rng, lesson.student.states.high)

  def loss(
    params: types.PyTree, lesson: base.Lesson
  ) -> tuple[types.PerExample, base.Terms]:
    teacher = lesson.teacher
    connected: Any = connector(lesson).apply(params, lesson.student.states.high)
    features = losses.l2(
      base.pooled(connected), base.pooled(teacher.states.high)
    )
    outputs = losses.l2(
      base.rows(teacher.output_of(connected, None)), base.rows(teacher.output)
    )
    return features + classifier * outputs, {
      'features': features,
      'outputs': outputs,
    }

  return base.Method(
    init,
    loss,
    needs=frozenset(
      {
        base.Need.TEACHER_OUTPUT,
        base.Need.TEACHER_STATES,
        base.Need.TEACHER_LAYERS,
        base.Need.SAME_TOKENS,
      }
    ),
  )
