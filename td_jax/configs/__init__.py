"""Packaged experiments: `td_jax --config=NAME`, one file for each."""

NAMES = (
  'image_folder',
  'movielens',
  'ratings',
  'table',
  'vit_cifar10',
  'vit_cifar100',
  'vit_imagenet',
)
