"""Published weights -> settings and parameters of `vit.ViT`.

- google-research/vision_transformer: .npz with names of before Linen or of
  it, with or without pre-logits, head and the prefix of a training state.
- big_vision: .npz with a class token, mean or attention pooling.
- Hugging Face `vit` and `dinov2`: folders with config.json and
  model.safetensors.

Every stored leaf is accounted for under its own name: none is missing, left
over or of another shape, and none takes another's place.
"""

from collections.abc import Callable
from collections.abc import Mapping
import json
import math
import re
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.models import archive
from td_jax.models import posemb
from td_jax.models import vit

# How to run a network: what no checkpoint tells.
_RUNNING = {
  'split': (1, 2),
  'dropout': 0.0,
  'dtype': 'float32',
  'remat': False,
  'scan': False,
}
_GOOGLE_PREFIXES = ('opt/target/params/', 'opt/target/', 'params/')
_VIT_JAX_TABLE = 'Transformer/posembed_input/pos_embedding'
_GELUS = {'gelu': 'exact', 'gelu_new': 'tanh', 'gelu_pytorch_tanh': 'tanh'}
_HF_EPS = {'vit': 1e-12, 'dinov2': 1e-6}  # Where config.json says nothing.
_HF_ONLY = {
  'num_channels': 3,
  'qkv_bias': True,
  'use_swiglu_ffn': False,
  'pooler_act': 'tanh',
}
_HF_BLOCKS = {
  'vit': (
    ('/attention_norm/', '/layernorm_before/'),
    ('/mlp_norm/', '/layernorm_after/'),
    ('/mlp/in/', '/intermediate/dense/'),
    ('/mlp/out/', '/output/dense/'),
  ),
  'dinov2': (
    ('/attention_norm/', '/norm1/'),
    ('/mlp_norm/', '/norm2/'),
    ('/mlp/in/', '/mlp/fc1/'),
    ('/mlp/out/', '/mlp/fc2/'),
  ),
}


class Pretrained(NamedTuple):
  """A published network."""

  settings: dict[str, Any]  # All of `vit.ViT` but how to run it.
  variables: types.PyTree  # float32 NumPy arrays, as of scan=False.


class _Family(NamedTuple):
  """How the networks of one origin are stored."""

  settings: dict[str, Any]  # What this one says of itself.
  grid: int | None  # Patches to a side of its table of positions.
  # (pattern, replacement): make a stored name of ours, one after the other.
  names: tuple[tuple[str, str], ...]
  ignored: str | None  # Pattern of stored names that are of no use.
  # (our leaf, our shape, settings) -> the stored shape
  layout: Callable[[str, tuple[int, ...], Mapping[str, Any]], tuple[int, ...]]
  convert: Callable[[np.ndarray], np.ndarray]  # What is then reshaped.
  resize: Callable[[int, int], np.ndarray]  # Of `posemb`.


def load(
  path: str,
  *,
  image_size: int,
  classes: int | None = None,
  expected: Mapping[str, Any] | None = None,
) -> Pretrained:
  """Reads a teacher.

  Args:
    path: A .npz, or a folder with config.json and model.safetensors; local or
      gs://.
    image_size: Side in pixels of the images that it will see. A learned table
      of positions is resized by the rule of the table's origin.
    classes: How many are wanted. A stored head of as many is kept; in place
      of any other, or of none, comes a head of zeros. Without it the head
      stays as it is stored; if there is none, settings have `classes` 0.
    expected: Settings of `vit.ViT`, as a config declares them; `classes` and
      those about running, such as `split`, are passed over. The checkpoint
      must agree with the rest. A .npz does not say how deep it was meant to
      be, nor that positions are fixed: the latter must be said here, as
      `position='sincos2d'`. `pre_logits_width=0` drops stored pre-logits,
      and the head with them.

  Raises:
    errors.DataError: there is nothing of a known kind, it is damaged, or a
      leaf or setting is not as it should be; leaves go by their stored names.
    errors.ConfigError: patches do not divide the images; dropping pre-logits
      leaves no head; `expected` has a field that `vit.ViT` has not.
  """
  expected = dict(expected or {})
  if path.endswith('.npz'):
    with (
      archive.local(path) as file,
      archive.npz(file, path) as stored,
    ):
      family = _google(stored, expected)
      return _load(stored, family, image_size, classes, expected)
  with archive.local(f'{path}/config.json') as file:
    config = _read_config(file, f'{path}/config.json')
  with (
    archive.local(f'{path}/model.safetensors') as file,
    archive.safetensor(file, f'{path}/model.safetensors') as stored,
  ):
    family = _hugging_face(stored, config)
    return _load(stored, family, image_size, classes, expected)


