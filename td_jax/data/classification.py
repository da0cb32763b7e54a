"""Image classification: any TFDS dataset, or folders of images, as a Task.

Small datasets stay on the device as uint8 and are cropped, flipped and resized
inside the compiled step; large ones are streamed from the host.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import feed
from td_jax.data import images
from td_jax.data import preprocess
from td_jax.data import records
from td_jax.data import streamed_split
from td_jax.data import task as task_lib
from td_jax.storage import files

TASK_LOSS = 'cross_entropy'
_CHOICES = {'memory': ('device', 'stream'), 'augment': ('inception', 'none')}
_SPLITS = ('train', 'validation', 'test')


class Dataset(NamedTuple):
  """The splits that a config names."""

  splits: Mapping[str, task_lib.Split]
  class_names: tuple[str, ...]
  fingerprint: str


def check(config: types.Config) -> None:
  """Raises a ConfigError for a `data` block that cannot work."""
  data = config.data
  for field, choices in _CHOICES.items():
    errors.choose(f'config.data.{field}', data[field], choices)
  _check_preprocessing(data)
  if data.limit < 0 or (data.limit and data.memory == 'stream'):
    raise errors.ConfigError(
      f'config.data.limit is {data.limit}; it must be at least 0, and 0 for '
      "config.data.memory='stream': there name a part of a split, such as "
      "config.data.train='train[:5000]'."
    )
  if data.memory == 'stream' and data.augment == 'none':
    raise errors.ConfigError(
      "config.data.augment is 'none', but config.data.memory='stream' crops; "
      "choose augment='inception', or memory='device'."
    )
  if data.fixed_crops < 0 or (
    data.fixed_crops and (data.memory == 'stream' or data.augment == 'none')
  ):
    raise errors.ConfigError(
      f'config.data.fixed_crops is {data.fixed_crops}; it must be at least 0, '
      "and 0 for config.data.memory='stream' or config.data.augment='none'."
    )
  if config.refit_on_validation:
    raise errors.ConfigError(
      'config.refit_on_validation is True, which is for MovieLens; for images '
      'name more examples in config.data.train.'
    )
  if config.teacher.cache and not _is_fixed(data):
    raise errors.ConfigError(
      "config.teacher.cache is True, but the teacher's view of an image "
      "changes from epoch to epoch; choose config.data.augment='none', a number "
      'of config.data.fixed_crops, or config.teacher.cache=False.'
    )


def read(config: types.Config, *, log: types.Log = print) -> Dataset:
  """Reads the splits of `config.data`, or opens them for streaming.

  Raises:
    errors.ConfigError: There is no such dataset or split, or it has another
      number of classes.
    errors.DataError: It is absent or damaged; the message says how to get it.
  """
  in_memory = config.data.memory == 'device'
  dataset = (_read_columns if in_memory else _open_streams)(config.data, log)
  if len(dataset.class_names) != config.data.classes:
    raise errors.ConfigError(
      f'config.data.classes is {config.data.classes}, but '
      f'{config.data.dataset} has {len(dataset.class_names)} classes.'
    )
  return dataset


def load(config: types.Config, *, log: types.Log = print) -> task_lib.Task:
  """Reads the dataset and makes the task of `config`."""
  return task(config, read(config, log=log))


def shapes(config: types.Config) -> task_lib.Task:
  """A task of black images, to compile for where there are no data."""
  blank = streamed_split.Blank(config.data.size)
  return task(config, Dataset(dict.fromkeys(_SPLITS, blank), (), ''))


def task(config: types.Config, dataset: Dataset) -> task_lib.Task:
  """The task of `config.data` on a dataset that `read` returned."""
  data, splits = config.data, dataset.splits
  in_memory = isinstance(splits['train'], types.Batch)
  make_batch = _make_from_columns if in_memory else _make_from_stream
  return task_lib.Task(
    name=data.dataset,
    metadata={
      'dataset': data.dataset,
      # Fixed crops of one image are not further images.
      'train_examples': _count(splits['train']) // max(data.fixed_crops, 1),
      'class_names': list(dataset.class_names),
    },
    train=splits['train'],
    validation=splits['validation'],
    test=splits['test'],
    model_args={'classes': data.classes},
    task_loss=TASK_LOSS,
    metric='accuracy',
    fingerprint=dataset.fingerprint,
    baselines=lambda: _baselines(splits) if in_memory else {},
    make_batch=make_batch(data),
  )


def _check_preprocessing(data: types.Config) -> None:
  if data.size < 1:
    raise errors.ConfigError(
      f'config.data.size is {data.size}; it must be at least 1 pixel.'
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


def _read_columns(data: types.Config, log: types.Log) -> Dataset:
  """All splits in memory."""
  parts = {
    name: images.load_columns(
      data.dataset,
      data[name],
      data_dir=data.dir,
      limit=data.limit if name == 'train' else 0,
      log=log,
    )
    for name in _SPLITS
  }
  splits = {name: _columns(part) for name, part in parts.items()}
  if data.fixed_crops:
    # Each crop becomes an example with an id of its own, and its place in the
    # image depends on the id alone; so the teacher's states can be cached.
    splits['train'] = jax.tree.map(
      lambda leaf: np.concatenate([leaf] * data.fixed_crops), splits['train']
    )
  fingerprints = (part.fingerprint for part in parts.values())
  return Dataset(
    splits, parts['train'].class_names, files.sha256(*fingerprints)
  )


def _open_streams(data: types.Config, log: types.Log) -> Dataset:
  """All splits as streams."""
  dataset = records.load(data.dataset, data.dir)
  splits = {
    name: streamed_split.Split(dataset.records(data[name]), data, log)
    for name in _SPLITS
  }
  return Dataset(splits, dataset.class_names, dataset.fingerprint)


def _make_from_columns(data: types.Config) -> feed.MakeBatch:
  """(columns, ids [b], key) -> Batch with x float32 [b, size, size, 3]."""
  scale = preprocess.Scale(data.mean, data.std)

  def make_batch(
    columns: types.Batch, ids: types.PyTree, key: types.Key | None
  ) -> types.Batch:
    batch = columns.take(ids)
    if key is None or data.augment == 'none':
      x = preprocess.resize(batch.x, data.size)
    else:
      if data.fixed_crops:
        # A fixed key: a crop must not depend on the seed of the student.
        key = jax.random.key(0)
      x = preprocess.augment(
        batch.x,
        preprocess.example_keys(key, ids),
        size=data.size,
        area=data.area,
      )
    return batch._replace(x=preprocess.normalize(x, scale))

  return make_batch


def _make_from_stream(data: types.Config) -> feed.MakeBatch:
  """(_, Batch of uint8, _) -> Batch with x float32 [b, size, size, 3]."""
  scale = preprocess.Scale(data.mean, data.std)

  def make_batch(
    columns: types.PyTree, batch: types.Batch, key: types.Key | None
  ) -> types.Batch:
    del columns, key  # The host has already cropped and flipped.
    x = batch.x.astype(np.float32)  # cast to fp32: grey levels are uint8
    return batch._replace(x=preprocess.normalize(x, scale))

  return make_batch


def _is_fixed(data: types.Config) -> bool:
  """Whether the input made of an example depends on its id alone."""
  return data.augment == 'none' or data.fixed_crops > 0


def _columns(part: images.Columns) -> types.Batch:
  return types.Batch(
    x=part.images, y=part.labels, mask=np.ones(len(part.labels), np.float32)
  )


def _count(split: task_lib.Split) -> int:
  return len(split.mask) if isinstance(split, types.Batch) else len(split)


def _baselines(
  splits: Mapping[str, Any],
) -> dict[str, dict[str, float]]:
  """Accuracy of always predicting the class with most training examples."""
  most = np.bincount(splits['train'].y).argmax()
  return {
    'most frequent class': {
      name: float(np.mean(splits[name].y == most))
      for name in ('validation', 'test')
    }
  }
