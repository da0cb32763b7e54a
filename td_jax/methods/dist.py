"""L_dist = T^2 (beta L_inter + gamma L_intra): relations instead of values.

Huang et al., 2022 (arXiv 2205.10536), equations 8 and 9. L_inter is 1 - the Pearson
correlation of the two networks' probabilities over the classes of an example, L_intra
that over the examples of a batch, for each class.
"""

import jax
from jax import numpy as jnp
import jaxtyping as jt
import optax

from td_jax import types
from td_jax.methods import base

# Added to the product of two norms, as the authors do.
_EPSILON = 1e-8


def dist(*, beta: float, gamma: float, temperature: float) -> base.Method:
  """The correlation with the teacher's probabilities, in two directions.

  Args:
    beta: The weight of L_inter.
    gamma: The weight of L_intra.
    temperature: T, by which the logits of both networks are divided.
  """

  def loss(lesson: base.Lesson) -> tuple[types.PerExample, base.Terms]:
    student, teacher = (
      jax.nn.softmax(side.output / temperature)
      for side in (lesson.student, lesson.teacher)
    )
    inter = 1 - correlation(student, teacher, jnp.ones_like(student))
    student, teacher, mask = base.whole_batch(
      lesson, (student, teacher, lesson.batch.mask)
    )
    # In a column padding counts as if it were not there.
    real = jnp.broadcast_to(mask, student.T.shape)
    intra = 1 - correlation(student.T, teacher.T, real).mean()
    intra = base.for_each(lesson, intra)
    cost = temperature**2 * (beta * inter + gamma * intra)
    return cost, {'inter': inter, 'intra': intra}

  return base.stateless(
    loss, needs={base.Need.TEACHER_OUTPUT, base.Need.CLASS_LABELS}
  )


def correlation(
  a: jt.Float[jt.Array, 'rows n'],
  b: jt.Float[jt.Array, 'rows n'],
  weight: jt.Float[jt.Array, 'rows n'],
) -> jt.Float[jt.Array, ' rows']:
  """Pearson correlations of rows, over the entries of weight 1 (not 0)."""

  def centred(values: types.Array) -> types.Array:
    total = jnp.sum(weight * values, axis=-1, keepdims=True)
    return weight * (
      values - total / jnp.maximum(weight.sum(axis=-1, keepdims=True), 1)
    )

  a, b = centred(a), centred(b)
  # The norm of a class that nobody expects is 0, where a root has no gradient.
  norms = [optax.safe_norm(v, 0.0, axis=-1) for v in (a, b)]
  return jnp.sum(a * b, axis=-1) / (norms[0] * norms[1] + _EPSILON)
