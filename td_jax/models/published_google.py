"""Weights of google-research/vision_transformer and of big_vision.

Both store a .npz with almost the same names, which have changed over time.
Nothing but names and shapes says what network a file holds.
"""

from collections.abc import Mapping
import math
import re
from typing import Any
from typing import NamedTuple

import numpy as np

from td_jax import errors
from td_jax.models import archive
from td_jax.models import posemb
from td_jax.models import published

# Where a training state keeps the parameters; the longest prefix comes first.
_PREFIXES = ('opt/target/params/', 'opt/target/', 'params/')
_BLOCK = 'Transformer/encoderblock_'
_VIT_JAX_TABLE = 'Transformer/posembed_input/pos_embedding'
_BIG_VISION_TABLE = 'pos_embedding'


class _Leaves(NamedTuple):
  """The names in a file, without the prefix that all parameters share."""

  stored: archive.Archive
  prefix: str

  def has(self, name: str) -> bool:
    return self.prefix + name in self.stored.shapes

  def has_any(self, start: str) -> bool:
    """Whether a name starts with `start`."""
    start = self.prefix + start
    return any(name.startswith(start) for name in self.stored.shapes)

  def shape(self, name: str, *axes: Any) -> published.Shape:
    """The shape of a leaf, see `published.shape_of`."""
    return published.shape_of(self.stored, self.prefix + name, axes)


class _BlockNames(NamedTuple):
  """How the layers of a block are called."""

  attention: str
  mlp_norm: str
  mlp: str


# Before Linen, Flax numbered all layers of a block in one sequence. Linen
# numbers the layers of each class separately.
_PRE_LINEN = _BlockNames(
  'MultiHeadDotProductAttention_1', 'LayerNorm_2', 'MlpBlock_3'
)
_LINEN = _BlockNames(
  'MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0'
)


def layout(
  stored: archive.Archive, *, position: str | None
) -> published.StoredLayout:
  """Infers from names and shapes how the file stores a ViT.

  Args:
    stored: The .npz.
    position: 'sincos2d' if the network is known to have fixed positions. They
      are no parameter, so a file cannot tell.

  Raises:
    errors.DataError: a leaf that determines a setting is missing.
  """
  names = stored.shapes.keys()
  prefix = next(
    (p for p in _PREFIXES if any(name.startswith(p) for name in names)), ''
  )
  leaves = _Leaves(stored, prefix)
  table = None if position == 'sincos2d' else _position_table(leaves)
  class_token = 'none'
  if leaves.has('cls'):
    # vision_transformer's table has a row for the class token.
    class_token = 'before' if table == _VIT_JAX_TABLE else 'after'
  grid = None
  if table:
    rows = leaves.shape(table, 1, 'positions', 'width')[1]
    grid = math.isqrt(rows - (class_token == 'before'))
  is_old = any(f'/{_PRE_LINEN.mlp}/' in name for name in names)
  block_names = _PRE_LINEN if is_old else _LINEN
  return published.StoredLayout(
    source=stored.path,
    settings={
      **_sizes(leaves, block_names),
      'class_token': class_token,
      'registers': 0,
      'pre_norm': False,
      'mlp': 'gelu',
      'position': 'learned' if table else 'sincos2d',
      'pooling': _pooling(leaves),
      'layer_scale': 0.0,
      'gelu': 'tanh',
      'eps': 1e-6,
    },
    grid=grid,
    names=_names(prefix, table, block_names),
    # A training state also holds the optimizer's state and counters.
    ignored=rf'(?!{prefix})((opt|extra|chrono)/|step$)' if prefix else None,
    stored_shape=_stored_shape,
    convert=np.asarray,  # The order of axes is ours; only a reshape is needed.
    resize=posemb.align_corners,
  )


def _position_table(leaves: _Leaves) -> str:
  for table in (_BIG_VISION_TABLE, _VIT_JAX_TABLE):
    if leaves.has(table):
      return table
  raise errors.DataError(
    f'{leaves.stored.path}: leaf {leaves.prefix}{_VIT_JAX_TABLE}, or '
    f'{leaves.prefix}{_BIG_VISION_TABLE} of big_vision, is stored as nothing. '
    "If the network has fixed positions, set position='sincos2d' in the "
    "teacher's model; otherwise the file is incomplete."
  )


def _pooling(leaves: _Leaves) -> str:
  if leaves.has_any('MAPHead_0/'):
    return 'map'
  return 'token' if leaves.has('cls') else 'mean'


def _sizes(leaves: _Leaves, block_names: _BlockNames) -> dict[str, int]:
  """The settings that are sizes of arrays, or count them."""
  attention, _, mlp = block_names
  patch, _, _, width = leaves.shape(
    'embedding/kernel', 'patch', 'patch', 3, 'width'
  )
  _, heads, _ = leaves.shape(
    f'{_BLOCK}0/{attention}/query/kernel', 'width', 'heads', 'width / heads'
  )
  _, mlp_width = leaves.shape(
    f'{_BLOCK}0/{mlp}/Dense_0/kernel', 'width', 'mlp_width'
  )
  classes, pre_logits_width = 0, 0
  # One leaf of a layer is enough to expect the others.
  if leaves.has_any('head/'):
    (classes,) = leaves.shape('head/bias', 'classes')
  if leaves.has_any('pre_logits/'):
    (pre_logits_width,) = leaves.shape('pre_logits/bias', 'pre_logits_width')
  return {
    'classes': classes,
    'width': width,
    'depth': published.depth(leaves.stored, rf'{leaves.prefix}{_BLOCK}(\d+)/'),
    'heads': heads,
    'mlp_width': mlp_width,
    'patch': patch,
    'pre_logits_width': pre_logits_width,
  }


def _names(
  prefix: str, table: str | None, block_names: _BlockNames
) -> tuple[tuple[str, str], ...]:
  attention, mlp_norm, mlp = block_names
  return (
    ('^embed/patches/', 'embedding/'),
    ('^embed/class_token$', 'cls'),
    ('^embed/position$', table or ''),  # No such leaf if it is None.
    ('^norm/', 'Transformer/encoder_norm/'),
    (r'^blocks_(\d+)/', rf'{_BLOCK}\1/'),
    ('/attention_norm/', '/LayerNorm_0/'),
    ('/mlp_norm/', f'/{mlp_norm}/'),
    ('/attention/', f'/{attention}/'),
    ('/mlp/', f'/{mlp}/'),
    # big_vision's attention pool, which only exists with Linen's names.
    ('^pool/norm/', 'MAPHead_0/LayerNorm_0/'),
    ('^pool/', 'MAPHead_0/'),
    (r'(/MlpBlock_\d/)in/', r'\1Dense_0/'),
    (r'(/MlpBlock_\d/)out/', r'\1Dense_1/'),
    # The prefix comes last because the patterns above anchor at our names.
    ('^', prefix),
  )


def _stored_shape(
  name: str, shape: published.Shape, settings: Mapping[str, Any]
) -> published.Shape:
  """Heads have an axis of their own, and so have a patch's sides."""
  width, heads = settings['width'], settings['heads']
  by_head = (heads, width // heads)
  if re.search('attention/(query|key|value)/', name):
    return (*shape[:-1], *by_head)
  if name.endswith('attention/out/kernel'):
    return (*by_head, width)
  if name == 'embed/patches/kernel':
    return (settings['patch'], settings['patch'], 3, width)
  return published.with_batch_axis(name, shape)
