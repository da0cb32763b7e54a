"""Logits in units of their spread, before they are compared.

  z -> (z - mean(z)) / std(z)

Sun et al., 2024 (arXiv 2403.01427), equation 12: a student need not have the scale of
its teacher's logits. Mean and spread are those of the classes of one example.
"""

from jax import numpy as jnp
import optax

from td_jax import types
from td_jax.methods import base

# Added to the spread, as the authors do.
_EPSILON = 1e-7


def logit_std(method: base.Method) -> base.Method:
  """A method that sees standardised logits of the student and of all teachers."""
  seeing = base.seeing_outputs(method, z_score)
  return seeing._replace(needs=method.needs | {base.Need.CLASS_LABELS})


def z_score(logits: types.Array) -> types.Array:
  """Logits [b, classes] with mean 0 and spread 1 over the classes."""
  centred = logits - logits.mean(axis=-1, keepdims=True)
  # Unbiased, as in the authors' code. All logits are alike where a head starts from
  # zeros: there a root has no gradient.
  norm = optax.safe_norm(centred, 0.0, axis=-1, keepdims=True)
  return centred / (_EPSILON + norm / jnp.sqrt(logits.shape[-1] - 1))
