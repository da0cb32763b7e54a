"""Weights of timm's vision transformers.

timm saves a folder, too: config.json has the name of the architecture and how
images are prepared, and model.safetensors the parameters. What neither of them
says, such as the number of heads, follows from the name.
"""

import math
import re
from typing import Any

from td_jax import errors
from td_jax.models import archive
from td_jax.models import posemb
from td_jax.models import published
from td_jax.models import published_config
from td_jax.models import published_torch

# Of the many architectures of timm, those that `vit.ViT` computes. Others may have
# the same parameters, and use them in another way.
_ARCHITECTURE = re.compile(
  r'(vit|deit3?)_[a-z0-9]+_(distilled_)?patch\d+'
  r'(_\d+|_clip(_quickgelu)?_\d+|(_reg4)?_dinov2|_siglip(_gap)?_\d+)'
)
# Arguments of a model that its parameters show, or that do not change it.
_KNOWN_ARGS = (
  'class_token', 'depth', 'dynamic_img_size', 'embed_dim', 'global_pool',
  'img_size', 'in_chans', 'init_values', 'mlp_ratio', 'no_embed_class',
  'num_classes', 'num_heads', 'patch_size', 'pre_norm', 'qkv_bias', 'reg_tokens',
)  # fmt: skip
# By width. DINOv2's giant shares its width with another one.
_HEADS = {
  192: 3, 384: 6, 512: 8, 768: 12, 896: 14, 1024: 16, 1152: 16, 1280: 16,
  1408: 16, 1536: 16, 1664: 16,
}  # fmt: skip
_DINOV2_GIANT = 24
_TANH = re.compile(
  r'base_patch32_siglip|large_patch16_siglip(_gap)?_512'
  r'|(so400m|giantopt)_patch16_siglip'
)
_POOLINGS = {'token': 'token', '': 'token', 'avg': 'mean', 'map': 'map'}
_NAMES = (
  ('^embed/patches/', 'patch_embed/proj/'),
  ('^embed/class_token$', 'cls_token'),
  ('^embed/registers$', 'reg_token'),
  ('^embed/position$', 'pos_embed'),
  ('^embed/norm/', 'norm_pre/'),
  ('^pool/probe$', 'attn_pool/latent'),
  ('^pool/attention/query/', 'attn_pool/q/'),
  ('^pool/attention/(key|value)/', r'attn_pool/\1/'),
  ('^pool/attention/out/', 'attn_pool/proj/'),
  ('^pool/', 'attn_pool/'),
  (r'^blocks_(\d+)/', r'blocks/\1/'),
  ('/attention_norm/', '/norm1/'),
  ('/mlp_norm/', '/norm2/'),
  ('/attention/out/', '/attn/proj/'),
  ('/attention/(query|key|value)/', r'/attn/\1/'),
  ('/attention_scale$', '/ls1/gamma'),
  ('/mlp_scale$', '/ls2/gamma'),
  ('/mlp/in/', '/mlp/fc1/'),
  ('/mlp/out/', '/mlp/fc2/'),
  ('/(kernel|scale)$', '/weight'),
  ('/', '.'),
)


def is_timm(config: published_config.Config) -> bool:
  """Whether timm wrote this config.json."""
  return 'architecture' in config.values and 'model_type' not in config.values


def scale(config: published_config.Config) -> Any:
  """Mean and standard deviation of grey levels.

  Raises:
    errors.DataError: The file does not say them.
  """
  given = config.inner('pretrained_cfg')
  mean, std = (
    tuple(round(255 * level, 4) for level in given.get(field, list))
    for field in ('mean', 'std')
  )
  if len(mean) != 3 or len(std) != 3:
    raise errors.DataError(
      f'{given.path}: mean and std are {mean} and {std}; they must be three numbers '
      'each.'
    )
  return mean, std


def layout(
  stored: archive.Archive, config: published_config.Config
) -> tuple[archive.Archive, published.StoredLayout]:
  """As `published_huggingface.layout`."""
  name = config.get('architecture', str)
  args = config.inner('model_args')
  unknown = sorted(args.values.keys() - set(_KNOWN_ARGS))
  if not _ARCHITECTURE.fullmatch(name) or unknown:
    what = f'model_args.{unknown[0]}' if unknown else f'architecture {name!r}'
    raise errors.DataError(
      f"{config.path}: {what} cannot be loaded; of timm's models only vit_*, deit_* "
      'and deit3_* of the usual form, also of CLIP, DINOv2 and SigLIP, can be '
      'loaded.'
    )
  stored = _readable(stored)
  settings = _settings(stored, config, name, args)
  return stored, published.StoredLayout(
    source=config.path,
    settings=settings,
    grid=math.isqrt(_rows(stored) - (settings['class_token'] == 'before')),
    names=_NAMES,
    # The two heads of a distilled DeiT, whose mean is its answer.
    ignored='head(_dist)?\\.' if 'distilled' in name else None,
    stored_shape=published_torch.stored_shape,
    convert=published_torch.convert,
    resize=posemb.antialiased,
    class_names=_class_names(config),
  )


