"""L_pkt: the probability of one example given another (Passalis and Tefas, 2018).

  L_pkt = mean over i, j of p_h(j | i) log(p_h(j | i) / p_g(j | i))

p(j | i) is proportional to (1 + the cosine between the high states of i and j) / 2; a
state of several tokens is their mean. arXiv 1803.10837, equations 6, 8 and 9.
"""

from jax import numpy as jnp
import jaxtyping as jt
import optax

from td_jax import types
from td_jax.methods import base

_EPSILON = 1e-7  # As in the authors' code.


def pkt() -> base.Method:
  """The divergence from the teacher's affinities between examples."""

  def loss(lesson: base.Lesson) -> tuple[types.PerExample, base.Terms]:
    student, teacher, mask = base.related_features(lesson)
    return base.for_each(lesson, divergence(student, teacher, mask)), {}

  return base.stateless(loss, needs={base.Need.TEACHER_STATES})


def divergence(
  student: jt.Float[jt.Array, 'n _'],
  teacher: jt.Float[jt.Array, 'n _'],
  mask: types.Array,
) -> types.Array:
  """L_pkt, over pairs of examples of mask 1."""
  p, q = _affinities(teacher, mask), _affinities(student, mask)
  pairs = p * jnp.log((p + _EPSILON) / (q + _EPSILON))
  # The mean is over all pairs, as in the authors' code, and not over rows.
  return jnp.sum(pairs) / jnp.square(mask.sum())


def _affinities(
  features: jt.Float[jt.Array, 'n _'], mask: types.Array
) -> jt.Float[jt.Array, 'n n']:
  norm = optax.safe_norm(features, 0.0, axis=-1, keepdims=True)
  unit = features / (norm + _EPSILON)
  kernel = (unit @ unit.T + 1) / 2 * jnp.outer(mask, mask)
  # A row of padding is all zeros.
  total = kernel.sum(axis=-1, keepdims=True)
  return kernel / jnp.where(total > 0, total, 1.0)
