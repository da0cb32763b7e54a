"""Weights of Hugging Face `vit` and `dinov2`.

transformers saves a folder: config.json describes the network, and
model.safetensors stores its parameters in PyTorch's layout.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import math
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from td_jax import errors
from td_jax.models import archive
from td_jax.models import posemb
from td_jax.models import published
from td_jax.storage import paths

# By model_type: the names of a block's layers.
_BLOCK_NAMES = {
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
_CLASSES = {
  'vit': 'ViTForImageClassification',
  'dinov2': 'Dinov2ForImageClassification',
}
# The settings of `vit.ViT` that one of these classes can compute.
_EXPORTABLE = {
  'class_token': ('before',),
  'position': ('learned',),
  'pooling': ('token', 'mean', 'token_and_mean'),
  'pre_logits_width': (0,),
}
# Mean and standard deviation of grey levels: red, green, blue.
Scale = tuple[tuple[float, ...], tuple[float, ...]]
# By model_type, if there is no preprocessor_config.json.
_SCALES: dict[str, Scale] = {
  'vit': ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),
  'dinov2': ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
}
_DEFAULT_EPS = {'vit': 1e-12, 'dinov2': 1e-6}  # If config.json has none.
_GELUS = {'gelu': 'exact', 'gelu_new': 'tanh', 'gelu_pytorch_tanh': 'tanh'}
# Options for which `vit.ViT` has no setting, and the value that it implements.
_REQUIRED = {
  'num_channels': 3,
  'qkv_bias': True,
  'use_swiglu_ffn': False,
  'pooler_act': 'tanh',
}


class Config(NamedTuple):
  """A config.json."""

  path: str
  values: Mapping[str, Any]

  def get(
    self, field: str, kind: type | tuple[type, ...], default: Any = None
  ) -> Any:
    """A field of type `kind`.

    Raises:
      errors.DataError: the field has another type, or is absent and there is
        no default.
    """
    value = self.values.get(field)
    if value is None:
      value = default
    # In Python a bool is an int too, but `true` is no number in JSON.
    is_bool = isinstance(value, bool)
    if not isinstance(value, kind) or (is_bool and kind is not bool):
      kinds = kind if isinstance(kind, tuple) else (kind,)
      raise errors.DataError(
        f'{self.path}: {field} is {value!r}; it must be of type '
        f'{" or ".join(each.__name__ for each in kinds)}.'
      )
    return value


def read_config(file: pathlib.Path, path: str) -> Config:
  """Reads a config.json; messages refer to it as `path`.

  Raises:
    errors.DataError: it is no JSON object.
  """
  try:
    values = json.loads(file.read_text())
  # The JSON parser recurses, so deeply nested lists exhaust the stack.
  except (OSError, ValueError, RecursionError) as e:
    raise errors.DataError(
      f'{path} cannot be read: {errors.one_line(e)}. Download it again.'
    ) from e
  if not isinstance(values, dict):
    raise errors.DataError(
      f'{path} cannot be read: it holds a {type(values).__name__}, not an '
      'object. Download it again.'
    )
  return Config(path, values)


def scale(folder: str) -> Scale | None:
  """Mean and standard deviation of grey levels, from preprocessor_config.json.

  Without this file they are those with which all models of a kind were trained;
  None if that is not known.

  Raises:
    errors.DataError: The file is damaged.
  """
  path = f'{folder}/preprocessor_config.json'
  if not paths.as_path(path).exists():
    with archive.local(f'{folder}/config.json') as file:
      config = read_config(file, f'{folder}/config.json')
    return _SCALES.get(config.get('model_type', str, ''))
  with archive.local(path) as file:
    config = read_config(file, path)
  # The file's numbers are those of grey levels times this factor.
  factor = config.get('rescale_factor', float, 1 / 255)
  mean, std = (
    tuple(round(level / factor, 4) for level in config.get(field, list, []))
    for field in ('image_mean', 'image_std')
  )
  if len(mean) != 3 or len(std) != 3:
    raise errors.DataError(
      f'{path}: image_mean and image_std are {config.values.get("image_mean")!r} '
      f'and {config.values.get("image_std")!r}; they must be three numbers each.'
    )
  return mean, std


def layout(stored: archive.Archive, config: Config) -> published.StoredLayout:
  """Infers from config.json how the file stores a ViT.

  Raises:
    errors.DataError: `vit.ViT` does not implement this network, or a field of
      config.json is missing or of another type.
  """
  kind = _supported_kind(config)
  # Models with a task's head have a prefix, bare models have none.
  prefix = f'{kind}.'
  if not any(name.startswith(prefix) for name in stored.shapes):
    prefix = ''
  settings = _settings(stored, config, kind, prefix)
  return published.StoredLayout(
    settings=settings,
    grid=config.get('image_size', int) // max(settings['patch'], 1),
    names=_names(kind, prefix),
    # DINOv2's token for masked patches serves pre-training only.
    ignored=rf'{prefix}embeddings\.mask_token$',
    stored_shape=_stored_shape,
    convert=_convert,
    resize=posemb.bicubic,
  )


def stored(
  settings: Mapping[str, Any],
  params: Mapping[str, np.ndarray],
  *,
  image_size: int,
  class_names: Sequence[str],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """The inverse of loading: (config.json, the arrays of model.safetensors).

  A ViT that pools its class token becomes a `ViTForImageClassification`, and any
  other a `Dinov2ForImageClassification`, whose head reads the class token and the
  mean of the patches: of what a network does not pool it gets weights of 0.

  Args:
    settings: Fields of `vit.ViT`; scan=False.
    params: {name: value} of its parameters, such as 'embed/position'.
    image_size: Side in pixels.
    class_names: The names of the classes, in order.

  Raises:
    errors.ConfigError: Neither of them computes this network.
  """
  for field, choices in _EXPORTABLE.items():
    if settings[field] not in choices:
      raise errors.ConfigError(
        f'config.model.{field} is {settings[field]!r}; Hugging Face exports take '
        f'{" or ".join(map(repr, choices))}. Choose another format.'
      )
  plain = not settings['layer_scale'] and settings['pooling'] == 'token'
  kind = 'vit' if plain else 'dinov2'
  values = dict(params)
  if not plain:
    values |= _completed(settings, values)
  names = _names(kind, f'{kind}.')
  tensors = {
    published.stored_name(leaf, names): np.ascontiguousarray(
      _transposed(leaf, value, settings)
    )
    for leaf, value in values.items()
  }
  shared = {
    'architectures': [_CLASSES[kind]],
    'model_type': kind,
    'hidden_size': settings['width'],
    'num_hidden_layers': settings['depth'],
    'num_attention_heads': settings['heads'],
    'hidden_act': {v: k for k, v in _GELUS.items()}[settings['gelu']],
    'hidden_dropout_prob': 0.0,
    'attention_probs_dropout_prob': 0.0,
    'layer_norm_eps': settings['eps'],
    'image_size': image_size,
    'patch_size': settings['patch'],
    'num_channels': 3,
    'qkv_bias': True,
    'id2label': {str(i): name for i, name in enumerate(class_names)},
    'label2id': {name: i for i, name in enumerate(class_names)},
  }
  if kind == 'vit':
    return shared | {'intermediate_size': settings['mlp_width']}, tensors
  ratio, rest = divmod(settings['mlp_width'], settings['width'])
  if rest:
    raise errors.ConfigError(
      f'config.model.mlp_width is {settings["mlp_width"]}; Hugging Face exports of '
      f'this kind of ViT take a multiple of config.model.width, '
      f'{settings["width"]}. Choose another format.'
    )
  tensors['dinov2.embeddings.mask_token'] = np.zeros(
    (1, settings['width']), np.float32
  )
  return shared | {'mlp_ratio': ratio, 'use_swiglu_ffn': False}, tensors


def _transposed(
  leaf: str, value: np.ndarray, settings: Mapping[str, Any]
) -> np.ndarray:
  """The inverse of `_convert` and of the reshape that follows it."""
  if leaf == 'embed/patches/kernel':
    side = settings['patch']
    return value.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)
  if leaf.endswith('kernel'):
    return value.T
  return value.reshape(published.with_batch_axis(leaf, value.shape))


def _completed(
  settings: Mapping[str, Any], params: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """The parameters that a `Dinov2ForImageClassification` has beside `params`."""
  width, added = settings['width'], {}
  if not settings['layer_scale']:
    for i in range(settings['depth']):
      for part in ('attention_scale', 'mlp_scale'):
        added[f'blocks_{i}/{part}'] = np.ones(width, np.float32)
  head = params['head/kernel']
  if settings['pooling'] == 'token':
    added['head/kernel'] = np.concatenate([head, np.zeros_like(head)])
  elif settings['pooling'] == 'mean':
    added['head/kernel'] = np.concatenate([np.zeros_like(head), head])
  return added


def _supported_kind(config: Config) -> str:
  """The model_type; raises a DataError if `vit.ViT` cannot compute it."""
  kind = config.get('model_type', str)
  if kind not in _BLOCK_NAMES:
    raise errors.DataError(
      f'{config.path}: model_type is {kind!r}; of Hugging Face models only '
      f'{" and ".join(_BLOCK_NAMES)} can be loaded.'
    )
  for field, only in _REQUIRED.items():
    value = config.get(field, type(only), only)
    if value != only:
      raise errors.DataError(
        f'{config.path}: {field} is {value!r}; only {only!r} can be loaded.'
      )
  activation = config.get('hidden_act', str)
  if activation not in _GELUS:
    raise errors.DataError(
      f'{config.path}: hidden_act is {activation!r}; only '
      f'{", ".join(_GELUS)} can be loaded.'
    )
  return kind


def _settings(
  stored: archive.Archive, config: Config, kind: str, prefix: str
) -> dict[str, Any]:
  names = stored.shapes.keys()
  width = config.get('hidden_size', int)
  classes, pre_logits_width = 0, 0
  # One leaf of a layer is enough to expect the others.
  if 'classifier.bias' in names or 'classifier.weight' in names:
    labels = config.get('id2label', dict, {})
    classes = len(labels) or math.prod(stored.shapes.get('classifier.bias', ()))
  if any(name.startswith(f'{prefix}pooler.') for name in names):
    pre_logits_width = config.get('pooler_output_size', int, width)
  if kind == 'vit':
    mlp_width = config.get('intermediate_size', int)
  else:
    mlp_width = int(width * config.get('mlp_ratio', (int, float), 4))
  # A bare DINOv2 has no head; its output is the class token.
  pooling = 'token_and_mean' if kind == 'dinov2' and classes else 'token'
  return {
    'classes': classes,
    'width': width,
    'depth': config.get('num_hidden_layers', int),
    'heads': config.get('num_attention_heads', int),
    'mlp_width': mlp_width,
    'patch': config.get('patch_size', int),
    'class_token': 'before',
    'position': 'learned',
    'pooling': pooling,
    'pre_logits_width': pre_logits_width,
    # Only its presence counts: the stored factors replace the initial value.
    'layer_scale': float(kind == 'dinov2'),
    'gelu': _GELUS[config.get('hidden_act', str)],
    'eps': float(
      config.get('layer_norm_eps', (int, float), _DEFAULT_EPS[kind])
    ),
  }


def _names(kind: str, prefix: str) -> tuple[tuple[str, str], ...]:
  return (
    ('^embed/patches/', 'embeddings/patch_embeddings/projection/'),
    ('^embed/class_token$', 'embeddings/cls_token'),
    ('^embed/position$', 'embeddings/position_embeddings'),
    ('^norm/', 'layernorm/'),
    ('^pre_logits/', 'pooler/dense/'),
    ('^head/', 'classifier/'),
    (r'^blocks_(\d+)/', r'encoder/layer/\1/'),
    *_BLOCK_NAMES[kind],
    ('/attention/out/', '/attention/output/dense/'),
    ('/attention/(query|key|value)/', r'/attention/attention/\1/'),
    ('/attention_scale$', '/layer_scale1/lambda1'),
    ('/mlp_scale$', '/layer_scale2/lambda1'),
    ('/(kernel|scale)$', '/weight'),
    # The patterns above match our separator, so it is replaced after them.
    ('/', '.'),
    ('^(?!classifier)', prefix),
  )


def _stored_shape(
  name: str, shape: published.Shape, settings: Mapping[str, Any]
) -> published.Shape:
  """PyTorch stores kernels as [out, in], and channels before pixels."""
  if name == 'embed/patches/kernel':
    return (settings['width'], 3, settings['patch'], settings['patch'])
  if name.endswith('kernel'):
    return shape[::-1]
  return published.with_batch_axis(name, shape)


def _convert(values: np.ndarray) -> np.ndarray:
  """PyTorch's order of axes -> ours; a reshape to our shape must follow."""
  if values.ndim == 4:
    return values.transpose(2, 3, 1, 0)
  return values.T if values.ndim == 2 else values