def _load(stored, family, image_size, classes, expected):
  own = family.settings
  for field in expected:
    errors.choose('a setting of the teacher', field, {**own, **_RUNNING})
  try:
    vit.check('what it says of itself', vit.ViT(**own, **_RUNNING))
  except errors.ConfigError as e:
    raise errors.DataError(f'{stored.path}: {e}') from e
  if image_size % own['patch']:
    raise errors.ConfigError(
      f'{stored.path} has patches of {own["patch"]} pixels, which do not '
      f'divide images of {image_size}.'
    )
  # Where a config says otherwise its word is taken first, so that the first
  # leaf to contradict it is named.
  wanted = own | {
    field: value
    for field, value in expected.items()
    if field in own
    and field != 'classes'
    and (field, value) != ('pre_logits_width', 0)
  }
  leaves = _account(stored, family, wanted, image_size)
  for field, value in wanted.items():
    if value != own[field]:
      raise errors.DataError(
        f'{stored.path}: {field} is {own[field]!r}, and {value!r} is expected.'
      )
  settings, dropped = _head(stored.path, own, classes, expected)
  flat = {}
  for leaf, (name, shape) in leaves.items():
    if leaf.split('/')[0] not in dropped:
      flat[leaf] = family.convert(stored.read(name)).reshape(shape)
  if 'embed/position' in flat:
    flat['embed/position'] = posemb.resize(
      flat['embed/position'],
      image_size // own['patch'],
      rule=family.resize,
      class_row=own['class_token'] == 'before',
    )
  for leaf, shape in _leaves(settings, image_size).items():
    if leaf not in flat:  # A head that is new.
      flat[leaf] = np.zeros(shape, np.float32)
  return Pretrained(settings, {'params': _nest(flat)})


def _account(stored, family, settings, image_size):
  """{our leaf: (its stored name, our shape)}, or an error for the first off."""
  if settings['depth'] > len(stored.shapes):
    raise errors.DataError(
      f'{stored.path}: {settings["depth"]} blocks cannot be stored in '
      f'{len(stored.shapes)} leaves.'
    )
  size = family.grid * settings['patch'] if family.grid else image_size
  leaves, names = {}, {}
  for leaf, shape in _leaves(settings, size).items():
    name = leaf
    for pattern, replacement in family.names:
      name = re.sub(pattern, replacement, name)
    leaves[leaf] = name, shape
    names[name] = family.layout(leaf, shape, settings)
  # By block and name as they are stored, so what is first is easy to find.
  for name in [*names, *sorted(stored.shapes.keys() - names.keys())]:
    found, wanted = stored.shapes.get(name), names.get(name)
    of_no_use = family.ignored and re.match(family.ignored, name)
    if found != wanted and not (wanted is None and of_no_use):
      raise _off(stored, name, wanted)
  return leaves


def _off(stored, name, wanted):
  """Of a leaf that is missing, surplus or mis-shaped."""
  found = stored.shapes.get(name)
  return errors.DataError(
    f'{stored.path}: leaf {name} is stored as '
    f'{"nothing" if found is None else list(found)} and expected as '
    f'{"nothing" if wanted is None else list(wanted)}; the file is not whole, '
    'or of another network than is expected.'
  )


def _head(path, own, classes, expected):
  """(settings, our parts that are not read)."""
  dropped = set()
  settings = dict(own)
  if own['pre_logits_width'] and expected.get('pre_logits_width') == 0:
    settings['pre_logits_width'] = 0
    dropped |= {'pre_logits', 'head'}
    if classes is None and own['classes']:
      raise errors.ConfigError(
        f'{path}: without its pre-logits the stored head has no meaning; say '
        'how many classes are wanted.'
      )
  if classes is not None:
    settings['classes'] = classes
    if classes != own['classes']:
      dropped.add('head')
  return settings, dropped


def _leaves(settings, image_size):
  """{leaf: shape} of a ViT's parameters."""
  model = vit.ViT(**settings, **_RUNNING)
  x = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.float32)
  made = jax.eval_shape(
    lambda key, x: model.init(key, x, train=False), jax.random.key(0), x
  )
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(made['params'])
  }


def _nest(flat):
  tree = {}
  for leaf, value in flat.items():
    *parents, name = leaf.split('/')
    branch = tree
    for parent in parents:
      branch = branch.setdefault(parent, {})
    branch[name] = value
  return tree


