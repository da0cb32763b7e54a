"""A ViT in the form in which transformers saves one; the inverse of loading."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import numpy as np

from td_jax import errors
from td_jax.models import published
from td_jax.models import published_kinds

_CLASSES = {
  'vit': 'ViTForImageClassification',
  'dinov2': 'Dinov2ForImageClassification',
  'dinov2_with_registers': 'Dinov2WithRegistersForImageClassification',
}
# The settings of `vit.ViT` that one of these classes can compute.
_EXPORTABLE = {
  'class_token': ('before',),
  'position': ('learned',),
  'pre_norm': (False,),
  'mlp': ('gelu',),
  'pooling': ('token', 'mean', 'token_and_mean'),
  'pre_logits_width': (0,),
}


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
  if settings['registers']:
    plain, kind = False, 'dinov2_with_registers'
  values = dict(params)
  if not plain:
    values |= _completed(settings, values)
  names = published_kinds.names(kind)
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
    'hidden_act': {v: k for k, v in published_kinds.GELUS.items()}[
      settings['gelu']
    ],
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
  tensors[f'{kind}.embeddings.mask_token'] = np.zeros(
    (1, settings['width']), np.float32
  )
  return shared | {
    'mlp_ratio': ratio,
    'use_swiglu_ffn': False,
    **(
      {'num_register_tokens': settings['registers']} if kind != 'dinov2' else {}
    ),
  }, tensors


def _transposed(
  leaf: str, value: np.ndarray, settings: Mapping[str, Any]
) -> np.ndarray:
  """The inverse of `published_torch.convert` and of the reshape that follows it."""
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
