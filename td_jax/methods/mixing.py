"""The teacher's outputs on states between inputs: distillation by manifold mixup.

  L_mix = d(y_g(r s_g[i] + (1 - r) s_g[j]), y_h(r s_h[i] + (1 - r) s_h[j]))

s[i] is the low state of input i in the student g or in the teacher h, y(s) is that
network's output from a low state s, and r is uniform in [0, 1). Both networks mix the
same inputs in the same shares. Mixed states are those of Verma et al., 2019; MixKD (Liang
et al., 2021) distils from mixed embeddings.
"""

from typing import NamedTuple

import jax
from jax import lax
from jax import numpy as jnp

from td_jax import types
from td_jax.methods import base
from td_jax.methods import losses
from td_jax.models import split


def mixing(distance: losses.Distance) -> base.Method:
  """Compares outputs by `distance`, after mixing low states."""

  def loss(lesson: base.Lesson) -> tuple[types.PerExample, base.Terms]:
    student, teacher = lesson.student, lesson.teacher
    pairs, layers = jax.random.split(lesson.rng)
    mixture = draw(lesson.batch.mask, pairs)
    answer = answered(teacher, mixture.of(teacher.states.low))
    below, above = jax.random.split(layers)
    output = student.output_of(
      student.interpret(mixture.of(student.states.low), below), above
    )
    return distance(base.rows(output), lax.stop_gradient(answer)), {}

  return base.stateless(
    loss,
    needs={
      base.Need.TEACHER_OUTPUT,
      base.Need.TEACHER_STATES,
      base.Need.TEACHER_LAYERS,
    },
  )


class Mixture(NamedTuple):
  """Which examples of a batch are mixed, and in which shares."""

  partner: types.Array  # int32 [b]
  share: types.Array  # [b], of the example itself.

  def of(self, states: types.Hidden) -> types.Hidden:
    """States [b, ...] between those of each example and of its partner."""
    share = self.share.reshape(-1, *[1] * (states.ndim - 1))
    share = share.astype(states.dtype)
    return share * states + (1 - share) * states[self.partner]


def draw(mask: types.Array, key: types.Key) -> Mixture:
  """Partners and shares at random for a batch; padding has mask [b] 0."""
  order, share = jax.random.split(key)
  partner = jax.random.permutation(order, len(mask))
  share = jax.random.uniform(share, mask.shape)
  # An example that is paired with padding stays as it is.
  return Mixture(partner, jnp.where(mask[partner] > 0, share, 1.0))


def answered(teacher: split.Side, low: types.Hidden) -> types.Array:
  """The outputs [b, classes] of a frozen network from low states."""
  return base.rows(teacher.output_of(teacher.interpret(low, None), None))
