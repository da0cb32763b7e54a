"""Weights of Hugging Face's vision transformers.

transformers saves a folder: config.json describes the network, and
model.safetensors stores its parameters in PyTorch's layout. These are read: vit,
deit, dinov2 (also with registers), dinov3_vit, and the vision towers of clip and
siglip, whose text towers are left out.
"""

import math
import re
from typing import Any

from td_jax import errors
from td_jax.models import archive
from td_jax.models import published
from td_jax.models import published_config
from td_jax.models import published_kinds as kinds
from td_jax.models import published_torch
from td_jax.storage import paths


def scale(folder: str, config: published_config.Config) -> kinds.Scale:
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
  kind, head = _kind(config), config
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
  if settings['mlp'] == 'swiglu' and names is kinds.DINOV2_NAMES:
    names = kinds.SWIGLU_NAMES
  return stored, published.StoredLayout(
    source=config.path,
    settings=settings,
    grid=grid,
    names=(*names, *kinds.suffix_names(prefix)),
    ignored=kind.ignored,
    stored_shape=published_torch.stored_shape,
    convert=published_torch.convert,
    resize=kind.resize,
    class_names=_class_names(head),
  )


def _kind(config: published_config.Config) -> kinds.Kind:
  name = config.get('model_type', str)
  if name not in kinds.KINDS:
    raise errors.DataError(
      f'{config.path}: model_type is {name!r}; of Hugging Face models only '
      f'{", ".join(kinds.KINDS)} can be loaded.'
    )
  return kinds.KINDS[name]


def _inner(
  config: published_config.Config, kind: kinds.Kind
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


def _check(config: published_config.Config, kind: kinds.Kind) -> None:
  """Raises a DataError if `vit.ViT` cannot compute this network."""
  for field, only in kind.required.items():
    value = config.get(field, type(only), only)
    if value != only:
      raise errors.DataError(
        f'{config.path}: {field} is {value!r}; only {only!r} can be loaded.'
      )
  activation = config.get('hidden_act', str)
  choices = kinds.GELUS
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
  kind: kinds.Kind,
  prefix: str,
) -> archive.Archive:
  """The archive, with every parameter of `vit.ViT` as a leaf of its own."""
  for field, pattern in kind.biases.items():
    if not config.get(field, bool):
      stored = published_torch.with_zero_biases(stored, pattern)
  if kind.names is kinds.DINOV2_NAMES:
    stored = published_torch.unfused(
      stored, r'\.(weights_in)\.', ('weights_gate', 'weights_in')
    )
  if (
    kind.names is kinds.VIT_NAMES
    and f'{prefix}{kinds.DISTILLATION}' in stored.shapes
  ):
    stored = published_torch.registers(
      stored,
      [f'{prefix}{kinds.DISTILLATION}'],
      table=f'{prefix}embeddings.position_embeddings',
      target=f'{prefix}embeddings.register_tokens',
    )
  if kind.names is kinds.TOWER_NAMES:
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
    'gelu': kinds.GELUS.get(config.get('hidden_act', str), 'exact'),
    'eps': float(config.get('layer_norm_eps', (int, float))),
  }


def _class_names(config: published_config.Config) -> tuple[str, ...]:
  """The names in id2label in the order of its numbers; () if none are known."""
  names = config.get('id2label', dict, {})
  numbers = [str(number) for number in range(len(names))]
  if set(numbers) != names.keys():
    return ()
  return tuple(str(names[number]) for number in numbers)


def _mlp_width(config: published_config.Config, width: int, mlp: str) -> int:
  """The width of an MLP's hidden layer."""
  if 'mlp_ratio' not in config.values:
    return config.get('intermediate_size', int)
  hidden = int(width * config.get('mlp_ratio', (int, float)))
  if mlp == 'gelu':
    return hidden
  # A gate is a third matrix, so DINOv2 takes two thirds, rounded up to 8.
  return (int(hidden * 2 / 3) + 7) // 8 * 8
