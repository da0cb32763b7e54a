"""Vision Transformer (arXiv 2010.11929), split after any two of its blocks.

Variants that published weights need are fields: vision_transformer,
big_vision, Hugging Face ViT and DINOv2 differ in them and in nothing else.

Layer i of section 3.1 is block i; the last layer is what follows the blocks:
LayerNorm, pooling, pre-logits and head. So h may be the number of blocks.

Parameters, softmax, the statistics of LayerNorm, states and logits are
float32 whatever `dtype` the blocks compute in.
"""

from collections.abc import Mapping
import functools
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
import jaxtyping as jt

from td_jax import errors
from td_jax import types
from td_jax.devices import gathering
from td_jax.models import layers
from td_jax.models import posemb
from td_jax.models import split as split_lib

_CHOICES = {
  # Where the class token joins: before or after positions are added to what
  # is there, so that it does or does not have a row in their table.
  'class_token': ('none', 'before', 'after'),
  'position': ('learned', 'sincos2d'),
  'pooling': ('token', 'mean', 'token_and_mean', 'map'),
  'gelu': ('tanh', 'exact'),
  'dtype': ('float32', 'bfloat16'),
}


def check(
  field: str, settings: Any, inputs: Mapping[str, Any] | None = None
) -> None:
  """Raises a ConfigError for settings of `ViT` that cannot work.

  Args:
    field: The name of the settings in messages, such as `config.model`.
    settings: A `ViT`, or a block of a config, with its fields.
    inputs: May have the side of the images in pixels, `image_size`.
  """
  for name, choices in _CHOICES.items():
    errors.choose(f'{field}.{name}', getattr(settings, name), choices)
  for name in ('width', 'depth', 'heads', 'mlp_width', 'patch'):
    if getattr(settings, name) < 1:
      raise errors.ConfigError(
        f'{field}.{name} is {getattr(settings, name)}; it must be at least 1.'
      )
  split_lib.check(f'{field}.split', settings.split, settings.depth + 1)
  errors.check_rate(f'{field}.dropout', settings.dropout)
  if settings.width % settings.heads:
    raise errors.ConfigError(
      f'{field}.width is {settings.width}; it must be a multiple of '
      f'{field}.heads, {settings.heads}.'
    )
  if settings.position == 'sincos2d' and (
    settings.width % 4 or settings.width < 8 or settings.class_token == 'before'
  ):
    raise errors.ConfigError(
      f"{field}.position is 'sincos2d', which takes a width that is a multiple "
      f'of 4 from 8 on (it is {settings.width}) and has no row for a class '
      f"token (class_token is {settings.class_token!r}; take 'after')."
    )
  if settings.pooling.startswith('token') and settings.class_token == 'none':
    raise errors.ConfigError(
      f'{field}.pooling is {settings.pooling!r}, but {field}.class_token is '
      "'none'; choose pooling 'mean' or 'map', or add a class token."
    )
  image_size = (inputs or {}).get('image_size')
  if image_size is not None and image_size % settings.patch:
    raise errors.ConfigError(
      f'{field}.patch is {settings.patch}, but config.data.size is '
      f'{image_size}; the size must be a multiple of the patch.'
    )


def tokens(settings: Any, inputs: Mapping[str, Any]) -> tuple[int, ...]:
  """The token axes of the states: one token per patch, and a class token."""
  grid = inputs['image_size'] // settings.patch
  return (grid**2 + (settings.class_token != 'none'),)


