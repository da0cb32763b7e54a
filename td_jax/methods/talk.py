"""The conversation of student g and teacher h (Algorithm 1).

It knows functions only. Which networks speak, and how they encode messages, is
decided by the caller (`talking.py`).
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
from jax import numpy as jnp

from td_jax import types
from td_jax.methods import losses


class Speaker(NamedTuple):
  """The functions of a network in a conversation. Keys are for dropout."""

  states: types.States  # Its states on the input x.
  encode: Callable[[types.States, types.Key], types.Message]  # E
  decode: Callable[[types.Message, types.Key], types.States]  # D
  interpret: Callable[[types.Hidden, types.Key], types.Hidden]  # H[l+1..h]


class Opening(NamedTuple):
  """The messages m0 before any interaction, and how the other side decodes them."""

  student_message: types.Message  # m_g0 = E_g(low_g, high_g)
  teacher_message: types.Message  # m_h0 = E_h(low_h, high_h)
  student_decoded: types.States  # D_g(m_h0)
  teacher_decoded: types.States  # D_h(m_g0)


class Transcript(NamedTuple):
  """Everything in a conversation that a loss may use."""

  opening: Opening
  interact: types.Array  # [k, b]: L_interact of each iteration.
  # The teacher's last message and D_g of it, for losses on the answer itself;
  # None if k = 0.
  answer: types.Message | None
  student_decoded: types.States | None


def converse(
  student: Speaker,
  teacher: Speaker,
  *,
  rng: types.Key,
  k: int,
  distance: losses.Distance = losses.l2,
  original_target: bool = False,
  hold_answer: bool = False,
  noise: float = 0.0,
  remat: bool = False,
  unroll: bool = True,
) -> Transcript:
  """Lets student and teacher talk for `k` iterations.

  Args:
    student: g; its states are the target that L_interact compares with.
    teacher: h; its states on x are used for the opening only.
    rng: A key; every use of it in every iteration folds in another number.
    k: Iterations, a Python int >= 0. 0 is the paper's "no interaction".
    distance: d of L_interact, applied to low and high states separately.
    original_target: Compare all iterations with the student's states on x, as
      in section 3.3. By default iteration i > 0 compares with the states that
      the student interpreted just before (Algorithm 1, line 17).
    hold_answer: Let L_interact change the student's states alone: the decoded
      answer is a constant in it.
    noise: Standard deviation of the Gaussian noise on the state that the
      teacher interprets, in units of that state's RMS (section 6.5).
    remat: Recompute an iteration in the backward pass, to save memory.
    unroll: Let the compiler see all iterations at once. The program is faster,
      but takes longer to compile.

  Returns:
    A Transcript. Parts that no loss uses cost nothing once compiled.
  """

  def key(iteration: int | types.Array, use: int) -> types.Key:
    return jax.random.fold_in(jax.random.fold_in(rng, iteration), use)

  message_g = student.encode(student.states, key(0, 0))
  message_h = teacher.encode(teacher.states, key(0, 1))
  opening = Opening(
    student_message=message_g,
    teacher_message=message_h,
    student_decoded=student.decode(message_h, key(0, 2)),
    teacher_decoded=teacher.decode(message_g, key(0, 3)),
  )
  if k == 0:
    batch = message_g.shape[0]
    return Transcript(opening, jnp.zeros((0, batch)), None, None)

  def reply(
    i: int | types.Array, target: types.States, decoded_h: types.States
  ) -> tuple[types.Message, types.States, types.PerExample]:
    """Lines 12 to 15: (the teacher's answer, D_g of it, the cost [b])."""
    low_h = decoded_h.low
    if noise:
      low_h = low_h + noise * _rms(low_h) * jax.random.normal(
        key(i, 4), low_h.shape, low_h.dtype
      )
    # The decoded high state is not used: the teacher computes its own.
    interpreted = types.States(low_h, teacher.interpret(low_h, key(i, 5)))
    answer = teacher.encode(interpreted, key(i, 6))
    decoded_g = student.decode(answer, key(i, 7))
    constant = lax.stop_gradient(decoded_g) if hold_answer else decoded_g
    cost = losses.between_states(distance, target, constant)
    return answer, decoded_g, cost

  def follow_up(
    i: int | types.Array, decoded_g: types.States
  ) -> tuple[types.States, types.States]:
    """Lines 16 to 18, then line 11: (the student's question, D_h of it)."""
    high_g = student.interpret(decoded_g.low, key(i, 8))
    question = types.States(decoded_g.low, high_g)
    message = student.encode(question, key(i, 9))
    return question, teacher.decode(message, key(i, 10))

  if remat:
    reply, follow_up = jax.checkpoint(reply), jax.checkpoint(follow_up)

  def iteration(
    i: int | types.Array, carry: tuple[Any, ...]
  ) -> tuple[Any, ...]:
    _, decoded_g, interact = carry
    question, decoded_h = follow_up(i, decoded_g)
    target = student.states if original_target else question
    answer, decoded_g, cost = reply(i, target, decoded_h)
    return answer, decoded_g, interact.at[i].set(cost)

  # The first question is the opening's, which the state loss needs as well,
  # and nobody follows up on the last answer. Hence the loop runs over the
  # k - 1 pairs of follow-up and reply in between.
  answer, decoded_g, cost = reply(0, student.states, opening.teacher_decoded)
  interact = jnp.zeros((k, *cost.shape), cost.dtype).at[0].set(cost)
  carry = (answer, decoded_g, interact)
  if k > 1:
    carry = lax.fori_loop(1, k, iteration, carry, unroll=unroll)
  answer, decoded_g, interact = carry
  return Transcript(opening, interact, answer, decoded_g)


def _rms(values: types.Hidden) -> types.Array:
  """The root mean square of each example, as a constant: [b, 1...]."""
  axes = tuple(range(1, values.ndim))
  # Without the stop, the student could lower the noise by shrinking its states.
  return lax.stop_gradient(
    jnp.sqrt(jnp.mean(jnp.square(values), axis=axes, keepdims=True))
  )