def _google(stored, expected):
  """vision_transformer and big_vision: the same names, but for a few."""
  names = stored.shapes.keys()
  prefix = next(
    (p for p in _GOOGLE_PREFIXES if any(n.startswith(p) for n in names)), ''
  )

  def shape(name, *axes):
    """Of a leaf by which the rest is told; `axes` say what they mean."""
    found = stored.shapes.get(prefix + name)
    if found is None or len(found) != len(axes):
      raise _off(stored, prefix + name, axes)
    return found

  def has(name):
    return prefix + name in names

  if expected.get('position') == 'sincos2d':
    table = None
  elif has('pos_embedding') or has(_VIT_JAX_TABLE):
    table = 'pos_embedding' if has('pos_embedding') else _VIT_JAX_TABLE
  else:
    raise errors.DataError(
      f'{stored.path}: leaf {prefix}{_VIT_JAX_TABLE}, or {prefix}pos_embedding '
      'of big_vision, is stored as nothing. If its positions are fixed, expect '
      "position='sincos2d'; else the file is not whole."
    )
  class_token = 'none'
  if has('cls'):
    class_token = 'before' if table == _VIT_JAX_TABLE else 'after'
  pooling = 'token' if has('cls') else 'mean'
  if any(name.startswith(f'{prefix}MAPHead_0/') for name in names):
    pooling = 'map'
  grid = None
  if table:
    rows = shape(table, 1, 'positions', 'width')[1]
    grid = math.isqrt(rows - (class_token == 'before'))
  # A running number over all of a block's layers before Linen; since, one for
  # each kind of layer.
  old = any('/MlpBlock_3/' in name for name in names)
  attention = f'MultiHeadDotProductAttention_{1 if old else 0}'
  mlp_norm = f'LayerNorm_{2 if old else 1}'
  mlp = f'MlpBlock_{3 if old else 0}'
  block = 'Transformer/encoderblock_'
  patch, _, _, width = shape('embedding/kernel', 'patch', 'patch', 3, 'width')
  _, heads, _ = shape(
    f'{block}0/{attention}/query/kernel', 'width', 'heads', 'width / heads'
  )
  _, mlp_width = shape(f'{block}0/{mlp}/Dense_0/kernel', 'width', 'mlp_width')
  numbers = re.compile(rf'{prefix}{block}(\d+)/')
  depth = 1 + max(int(m[1]) for m in map(numbers.match, names) if m)
  classes, pre_logits_width = 0, 0
  if any(name.startswith(f'{prefix}head/') for name in names):
    (classes,) = shape('head/bias', 'classes')
  if any(name.startswith(f'{prefix}pre_logits/') for name in names):
    (pre_logits_width,) = shape('pre_logits/bias', 'pre_logits_width')
  return _Family(
    settings={
      'classes': classes,
      'width': width,
      'depth': depth,
      'heads': heads,
      'mlp_width': mlp_width,
      'patch': patch,
      'class_token': class_token,
      'position': 'learned' if table else 'sincos2d',
      'pooling': pooling,
      'pre_logits_width': pre_logits_width,
      'layer_scale': 0.0,
      'gelu': 'tanh',
      'eps': 1e-6,
    },
    grid=grid,
    names=(
      ('^embed/patches/', 'embedding/'),
      ('^embed/class_token$', 'cls'),
      ('^embed/position$', f'{table}'),
      ('^norm/', 'Transformer/encoder_norm/'),
      (r'^blocks_(\d+)/', rf'{block}\1/'),
      ('/attention_norm/', '/LayerNorm_0/'),
      ('/mlp_norm/', f'/{mlp_norm}/'),
      ('/attention/', f'/{attention}/'),
      ('/mlp/', f'/{mlp}/'),
      # big_vision's pool, whose files have the names since Linen.
      ('^pool/norm/', 'MAPHead_0/LayerNorm_0/'),
      ('^pool/', 'MAPHead_0/'),
      (r'(/MlpBlock_\d/)in/', r'\1Dense_0/'),
      (r'(/MlpBlock_\d/)out/', r'\1Dense_1/'),
      ('^', prefix),
    ),
    # What a training state holds beside weights.
    ignored=rf'(?!{prefix})((opt|extra|chrono)/|step$)' if prefix else None,
    layout=_google_layout,
    convert=np.asarray,  # Only axes are split.
    resize=posemb.align_corners,
  )


