"""The student asks about states that no input has, and learns the answers.

A question is a low state q of the student that lies between those of two inputs. The
student encodes it into a message together with what it makes of it; the teacher decodes
a low state of its own, and its frozen layers answer:

  s'(q) = D_h(E_g({q; H_g(q)}))             the low state that the teacher decodes
  L_answer = d(y_g(q), y_h(s'(q)))          teaches the student

y(s) is a network's output from a low state s. E_g and D_h learn on inputs x, where the
teacher's own state and output are known:

  L_channel = d(y_h(s'(s_g)), y_h(x)) + mean((s'(s_g) - s_h)^2)

The student's states are constants in L_channel, and the answer is one in L_answer, so
neither can be lowered by changing what it compares with.
"""

import jax
from jax import lax

from td_jax import types
from td_jax.methods import base
from td_jax.methods import channel
from td_jax.methods import losses
from td_jax.methods import mixing
from td_jax.models import layers


def asking(
  *,
  hidden: int,
  message: int,
  dropout: float,
  distance: losses.Distance,
  between: bool = True,
) -> base.Method:
  """Questions in messages, and answers in outputs.

  Args:
    hidden: Width of the ReLU layer of the encoder and of the decoder.
    message: Width of a message.
    dropout: Rate inside the encoder and the decoder.
    distance: d, between outputs [b, classes], or [b, 1] for ratings.
    between: Ask about states between two inputs; if not, about the inputs' own.

  Returns:
    A method that should see standardised states: see `standardised.py`.
  """
  encoder = channel.Encoder(hidden=hidden, message=message, dropout=dropout)

  def decoder(lesson: base.Lesson) -> channel.Decoder:
    # The teacher computes its own high state from the low state.
    width = lesson.teacher.states.low.shape[-1]
    return channel.Decoder(hidden=hidden, widths=(width, 0), dropout=dropout)

  def init(rng: types.Key, lesson: base.Lesson) -> types.PyTree:
    base.check_tokens(lesson)
    keys = jax.random.split(rng)
    states = lesson.student.states
    params = {'encoder': encoder.init(keys[0], states, train=False)}
    messages = encoder.apply(params['encoder'], states, train=False)
    params['decoder'] = decoder(lesson).init(keys[1], messages, train=False)
    return params

  def loss(
    params: types.PyTree, lesson: base.Lesson
  ) -> tuple[types.PerExample, base.Terms]:
    student, teacher = lesson.student, lesson.teacher
    keys = jax.random.split(lesson.rng, 5)

    def decoded(states: types.States, key: types.Key) -> types.Hidden:
      """The teacher's low state from the student's, which are constants."""
      encode, decode = jax.random.split(key)
      states = jax.tree.map(lax.stop_gradient, states)
      question = layers.apply(encoder, params['encoder'], states, key=encode)
      return layers.apply(
        decoder(lesson), params['decoder'], question, key=decode
      ).low

    low = decoded(student.states, keys[0])
    state = losses.l2(low, teacher.states.low)
    output = distance(mixing.answered(teacher, low), base.rows(teacher.output))

    question = student.states.low
    if between:
      question = mixing.draw(lesson.batch.mask, keys[1]).of(question)
    high = student.interpret(question, keys[2])
    asked = decoded(types.States(question, high), keys[3])
    reply = mixing.answered(teacher, asked)
    answer = distance(
      base.rows(student.output_of(high, keys[4])), lax.stop_gradient(reply)
    )
    return answer + state + output, {
      'answer': answer,
      'channel_state': state,
      'channel_output': output,
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
