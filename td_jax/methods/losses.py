"""Distances d(a, b) and task losses. Each returns one cost per example, [b].

A distance compares two arrays of the same shape. It takes the mean over all
axes but the first, so that its size does not depend on the width of a state or
on the number of tokens. The mask and the mean over the batch are applied once,
in `training/step.py`.

If a distance is not symmetric, `b` is the teacher's side, the target.
"""

from collections.abc import Callable

import jax
from jax import numpy as jnp

from td_jax import types

Distance = Callable[[types.Array, types.Array], types.PerExample]


def mean(values: types.Array) -> types.PerExample:
  """The mean over all axes but the first."""
  return values.reshape(values.shape[0], -1).mean(axis=-1)


def l2(a: types.Hidden, b: types.Hidden) -> types.PerExample:
  """Mean squared difference (the paper's d, section 3.3)."""
  return mean(jnp.square(a - b))


def cosine(a: types.Hidden, b: types.Hidden) -> types.PerExample:
  """1 - the cosine of the angle along the last axis: 0 if parallel."""
  # The floor is applied before the root. After it, the gradient of the root at
  # a zero vector would be infinite, and 0 times that is NaN.
  a, b = (
    v * jax.lax.rsqrt(jnp.maximum(jnp.sum(v * v, -1, keepdims=True), 1e-12))
    for v in (a, b)
  )
  return mean(1.0 - jnp.sum(a * b, axis=-1))


def pearson(a: types.Hidden, b: types.Hidden) -> types.PerExample:
  """1 - Pearson correlation along the last axis (Huang et al., 2022)."""
  return cosine(
    a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
  )


def kl(
  a: types.Hidden, b: types.Hidden, *, temperature: float = 1.0
) -> types.PerExample:
  """T^2 KL(softmax(b / T) || softmax(a / T)) along the last axis.

  The factor T^2 keeps the gradient's size as T grows (Hinton et al., 2015).
  """
  log_a = jax.nn.log_softmax(a / temperature)
  log_b = jax.nn.log_softmax(b / temperature)
  return temperature**2 * mean(divergence(log_b, log_a))


def divergence(log_p: types.Array, log_q: types.Array) -> types.Array:
  """KL(p || q) along the last axis, of log probabilities."""
  return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


DISTANCES: dict[str, Distance] = {
  'l2': l2,
  'cosine': cosine,
  'pearson': pearson,
  'kl': kl,
}


def between_states(
  distance: Distance, a: types.States, b: types.States
) -> types.PerExample:
  """d({s; e}, {s'; e'}) = d(s, s') + d(e, e'), low states s, high states e."""
  # A distance of the concatenated states would weigh them by their widths.
  return distance(a.low, b.low) + distance(a.high, b.high)


def squared_error(output: types.Array, y: types.Array) -> types.PerExample:
  """(output - y)^2 of outputs [b] and ratings [b]."""
  return jnp.square(output - y)


def cross_entropy(output: types.Array, y: types.Array) -> types.PerExample:
  """-log softmax(output)[y] of logits [b, classes] and labels int [b]."""
  # Cast to float32 for the softmax; the networks may compute in bfloat16.
  log_p = jax.nn.log_softmax(output.astype(jnp.float32))
  return -jnp.take_along_axis(log_p, y[:, None], axis=-1)[:, 0]


TASK_LOSSES: dict[str, Distance] = {
  'squared_error': squared_error,
  'cross_entropy': cross_entropy,
}
