"""ImageNet: a ViT-B/32 of ImageNet-21k teaches its first 4 blocks (section 6.2).

  python -m td_jax.main --config=configs/vit_imagenet.py --workdir=gs://.../DIR
  td_jax --config=vit_imagenet:method=ld,size=224
  td_jax --config=vit_imagenet:laptop,teacher=DIR

Hardware: 4 TPU chips (v4-8); the paper's runs took less than 12 hours on them.
Accuracy in the paper: 0.49930 (TD, k = 2), 0.48683 (from scratch).

Arguments after the colon:
  method: scratch, ld, dkd, fd, fitnet, hybrid, td, td_ld or another of docs/methods.md.
  teacher: published weights: a .npz file, or a folder from Hugging Face.
  size: side of the images in pixels, 384 or 224.
  laptop: a ViT-S/14 at 56 pixels, for a CPU.
  runlocal: the laptop's networks for a few steps, to see them work.
"""

from typing import Any

from td_jax.configs import vit_common


def get_config(arg: str = '') -> Any:
  """A ViT-B/32 teacher and a TD student with its first 4 blocks."""
  return vit_common.config(
    arg,
    name='vit_imagenet',
    dataset='imagenet2012',
    splits=('train[:99%]', 'train[99%:]', 'validation'),
    classes=1000,
    learning_rate=0.03,
    memory='stream',
  )
