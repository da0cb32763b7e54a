"""L_rkd: the distances between examples, and the angles of three (Park et al., 2019).

  L_distance = mean over pairs of h(|g_i - g_j| / mean_g - |h_i - h_j| / mean_h)
  L_angle = mean over triples of h(cos of the angle at g_i - that at h_i)

g_i is the high state of example i in the student, its mean over tokens; h_i is the
teacher's, and h(.) the Huber function. arXiv 1904.05068, equations 5 to 9.
"""

from jax import numpy as jnp
import jaxtyping as jt
import optax

from td_jax import types
from td_jax.methods import base

Features = jt.Float[jt.Array, 'n _']
_LEAST = 1e-12  # Of a squared distance, as in the authors' code.


def rkd(*, distance: float, angle: float) -> base.Method:
  """The relations between the examples of a batch, which the teacher's show.

  Args:
    distance: The weight of L_distance.
    angle: The weight of L_angle, which takes memory for the cube of the batch.
  """

  def loss(lesson: base.Lesson) -> tuple[types.PerExample, base.Terms]:
    student, teacher, mask = base.related_features(lesson)
    costs = {}
    if distance:
      costs['distance'] = distance, of_pairs(student, teacher, mask)
    if angle:
      costs['angle'] = angle, of_triples(student, teacher, mask)
    return base.weighted_sum(
      lesson,
      {
        name: (weight, base.for_each(lesson, cost))
        for name, (weight, cost) in costs.items()
      },
    )

  return base.stateless(loss, needs={base.Need.TEACHER_STATES})


def of_pairs(
  student: Features, teacher: Features, mask: types.Array
) -> types.Array:
  """L_distance, over pairs of examples of mask 1."""
  real = jnp.outer(mask, mask)
  # Distances from padding are 0 on both sides.
  difference = _distances(student, real) - _distances(teacher, real)
  return jnp.sum(optax.huber_loss(difference)) / jnp.sum(real)


def of_triples(
  student: Features, teacher: Features, mask: types.Array
) -> types.Array:
  """L_angle, over triples of examples of mask 1."""
  real = jnp.einsum('i,j,k->ijk', mask, mask, mask)
  difference = _angles(student) - _angles(teacher)
  return jnp.sum(optax.huber_loss(difference) * real) / jnp.sum(real)


def _distances(
  features: Features, real: jt.Float[jt.Array, 'n n']
) -> jt.Float[jt.Array, 'n n']:
  """Distances between rows, in units of their mean over pairs that differ."""
  squares = jnp.sum(jnp.square(features), axis=-1)
  squared = squares[:, None] + squares[None] - 2 * (features @ features.T)
  others = real * (1 - jnp.eye(len(features)))
  # The floor comes before the root, whose gradient at 0 is infinite.
  distances = others * jnp.sqrt(jnp.maximum(squared, _LEAST))
  return distances * jnp.sum(others) / jnp.sum(distances)


def _angles(features: Features) -> jt.Float[jt.Array, 'n n n']:
  """The cosine of the angle at row i, between rows j and k."""
  to = features[None] - features[:, None]  # [i, j] is the way from i to j.
  norm = optax.safe_norm(to, _LEAST, axis=-1, keepdims=True)
  unit = to / norm
  return jnp.einsum('ijd,ikd->ijk', unit, unit)