class Embed(nn.Module):
  """Images [b, h, w, 3] -> tokens [b, t, d] that know where they are."""

  width: int
  patch: int
  class_token: str
  position: str
  dtype: Any

  @nn.compact
  def __call__(self, x):
    batch, height, width, channels = x.shape
    if height % self.patch or width % self.patch:
      raise errors.ConfigError(
        f'images are {height} x {width} pixels; both must be multiples of the '
        f'patch, {self.patch}.'
      )
    rows, columns = height // self.patch, width // self.patch
    # A convolution whose stride is its size, as one matrix product: that is
    # what CPUs and seeds side by side are fast at.
    patches = x.reshape(batch, rows, self.patch, columns, self.patch, channels)
    patches = patches.transpose(0, 1, 3, 2, 4, 5)
    patches = patches.reshape(batch, rows * columns, -1)
    tokens = layers.PlainDense(self.width, dtype=self.dtype, name='patches')(
      patches
    )
    if self.class_token == 'before':
      tokens = self._with_class_token(tokens)
    tokens += self._positions(rows, columns, tokens.shape[1])[None]
    if self.class_token == 'after':
      tokens = self._with_class_token(tokens)
    return tokens

  def _with_class_token(self, tokens):
    token = self.param('class_token', nn.initializers.zeros, (self.width,))
    token = jnp.broadcast_to(
      token.astype(self.dtype), (tokens.shape[0], 1, self.width)
    )
    return jnp.concatenate([token, tokens], axis=1)

  def _positions(self, rows, columns, tokens):
    if self.position == 'sincos2d':
      table = posemb.sincos2d(rows=rows, columns=columns, width=self.width)
    else:
      table = self.param(
        'position', nn.initializers.normal(0.02), (tokens, self.width)
      )
      table = gathering.all_gather_param(table)
    return jnp.asarray(table, self.dtype)


