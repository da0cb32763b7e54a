"""A tiny teacher, a folder of tiny images, and configs/vit_cifar10.py shrunk.

It is a config file too: --config=tests/tiny_vision.py:method=td,teacher=DIR
"""

import json
import os
import pathlib

import numpy as np
from safetensors import numpy as safetensors

from td_jax.configs import vit_cifar10

FILE = pathlib.Path(__file__)
W, HEADS, MLP, PATCH, SIZE, DEPTH = 8, 2, 12, 8, 16, 2
CLASSES = 3
# CKA takes 20 of each class.
SIZES = {'train': 24, 'validation': 9, 'test': 60}


def picture(seed):
  """(uint8 [24, 32, 3], label): of a colour that hints at the label."""
  import tiny_images  # Imported here: only tests that write images need TensorFlow.

  pixels, label = tiny_images.pixels(seed) // 2, seed % CLASSES
  pixels[..., label] += 40
  return pixels, label


def examples():
  """{split: [(png file, label)]}, each example with a seed of its own."""
  import tensorflow as tf

  seeds = iter(range(1000))

  def example():
    pixels, label = picture(next(seeds))
    return tf.io.encode_png(pixels).numpy(), label

  return {
    split: [example() for _ in range(count)] for split, count in SIZES.items()
  }


def folder(root):
  """Writes the examples to root/split/label/*; returns `root`."""
  for split, rows in examples().items():
    for number, (image, label) in enumerate(rows):
      path = root / split / str(label) / f'{number:03}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(image)
  return root


def teacher(path, *, classes=CLASSES, depth=DEPTH):
  """Writes a ViT in Hugging Face's form, of random weights; returns `path`."""
  rng = np.random.default_rng(7)
  shapes = {
    'embeddings.cls_token': (1, 1, W),
    'embeddings.position_embeddings': (1, (SIZE // PATCH) ** 2 + 1, W),
    'embeddings.patch_embeddings.projection.weight': (W, 3, PATCH, PATCH),
    'embeddings.patch_embeddings.projection.bias': (W,),
    'layernorm.weight': (W,),
    'layernorm.bias': (W,),
  }
  for i in range(depth):
    block = f'encoder.layer.{i}'
    for name, (wide, narrow) in {
      'attention.attention.query': (W, W),
      'attention.attention.key': (W, W),
      'attention.attention.value': (W, W),
      'attention.output.dense': (W, W),
      'intermediate.dense': (MLP, W),
      'output.dense': (W, MLP),
    }.items():
      shapes[f'{block}.{name}.weight'] = (wide, narrow)
      shapes[f'{block}.{name}.bias'] = (wide,)
    for name in ('layernorm_before', 'layernorm_after'):
      shapes[f'{block}.{name}.weight'] = shapes[f'{block}.{name}.bias'] = (W,)
  if classes:
    shapes = {f'vit.{name}': shape for name, shape in shapes.items()}
    shapes['classifier.weight'] = (classes, W)
    shapes['classifier.bias'] = (classes,)
  config = {
    'model_type': 'vit',
    'hidden_size': W,
    'intermediate_size': MLP,
    'num_hidden_layers': depth,
    'num_attention_heads': HEADS,
    'hidden_act': 'gelu',
    'layer_norm_eps': 1e-6,
    'image_size': SIZE,
    'patch_size': PATCH,
    'qkv_bias': True,
    'id2label': {str(label): str(label) for label in range(classes)},
  }
  path.mkdir(parents=True, exist_ok=True)
  (path / 'config.json').write_text(json.dumps(config))
  safetensors.save_file(
    {
      name: rng.normal(0, 0.5, shape).astype(np.float32)
      for name, shape in shapes.items()
    },
    path / 'model.safetensors',
  )
  return path


def environment():
  """Of a process that reads this file as its config."""
  import conftest  # It imports this file.

  root = FILE.parents[1]
  return os.environ | {
    'PYTHONPATH': f'{root}:{FILE.parent}',
    'XLA_FLAGS': conftest.FAST_COMPILE,
  }


def get_config(arg=''):
  """configs/vit_cifar10.py:runlocal, shrunk further."""
  config = vit_cifar10.get_config(f'{arg},runlocal')
  config.name = 'tiny_vision'
  config.k = 1
  small = {'width': W, 'heads': HEADS, 'mlp_width': MLP, 'patch': PATCH}
  for model in (config.model, config.teacher.model):
    model.update({**small, 'layer_scale': 0.0})
    model.update({'depth': DEPTH, 'split': (1, 2), 'pooling': 'token'})
  config.distill.update({'hidden': 10, 'message': 6})
  # The teacher's states are large: else the task would not be heard.
  for term in ('interact', 'message', 'state'):
    config.distill.weights[term] = 1e-3
  config.update({'steps': 6, 'batch_size': 8, 'eval_batch': 64})
  config.update({'steps_per_dispatch': 1, 'log_every': 3, 'eval_every': 6})
  config.optim.update({'name': 'sgd', 'learning_rate': 0.3, 'warmup': 2})
  config.student_head = 'zeros'  # So does a student's.
  config.teacher.head = 'stored'  # A probe takes seconds.
  config.teacher.cache, config.data.augment = False, 'inception'
  config.data.dataset = 'image_folder'
  config.data.update({'classes': CLASSES, 'limit': 0, 'size': SIZE})
  for split in SIZES:
    config.data[split] = split
  config.parallel.update({'kind': 'single', 'devices': 1})
  return config
