"""The kinds of vision transformers at Hugging Face: names, defaults, limits."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np

from td_jax.models import posemb

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
VIT_NAMES = (
  *_LAYERS,
  ('/attention_norm/', '/layernorm_before/'),
  ('/mlp_norm/', '/layernorm_after/'),
  ('/mlp/in/', '/intermediate/dense/'),
  ('/mlp/out/', '/output/dense/'),
)
_DINOV2_LAYERS = (*_LAYERS, *_NORMS, *_SCALES)
DINOV2_NAMES = (
  *_DINOV2_LAYERS,
  ('/mlp/in/', '/mlp/fc1/'),
  ('/mlp/out/', '/mlp/fc2/'),
)
SWIGLU_NAMES = (
  *_DINOV2_LAYERS,
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
TOWER_NAMES = (
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
DISTILLATION = 'embeddings.distillation_token'  # DeiT's second class token.


class Kind(NamedTuple):
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


# What transformers takes for a field that config.json leaves out.
_SIZES = {
  'hidden_size': 768,
  'num_hidden_layers': 12,
  'num_attention_heads': 12,
  'hidden_act': 'gelu',
  'image_size': 224,
  'patch_size': 16,
}
_QKV = {'qkv_bias': r'\.(query|key|value)\.weight$'}
_VIT = Kind(
  names=VIT_NAMES,
  scale=_SYMMETRIC,
  defaults=_SIZES
  | {'intermediate_size': 3072, 'layer_norm_eps': 1e-12, 'qkv_bias': True},
  required={'num_channels': 3, 'pooler_act': 'tanh'},
  biases=_QKV,
  prefix='vit.',
)
_DINOV2 = Kind(
  names=DINOV2_NAMES,
  scale=_IMAGENET,
  defaults=_SIZES
  | {
    'patch_size': 14,
    'mlp_ratio': 4,
    'layer_norm_eps': 1e-6,
    'qkv_bias': True,
  },
  required={'num_channels': 3},
  biases=_QKV,
  prefix='dinov2.',
)
_CLIP_TOWER = Kind(
  names=TOWER_NAMES,
  scale=_CLIP,
  defaults=_SIZES
  | {
    'patch_size': 32,
    'intermediate_size': 3072,
    'hidden_act': 'quick_gelu',
    'layer_norm_eps': 1e-5,
  },
  required={'num_channels': 3},
  # Without the projection into the space that texts share.
  ignored=r'text_|visual_projection|logit_|.*\.position_ids$',
  prefix='vision_model.',
)
_SIGLIP_TOWER = _CLIP_TOWER._replace(
  scale=_SYMMETRIC,
  defaults=_SIZES
  | {
    'intermediate_size': 3072,
    'hidden_act': 'gelu_pytorch_tanh',
    'layer_norm_eps': 1e-6,
  },
  required={'num_channels': 3, 'vision_use_head': True},
)
KINDS: dict[str, Kind] = {
  'vit': _VIT,
  'deit': _VIT._replace(
    scale=_IMAGENET,
    prefix='deit.',
    # The two heads of a distilled DeiT, whose mean is its answer.
    ignored=r'.*mask_token$|cls_classifier|distillation_classifier',
  ),
  'dinov2': _DINOV2,
  'dinov2_with_registers': _DINOV2._replace(
    prefix='dinov2_with_registers.',
    defaults={**_DINOV2.defaults, 'patch_size': 16},
    resize=posemb.antialiased,
  ),
  'dinov3_vit': Kind(
    names=_DINOV3_NAMES,
    scale=_IMAGENET,
    defaults=_SIZES
    | {
      'hidden_size': 384,
      'num_attention_heads': 6,
      'intermediate_size': 1536,
      'layer_norm_eps': 1e-5,
      'query_bias': True,
      'key_bias': False,
      'value_bias': True,
      'proj_bias': True,
      'mlp_bias': True,
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
  return (*KINDS[kind].names, *suffix_names(KINDS[kind].prefix))
