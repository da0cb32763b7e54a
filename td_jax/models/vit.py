"""Vision Transformer (arXiv 2010.11929), split after any two of its blocks.

The networks of vision_transformer, big_vision, timm and, at Hugging Face, ViT,
DeiT, DINOv2, DINOv3, CLIP and SigLIP differ only in fields of `ViT`, so it can run
the published weights of all of them.

Layer i of section 3.1 is block i. The last layer consists of everything after
the blocks: LayerNorm, pooling, pre-logits and head. So h may be the number of
blocks.

Parameters, softmax, the statistics of LayerNorm, states and logits are always
float32; `dtype` applies to the embeddings and blocks.
"""

from collections.abc import Mapping
import math
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
import jaxtyping as jt
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.configs import allowed
from td_jax.models import layers
from td_jax.models import posemb
from td_jax.models import split as split_lib
from td_jax.models import transformer

ALLOWED = {
  'width': allowed.WIDTH,
  'depth': allowed.integer(1, 1000),
  'heads': allowed.WIDTH,
  'mlp_width': allowed.WIDTH,
  'patch': allowed.WIDTH,
  'split': allowed.SPLIT,
  # Whether the class token joins the patches before or after positions are
  # added. Joined before, it has a row in the position table.
  'class_token': allowed.one_of(('none', 'before', 'after')),
  'registers': allowed.integer(0, allowed.WIDEST),
  'position': allowed.one_of(('learned', 'sincos2d', 'rope')),
  'pre_norm': allowed.boolean(),
  'pooling': allowed.one_of(('token', 'mean', 'token_and_mean', 'map')),
  'pre_logits_width': allowed.integer(0, allowed.WIDEST),
  'layer_scale': allowed.number(at_least=0),
  'mlp': allowed.one_of(('gelu', 'swiglu')),
  'gelu': allowed.one_of(('tanh', 'exact', 'quick')),
  'eps': allowed.number(above=0, at_most=1),
  'dropout': allowed.RATE,
  'dtype': allowed.one_of(('float32', 'bfloat16')),
  'remat': allowed.boolean(),
  'scan': allowed.boolean(),
}
# In a config, 0 leaves these to the weights of the teacher (`teacher.as_stored`).
OPEN = ALLOWED | dict.fromkeys(
  ('width', 'heads', 'mlp_width'), allowed.zero_or(allowed.WIDTH)
)


def check(name: str, settings: Any, inputs: Mapping[str, Any]) -> None:
  """Raises a ConfigError for settings of `ViT` that cannot work.

  Args:
    name: How messages refer to the settings, such as `config.model`.
    settings: A `ViT`, or a block of a config with the same fields.
    inputs: `image_size` is the side of the images in pixels; without it the
      patch size is not checked against the images.
  """
  allowed.check_all(name, settings, ALLOWED)
  split_lib.check(f'{name}.split', settings.split, settings.depth + 1)
  if settings.width % settings.heads:
    raise errors.ConfigError(
      f'{name}.width is {settings.width}; it must be a multiple of '
      f'{name}.heads, {settings.heads}.'
    )
  if settings.position == 'sincos2d' and (
    settings.width % 4 or settings.width < 8 or settings.class_token == 'before'
  ):
    raise errors.ConfigError(
      f"{name}.position is 'sincos2d'; it needs a {name}.width that is a "
      f'multiple of 4 and at least 8 (it is {settings.width}), and has no row '
      f'for a class token ({name}.class_token is {settings.class_token!r}; '
      "take 'after')."
    )
  head_width = settings.width // settings.heads
  if settings.position == 'rope' and head_width % 4:
    raise errors.ConfigError(
      f"{name}.position is 'rope', which needs heads whose width is a multiple of "
      f'4; {name}.width / {name}.heads is {head_width}.'
    )
  if settings.pooling.startswith('token') and settings.class_token == 'none':
    raise errors.ConfigError(
      f'{name}.pooling is {settings.pooling!r}, but {name}.class_token is '
      "'none'; take pooling 'mean' or 'map', or a class token."
    )
  image_size = inputs.get('image_size')
  if image_size is not None and image_size % settings.patch:
    raise errors.ConfigError(
      f'{name}.patch is {settings.patch}, which does not divide '
      f'config.data.size, {image_size}; make config.data.size a multiple of '
      'the patch.'
    )


def token_axes(settings: Any, inputs: Mapping[str, Any]) -> tuple[int, ...]:
  """The token axes of the states: (class token + registers + patches,).

  Raises:
    errors.ConfigError: the dataset has no images.
  """
  if 'image_size' not in inputs:
    raise errors.ConfigError(
      "model.name is 'vit', which needs images; the dataset of config.domain "
      "has none. Take config.domain='images', or another network."
    )
  side = inputs['image_size'] // settings.patch
  return (side**2 + _first_patch(settings),)


