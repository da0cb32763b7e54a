"""Linen as we use it: how modules are called, and layers quick on a CPU.

The layers compute what their namesakes in Flax do; only how is ours.
"""

import functools
import math
from typing import Any

from flax import linen as nn
import jax
from jax import lax
from jax import numpy as jnp

from td_jax import types
from td_jax.devices import gathering


def apply(
  module: nn.Module,
  params: types.PyTree,
  *inputs: Any,
  key: types.Key | None = None,
  method: str | None = None,
) -> Any:
  """`module` on `inputs`; `key` is for dropout, None switches it off."""
  return module.apply(
    params,
    *inputs,
    train=key is not None,
    rngs=None if key is None else {'dropout': key},
    method=method,
  )


class Dropout(nn.Module):
  """nn.Dropout from fewer random bits, see `chance`."""

  rate: float

  def __call__(
    self, values: types.Array, *, deterministic: bool
  ) -> types.Array:
    if deterministic or not self.rate:
      return values
    drop = chance(self.make_rng('dropout'), self.rate, values.shape)
    return jnp.where(drop, 0, values / (1 - self.rate))


def chance(key: types.Key, rate: float, shape: tuple[int, ...]) -> types.Array:
  """Booleans of `shape`, each True with probability `rate`.

  Sixteen random bits each, so that `rate` is kept to 2^-17; jax.random spends
  64 on one boolean, which on a CPU costs as much as a matmul.
  """
  size = math.prod(shape)
  words = threefry(key, -(-size // 4))
  bits = jnp.concatenate([words & 0xFFFF, words >> 16])[:size]
  return bits.reshape(shape) < round(rate * 2**16)


def threefry(key: types.Key, blocks: int) -> types.Array:
  """The uint32 [2 * blocks] of jax.extend.random.threefry_2x32.

  Threefry-2x32 of 20 rounds (Salmon et al., 2011) on the numbers from 0. JAX
  runs the rounds in a loop on a CPU; spelt out, XLA fuses them with their use.
  """
  first, second = jax.random.key_data(key)
  keys = (first, second, first ^ second ^ jnp.uint32(0x1BD11BDA))
  count = lax.iota(jnp.uint32, blocks)
  x, y = count + first, count + jnp.uint32(blocks) + second
  for group in range(5):
    for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
      x = x + y
      y = (y << turn | y >> 32 - turn) ^ x
    x = x + keys[(group + 1) % 3]
    y = y + keys[(group + 2) % 3] + jnp.uint32(group + 1)
  return jnp.concatenate([x, y])


@jax.custom_vjp
def _matmul(x, kernel):
  return x @ kernel


def _matmul_forward(x, kernel):
  return x @ kernel, (x, kernel)


def _matmul_backward(saved, grad):
  x, kernel = saved
  rows, grads = (v.reshape(-1, v.shape[-1]) for v in (x, grad))
  return grad @ kernel.T, lax.platform_dependent(
    rows,
    grads,
    # XLA's faster CPU kernel wants its left side as it lies in memory.
    cpu=lambda x, grad: lax.optimization_barrier(x.T) @ grad,
    default=lambda x, grad: x.T @ grad,
  )


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _dot_general(x, kernel, dimensions, precision=None):
  """lax.dot_general as nn.Dense calls it."""
  del dimensions, precision  # Last axis with first, at the default.
  return _matmul(x, gathering.all_gather_param(kernel))


# For wide layers; narrow ones gain less than the transposing costs.
Dense = functools.partial(nn.Dense, dot_general=_dot_general)


def _dot_whole(x, kernel, dimensions, precision=None):
  return lax.dot_general(
    x, gathering.all_gather_param(kernel), dimensions, precision
  )


# nn.Dense, of a kernel that may be in pieces.
PlainDense = functools.partial(nn.Dense, dot_general=_dot_whole)
