"""Writes the small random networks beside this file, and what they answer.

  pip install torch timm transformers
  python tests/golden/published/make.py

The answers are those of transformers and timm, in float32 on a CPU, to images.npz.
Each folder has the files that its library saves, and expected.npz: the output for
images of the network's own size and of another. tests/test_published.py compares.
"""

import pathlib
import shutil

import numpy as np
import timm
import timm.models
import torch
import transformers

_HERE = pathlib.Path(__file__).parent
_SIDE, _OTHER_SIDE, _PATCH = 12, 20, 4
_SIZES = {
  'hidden_size': 8,
  'num_hidden_layers': 2,
  'num_attention_heads': 2,
  'image_size': _SIDE,
  'patch_size': _PATCH,
}
_MLP = {'intermediate_size': 12}
_CLASSES = {'num_labels': 3}
_TEXT = {
  'hidden_size': 8,
  'num_hidden_layers': 1,
  'num_attention_heads': 1,
  'intermediate_size': 8,
  'vocab_size': 10,
  'max_position_embeddings': 4,
}
_TIMM = {
  'img_size': _SIDE,
  'patch_size': _PATCH,
  'embed_dim': 8,
  'depth': 2,
  'num_heads': 2,
  'mlp_ratio': 1.5,
}


def _randomise(model):
  """Random values for all parameters, so that none can be left out unseen."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, value in model.named_parameters():
      noise = torch.randn(value.shape, generator=generator)
      is_scale = value.ndim == 1 and name.endswith('weight')
      value.copy_(0.3 * noise + is_scale)
  return model.eval()


def _images():
  rng = np.random.default_rng(0)
  return {
    name: rng.normal(size=(2, side, side, 3)).astype(np.float32)
    for name, side in (('own', _SIDE), ('other', _OTHER_SIDE))
  }


def _write(name, save, answer):
  folder = _HERE / name
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir()
  save(folder)
  expected = {}
  with torch.no_grad():
    for key, x in _images().items():
      channels_first = torch.tensor(x.transpose(0, 3, 1, 2).copy())
      expected[key] = answer(channels_first, resized=key != 'own').numpy()
  np.savez(folder / 'expected.npz', **expected)


def _transformers(
  name, model, read, *, tower=None, resizes=True, dtype=torch.float32, **saved
):
  """Writes a model of transformers.

  Args:
    name: Of the folder.
    model: The model.
    read: What its answer is, in the result of a call.
    tower: The part that is called, if not the whole model.
    resizes: Whether it has positions that it only resizes when asked to.
    dtype: In which it is stored.
    **saved: Arguments of `save_pretrained`.
  """
  model = _randomise(model).to(dtype)
  called = model if tower is None else tower(model)

  def answer(x, resized):
    options = {'interpolate_pos_encoding': True} if resized and resizes else {}
    return read(called(pixel_values=x, **options))

  def save(folder):
    model.save_pretrained(folder, **saved)
    model.to(torch.float32)

  _write(name, save, answer)


def _pooled(output):
  return output.pooler_output


def _logits(output):
  return output.logits


def _transformers_models():
  t = transformers
  vit = t.ViTConfig(**_SIZES, **_MLP, **_CLASSES, qkv_bias=False)
  _transformers('hf_vit_no_bias', t.ViTForImageClassification(vit), _logits)
  deit = t.DeiTConfig(**_SIZES, **_MLP, **_CLASSES)
  _transformers('hf_deit', t.DeiTForImageClassification(deit), _logits)
  _transformers(
    'hf_deit_distilled',
    t.DeiTForImageClassificationWithTeacher(deit),
    lambda output: output.last_hidden_state[:, 0],
    tower=lambda model: model.deit,
  )
  swiglu = t.Dinov2Config(**_SIZES, mlp_ratio=2, use_swiglu_ffn=True)
  _transformers(
    'hf_dinov2_swiglu', t.Dinov2Model(swiglu), _pooled, resizes=False
  )
  registers = t.Dinov2WithRegistersConfig(
    **_SIZES, **_CLASSES, mlp_ratio=2, num_register_tokens=3
  )
  _transformers(
    'hf_dinov2_registers',
    t.Dinov2WithRegistersForImageClassification(registers),
    _logits,
    resizes=False,
  )
  for name, gated in (('hf_dinov3', False), ('hf_dinov3_gated', True)):
    config = t.DINOv3ViTConfig(
      **_SIZES,
      **_MLP,
      num_register_tokens=2,
      use_gated_mlp=gated,
      hidden_act='silu' if gated else 'gelu',
    )
    _transformers(name, t.DINOv3ViTModel(config), _pooled, resizes=False)
  clip = t.CLIPConfig(
    vision_config=_SIZES | _MLP, text_config=_TEXT, projection_dim=6
  )
  _transformers(
    'hf_clip',
    t.CLIPModel(clip),
    _pooled,
    tower=lambda model: model.vision_model,
  )
  clip = t.CLIPVisionConfig(**_SIZES, **_MLP)
  _transformers(
    'hf_clip_vision', t.CLIPVisionModel(clip), _pooled, dtype=torch.float16
  )
  siglip = t.SiglipConfig(vision_config=_SIZES | _MLP, text_config=_TEXT)
  _transformers(
    'hf_siglip',
    t.SiglipModel(siglip),
    _pooled,
    tower=lambda model: model.vision_model,
    max_shard_size='4KB',
  )
  siglip = t.SiglipVisionConfig(**_SIZES, **_MLP)
  _transformers(
    'hf_siglip_vision',
    t.SiglipVisionModel(siglip),
    _pooled,
    dtype=torch.bfloat16,
  )


def _timm(name, architecture, *, classes=0, **changes):
  args = {**_TIMM, **changes}
  model = timm.create_model(architecture, num_classes=classes, **args)
  model = _randomise(model)

  def answer(x, resized):
    called = model
    if resized:
      called = timm.create_model(
        architecture, num_classes=classes, **args | {'img_size': _OTHER_SIDE}
      ).eval()
      state = timm.models.vision_transformer.checkpoint_filter_fn(
        model.state_dict(), called
      )
      called.load_state_dict(state)
    if 'distilled' in architecture:
      return called.forward_features(x)[:, 0]
    return called(x)

  def save(folder):
    timm.models.save_for_hf(
      model, folder, model_args=args, safe_serialization=True
    )

  _write(name, save, answer)


def _timm_models():
  _timm('timm_vit', 'vit_tiny_patch16_224', classes=3)
  _timm('timm_no_bias', 'vit_tiny_patch16_224', qkv_bias=False)
  _timm('timm_deit3', 'deit3_small_patch16_224', classes=3)
  _timm('timm_clip', 'vit_base_patch16_clip_224', classes=3)
  _timm('timm_clip_quickgelu', 'vit_base_patch16_clip_quickgelu_224')
  _timm('timm_dinov2', 'vit_small_patch14_dinov2')
  _timm('timm_dinov2_registers', 'vit_small_patch14_reg4_dinov2')
  _timm('timm_dinov2_giant', 'vit_giant_patch14_dinov2', mlp_ratio=3)
  _timm('timm_siglip', 'vit_base_patch16_siglip_224')
  _timm('timm_siglip_tanh', 'vit_so400m_patch16_siglip_256')
  _timm('timm_siglip_gap', 'vit_base_patch16_siglip_gap_224')
  _timm('timm_deit_distilled', 'deit_tiny_distilled_patch16_224')


if __name__ == '__main__':
  np.savez(_HERE / 'images.npz', **_images())
  _transformers_models()
  _timm_models()
