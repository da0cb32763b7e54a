"""Talking-model distillation: the conversation as a method (section 3.4).

L = w_interact L_interact + w_message L_MC + w_state L_SC

  L_interact = sum_i d((low_g, high_g)_i, D_g(m_h)_i)   over k iterations
  L_MC = d(m_g0, m_h0)                                  message consistency
  L_SC = d((low_g, high_g), D_g(m_h0))                  state consistency
       + d((low_h, high_h), D_h(m_g0))

g is the student and h the teacher; m_g0 and m_h0 are their messages about the
input. `talk.py` has the conversation and L_interact.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any
from typing import NamedTuple

import jax

from td_jax import types
from td_jax.methods import base
from td_jax.methods import channel
from td_jax.methods import feature
from td_jax.methods import losses
from td_jax.methods import talk
from td_jax.models import layers
from td_jax.models import split


class Weights(NamedTuple):
  """Weights by name; section 3.4 and Algorithm 1 number them differently."""

  interact: base.Weight  # L_interact
  message: base.Weight  # L_MC
  state: base.Weight  # L_SC


def talking(
  *,
  weights: Weights,
  hidden: int,
  message: int,
  dropout: float,
  distance: losses.Distance,
  student_encodes_high: bool,
  **conversation: Any,
) -> base.Method:
  """Student and teacher talk; the encoders and decoders of both are trained.

  Args:
    weights: Weights of the three losses. A loss whose weight is the number 0 is
      not computed; with `message` and `state` 0 the teacher never sees x.
    hidden: Width of the ReLU layer of encoders and decoders.
    message: Width of a message.
    dropout: Rate inside encoders and decoders.
    distance: d of all three losses.
    student_encodes_high: Whether the student encodes its high state too; if
      not, its messages come from its low state alone (section 6.1).
    **conversation: Passed to `talk.converse`: k, original_target, hold_answer,
      noise, remat, unroll.
  """
  encoder = channel.Encoder(hidden=hidden, message=message, dropout=dropout)

  def decoder(states: types.States) -> channel.Decoder:
    widths = (states.low.shape[-1], states.high.shape[-1])
    return channel.Decoder(hidden=hidden, widths=widths, dropout=dropout)

  def encoded(states: types.States) -> Sequence[types.Hidden]:
    """The states that the student encodes."""
    return states if student_encodes_high else states[:1]

  def init(rng: types.Key, lesson: base.Lesson) -> types.PyTree:
    base.check_tokens(lesson)
    student, teacher = lesson.student.states, lesson.teacher.states
    keys = jax.random.split(rng, 4)
    params = {
      'student_encoder': encoder.init(keys[0], encoded(student), train=False),
      'teacher_encoder': encoder.init(keys[1], teacher, train=False),
    }
    # Both decoders read messages of one shape, so the teacher's serve for both.
    messages = encoder.apply(params['teacher_encoder'], teacher, train=False)
    return params | {
      'student_decoder': decoder(student).init(keys[2], messages, train=False),
      'teacher_decoder': decoder(teacher).init(keys[3], messages, train=False),
    }

  def speaker(
    params: types.PyTree,
    name: str,
    side: split.Side,
    select: Callable[[types.States], Sequence[types.Hidden]],
  ) -> talk.Speaker:
    def apply(module: Any, part: str, value: Any, key: types.Key) -> Any:
      return layers.apply(module, params[f'{name}_{part}'], value, key=key)

    return talk.Speaker(
      states=side.states,
      encode=lambda states, key: apply(encoder, 'encoder', select(states), key),
      decode=functools.partial(apply, decoder(side.states), 'decoder'),
      interpret=side.interpret,
    )

  def loss(
    params: types.PyTree, lesson: base.Lesson
  ) -> tuple[types.PerExample, base.Terms]:
    transcript = talk.converse(
      speaker(params, 'student', lesson.student, encoded),
      speaker(params, 'teacher', lesson.teacher, lambda states: states),
      rng=lesson.rng,
      distance=distance,
      **conversation,
    )
    opening = transcript.opening
    d = functools.partial(losses.between_states, distance)
    # Functions, because a loss that is off must not be traced: without L_MC and
    # L_SC the compiler then drops the teacher's pass over x.
    costs: dict[str, Callable[[], types.PerExample]] = {
      'interact': lambda: transcript.interact.sum(axis=0),
      'message': lambda: distance(
        opening.student_message, opening.teacher_message
      ),
      'state': lambda: (
        d(lesson.student.states, opening.student_decoded)
        + d(opening.teacher_decoded, lesson.teacher.states)
      ),
    }
    total, report = base.weighted_sum(
      lesson,
      {
        name: (weight, costs[name]())
        for name, weight in weights._asdict().items()
        if not base.is_off(weight)
      },
    )
    if 'interact' in report:
      for i, cost in enumerate(transcript.interact):
        report[f'interact_{i}'] = cost
    report['spread'] = feature.message_variance(
      opening.student_message, lesson.batch.mask
    )
    return total, report

  def messages(
    params: types.PyTree, lesson: base.Lesson
  ) -> tuple[types.Message, types.Message]:
    student, teacher = lesson.student.states, lesson.teacher.states
    return (
      layers.apply(encoder, params['student_encoder'], encoded(student)),
      layers.apply(encoder, params['teacher_encoder'], teacher),
    )

  # The conversation itself interprets decoded states, not those on x.
  needs = {base.Need.TEACHER, base.Need.SAME_TOKENS, base.Need.ROUNDS}
  if not (base.is_off(weights.message) and base.is_off(weights.state)):
    needs.add(base.Need.TEACHER_STATES)
  if conversation['k'] and not base.is_off(weights.interact):
    needs.add(base.Need.TEACHER_LAYERS)
  return base.Method(init, loss, frozenset(needs), messages)
