"""Talking-model Distillation: the conversation as a method (section 3.4).

w_interact L_interact + w_message d(m_g0, m_h0)
+ w_state [d((low_g, high_g), D_g(m_h0)) + d((low_h, high_h), D_h(m_g0))]
"""

import functools
from typing import NamedTuple

import jax
from jax import numpy as jnp

from td_jax.methods import base
from td_jax.methods import channel
from td_jax.methods import feature
from td_jax.methods import losses
from td_jax.methods import talk
from td_jax.models import layers


class Weights(NamedTuple):
  """By name: section 3.4 and Algorithm 1 number them differently."""

  interact: base.Weight
  message: base.Weight
  state: base.Weight


def talking(
  *,
  weights: Weights,
  hidden: int,
  message: int,
  dropout: float,
  distance: losses.Distance,
  student_encodes_high: bool,
  **conversation,
) -> base.Method:
  """Student and teacher talk; both sides' encoders and decoders are learnt.

  Args:
    weights: Of the three losses. A term whose weight is the number 0 is not
      computed; with `message` and `state` 0 the teacher never sees x.
    hidden: Width of the ReLU layer of encoders and decoders.
    message: Width of a message.
    dropout: Rate inside encoders and decoders.
    distance: d of all three losses.
    student_encodes_high: Whether the student encodes its high state too; if
      not, its messages speak of its low state alone (section 6.1).
    **conversation: Of `talk.converse`: k, original_target, noise, remat,
      unroll.
  """
  encoder = channel.Encoder(hidden=hidden, message=message, dropout=dropout)

  def decoder(states):
    widths = (states.low.shape[-1], states.high.shape[-1])
    return channel.Decoder(hidden=hidden, widths=widths, dropout=dropout)

  def sent(states):
    """The part of its states that the student encodes."""
    return states if student_encodes_high else states[:1]

  def init(rng, lesson):
    base.check_tokens(lesson)
    student, teacher = lesson.student.states, lesson.teacher.states
    keys = jax.random.split(rng, 4)
    params = {
      'student_encoder': encoder.init(keys[0], sent(student), train=False),
      'teacher_encoder': encoder.init(keys[1], teacher, train=False),
    }
    words = encoder.apply(params['teacher_encoder'], teacher, train=False)
    return params | {
      'student_decoder': decoder(student).init(keys[2], words, train=False),
      'teacher_decoder': decoder(teacher).init(keys[3], words, train=False),
    }

  def speaker(params, name, side, sends):
    def apply(module, part, value, key):
      return layers.apply(module, params[f'{name}_{part}'], value, key=key)

    return talk.Speaker(
      states=side.states,
      encode=lambda states, key: apply(encoder, 'encoder', sends(states), key),
      decode=functools.partial(apply, decoder(side.states), 'decoder'),
      interpret=side.interpret,
    )

  def loss(params, lesson):
    transcript = talk.converse(
      speaker(params, 'student', lesson.student, sent),
      speaker(params, 'teacher', lesson.teacher, lambda states: states),
      rng=lesson.rng,
      distance=distance,
      **conversation,
    )
    opening = transcript.opening
    apart = functools.partial(losses.between_states, distance)
    costs = {
      'interact': lambda: transcript.interact.sum(axis=0),
      'message': lambda: distance(
        opening.student_message, opening.teacher_message
      ),
      'state': lambda: (
        apart(lesson.student.states, opening.student_decoded)
        + apart(opening.teacher_decoded, lesson.teacher.states)
      ),
    }
    total, report = jnp.zeros_like(lesson.batch.mask), {}
    for name, weight in weights._asdict().items():
      if not base.is_off(weight):
        report[name] = costs[name]()
        total += base.scaled(weight, lesson.step, report[name])
    if 'interact' in report:
      for i, cost in enumerate(transcript.interact):
        report[f'interact_{i}'] = cost
    report['spread'] = feature.message_variance(
      opening.student_message, lesson.batch.mask
    )
    return total, report

  return base.Method(init, loss)
