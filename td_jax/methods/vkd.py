"""L_vkd = h(P z_g, LayerNorm(z_h)): an orthogonal projection (Miles et al., 2024).

z is a high state, its mean over tokens, P a projection whose columns or rows are
orthonormal, and h the Huber function. The teacher's features are normalised, the
student's are not. arXiv 2403.06213, equations 2 to 5.
"""

import jax
from jax import numpy as jnp
import jaxtyping as jt
import optax

from td_jax import types
from td_jax.methods import base
from td_jax.methods import losses

_EPSILON = 1e-5  # Of LayerNorm, as in the authors' code.


def vkd() -> base.Method:
  """The distance between projected and normalised features."""

  def init(rng: types.Key, lesson: base.Lesson) -> types.PyTree:
    widths = (
      lesson.teacher.states.high.shape[-1],
      lesson.student.states.high.shape[-1],
    )
    return {'projection': jax.random.normal(rng, widths)}

  def loss(
    params: types.PyTree, lesson: base.Lesson
  ) -> tuple[types.PerExample, base.Terms]:
    projected = (
      base.pooled(lesson.student.states.high)
      @ orthogonal(params['projection']).T
    )
    return distance(projected, base.pooled(lesson.teacher.states.high)), {}

  return base.Method(init, loss, needs=frozenset({base.Need.TEACHER_STATES}))


def distance(
  projected: jt.Float[jt.Array, 'b d'], teacher: jt.Float[jt.Array, 'b d']
) -> types.PerExample:
  """h(projected, LayerNorm(teacher)), the mean over channels."""
  normalised = jax.nn.standardize(teacher, axis=-1, epsilon=_EPSILON)
  return losses.mean(optax.huber_loss(projected, normalised))


def orthogonal(
  free: jt.Float[jt.Array, 'rows columns'],
) -> jt.Float[jt.Array, 'rows columns']:
  """A matrix with orthonormal columns, or rows if it has fewer, from a free one.

  The paper takes a matrix exponential, whose cost is the cube of the wider network; the
  QR decomposition parametrises the same matrices.
  """
  if free.shape[0] < free.shape[1]:
    return orthogonal(free.T).T
  q, r = jnp.linalg.qr(free)
  # Without these signs the columns could jump from one step to the next.
  return q * jnp.sign(jnp.diagonal(r))[None]
