"""Image classification: any TFDS dataset, or folders of images, as a Task.

Small datasets stay on the device as uint8, and are cropped, flipped and resized
inside the compiled step; large ones are streamed.
"""

import hashlib

import jax
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import images
from td_jax.data import preprocess
from td_jax.data import records
from td_jax.data import streamed_split
from td_jax.data import task as task_lib

_CHOICES = {'memory': ('device', 'stream'), 'augment': ('inception', 'none')}


def check(config: types.Config) -> None:
  """Raises a ConfigError for a `data` block that cannot work."""
  data = config.data
  for field, choices in _CHOICES.items():
    errors.choose(f'config.data.{field}', data[field], choices)
  if data.size < 1 or data.size % config.model.patch:
    raise errors.ConfigError(
      f'config.data.size is {data.size}; it must be a multiple of '
      f'config.model.patch, {config.model.patch}.'
    )
  if len(data.area) != 2 or not 0 < data.area[0] <= data.area[1] <= 1:
    raise errors.ConfigError(
      f'config.data.area is {data.area}; it takes two shares of an image, '
      'such as (0.05, 1.0).'
    )
  if len(data.mean) != 3 or len(data.std) != 3 or min(data.std) <= 0:
    raise errors.ConfigError(
      f'config.data.mean is {data.mean} and config.data.std is {data.std}; '
      'each takes 3 grey levels, of red, green and blue, and std is above 0.'
    )
  if data.smaller_side and data.smaller_side < data.size:
    raise errors.ConfigError(
      f'config.data.smaller_side is {data.smaller_side}; it must be at least '
      f'config.data.size, {data.size}, or 0 to stretch the whole image.'
    )
  if data.limit < 0 or (data.limit and data.memory == 'stream'):
    raise errors.ConfigError(
      f'config.data.limit is {data.limit}; it must be at least 0, and 0 for '
      "config.data.memory='stream': there take a part of a split, such as "
      "config.data.train='train[:5000]'."
    )
  if data.memory == 'stream' and data.augment == 'none':
    raise errors.ConfigError(
      "config.data.augment is 'none', and config.data.memory='stream' crops; "
      "take augment='inception', or memory='device'."
    )
  if data.fixed_crops < 0 or (
    data.fixed_crops and (data.memory == 'stream' or data.augment == 'none')
  ):
    raise errors.ConfigError(
      f'config.data.fixed_crops is {data.fixed_crops}; it must be at least 0, and 0 for '
      "config.data.memory='stream' or config.data.augment='none'."
    )
  if config.refit_on_validation:
    raise errors.ConfigError(
      'config.refit_on_validation is True, which is for MovieLens; for images name more '
      'examples in config.data.train.'
    )
  if config.teacher.cache and not _is_fixed(data):
    raise errors.ConfigError(
      'config.teacher.cache is True, but what the teacher sees of an image '
      "changes from epoch to epoch; take config.data.augment='none', a number "
      'of config.data.fixed_crops, or config.teacher.cache=False.'
    )


def load(config: types.Config, *, log=print) -> task_lib.Task:
  """The task of `config.data`.

  Raises:
    errors.ConfigError: no such dataset or split, or of other classes.
    errors.DataError: it is absent or damaged; the message says how to get it.
  """
  read = _in_memory if config.data.memory == 'device' else _streamed
  splits, names, fingerprint = read(config.data, log)
  if len(names) != config.data.classes:
    raise errors.ConfigError(
      f'config.data.classes is {config.data.classes}, and '
      f'{config.data.dataset} has {len(names)}.'
    )
  return _task(config.data, splits, fingerprint)


def shapes(config: types.Config) -> task_lib.Task:
  """A task of black images, for compiling where there are no data."""
  blank = streamed_split.Blank(config.data.size)
  return _task(
    config.data, dict.fromkeys(('train', 'validation', 'test'), blank), ''
  )


def _in_memory(data, log):
  """(splits, class names, fingerprint)."""
  parts = {
    name: images.load_columns(
      data.dataset,
      data[name],
      data_dir=data.dir,
      limit=data.limit if name == 'train' else 0,
      log=log,
    )
    for name in ('train', 'validation', 'test')
  }
  splits = {name: _columns(part) for name, part in parts.items()}
  if data.fixed_crops:
    # Each view is an example of its own; its crop depends on its id alone.
    splits['train'] = jax.tree.map(
      lambda leaf: np.concatenate([leaf] * data.fixed_crops), splits['train']
    )
  told = ''.join(part.fingerprint for part in parts.values())
  names = parts['train'].class_names
  return splits, names, hashlib.sha256(told.encode()).hexdigest()


def _streamed(data, log):
  """(splits, class names, fingerprint)."""
  dataset = records.load(data.dataset, data.dir)
  splits = {
    name: streamed_split.Split(dataset.records(data[name]), data, log)
    for name in ('train', 'validation', 'test')
  }
  return splits, dataset.class_names, dataset.fingerprint


def _task(data, splits, fingerprint):
  resident = isinstance(splits['train'], types.Batch)
  return task_lib.Task(
    name=data.dataset,
    metadata={
      'dataset': data.dataset,
      # A view is none of its own.
      'train_examples': _count(splits['train']) // max(data.fixed_crops, 1),
    },
    **splits,
    model_args={'classes': data.classes},
    task_loss='cross_entropy',
    metric='accuracy',
    fingerprint=fingerprint,
    baselines=lambda: _baselines(splits) if resident else {},
    make_batch=(_make_columns if resident else _make_streamed)(data),
  )


def _make_columns(data):
  """(columns, ids [b], key) -> Batch with x float32 [b, size, size, 3]."""
  scale = preprocess.Scale(data.mean, data.std)

  def make_batch(columns, ids, key):
    batch = columns.take(ids)
    if key is None or data.augment == 'none':
      x = preprocess.resize(batch.x, data.size)
    else:
      if data.fixed_crops:
        key = jax.random.key(0)  # Of the view, whoever is trained on it.
      x = preprocess.augment(
        batch.x,
        preprocess.example_keys(key, ids),
        size=data.size,
        area=data.area,
      )
    return batch._replace(x=preprocess.normalize(x, scale))

  return make_batch


def _make_streamed(data):
  """(_, Batch of uint8, _) -> Batch with x float32 [b, size, size, 3]."""
  scale = preprocess.Scale(data.mean, data.std)

  def make_batch(columns, batch, key):
    del columns, key  # The stream has cropped and flipped.
    x = batch.x.astype(np.float32)  # cast to fp32: grey levels are uint8
    return batch._replace(x=preprocess.normalize(x, scale))

  return make_batch


def _is_fixed(data):
  """Whether what is seen of an example is a function of its id."""
  return data.augment == 'none' or data.fixed_crops > 0


def _columns(part):
  return types.Batch(
    x=part.images, y=part.labels, mask=np.ones(len(part.labels), np.float32)
  )


def _count(split):
  return len(split.mask) if isinstance(split, types.Batch) else len(split)


def _baselines(splits):
  """Accuracy of always naming the class that has most training examples."""
  most = np.bincount(splits['train'].y).argmax()
  return {
    'most frequent class': {
      name: float(np.mean(splits[name].y == most))
      for name in ('validation', 'test')
    }
  }
