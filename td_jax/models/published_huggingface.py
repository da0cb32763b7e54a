"""Weights of Hugging Face's vision transformers.

transformers saves a folder: config.json describes the network, and
model.safetensors stores its parameters in PyTorch's layout. These are read: vit,
deit, dinov2 (also with registers), dinov3_vit, and the vision towers of clip and
siglip, whose text towers are left out.
"""

from collections.abc import Callable
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
from td_jax.models import published_config
from td_jax.models import published_torch
from td_jax.storage import paths

# Mean and standard deviation of grey levels: red, green, blue.
Scale = tuple[tuple[float, ...], tuple[float, ...]]
Names = tuple[tuple[str, str], ...]
_SYMMETRIC: Scale = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
_IMAGENET: Scale = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_CLIP: Scale = (
  (122.7709, 116.746, 104.0937),
  (68.5005, 66.6322, 70.3232),
)
GELUS = {
  'gelu': 'exact',
  'gelu_new': 'tanh',
  'gelu_pytorch_tanh': 'tanh',
  'quick_gelu': 'quick',
}
_NORMS = (('/attention_norm/', '/norm1/'), ('/mlp_norm/', '/norm2/'))
_SCALES = (
  ('/attention_scale$', '/layer_scale1/lambda1'),
  ('/mlp_scale$', '/layer_scale2/lambda1'),
)
_LAYERS = (
  ('^embed/patches/', 'embeddings/patch_embeddings/projection/'),
  ('^embed/class_token$', 'embeddings/cls_token'),
  ('^embed/registers$', 'embeddings/register_tokens'),
  ('^embed/position$', 'embeddings/position_embeddings'),
  ('^norm/', 'layernorm/'),
  ('^pre_logits/', 'pooler/dense/'),
  ('^head/', 'classifier/'),
  (r'^blocks_(\d+)/', r'encoder/layer/\1/'),
  ('/attention/out/', '/attention/output/dense/'),
  ('/attention/(query|key|value)/', r'/attention/attention/\1/'),
)
_VIT_NAMES = (
  *_LAYERS,
  ('/attention_norm/', '/layernorm_before/'),
  ('/mlp_norm/', '/layernorm_after/'),
  ('/mlp/in/', '/intermediate/dense/'),
  ('/mlp/out/', '/output/dense/'),
)
_DINOV2_NAMES = (
  *_LAYERS,
  *_NORMS,
  *_SCALES,
  ('/mlp/in/', '/mlp/fc1/'),
  ('/mlp/out/', '/mlp/fc2/'),
)
_SWIGLU_NAMES = (
  *_LAYERS,
  *_NORMS,
  *_SCALES,
  ('/mlp/gate/', '/mlp/weights_gate/'),
  ('/mlp/in/', '/mlp/weights_in/'),
  ('/mlp/out/', '/mlp/weights_out/'),
)
_PROJECTIONS = (
  ('/attention/query/', '/attention/q_proj/'),
  ('/attention/key/', '/attention/k_proj/'),
  ('/attention/value/', '/attention/v_proj/'),
)
_DINOV3_NAMES = (
  ('^embed/patches/', 'embeddings/patch_embeddings/'),
  ('^embed/class_token$', 'embeddings/cls_token'),
  ('^embed/registers$', 'embeddings/register_tokens'),
  (r'^blocks_(\d+)/', r'layer/\1/'),
  *_NORMS,
  *_SCALES,
  *_PROJECTIONS,
  ('/attention/out/', '/attention/o_proj/'),
  ('/mlp/gate/', '/mlp/gate_proj/'),
  ('/mlp/in/', '/mlp/up_proj/'),
  ('/mlp/out/', '/mlp/down_proj/'),
)
_TOWER_NAMES = (
  ('^embed/patches/', 'embeddings/patch_embedding/'),
  ('^embed/class_token$', 'embeddings/class_embedding'),
  ('^embed/position$', 'embeddings/position_embedding/weight'),
  ('^embed/norm/', 'pre_layrnorm/'),
  ('^norm/', 'post_layernorm/'),
  ('^pool/probe$', 'head/probe'),
  ('^pool/norm/', 'head/layernorm/'),
  ('^pool/', 'head/'),
  (r'^blocks_(\d+)/', r'encoder/layers/\1/'),
  ('/attention_norm/', '/layer_norm1/'),
  ('/mlp_norm/', '/layer_norm2/'),
  *_PROJECTIONS,
  ('/attention/out/', '/attention/out_proj/'),
  # The attention of the pool keeps its name.
  ('(layers/.*)/attention/', r'\1/self_attn/'),
  ('/mlp/in/', '/mlp/fc1/'),
  ('/mlp/out/', '/mlp/fc2/'),
)


