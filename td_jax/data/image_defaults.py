"""What a config leaves to a folder of images: its classes and splits."""

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import dataset
from td_jax.data import image_folder
from td_jax.data import splits

_VALIDATION_SHARE = 0.2  # Of the training images, if there is no such split.
_FEW = 100  # Images of validation that deserve a warning.


def complete(config: types.Config, log: types.Log) -> None:
  """Fills in, in place, what `config.data` leaves to a folder of images.

  These are `classes`, the names of splits, a share for validation if there is no
  such split, and a folder of images without labels.

  Raises:
    errors.ConfigError: The data are no folder.
    errors.DataError: The folder cannot be used; see `image_folder.load`.
  """
  data = config.data
  tests = data.test or not config.test
  if data.classes and data.train and data.validation and tests:
    return
  if data.dataset != image_folder.NAME:
    raise errors.ConfigError(
      'config.data.classes, train, validation and test are found by themselves '
      f'for image_folder only, and config.data.dataset is {data.dataset!r}; '
      'name all of them.'
    )
  if not data.dir:
    raise errors.ConfigError(
      f'{config.name} needs a folder of images: give it as --config='
      f'{config.name}:data=DIR, or in config.data.dir.'
    )
  folder = image_folder.load(data.dir)
  for part in ('train', 'validation', 'test'):
    if not data[part]:
      data[part] = _only(part, folder)
  if not data.train:
    raise errors.DataError(
      f'{data.dir} has no split for training: its folders are '
      f'{", ".join(folder.sizes)}. Call one train, or set config.data.train.'
    )
  data.classes = data.classes or len(folder.class_names)
  config.test = bool(config.test and data.test)
  if not data.validation:
    split, start, stop = splits.cut(data.train, folder.sizes, name=data.dataset)
    border = stop - round((stop - start) * _VALIDATION_SHARE)
    data.train = f'{split}[{start}:{border}]'
    data.validation = f'{split}[{border}:{stop}]'
  _report(config, folder, log)
  others = image_folder.unlabelled_folder(data.dir)
  if others and data.unlabelled.source == 'none':
    log(f'{others}: images without labels')
    data.unlabelled.source = 'dataset'
    data.unlabelled.dataset = image_folder.NAME
    data.unlabelled.dir, data.unlabelled.split = others, image_folder.ALL


def _only(part: str, folder: dataset.Dataset) -> str:
  """The split of a folder that is called `part`; '' if there is none."""
  found = [split for split in folder.sizes if image_folder.part(split) == part]
  if len(found) > 1:
    raise errors.DataError(
      f'the folders {" and ".join(found)} are both for {part}; name one of them '
      f'in config.data.{part}.'
    )
  return found[0] if found else ''


def _report(
  config: types.Config, folder: dataset.Dataset, log: types.Log
) -> None:
  """Says what was found, and what looks wrong in it.

  Raises:
    errors.DataError: A class has no image for training.
  """
  data = config.data
  names, counts = folder.class_names, {}
  for part in ('train', 'validation'):
    split, start, stop = splits.cut(data[part], folder.sizes, name=data.dataset)
    labels = np.asarray(image_folder.labels(folder, split)[start:stop], int)
    counts[part] = np.bincount(labels, minlength=len(names))
  log(
    f'{data.dir}: {len(names)} classes, {counts["train"].sum()} images for '
    f'training, {counts["validation"].sum()} for validation'
    + (f', and the split {data.test} for the test' if config.test else '')
  )
  # What validation lacks is said by `class_counts`.
  lacking = [
    name for name, n in zip(names, counts['train'], strict=True) if not n
  ]
  if lacking:
    raise errors.DataError(
      f'{data.dir}: {data.train} has no image of {", ".join(lacking)}; '
      'add some, remove the folder, or name another part in config.data.train '
      'and config.data.validation.'
    )
  held_out = counts['validation'].sum()
  if held_out < _FEW:
    log(
      f'warning: validation has {held_out} images; an accuracy on so few is '
      f'known to ± {50 / max(held_out, 1) ** 0.5:.0f} points at best.'
    )
  left = image_folder.left_out(data.dir)
  if left.hidden:
    log(
      f'{len(left.hidden)} hidden folders are left out, such as {left.hidden[0]}'
    )
  if left.unreadable:
    log(
      f'warning: {len(left.unreadable)} files are of a kind that cannot be read, '
      f'such as {left.unreadable[0]}; convert them to JPEG or PNG.'
    )
