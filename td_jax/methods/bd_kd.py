"""L_bd = T^2 (w_f KL(p_h || p_g) + w_r KL(p_g || p_h)): balanced divergences.

Amara et al., 2022 (arXiv 2212.12965). Where the student is surer than its teacher, by
the entropy of its output, the forward divergence weighs more, so that the student gives
weight to what the teacher thinks possible; elsewhere the reverse divergence does. The
authors have published no code, and the teacher of theirs learns as well.
"""

import jax
from jax import lax
from jax import numpy as jnp

from td_jax import types
from td_jax.methods import base
from td_jax.methods import losses


def bd_kd(*, nu: float, temperature: float) -> base.Method:
  """Both divergences from the teacher's outputs, balanced for each example.

  Args:
    nu: The weight of the divergence that counts more; the other's is 1.
    temperature: T, by which the logits of both networks are divided.
  """

  def loss(lesson: base.Lesson) -> tuple[types.PerExample, base.Terms]:
    log_g, log_h = (
      jax.nn.log_softmax(side.output / temperature)
      for side in (lesson.student, lesson.teacher)
    )
    forward = losses.divergence(log_h, log_g)
    reverse = losses.divergence(log_g, log_h)
    surer = _entropy(lax.stop_gradient(log_g)) < _entropy(log_h)
    cost = jnp.where(surer, nu, 1.0) * forward
    cost += jnp.where(surer, 1.0, nu) * reverse
    return temperature**2 * cost, {'forward': forward, 'reverse': reverse}

  return base.stateless(
    loss, needs={base.Need.TEACHER_OUTPUT, base.Need.CLASS_LABELS}
  )


def _entropy(log_p: types.Array) -> types.PerExample:
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)