_DISTILLATION = 'embeddings.distillation_token'  # DeiT's second class token.


class _Kind(NamedTuple):
  """A model_type."""

  names: Names
  scale: Scale  # If there is no preprocessor_config.json.
  # Fields of config.json that may be absent.
  defaults: Mapping[str, Any]
  # Options for which `vit.ViT` has no setting, and the values it implements.
  required: Mapping[str, Any]
  # Biases that a field of config.json can leave out, by this field: a pattern of
  # the names of their kernels.
  biases: Mapping[str, str] = {}
  # Of stored names that are not parameters of the network.
  ignored: str = r'.*mask_token$'
  prefix: str = ''  # Of names, if there is a head beside the network.
  resize: Callable[[int, int], np.ndarray] = posemb.bicubic
  inner: str = ''  # The field of config.json that describes the network.


_DINOV2_DEFAULTS = {'layer_norm_eps': 1e-6, 'mlp_ratio': 4, 'qkv_bias': True}
_QKV = {'qkv_bias': r'\.(query|key|value)\.weight$'}
_VIT = _Kind(
  names=_VIT_NAMES,
  scale=_SYMMETRIC,
  defaults={'layer_norm_eps': 1e-12, 'qkv_bias': True},
  required={'num_channels': 3, 'pooler_act': 'tanh'},
  biases=_QKV,
  prefix='vit.',
)
_DINOV2 = _Kind(
  names=_DINOV2_NAMES,
  scale=_IMAGENET,
  defaults=_DINOV2_DEFAULTS,
  required={'num_channels': 3},
  biases=_QKV,
  prefix='dinov2.',
)
_TOWER_DEFAULTS = {
  'hidden_size': 768,
  'num_hidden_layers': 12,
  'num_attention_heads': 12,
  'intermediate_size': 3072,
  'image_size': 224,
}
_CLIP_TOWER = _Kind(
  names=_TOWER_NAMES,
  scale=_CLIP,
  defaults=_TOWER_DEFAULTS
  | {'patch_size': 32, 'hidden_act': 'quick_gelu', 'layer_norm_eps': 1e-5},
  required={'num_channels': 3},
  # Without the projection into the space that texts share.
  ignored=r'text_|visual_projection|logit_|.*\.position_ids$',
  prefix='vision_model.',
)
_SIGLIP_TOWER = _CLIP_TOWER._replace(
  scale=_SYMMETRIC,
  defaults=_TOWER_DEFAULTS
  | {
    'patch_size': 16,
    'hidden_act': 'gelu_pytorch_tanh',
    'layer_norm_eps': 1e-6,
  },
  required={'num_channels': 3, 'vision_use_head': True},
)
_KINDS: dict[str, _Kind] = {
  'vit': _VIT,
  'deit': _VIT._replace(
    scale=_IMAGENET,
    prefix='deit.',
    # The two heads of a distilled DeiT, whose mean is its answer.
    ignored=r'.*mask_token$|cls_classifier|distillation_classifier',
  ),
  'dinov2': _DINOV2,
  'dinov2_with_registers': _DINOV2._replace(
    prefix='dinov2_with_registers.', resize=posemb.antialiased
  ),
  'dinov3_vit': _Kind(
    names=_DINOV3_NAMES,
    scale=_IMAGENET,
    defaults={
      'layer_norm_eps': 1e-5,
      'query_bias': True,
      'key_bias': False,
      'value_bias': True,
      'proj_bias': True,
      'mlp_bias': True,
      'patch_size': 16,
      'num_register_tokens': 0,
    },
    required={'num_channels': 3, 'rope_theta': 100.0},
    biases={
      'query_bias': r'\.q_proj\.weight$',
      'key_bias': r'\.k_proj\.weight$',
      'value_bias': r'\.v_proj\.weight$',
      'proj_bias': r'\.o_proj\.weight$',
      'mlp_bias': r'\.(gate|up|down)_proj\.weight$',
    },
    ignored='.*mask_token$|rope_embeddings',
  ),
  'clip': _CLIP_TOWER._replace(inner='vision_config'),
  'clip_vision_model': _CLIP_TOWER,
  'siglip': _SIGLIP_TOWER._replace(inner='vision_config'),
  'siglip_vision_model': _SIGLIP_TOWER,
}


