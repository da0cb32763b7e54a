"""The layers of a Vision Transformer (arXiv 2010.11929).

Each computes in its `dtype`, except for softmax and the statistics of
LayerNorm, which are float32. Parameters are always float32.
"""

import functools
from typing import NamedTuple

from flax import linen as nn
import jax
from jax import numpy as jnp
import jaxtyping as jt
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.devices import gathering
from td_jax.models import layers
from td_jax.models import posemb

Images = jt.Float[jt.Array, 'b height width channels']
Tokens = jt.Float[jt.Array, 'b t d']


class Rotation(NamedTuple):
  """Cosines and sines by which queries and keys are rotated, see `posemb`."""

  cos: jt.Float[jt.Array, 't e']
  sin: jt.Float[jt.Array, 't e']


class Embed(nn.Module):
  """Images [b, h, w, 3] -> tokens [b, t, d] with positions added.

  The order is class token, registers, patches.
  """

  width: int
  patch: int
  class_token: str
  registers: int
  position: str
  pre_norm: bool
  eps: float
  dtype: np.dtype

  @nn.compact
  def __call__(self, x: Images) -> Tokens:
    batch, height, width, channels = x.shape
    if height % self.patch or width % self.patch:
      raise errors.ConfigError(
        f'images are {height} x {width} pixels; both sides must be multiples '
        f'of the patch, {self.patch}.'
      )
    rows, columns = height // self.patch, width // self.patch
    # A convolution whose stride equals its size is one matrix product. CPUs
    # compute that faster, and under vmap over seeds it stays a matrix product.
    patches = x.reshape(batch, rows, self.patch, columns, self.patch, channels)
    patches = patches.transpose(0, 1, 3, 2, 4, 5)
    patches = patches.reshape(batch, rows * columns, -1)
    tokens = layers.PlainDense(self.width, dtype=self.dtype, name='patches')(
      patches
    )
    if self.class_token == 'before':
      tokens = self._with(self._class_token(), tokens)
    if self.position != 'rope':  # Which acts on queries and keys alone.
      tokens += self._positions(rows, columns, tokens.shape[1])[None]
    if self.registers:
      first = int(self.class_token == 'before')
      tokens = jnp.concatenate(
        [tokens[:, :first], self._with(self._registers(), tokens[:, first:])],
        axis=1,
      )
    if self.class_token == 'after':
      tokens = self._with(self._class_token(), tokens)
    if self.pre_norm:
      norm = nn.LayerNorm(epsilon=self.eps, dtype=self.dtype, name='norm')
      tokens = norm(tokens)
    return tokens

  def _with(
    self, first: jt.Float[jt.Array, 'r d'], tokens: Tokens
  ) -> jt.Float[jt.Array, 'b r+t d']:
    """`first`, in front of the tokens of each example."""
    first = jnp.broadcast_to(
      first.astype(self.dtype)[None], (tokens.shape[0], *first.shape)
    )
    return jnp.concatenate([first, tokens], axis=1)

  def _class_token(self) -> jt.Float[jt.Array, '1 d']:
    token = self.param('class_token', nn.initializers.zeros, (self.width,))
    return jnp.asarray(token)[None]

  def _registers(self) -> jt.Float[jt.Array, 'r d']:
    tokens = self.param(
      'registers', nn.initializers.normal(0.02), (self.registers, self.width)
    )
    return jnp.asarray(tokens)

  def _positions(
    self, rows: int, columns: int, tokens: int
  ) -> jt.Float[jt.Array, 't d']:
    if self.position == 'sincos2d':
      table = posemb.sincos2d(rows=rows, columns=columns, width=self.width)
    else:
      table = self.param(
        'position', nn.initializers.normal(0.02), (tokens, self.width)
      )
      table = gathering.all_gather_param(table)
    return jnp.asarray(table, self.dtype)


