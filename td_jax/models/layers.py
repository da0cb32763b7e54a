"""How modules are called, and Linen layers that are fast on a CPU.

The layers compute what their namesakes in Flax compute, by other operations.
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
  """Applies `module` to `inputs`; `key` is for dropout, None disables it."""
  return module.apply(
    params,
    *inputs,
    train=key is not None,
    rngs=None if key is None else {'dropout': key},
    method=method,
  )


class Dropout(nn.Module):
  """nn.Dropout with fewer random bits per value; see `chance`."""

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

  Each boolean takes 16 random bits, so `rate` is rounded to a multiple of
  2^-16. jax.random takes 64 bits, which on a CPU cost as much as a matmul.
  """
  size = math.prod(shape)
  words = threefry(key, -(-size // 4))
  # Two booleans from each 32-bit word: its lower and its upper half.
  bits = jnp.concatenate([words & 0xFFFF, words >> 16])[:size]
  return bits.reshape(shape) < round(rate * 2**16)


def threefry(key: types.Key, blocks: int) -> types.Array:
  """The uint32 [2 * blocks] of jax.extend.random.threefry_2x32.

  Threefry-2x32 with 20 rounds (Salmon et al., 2011) of the counters 0, 1, ...
  """
  # On a CPU JAX runs the rounds in a loop. Unrolled, as here, XLA fuses them
  # with the operations that use the bits.
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
def _matmul(x: types.Array, kernel: types.Array) -> types.Array:
  """x @ kernel, with a gradient that is fast on a CPU."""
  return x @ kernel


def _matmul_forward(
  x: types.Array, kernel: types.Array
) -> tuple[types.Array, tuple[types.Array, types.Array]]:
  return x @ kernel, (x, kernel)


def _matmul_backward(
  residuals: tuple[types.Array, types.Array], grad: types.Array
) -> tuple[types.Array, types.Array]:
  x, kernel = residuals
  rows, grads = (v.reshape(-1, v.shape[-1]) for v in (x, grad))
  return grad @ kernel.T, lax.platform_dependent(
    rows,
    grads,
    # XLA's faster CPU kernel needs the left operand contiguous in memory. The
    # barrier keeps XLA from folding the transpose into the product.
    cpu=lambda x, grad: lax.optimization_barrier(x.T) @ grad,
    default=lambda x, grad: x.T @ grad,
  )


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _fast_dot_general(
  x: types.Array, kernel: types.Array, dimensions: Any, precision: Any = None
) -> types.Array:
  """lax.dot_general with the arguments that nn.Dense passes to it."""
  # nn.Dense always contracts x's last axis with the kernel's first.
  del dimensions, precision
  return _matmul(x, gathering.all_gather_param(kernel))


def _dot_general(
  x: types.Array, kernel: types.Array, dimensions: Any, precision: Any = None
) -> types.Array:
  """lax.dot_general of a kernel that may be sharded."""
  return lax.dot_general(
    x, gathering.all_gather_param(kernel), dimensions, precision
  )


# For wide layers. In narrow ones the transpose costs more than it gains.
Dense = functools.partial(nn.Dense, dot_general=_fast_dot_general)

# nn.Dense for a kernel that may be sharded.
PlainDense = functools.partial(nn.Dense, dot_general=_dot_general)
