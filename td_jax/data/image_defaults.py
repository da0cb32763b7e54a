"""What a config leaves to a folder of images: its classes and splits."""

from td_jax import errors
from td_jax import types
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
  folder = image_folder.load(data.dir)
  found = {
    part: next((name for name in names if name in folder.sizes), '')
    for part, names in image_folder.SPLITS.items()
  }
  data.classes = data.classes or len(folder.class_names)
  data.train = data.train or found['train'] or next(iter(folder.sizes))
  data.test = data.test or found['test']
  config.test = bool(config.test and data.test)
  data.validation = data.validation or found['validation']
  split, start, stop = splits.cut(data.train, folder.sizes, name=data.dataset)
  count = stop - start
  if not data.validation:
    held_out = round(count * _VALIDATION_SHARE)
    data.validation = f'{split}[{stop - held_out}:{stop}]'
    data.train = f'{split}[{start}:{stop - held_out}]'
    count -= held_out
  else:
    _, first, last = splits.cut(
      data.validation, folder.sizes, name=data.dataset
    )
    held_out = last - first
  log(
    f'{data.dir}: {len(folder.class_names)} classes, {count} images for '
    f'training, {held_out} for validation'
    + (f', and the split {data.test} for the test' if config.test else '')
  )
  if held_out < _FEW:
    log(
      f'warning: validation has {held_out} images; an accuracy on so few is '
      f'known to ± {50 / max(held_out, 1) ** 0.5:.0f} points at best.'
    )
  others = image_folder.unlabelled_folder(data.dir)
  if others and data.unlabelled.source == 'none':
    log(f'{others}: images without labels, which all methods but scratch see')
    data.unlabelled.source = 'dataset'
    data.unlabelled.dataset = image_folder.NAME
    data.unlabelled.dir, data.unlabelled.split = others, image_folder.ALL