def scale(folder: str, config: published_config.Config) -> Scale:
  """Mean and standard deviation of grey levels, from preprocessor_config.json.

  Without this file they are those with which all models of a kind were trained.

  Raises:
    errors.DataError: The file is damaged, or no model of this kind can be loaded.
  """
  path = f'{folder}/preprocessor_config.json'
  if not paths.as_path(path).exists():
    return _kind(config).scale
  with archive.local(path) as file:
    stored = published_config.read(file, path)
  # The file's numbers are those of grey levels times this factor.
  factor = stored.get('rescale_factor', float, 1 / 255)
  if not stored.get('do_normalize', bool, True):
    return (0.0,) * 3, (round(1 / factor, 4),) * 3
  mean, std = (
    tuple(round(level / factor, 4) for level in stored.get(field, list, []))
    for field in ('image_mean', 'image_std')
  )
  if len(mean) != 3 or len(std) != 3:
    raise errors.DataError(
      f'{path}: image_mean and image_std are {stored.values.get("image_mean")!r} '
      f'and {stored.values.get("image_std")!r}; they must be three numbers each.'
    )
  return mean, std


def layout(
  stored: archive.Archive, config: published_config.Config
) -> tuple[archive.Archive, published.StoredLayout]:
  """Infers from config.json how the file stores a ViT.

  Returns:
    The archive as it is to be read, and its layout.

  Raises:
    errors.DataError: `vit.ViT` does not implement this network, or a field of
      config.json is missing or of another type.
  """
  kind = _kind(config)
  config = _inner(config, kind)
  _check(config, kind)
  # Models with a task's head have a prefix, bare models have none.
  prefix = kind.prefix
  if not any(name.startswith(prefix) for name in stored.shapes):
    prefix = ''
  stored = _readable(stored, config, kind, prefix)
  settings = _settings(stored, config, prefix)
  grid = None
  if settings['position'] == 'learned':
    grid = config.square('image_size') // max(settings['patch'], 1)
  names = kind.names
  if settings['mlp'] == 'swiglu' and names is _DINOV2_NAMES:
    names = _SWIGLU_NAMES
  return stored, published.StoredLayout(
    settings=settings,
    grid=grid,
    names=(*names, *suffix_names(prefix)),
    ignored=kind.ignored,
    stored_shape=published_torch.stored_shape,
    convert=published_torch.convert,
    resize=kind.resize,
  )


def suffix_names(prefix: str) -> Names:
  """The last rules of all kinds, see `published.StoredLayout.names`."""
  return (
    ('/(kernel|scale)$', '/weight'),
    # The patterns above match our separator, so it is replaced after them.
    ('/', '.'),
    ('^(?!classifier)', prefix),
  )


def names(kind: str) -> Names:
  """The names of the parameters of a model_type, in files with a head."""
  return (*_KINDS[kind].names, *suffix_names(_KINDS[kind].prefix))


def _kind(config: published_config.Config) -> _Kind:
  name = config.get('model_type', str)
  if name not in _KINDS:
    raise errors.DataError(
      f'{config.path}: model_type is {name!r}; of Hugging Face models only '
      f'{", ".join(_KINDS)} can be loaded.'
    )
  return _KINDS[name]


def _inner(
  config: published_config.Config, kind: _Kind
) -> published_config.Config:
  """The description of the vision tower, with the defaults of its kind."""
  if kind.inner:
    config = published_config.Config(
      f'{config.path}: {kind.inner}', config.get(kind.inner, dict)
    )
  given = {
    field: value for field, value in config.values.items() if value is not None
  }
  return config._replace(values={**kind.defaults, **given})


def _check(config: published_config.Config, kind: _Kind) -> None:
  """Raises a DataError if `vit.ViT` cannot compute this network."""
  for field, only in kind.required.items():
    value = config.get(field, type(only), only)
    if value != only:
      raise errors.DataError(
        f'{config.path}: {field} is {value!r}; only {only!r} can be loaded.'
      )
  activation = config.get('hidden_act', str)
  choices = GELUS
  if config.get('use_gated_mlp', bool, False):
    choices = ('silu',)
  if activation not in choices:
    raise errors.DataError(
      f'{config.path}: hidden_act is {activation!r}; only '
      f'{", ".join(choices)} can be loaded.'
    )


