"""L_feature = d(m_g, m_h): feature distillation (Heo et al., 2019)."""

import jax
from jax import lax
from jax import numpy as jnp

from td_jax import types
from td_jax.methods import base
from td_jax.methods import channel
from td_jax.methods import losses
from td_jax.models import layers


def feature(
  *, encoder: channel.Encoder, distance: losses.Distance, fixed_teacher: bool
) -> base.Method:
  """The distance between the messages of student and teacher.

  Args:
    encoder: Architecture of E_g and of E_h, each with its own weights.
    distance: d.
    fixed_teacher: Keep E_h as it was initialised. If both encoders learn, the
      distance is smallest where both messages are constant. The reported
      `spread`, the variance of messages, shows whether that happens.
  """
  # The name decides whether the optimizer updates these parameters.
  teacher_name = base.FIXED if fixed_teacher else 'teacher'

  def init(rng: types.Key, lesson: base.Lesson) -> types.PyTree:
    base.check_tokens(lesson)
    student, teacher = jax.random.split(rng)
    return {
      'student': encoder.init(student, lesson.student.states, train=False),
      teacher_name: encoder.init(teacher, lesson.teacher.states, train=False),
    }

  def loss(
    params: types.PyTree, lesson: base.Lesson
  ) -> tuple[types.PerExample, base.Terms]:
    student, teacher = jax.random.split(lesson.rng)
    message_g = layers.apply(
      encoder, params['student'], lesson.student.states, key=student
    )
    message_h = layers.apply(
      encoder,
      params[teacher_name],
      lesson.teacher.states,
      # A fixed encoder makes targets, so it runs without dropout.
      key=None if fixed_teacher else teacher,
    )
    if fixed_teacher:
      message_h = lax.stop_gradient(message_h)
    return distance(message_g, message_h), {
      'spread': message_variance(message_h, lesson.batch.mask)
    }

  def messages(
    params: types.PyTree, lesson: base.Lesson
  ) -> tuple[types.Message, types.Message]:
    return (
      layers.apply(encoder, params['student'], lesson.student.states),
      layers.apply(encoder, params[teacher_name], lesson.teacher.states),
    )

  return base.Method(
    init,
    loss,
    needs=frozenset(
      {base.Need.TEACHER, base.Need.TEACHER_STATES, base.Need.SAME_TOKENS}
    ),
    messages=messages,
  )


def message_variance(
  messages: types.Message, mask: types.Array
) -> types.PerExample:
  """The squared distance [b] of each message from the mean message.

  Its mean over the batch is the variance of messages; 0 means that they have
  collapsed. Under pmap each device takes the mean over its own examples.

  Args:
    messages: [b, ..., m]
    mask: [b]; padding does not count towards the mean message.
  """
  # It is only reported.
  messages = lax.stop_gradient(messages)
  share = mask / jnp.maximum(mask.sum(), 1)
  mean = jnp.tensordot(share, messages, axes=1)[None]  # [1, ..., M]
  return losses.l2(messages, jnp.broadcast_to(mean, messages.shape))
