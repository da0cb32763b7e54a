"""CIFAR-10: a ViT-B/32 of ImageNet-21k talks to its first 4 blocks (section 6.2).

  python -m td_jax.main --config=configs/vit_cifar10.py --workdir=gs://.../DIR
  python -m td_jax.main --config=configs/vit_cifar10.py:method=ld,size=224
  python -m td_jax.main --config=configs/vit_cifar10.py:laptop,teacher=DIR

Hardware: 4 TPU chips (v4-8), where the paper's runs took less than 12 hours.
The paper: accuracy 0.94100 (TD, k = 2), 0.93678 without distillation.

Arguments after the colon: `method` (scratch, ld, fd, fitnet, hybrid, td,
td_ld), `teacher` (published weights: a .npz, or a folder in Hugging Face's
form), `size` (384 or 224 pixels), `laptop` (a ViT-S/14 at 56 pixels, for a
CPU), `runlocal` (as laptop, a few steps).
"""

from typing import Any

from td_jax.configs import vit_common


def get_config(arg: str = '') -> Any:
  return vit_common.config(
    arg,
    name='vit_cifar10',
    dataset='cifar10',
    splits=('train[:98%]', 'train[98%:]', 'test'),
    classes=10,
    learning_rate=0.01,
    memory='device',
  )
