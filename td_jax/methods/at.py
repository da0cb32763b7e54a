"""L_at: where a network looks (Zagoruyko and Komodakis, 2017).

  L_at = the sum over low and high states of d(a_g / |a_g|, a_h / |a_h|)

a is the map of attention, the mean of s^p over the channels of each token, and d the
mean squared difference. arXiv 1612.03928, section 3.1. A ViT's maps are those of all its
tokens, the class token among them.
"""

from jax import numpy as jnp
import jaxtyping as jt
import optax

from td_jax import types
from td_jax.methods import base
from td_jax.methods import losses
from td_jax.models import split

_LEAST = 1e-12  # Of the length of a map, as in the authors' code.


def at(*, power: int) -> base.Method:
  """The distance between maps of attention.

  Args:
    power: p, of which larger ones weigh the largest activations more.
  """

  def loss(
    params: types.PyTree, lesson: base.Lesson
  ) -> tuple[types.PerExample, base.Terms]:
    del params
    student, teacher = lesson.student.states, lesson.teacher.states
    cost = jnp.zeros_like(lesson.batch.mask)
    for ours, theirs in zip(student, teacher, strict=True):
      cost += losses.l2(attention(ours, power), attention(theirs, power))
    return cost, {}

  def init(rng: types.Key, lesson: base.Lesson) -> types.PyTree:
    del rng
    base.check_tokens(lesson)
    if not split.tokens(lesson.student.states):
      raise base.no_tokens()
    return base.NO_PARAMS

  return base.Method(
    init,
    loss,
    needs=frozenset(
      {
        base.Need.TEACHER_STATES,
        base.Need.SAME_TOKENS,
        base.Need.SEVERAL_TOKENS,
      }
    ),
  )


def attention(
  states: jt.Float[jt.Array, 'b t _'], power: int
) -> jt.Float[jt.Array, 'b t']:
  """Maps of length 1 over the tokens."""
  maps = jnp.mean(states**power, axis=-1)
  return maps / optax.safe_norm(maps, _LEAST, axis=-1, keepdims=True)