def _class_names(config: published_config.Config) -> tuple[str, ...]:
  """The names of the head's classes; () if the file does not list them."""
  names = config.values.get('label_names')
  return tuple(map(str, names)) if isinstance(names, list) else ()


def _readable(stored: archive.Archive) -> archive.Archive:
  """The archive, with every parameter of `vit.ViT` as a leaf of its own."""
  shapes = stored.shapes
  stored = published_torch.unfused(
    stored, r'attn\.(qkv)\.', ('query', 'key', 'value')
  )
  stored = published_torch.with_zero_biases(
    stored, r'attn\.(query|key|value)\.weight$|patch_embed\.proj\.weight$'
  )
  stored = published_torch.unfused(
    stored, r'attn_pool\.(kv)\.', ('key', 'value')
  )
  first, second = (
    shapes.get(f'blocks.0.mlp.fc{i}.weight', (0, 0)) for i in (1, 2)
  )
  if first[0] == 2 * second[-1]:
    stored = published_torch.unfused(
      stored, r'blocks\.\d+\.mlp\.(fc1)\.', ('gate', 'fc1')
    )
  tokens = [name for name in ('dist_token', 'reg_token') if name in shapes]
  if tokens and not _is_square(_rows(stored)):
    stored = published_torch.registers(
      stored, tokens, table='pos_embed', target='reg_token'
    )
  return stored


def _settings(
  stored: archive.Archive,
  config: published_config.Config,
  name: str,
  args: published_config.Config,
) -> dict[str, Any]:
  width, _, patch, _ = published.shape_of(
    stored, 'patch_embed.proj.weight', ('width', 3, 'patch', 'patch')
  )
  mlp_width, _ = published.shape_of(
    stored, 'blocks.0.mlp.fc1.weight', ('mlp_width', 'width')
  )
  classes = 0
  if 'head.weight' in stored.shapes and 'distilled' not in name:
    (classes,) = published.shape_of(stored, 'head.bias', ('classes',))
  registers = stored.shapes.get('reg_token', (1, 0, 0))
  pooling = config.get('global_pool', str, 'token')
  if pooling not in _POOLINGS:
    raise errors.DataError(
      f'{config.path}: global_pool is {pooling!r}; only '
      f'{", ".join(filter(None, _POOLINGS))} can be loaded.'
    )
  return {
    'classes': classes,
    'width': width,
    'depth': published.depth(stored, r'blocks\.(\d+)\.'),
    'heads': _heads(config, width, name, args),
    'mlp_width': mlp_width,
    'mlp': 'swiglu' if 'blocks.0.mlp.gate.weight' in stored.shapes else 'gelu',
    'patch': patch,
    'class_token': _class_token(stored),
    'registers': registers[1],
    'position': 'learned',
    'pre_norm': 'norm_pre.weight' in stored.shapes,
    'pooling': _POOLINGS[pooling],
    'pre_logits_width': 0,
    # Only its presence counts: the stored factors replace the initial value.
    'layer_scale': float('blocks.0.ls1.gamma' in stored.shapes),
    'gelu': _gelu(name),
    'eps': 1e-5 if '_clip_' in name else 1e-6,
  }


def _rows(stored: archive.Archive) -> int:
  """The number of rows in the table of positions."""
  return published.shape_of(stored, 'pos_embed', (1, 'positions', 'width'))[1]


def _is_square(number: int) -> bool:
  return math.isqrt(number) ** 2 == number


def _class_token(stored: archive.Archive) -> str:
  if 'cls_token' not in stored.shapes:
    return 'none'
  return 'after' if _is_square(_rows(stored)) else 'before'


def _gelu(name: str) -> str:
  if 'quickgelu' in name:
    return 'quick'
  return 'tanh' if _TANH.search(name) else 'exact'


def _heads(
  config: published_config.Config,
  width: int,
  name: str,
  args: published_config.Config,
) -> int:
  if 'num_heads' in args.values:
    return args.get('num_heads', int)
  if width not in _HEADS:
    raise errors.DataError(
      f'{config.path}: the number of heads of {name!r} is not known; add '
      '"model_args": {"num_heads": ...}.'
    )
  return (
    _DINOV2_GIANT
    if (width, 'dinov2' in name) == (1536, True)
    else _HEADS[width]
  )
