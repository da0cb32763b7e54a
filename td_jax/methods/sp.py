"""L_sp: which examples resemble each other (Tung and Mori, 2019).

  L_sp = |G_g - G_h|^2 / b^2,  G = the rows of S S^T at unit length

S holds the high states of a batch, an example in each row with all its tokens.
arXiv 1907.09682, equations 1 to 4.
"""

from jax import numpy as jnp
import jaxtyping as jt
import optax

from td_jax import types
from td_jax.methods import base

_LEAST = 1e-12  # Of the length of a row.


def sp() -> base.Method:
  """The similarities between the examples of a batch."""

  def loss(lesson: base.Lesson) -> tuple[types.PerExample, base.Terms]:
    student, teacher, mask = base.whole_batch(
      lesson,
      (
        lesson.student.states.high,
        lesson.teacher.states.high,
        lesson.batch.mask,
      ),
    )
    difference = similarities(student, mask) - similarities(teacher, mask)
    cost = jnp.sum(jnp.square(difference)) / jnp.square(mask.sum())
    return base.for_each(lesson, cost), {}

  return base.stateless(loss, needs={base.Need.TEACHER_STATES})


def similarities(
  states: types.Hidden, mask: types.Array
) -> jt.Float[jt.Array, 'n n']:
  """The products of states with those of mask 1, each row at unit length."""
  rows = mask[:, None] * states.reshape(len(states), -1)
  products = rows @ rows.T
  return products / optax.safe_norm(products, _LEAST, axis=-1, keepdims=True)