class Attention(nn.Module):
  """Of queries [b, q, d] to tokens [b, t, d]."""

  heads: int
  dtype: Any

  @nn.compact
  def __call__(self, queries, tokens):
    batch, _, width = tokens.shape
    dense = functools.partial(
      layers.PlainDense,
      width,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
    )

    def by_head(name, values):
      values = dense(name=name)(values)
      return values.reshape(batch, -1, self.heads, width // self.heads)

    # Its softmax is float32 in any dtype.
    mixed = jax.nn.dot_product_attention(
      by_head('query', queries),
      by_head('key', tokens),
      by_head('value', tokens),
      implementation='xla',
    )
    return dense(name='out')(mixed.reshape(batch, -1, width))


class Mlp(nn.Module):
  """Dense -> GELU -> dropout -> Dense, on each token."""

  hidden: int
  gelu: str
  dropout: float
  dtype: Any

  @nn.compact
  def __call__(self, tokens, train):
    dense = functools.partial(
      layers.PlainDense,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
    )
    hidden = dense(self.hidden, name='in')(tokens)
    hidden = nn.gelu(hidden, approximate=self.gelu == 'tanh')
    hidden = nn.Dropout(self.dropout)(hidden, deterministic=not train)
    return dense(tokens.shape[-1], name='out')(hidden)


class Block(nn.Module):
  """Pre-norm attention and MLP, each added to what comes in."""

  heads: int
  mlp_width: int
  layer_scale: float
  gelu: str
  eps: float
  dropout: float
  dtype: Any

  @nn.compact
  def __call__(self, tokens, train):
    # Its statistics are float32 in any dtype.
    norm = functools.partial(nn.LayerNorm, epsilon=self.eps, dtype=self.dtype)

    def add(part, change):
      if self.layer_scale:
        start = nn.initializers.constant(self.layer_scale)
        scale = self.param(f'{part}_scale', start, tokens.shape[-1:])
        change *= scale.astype(self.dtype)[None, None]
      drop = nn.Dropout(self.dropout)
      return tokens + drop(change, deterministic=not train)

    heard = norm(name='attention_norm')(tokens)
    attention = Attention(self.heads, self.dtype, name='attention')
    tokens = add('attention', attention(heard, heard))
    heard = norm(name='mlp_norm')(tokens)
    mlp = Mlp(self.mlp_width, self.gelu, self.dropout, self.dtype, name='mlp')
    return add('mlp', mlp(heard, train))


class AttentionPool(nn.Module):
  """Tokens [b, t, d] -> [b, d]: a learned query, then an MLP (big_vision)."""

  heads: int
  mlp_width: int
  gelu: str
  eps: float
  dtype: Any

  @nn.compact
  def __call__(self, tokens):
    batch, _, width = tokens.shape
    probe = self.param('probe', nn.initializers.normal(0.02), (width,))
    probe = jnp.broadcast_to(probe.astype(self.dtype), (batch, 1, width))
    attention = Attention(self.heads, self.dtype, name='attention')
    pooled = attention(probe, tokens)
    norm = nn.LayerNorm(epsilon=self.eps, dtype=self.dtype, name='norm')
    mlp = Mlp(self.mlp_width, self.gelu, 0.0, self.dtype, name='mlp')
    return (pooled + mlp(norm(pooled), False))[:, 0]


class ViT(split_lib.Network):
  """Logits [b, classes] from preprocessed images, float [b, h, w, 3].

  A learned table of positions fits the resolution of `init` only; see
  `posemb.resize`. With `classes=0` there is no head and the output is what
  would enter it.
  """

  classes: int
  width: int
  depth: int  # Blocks.
  heads: int
  mlp_width: int
  patch: int  # Side, in pixels.
  split: tuple[int, int]  # (l, h): low after block l, high after block h.
  class_token: str  # 'none', or joins 'before' or 'after' the positions.
  position: str  # 'learned' or 'sincos2d'.
  pooling: str  # 'token', 'mean' of patches, 'token_and_mean' or 'map'.
  pre_logits_width: int  # Dense -> tanh before the head; 0: none.
  layer_scale: float  # First factor of what a block adds; 0: none.
  gelu: str  # 'tanh' or 'exact'.
  eps: float  # Of LayerNorm.
  dropout: float  # On embeddings, in MLPs and on what a block adds.
  dtype: str  # What embeddings and blocks compute in.
  remat: bool  # Compute blocks again in the backward pass, to save memory.
  scan: bool  # One compiled block, its parameters stacked: see `stack`.

  def setup(self):
    check('model', self)
    self.embed = Embed(
      width=self.width,
      patch=self.patch,
      class_token=self.class_token,
      position=self.position,
      dtype=self._dtype,
    )
    self.drop = nn.Dropout(self.dropout)
    if self.scan:
      self.stacked = self.param('blocks', self._init_stack)
    else:
      block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
      self.blocks = [block(**self._of_block()) for _ in range(self.depth)]
    self.norm = nn.LayerNorm(epsilon=self.eps)
    if self.pooling == 'map':
      of_pool = self._of_block()
      del of_pool['layer_scale'], of_pool['dropout']  # It has neither.
      self.pool = AttentionPool(**of_pool)
    if self.pre_logits_width:
      self.pre_logits = layers.PlainDense(self.pre_logits_width)
    if self.classes:
      self.head = layers.PlainDense(
        self.classes, kernel_init=nn.initializers.zeros
      )

  def low(self, x: types.PyTree, *, train: bool) -> types.Hidden:
    """`H[1..l](x)`: tokens [b, t, d] after block l."""
    tokens = self._embed(x, train)
    return self._run(tokens, 0, self.split[0], train).astype(jnp.float32)

  def interpret(self, low: types.Array, *, train: bool) -> types.Hidden:
    """`H[l+1..h](low)`: tokens [b, t, d] after block h."""
    tokens = low.astype(self._dtype)
    return self._run(tokens, *self.split, train).astype(jnp.float32)

  def output(
    self, high: types.Hidden, *, train: bool
  ) -> jt.Float[jt.Array, 'b _']:
    """`H[h+1..n](high)`: logits [b, classes]."""
    tokens = high.astype(self._dtype)
    tokens = self._run(tokens, self.split[1], self.depth, train)
    *_, output = self._finish(tokens).values()
    return output

  def intermediates(self, x, *, train: bool) -> dict[str, types.Array]:
    """Every state by name, float32, in the order they are computed.

    `embedded`, `block_00`, ..., `encoder_norm` [b, t, d], `pooled` [b, d]; if
    there are any, `pre_logits_linear`, `pre_logits` and `logits`.
    """
    tokens = self._embed(x, train)
    named = {'embedded': tokens}
    for i in range(self.depth):
      tokens = self._run(tokens, i, i + 1, train)
      named[f'block_{i:02d}'] = tokens
    named |= self._finish(tokens)
    return {name: value.astype(jnp.float32) for name, value in named.items()}

  @property
  def _dtype(self):
    return jnp.dtype(self.dtype)

  def _of_block(self) -> dict[str, Any]:
    return {
      'heads': self.heads,
      'mlp_width': self.mlp_width,
      'layer_scale': self.layer_scale,
      'gelu': self.gelu,
      'eps': self.eps,
      'dropout': self.dropout,
      'dtype': self._dtype,
    }

  def _embed(self, x, train) -> Any:
    tokens = self.embed(x.astype(self._dtype))
    return self.drop(tokens, deterministic=not train)

  def _run(self, tokens, start, stop, train) -> Any:
    """Blocks start + 1 to stop."""
    if not self.scan:
      for block in self.blocks[start:stop]:
        tokens = block(tokens, train)
      return tokens
    if start == stop:
      return tokens
    # `nn.scan` would run all of a stack or nothing; a split needs a part.
    block = Block(**self._of_block(), parent=None)

    def body(tokens, params_and_key):
      params, key = params_and_key
      rngs = None if key is None else {'dropout': key}
      return block.apply({'params': params}, tokens, train, rngs=rngs), None

    if self.remat:
      body = jax.checkpoint(body, prevent_cse=False)
    keys = None
    if train and self.dropout:
      keys = jax.random.split(self.make_rng('dropout'), stop - start)
    part = jax.tree.map(lambda leaf: leaf[start:stop], self.stacked)
    return jax.lax.scan(body, tokens, (part, keys))[0]

  def _init_stack(self, rng):
    block = Block(**self._of_block(), parent=None)
    tokens = jnp.zeros((1, 1, self.width), self._dtype)
    return jax.vmap(lambda key: block.init(key, tokens, False)['params'])(
      jax.random.split(rng, self.depth)
    )

  def _finish(self, tokens):
    """What follows the blocks, by name; the last is the output."""
    encoded = self.norm(tokens.astype(jnp.float32))
    named = {'encoder_norm': encoded, 'pooled': self._pool(encoded)}
    pooled = named['pooled']
    if self.pre_logits_width:
      linear = self.pre_logits(pooled)
      pooled = nn.tanh(linear)
      named |= {'pre_logits_linear': linear, 'pre_logits': pooled}
    if self.classes:
      named['logits'] = self.head(pooled)
    return named

  def _pool(self, encoded):
    if self.pooling == 'map':
      return self.pool(encoded.astype(self._dtype)).astype(jnp.float32)
    token = encoded[:, 0]
    mean = encoded[:, int(self.class_token != 'none') :].mean(axis=1)
    if self.pooling == 'token_and_mean':
      return jnp.concatenate([token, mean], axis=1)
    return token if self.pooling == 'token' else mean


def stack(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Variables of a ViT with `scan=False` -> those of one with `scan=True`.

  `blocks_0`, `blocks_1`, ... become one `blocks`, leaves [blocks, ...].
  """
  params = dict(variables['params'])
  depth = count_blocks(variables)
  blocks = [params.pop(f'blocks_{i}') for i in range(depth)]
  params['blocks'] = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
  return {'params': params}


def unstack(variables: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `stack`."""
  params = dict(variables['params'])
  depth = count_blocks(variables)
  stacked = params.pop('blocks')
  for i in range(depth):
    params[f'blocks_{i}'] = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
  return {'params': params}


def is_stacked(variables: Mapping[str, Any]) -> bool:
  return 'blocks' in variables['params']


def count_blocks(variables: Mapping[str, Any]) -> int:
  if is_stacked(variables):
    return len(jax.tree.leaves(variables['params']['blocks'])[0])
  return sum(name.startswith('blocks_') for name in variables['params'])