def _google_layout(leaf, shape, settings):
  width, heads = settings['width'], settings['heads']
  by_head = (heads, width // heads)
  if re.search('attention/(query|key|value)/', leaf):
    return (*shape[:-1], *by_head)
  if leaf.endswith('attention/out/kernel'):
    return (*by_head, width)
  if leaf == 'embed/patches/kernel':
    return (settings['patch'], settings['patch'], 3, width)
  return _with_batch(leaf, shape)


def _with_batch(leaf, shape):
  """Tables and tokens have an axis of 1 for the batch, in all families."""
  if leaf == 'embed/position':
    return (1, *shape)
  if leaf in ('embed/class_token', 'pool/probe'):
    return (1, 1, *shape)
  return shape


def _hugging_face(stored, config):
  """`vit` and `dinov2`, as transformers saves them."""
  kind = config('model_type', str)
  if kind not in _HF_BLOCKS:
    raise errors.DataError(
      f'{stored.path}: model_type is {kind!r}; of Hugging Face, '
      f'{" and ".join(_HF_BLOCKS)} can be loaded.'
    )
  # What `vit.ViT` has no setting for.
  for field, only in _HF_ONLY.items():
    if config(field, type(only), only) != only:
      raise errors.DataError(
        f'{stored.path}: {field} is {config(field, type(only))!r}; only '
        f'{only!r} can be loaded.'
      )
  act = config('hidden_act', str)
  if act not in _GELUS:
    raise errors.DataError(
      f'{stored.path}: hidden_act is {act!r}, which is none of: '
      f'{", ".join(_GELUS)}.'
    )
  names = stored.shapes.keys()
  prefix = f'{kind}.'
  if not any(name.startswith(prefix) for name in names):
    prefix = ''
  width = config('hidden_size', int)
  classes, pre_logits_width = 0, 0
  if 'classifier.bias' in names or 'classifier.weight' in names:
    labels = config('id2label', dict, {})
    classes = len(labels) or math.prod(stored.shapes.get('classifier.bias', ()))
  if any(name.startswith(f'{prefix}pooler.') for name in names):
    pre_logits_width = config('pooler_output_size', int, width)
  if kind == 'vit':
    mlp_width = config('intermediate_size', int)
  else:
    mlp_width = int(width * config('mlp_ratio', (int, float), 4))
  pooling = 'token_and_mean' if kind == 'dinov2' and classes else 'token'
  patch = config('patch_size', int)
  return _Family(
    settings={
      'classes': classes,
      'width': width,
      'depth': config('num_hidden_layers', int),
      'heads': config('num_attention_heads', int),
      'mlp_width': mlp_width,
      'patch': patch,
      'class_token': 'before',
      'position': 'learned',
      'pooling': pooling,
      'pre_logits_width': pre_logits_width,
      # Whatever it started from, dinov2 has it.
      'layer_scale': float(kind == 'dinov2'),
      'gelu': _GELUS[act],
      'eps': float(config('layer_norm_eps', (int, float), _HF_EPS[kind])),
    },
    grid=config('image_size', int) // max(patch, 1),
    names=(
      ('^embed/patches/', 'embeddings/patch_embeddings/projection/'),
      ('^embed/class_token$', 'embeddings/cls_token'),
      ('^embed/position$', 'embeddings/position_embeddings'),
      ('^norm/', 'layernorm/'),
      ('^pre_logits/', 'pooler/dense/'),
      ('^head/', 'classifier/'),
      (r'^blocks_(\d+)/', r'encoder/layer/\1/'),
      *_HF_BLOCKS[kind],
      ('/attention/out/', '/attention/output/dense/'),
      ('/attention/(query|key|value)/', r'/attention/attention/\1/'),
      ('/attention_scale$', '/layer_scale1/lambda1'),
      ('/mlp_scale$', '/layer_scale2/lambda1'),
      ('/(kernel|scale)$', '/weight'),
      ('/', '.'),
      ('^(?!classifier)', prefix),
    ),
    ignored=rf'{prefix}embeddings\.mask_token$',
    layout=_hf_layout,
    convert=_hf_convert,
    resize=posemb.bicubic,
  )


def _hf_layout(leaf, shape, settings):
  if leaf == 'embed/patches/kernel':
    return (settings['width'], 3, settings['patch'], settings['patch'])
  return shape[::-1] if leaf.endswith('kernel') else _with_batch(leaf, shape)


def _hf_convert(values):
  """torch has the width of the output first, and channels before pixels."""
  if values.ndim == 4:
    return values.transpose(2, 3, 1, 0)
  return values.T if values.ndim == 2 else values


def _read_config(file, path):
  """config(field, type, default) of a config.json."""
  try:
    values = json.loads(file.read_text())
    if not isinstance(values, dict):
      raise ValueError('it is not a dictionary')
  except (OSError, ValueError, RecursionError) as e:
    raise errors.DataError(f'{path} cannot be read: {e}.') from e

  def config(field, kind, default=None):
    value = values.get(field)
    if value is None:
      value = default
    if not isinstance(value, kind) or isinstance(value, bool) > (kind is bool):
      raise errors.DataError(
        f'{path}: {field} is {value!r}, which is not what it takes.'
      )
    return value

  return config