class Attention(nn.Module):
  """Attention of queries [b, q, d] to tokens [b, t, d]."""

  heads: int
  dtype: np.dtype

  @nn.compact
  def __call__(
    self,
    queries: jt.Float[jt.Array, 'b q d'],
    tokens: Tokens,
    rotation: Rotation | None = None,
  ) -> jt.Float[jt.Array, 'b q d']:
    batch, _, width = tokens.shape
    dense = functools.partial(
      layers.PlainDense,
      width,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
    )

    def by_head(name: str, values: types.Array) -> types.Array:
      values = dense(name=name)(values)
      return values.reshape(batch, -1, self.heads, width // self.heads)

    def rotated(values: jt.Float[jt.Array, 'b t k e']) -> types.Array:
      return values if rotation is None else _rotate(values, rotation)

    # This function computes its softmax in float32 for every dtype.
    mixed = jax.nn.dot_product_attention(
      rotated(by_head('query', queries)),
      rotated(by_head('key', tokens)),
      by_head('value', tokens),
      implementation='xla',
    )
    return dense(name='out')(mixed.reshape(batch, -1, width))


class Mlp(nn.Module):
  """Dense -> GELU -> dropout -> Dense, on each token.

  With kind='swiglu' (arXiv 2002.05202) the first Dense is multiplied by the SiLU
  of another, the gate, in place of the GELU.
  """

  hidden: int
  kind: str
  gelu: str
  dropout: float
  dtype: np.dtype

  @nn.compact
  def __call__(self, tokens: Tokens, train: bool) -> Tokens:
    dense = functools.partial(
      layers.PlainDense,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
    )
    hidden = dense(self.hidden, name='in')(tokens)
    if self.kind == 'swiglu':
      hidden *= nn.silu(dense(self.hidden, name='gate')(tokens))
    else:
      hidden = _GELUS[self.gelu](hidden)
    hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
    return dense(tokens.shape[-1], name='out')(hidden)


class Block(nn.Module):
  """A pre-norm transformer block: attention, then an MLP, both residual."""

  heads: int
  mlp_width: int
  mlp: str
  layer_scale: float
  gelu: str
  eps: float
  dropout: float
  dtype: np.dtype

  @nn.compact
  def __call__(
    self, tokens: Tokens, train: bool, rotation: Rotation | None = None
  ) -> Tokens:
    # LayerNorm computes its statistics in float32 for every dtype.
    norm = functools.partial(nn.LayerNorm, epsilon=self.eps, dtype=self.dtype)

    def add(part: str, change: Tokens) -> Tokens:
      if self.layer_scale:
        start = nn.initializers.constant(self.layer_scale)
        scale = self.param(f'{part}_scale', start, tokens.shape[-1:])
        change *= scale.astype(self.dtype)[None, None]
      drop = nn.Dropout(self.dropout)
      return tokens + drop(change, deterministic=not train)

    normed = norm(name='attention_norm')(tokens)
    attention = Attention(self.heads, self.dtype, name='attention')
    # `add` reads the `tokens` of the enclosing function at the time of the
    # call, so the second call adds to the result of the first.
    tokens = add('attention', attention(normed, normed, rotation))
    normed = norm(name='mlp_norm')(tokens)
    mlp = Mlp(
      self.mlp_width,
      self.mlp,
      self.gelu,
      self.dropout,
      self.dtype,
      name='mlp',
    )
    return add('mlp', mlp(normed, train))


class AttentionPool(nn.Module):
  """Tokens [b, t, d] -> [b, d]: a learned query, then an MLP (big_vision)."""

  heads: int
  mlp_width: int
  mlp: str
  gelu: str
  eps: float
  dtype: np.dtype

  @nn.compact
  def __call__(self, tokens: Tokens) -> jt.Float[jt.Array, 'b d']:
    batch, _, width = tokens.shape
    probe = self.param('probe', nn.initializers.normal(0.02), (width,))
    probe = jnp.broadcast_to(probe.astype(self.dtype), (batch, 1, width))
    attention = Attention(self.heads, self.dtype, name='attention')
    pooled = attention(probe, tokens)
    norm = nn.LayerNorm(epsilon=self.eps, dtype=self.dtype, name='norm')
    mlp = Mlp(self.mlp_width, self.mlp, self.gelu, 0.0, self.dtype, name='mlp')
    return (pooled + mlp(norm(pooled), False))[:, 0]


def _quick_gelu(values: types.Array) -> types.Array:
  """The approximation of GELU with which CLIP was trained."""
  return values * nn.sigmoid(1.702 * values)


_GELUS = {
  'tanh': functools.partial(nn.gelu, approximate=True),
  'exact': functools.partial(nn.gelu, approximate=False),
  'quick': _quick_gelu,
}


def _rotate(
  values: jt.Float[jt.Array, 'b t k e'], rotation: Rotation
) -> jt.Float[jt.Array, 'b t k e']:
  """Rotates dimensions i and i + e / 2 of each head by the angles of its token."""
  cos, sin = (table.astype(values.dtype)[None, :, None] for table in rotation)
  first, second = jnp.split(values, 2, axis=-1)
  return values * cos + jnp.concatenate([-second, first], axis=-1) * sin