def _readable(
  stored: archive.Archive,
  config: published_config.Config,
  kind: _Kind,
  prefix: str,
) -> archive.Archive:
  """The archive, with every parameter of `vit.ViT` as a leaf of its own."""
  for field, pattern in kind.biases.items():
    if not config.get(field, bool):
      stored = published_torch.with_zero_biases(stored, pattern)
  if kind.names is _DINOV2_NAMES:
    stored = published_torch.unfused(
      stored, r'\.(weights_in)\.', ('weights_gate', 'weights_in')
    )
  if kind.names is _VIT_NAMES and f'{prefix}{_DISTILLATION}' in stored.shapes:
    stored = published_torch.registers(
      stored,
      [f'{prefix}{_DISTILLATION}'],
      table=f'{prefix}embeddings.position_embeddings',
      target=f'{prefix}embeddings.register_tokens',
    )
  if kind.names is _TOWER_NAMES:
    stored = published_torch.with_zero_biases(
      stored, r'\.patch_embedding\.weight$'
    )
    stored = published_torch.unfused(
      stored,
      r'head\.attention\.(in_proj_)(weight|bias)$',
      ('q_proj.', 'k_proj.', 'v_proj.'),
    )
    embeddings = f'{prefix}embeddings'
    for name in ('position_embedding.weight', 'class_embedding'):
      stored = published_torch.reshaped(stored, f'{embeddings}.{name}', 3)
  return stored


def _settings(
  stored: archive.Archive, config: published_config.Config, prefix: str
) -> dict[str, Any]:
  names = stored.shapes.keys()

  def has(pattern: str) -> bool:
    pattern = re.escape(prefix) + pattern
    return any(re.match(pattern, name) for name in names)

  width = config.get('hidden_size', int)
  classes, pre_logits_width = 0, 0
  # One leaf of a layer is enough to expect the others.
  if 'classifier.bias' in names or 'classifier.weight' in names:
    labels = config.get('id2label', dict, {})
    classes = len(labels) or math.prod(stored.shapes.get('classifier.bias', ()))
  if has(r'pooler\.'):
    pre_logits_width = config.get('pooler_output_size', int, width)
  mlp = 'gelu'
  if config.get('use_swiglu_ffn', bool, False) or config.get(
    'use_gated_mlp', bool, False
  ):
    mlp = 'swiglu'
  registers = stored.shapes.get(f'{prefix}embeddings.register_tokens', ())
  class_token = 'before'
  if not has(r'embeddings\.(cls_token|class_embedding)$'):
    class_token = 'none'
  scales = has(r'.*\.layer_scale1\.')
  pooling = 'token'
  if has(r'head\.probe$'):
    pooling = 'map'
  elif (
    scales and classes
  ):  # A bare DINOv2 has no head; its output is the token.
    pooling = 'token_and_mean'
  return {
    'classes': classes,
    'width': width,
    'depth': config.get('num_hidden_layers', int),
    'heads': config.get('num_attention_heads', int),
    'mlp_width': _mlp_width(config, width, mlp),
    'mlp': mlp,
    'patch': config.square('patch_size'),
    'class_token': class_token,
    'registers': registers[1] if len(registers) == 3 else 0,
    'position': 'learned' if has(r'embeddings\.position_') else 'rope',
    'pre_norm': has(r'pre_layrnorm\.'),
    'pooling': pooling,
    'pre_logits_width': pre_logits_width,
    # Only its presence counts: the stored factors replace the initial value.
    'layer_scale': float(scales),
    'gelu': GELUS.get(config.get('hidden_act', str), 'exact'),
    'eps': float(config.get('layer_norm_eps', (int, float))),
  }


def _mlp_width(config: published_config.Config, width: int, mlp: str) -> int:
  """The width of an MLP's hidden layer."""
  if 'mlp_ratio' not in config.values:
    return config.get('intermediate_size', int)
  hidden = int(width * config.get('mlp_ratio', (int, float)))
  if mlp == 'gelu':
    return hidden
  # A gate is a third matrix, so DINOv2 takes two thirds, rounded up to 8.
  return (int(hidden * 2 / 3) + 7) // 8 * 8
