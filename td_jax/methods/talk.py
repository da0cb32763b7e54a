"""The conversation of student g and teacher h (Algorithm 1).

Everything here is a function: which networks speak, and how their messages
are encoded, is the caller's affair (`methods/talking.py`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import lax
from jax import numpy as jnp

from td_jax import types
from td_jax.methods import losses


class Speaker(NamedTuple):
  """What a network needs to take part. Keys are for dropout."""

  states: types.States  # On the input x.
  encode: Callable[[types.States, types.Key], types.Message]  # E
  decode: Callable[[types.Message, types.Key], types.States]  # D
  interpret: Callable[[types.Hidden, types.Key], types.Hidden]  # H[l+1..h]


class Opening(NamedTuple):
  """The messages m0, before any interaction, and what each side hears."""

  student_message: types.Message  # m_g0 = E_g(low_g, high_g)
  teacher_message: types.Message  # m_h0 = E_h(low_h, high_h)
  student_decoded: types.States  # D_g(m_h0)
  teacher_decoded: types.States  # D_h(m_g0)


class Transcript(NamedTuple):
  """All of a conversation that a loss may look at."""

  opening: Opening
  interact: types.Array  # [k, b]: L_interact of each iteration.
  answer: types.Message | None  # The teacher's last message; None if k = 0.
  student_decoded: types.States | None  # D_g(answer)


def converse(
  student: Speaker,
  teacher: Speaker,
  *,
  rng: types.Key,
  k: int,
  distance: losses.Distance = losses.l2,
  original_target: bool = False,
  noise: float = 0.0,
  remat: bool = False,
  unroll: bool = True,
) -> Transcript:
  """Lets student and teacher talk for `k` iterations.

  Args:
    student: g; its states are the target that L_interact compares with.
    teacher: h; its states on x are used for the opening only.
    rng: One key; every use of it in every iteration is another one.
    k: Iterations, a Python int >= 0. 0 is the paper's "no interaction".
    distance: d of L_interact, applied to low and high states apart.
    original_target: Compare all iterations with the student's states on x, as
      section 3.3 has it. By default iteration i > 0 compares with the states
      that the student interpreted just before (Algorithm 1, line 17).
    noise: Standard deviation of the Gaussian noise on what the teacher
      interprets, in units of that state's RMS (section 6.5).
    remat: Recompute an iteration in the backward pass, to save memory.
    unroll: Let the compiler see all iterations at once: faster, longer to
      compile.

  Returns:
    A Transcript. Parts that no loss uses cost nothing once compiled.
  """

  def key(iteration, use):
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

  def reply(i, target, heard_h):
    """Lines 12 to 15: the teacher interprets and answers; the cost [b]."""
    low_h = heard_h.low
    if noise:
      low_h = low_h + noise * _rms(low_h) * jax.random.normal(
        key(i, 4), low_h.shape, low_h.dtype
      )
    # The decoded high state is not used: the teacher makes its own.
    interpreted = types.States(low_h, teacher.interpret(low_h, key(i, 5)))
    answer = teacher.encode(interpreted, key(i, 6))
    heard_g = student.decode(answer, key(i, 7))
    return answer, heard_g, losses.between_states(distance, target, heard_g)

  def follow_up(i, heard_g):
    """Lines 16 to 18, then line 11: the student asks, the teacher hears."""
    high_g = student.interpret(heard_g.low, key(i, 8))
    asked = types.States(heard_g.low, high_g)
    message = student.encode(asked, key(i, 9))
    return asked, teacher.decode(message, key(i, 10))

  if remat:
    reply, follow_up = jax.checkpoint(reply), jax.checkpoint(follow_up)

  def iteration(i, carry):
    _, heard_g, interact = carry
    asked, heard_h = follow_up(i, heard_g)
    target = student.states if original_target else asked
    answer, heard_g, cost = reply(i, target, heard_h)
    return answer, heard_g, interact.at[i].set(cost)

  # The first question is the opening's; nobody follows up on the last answer.
  # So the loop goes over the k - 1 pairs of follow-up and reply between.
  answer, heard_g, cost = reply(0, student.states, opening.teacher_decoded)
  interact = jnp.zeros((k, *cost.shape), cost.dtype).at[0].set(cost)
  carry = (answer, heard_g, interact)
  if k > 1:
    carry = lax.fori_loop(1, k, iteration, carry, unroll=unroll)
  answer, heard_g, interact = carry
  return Transcript(opening, interact, answer, heard_g)


def _rms(values: types.Hidden) -> types.Array:
  """Root mean square of each example, as a constant: [b, 1...]."""
  axes = tuple(range(1, values.ndim))
  return lax.stop_gradient(
    jnp.sqrt(jnp.mean(jnp.square(values), axis=axes, keepdims=True))
  )
