"""L_feature = d(m_g, m_h): feature distillation (Heo et al., 2019)."""

import jax
from jax import lax
from jax import numpy as jnp

from td_jax.methods import base
from td_jax.methods import channel
from td_jax.methods import losses
from td_jax.models import layers


def feature(
  *, encoder: channel.Encoder, distance: losses.Distance, fixed_teacher: bool
) -> base.Method:
  """Messages of student and teacher meet in the shared space.

  Args:
    encoder: Architecture of E_g and of E_h, each with its own weights.
    distance: d.
    fixed_teacher: E_h stays as it was initialised. If both encoders learn, the
      distance is smallest where both messages are constant (the spread of
      messages is reported, so that one sees it happen).
  """

  # The optimizer does not decay what is under this name.
  teacher_name = base.FIXED if fixed_teacher else 'teacher'

  def init(rng, lesson):
    base.check_tokens(lesson)
    student, teacher = jax.random.split(rng)
    return {
      'student': encoder.init(student, lesson.student.states, train=False),
      teacher_name: encoder.init(teacher, lesson.teacher.states, train=False),
    }

  def loss(params, lesson):
    student, teacher = jax.random.split(lesson.rng)
    message_g = layers.apply(
      encoder, params['student'], lesson.student.states, key=student
    )
    message_h = layers.apply(
      encoder,
      params[teacher_name],
      lesson.teacher.states,
      key=None if fixed_teacher else teacher,
    )
    if fixed_teacher:
      message_h = lax.stop_gradient(message_h)
    return distance(message_g, message_h), {
      'spread': message_variance(message_h, lesson.batch.mask)
    }

  return base.Method(init, loss)


def message_variance(messages, mask):
  """[b]: squared distance of each message from their mean, over `mask` [b].

  Its mean over the batch is the variance of messages; 0 is a collapse. Under
  pmap the mean is that of the device's own share.
  """
  messages = lax.stop_gradient(messages)
  share = mask / jnp.maximum(mask.sum(), 1)
  mean = jnp.tensordot(share, messages, axes=1)[None]  # [1, ..., M]
  return losses.l2(messages, jnp.broadcast_to(mean, messages.shape))
