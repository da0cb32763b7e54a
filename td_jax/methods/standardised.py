"""Hidden states in units of their spread, so that every dimension counts alike.

  z(s) = (s - mean) / scale

A method that runs inside `standardised` sees z(s) in place of each hidden state s. A
decoder inside it starts at the mean of the states that it decodes to, and an error of a
dimension counts in units of how much that dimension varies.
"""

from typing import NamedTuple

from jax import lax
from jax import numpy as jnp

from td_jax import types
from td_jax.methods import base
from td_jax.models import split

# A scale is at least this share of the RMS over dimensions: a dimension that hardly
# varies would count without bound.
_LEAST = 1e-3


class Statistics(NamedTuple):
  """Statistics of states [b, ..., d]."""

  mean: types.Array  # [1, ..., d], by token.
  scale: types.Array  # [d], the standard deviation over examples and tokens.


def standardised(method: base.Method) -> base.Method:
  """A method that sees standardised states of the student and of all teachers.

  The statistics are measured once, where the method is initialised, and kept under
  `base.FIXED`.
  """

  def inside(params: types.PyTree, lesson: base.Lesson) -> base.Lesson:
    measured = params[base.FIXED]
    return lesson._replace(
      student=_in_units(lesson.student, measured['student']),
      teachers={
        name: _in_units(side, measured['teachers'][name])
        for name, side in lesson.teachers.items()
      },
    )

  def init(rng: types.Key, lesson: base.Lesson) -> types.PyTree:
    measured = {
      'student': _measured(lesson.student),
      'teachers': {
        name: _measured(side) for name, side in lesson.teachers.items()
      },
    }
    params = {base.FIXED: measured}
    return params | {'own': method.init(rng, inside(params, lesson))}

  def loss(
    params: types.PyTree, lesson: base.Lesson
  ) -> tuple[types.PerExample, base.Terms]:
    return method.loss(params['own'], inside(params, lesson))

  messages = method.messages
  return method._replace(
    init=init,
    loss=loss,
    needs=method.needs | {base.Need.TEACHER_STATES, base.Need.STATISTICS},
    messages=messages
    and (
      lambda params, lesson: messages(params['own'], inside(params, lesson))
    ),
  )


def _measured(side: split.Side) -> types.PyTree:
  return {
    name: _statistics(states)._asdict()
    for name, states in side.states._asdict().items()
  }


def _statistics(states: types.Hidden) -> Statistics:
  mean = states.mean(axis=0, keepdims=True)
  variance = jnp.square(states - mean)
  variance = variance.reshape(-1, states.shape[-1]).mean(axis=0)
  floor = _LEAST**2 * variance.mean()
  return Statistics(mean, jnp.sqrt(jnp.maximum(variance, floor)))


def _in_units(side: split.Side, measured: types.PyTree) -> split.Side:
  low, high = (
    Statistics(**lax.stop_gradient(measured[name])) for name in ('low', 'high')
  )

  def z(states: types.Hidden, by: Statistics) -> types.Hidden:
    return (states - by.mean) / _broadcast(by)

  def raw(states: types.Hidden, by: Statistics) -> types.Hidden:
    return by.mean + _broadcast(by) * states

  return side._replace(
    states=types.States(z(side.states.low, low), z(side.states.high, high)),
    interpret=lambda state, key: z(side.interpret(raw(state, low), key), high),
    output_of=lambda state, key: side.output_of(raw(state, high), key),
  )


def _broadcast(by: Statistics) -> types.Array:
  """The scale with the axes of the mean: [1, ..., d]."""
  return by.scale.reshape(*[1] * (by.mean.ndim - 1), -1)