def _first_patch(settings: Any) -> int:
  """The number of tokens before the patches."""
  return int(settings.class_token != 'none') + settings.registers


class ViT(split_lib.Network):
  """Images [b, h, w, 3] -> logits [b, classes].

  A learned position table fits only the resolution of the images at `init`;
  see `posemb.resize`. With `classes=0` there is no head, and the output is the
  head's input.
  """

  classes: int
  width: int
  depth: int  # Number of blocks.
  heads: int
  mlp_width: int
  patch: int  # Side of a patch in pixels.
  split: tuple[int, int]  # (l, h): low after block l, high after block h.
  class_token: str  # 'none', or joins 'before' or 'after' the positions.
  registers: int  # Further learned tokens, without positions.
  position: str  # 'learned', 'sincos2d' or 'rope'.
  pre_norm: bool  # LayerNorm of the embeddings.
  pooling: str  # 'token', 'mean' of patches, 'token_and_mean' or 'map'.
  pre_logits_width: int  # Width of Dense -> tanh before the head; 0: none.
  layer_scale: float  # Initial factor on residual branches; 0: no factor.
  mlp: str  # 'gelu' or 'swiglu'.
  gelu: str  # 'tanh', 'exact' or 'quick'.
  eps: float  # Epsilon of LayerNorm.
  dropout: float  # On embeddings, inside MLPs and on residual branches.
  dtype: str  # Dtype in which embeddings and blocks compute.
  remat: bool  # Recompute blocks in the backward pass to save memory.
  scan: bool  # Compile one block and scan it over stacked parameters.

  def setup(self) -> None:
    check('model', self, {})
    # Checkpoints contain the names of attributes with parameters.
    self.embed = transformer.Embed(
      width=self.width,
      patch=self.patch,
      class_token=self.class_token,
      registers=self.registers,
      position=self.position,
      pre_norm=self.pre_norm,
      eps=self.eps,
      dtype=self._dtype,
    )
    self.drop = nn.Dropout(self.dropout)
    if self.scan:
      self.stacked = self.param('blocks', self._init_stack)
    else:
      block = transformer.Block
      if self.remat:
        block = nn.remat(block, static_argnums=(2,))  # `train`; 0 is `self`.
      self.blocks = [block(**self._block_settings()) for _ in range(self.depth)]
    self.norm = nn.LayerNorm(epsilon=self.eps)
    if self.pooling == 'map':
      settings = self._block_settings()
      # big_vision's pool has neither of them.
      del settings['layer_scale'], settings['dropout']
      self.pool = transformer.AttentionPool(**settings)
    if self.pre_logits_width:
      self.pre_logits = layers.PlainDense(self.pre_logits_width)
    if self.classes:
      self.head = layers.PlainDense(
        self.classes, kernel_init=nn.initializers.zeros
      )

  def low(self, x: transformer.Images, *, train: bool) -> transformer.Tokens:
    """`H[1..l](x)`: tokens [b, t, d] after block l."""
    tokens = self._embed(x, train)
    return self._run(tokens, 0, self.split[0], train).astype(jnp.float32)

  def interpret(
    self, low: transformer.Tokens, *, train: bool
  ) -> transformer.Tokens:
    """`H[l+1..h](low)`: tokens [b, t, d] after block h."""
    tokens = low.astype(self._dtype)
    return self._run(tokens, *self.split, train).astype(jnp.float32)

  def output(
    self, high: transformer.Tokens, *, train: bool
  ) -> jt.Float[jt.Array, 'b _']:
    """`H[h+1..n](high)`: logits [b, classes]."""
    tokens = high.astype(self._dtype)
    tokens = self._run(tokens, self.split[1], self.depth, train)
    *_, output = self._finish(tokens).values()
    return output

  def intermediates(
    self, x: transformer.Images, *, train: bool
  ) -> dict[str, types.Array]:
    """Every state by name, float32, in the order of computation.

    The names are `embedded`, `block_00`, ..., `encoder_norm` [b, t, d] and
    `pooled` [b, d], then `pre_logits_linear`, `pre_logits` and `logits` if the
    network has them. Only tests of parity with published code use this method.
    """
    tokens = self._embed(x, train)
    named = {'embedded': tokens}
    for i in range(self.depth):
      tokens = self._run(tokens, i, i + 1, train)
      named[f'block_{i:02d}'] = tokens
    named |= self._finish(tokens)
    return {name: value.astype(jnp.float32) for name, value in named.items()}

  @property
  def _dtype(self) -> np.dtype:
    return jnp.dtype(self.dtype)

  def _block_settings(self) -> dict[str, Any]:
    return {
      'heads': self.heads,
      'mlp_width': self.mlp_width,
      'mlp': self.mlp,
      'layer_scale': self.layer_scale,
      'gelu': self.gelu,
      'eps': self.eps,
      'dropout': self.dropout,
      'dtype': self._dtype,
    }

  def _embed(self, x: transformer.Images, train: bool) -> transformer.Tokens:
    tokens = self.embed(x.astype(self._dtype))
    return self.drop(tokens, deterministic=not train)

  def _run(
    self, tokens: transformer.Tokens, start: int, stop: int, train: bool
  ) -> Any:
    """Applies blocks start + 1 to stop, counted from 1."""
    rotation = self._rotation(tokens.shape[1])
    if not self.scan:
      for block in self.blocks[start:stop]:
        tokens = block(tokens, train, rotation)
      return tokens
    if start == stop:
      return tokens
    # `nn.scan` can only run all blocks of a stack. A split needs some of them,
    # so the parameters are sliced here and the block is applied by hand.
    block = transformer.Block(**self._block_settings(), parent=None)

    def body(
      tokens: Any,
      params_and_key: tuple[types.PyTree, types.Key | None],
    ) -> tuple[Any, None]:
      params, key = params_and_key
      rngs = None if key is None else {'dropout': key}
      tokens = block.apply(
        {'params': params}, tokens, train, rotation, rngs=rngs
      )
      return tokens, None

    if self.remat:
      # Inside a scan XLA cannot undo the rematerialisation by merging common
      # subexpressions, so the barriers against it would only cost time.
      body = jax.checkpoint(body, prevent_cse=False)
    keys = None
    if train and self.dropout:
      keys = jax.random.split(self.make_rng('dropout'), stop - start)
    params = jax.tree.map(lambda leaf: leaf[start:stop], self.stacked)
    return jax.lax.scan(body, tokens, (params, keys))[0]

  def _rotation(self, tokens: int) -> transformer.Rotation | None:
    """By which angles attention rotates `tokens` tokens; None if it does not.

    Raises:
      errors.ConfigError: The patches form no square.
    """
    if self.position != 'rope':
      return None
    first = _first_patch(self)
    side = math.isqrt(tokens - first)
    if side**2 != tokens - first:
      raise errors.ConfigError(
        f"model.position is 'rope', which takes square images; this one has "
        f'{tokens - first} patches.'
      )
    angles = posemb.rotations(
      rows=side, columns=side, width=self.width // self.heads
    )
    # Class token and registers have no place and are not rotated.
    angles = jnp.asarray(np.pad(angles, [(first, 0), (0, 0)]))
    return transformer.Rotation(jnp.cos(angles), jnp.sin(angles))

  def _init_stack(self, rng: types.Key) -> types.PyTree:
    """Parameters of all blocks, leaves [depth, ...], each with its own key."""
    block = transformer.Block(**self._block_settings(), parent=None)
    tokens = jnp.zeros((1, 1, self.width), self._dtype)
    return jax.vmap(lambda key: block.init(key, tokens, False)['params'])(
      jax.random.split(rng, self.depth)
    )

  def _finish(self, tokens: transformer.Tokens) -> dict[str, types.Array]:
    """Every state after the blocks, by name; the last is the output."""
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

  def _pool(self, encoded: transformer.Tokens) -> jt.Float[jt.Array, 'b _']:
    if self.pooling == 'map':
      return self.pool(encoded.astype(self._dtype)).astype(jnp.float32)
    token = encoded[:, 0]
    mean = encoded[:, _first_patch(self) :].mean(axis=1)
    if self.pooling == 'token_and_mean':
      return jnp.concatenate([token, mean], axis=1)
    return token if self.pooling == 'token' else mean


def stack(variables: Mapping[str, Any]) -> dict[str, Any]:
  """Converts the variables of a ViT with `scan=False` to `scan=True`.

  `blocks_0`, `blocks_1`, ... become one `blocks` with leaves [depth, ...].
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
  """Whether the variables belong to a ViT with `scan=True`."""
  return 'blocks' in variables['params']


def count_blocks(variables: Mapping[str, Any]) -> int:
  """The depth of the ViT to which the variables belong."""
  if is_stacked(variables):
    return len(jax.tree.leaves(variables['params']['blocks'])[0])
  return sum(name.startswith('blocks_') for name in variables['params'])
