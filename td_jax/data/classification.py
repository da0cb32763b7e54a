"""Image classification: any TFDS dataset, or folders of images, as a Task.

Small datasets stay on the device as uint8 and are cropped, flipped and resized
inside the compiled step; large ones are streamed from the host.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple
from typing import TypeVar

import jax
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import answers
from td_jax.data import baselines
from td_jax.data import feed
from td_jax.data import image_folder
from td_jax.data import images
from td_jax.data import labels
from td_jax.data import mixtures
from td_jax.data import preprocess
from td_jax.data import records
from td_jax.data import streamed_split
from td_jax.data import task as task_lib
from td_jax.storage import files

TASK_LOSS = 'cross_entropy'
_SPLITS = ('train', 'validation', 'test')
_T = TypeVar('_T')
# Mixtures for each labelled image, if their number is not given.
_PER_IMAGE = 10


class Dataset(NamedTuple):
  """The splits that a config names."""

  splits: Mapping[str, task_lib.Split]
  class_names: tuple[str, ...]
  fingerprint: str
  unlabelled: task_lib.Split | None = None  # Of another dataset or split.
  unlabelled_fingerprint: str = ''


def read(config: types.Config, *, log: types.Log = print) -> Dataset:
  """Reads the splits of `config.data`, or opens them for streaming.

  Raises:
    errors.ConfigError: There is no such dataset or split, or it has another
      number of classes.
    errors.DataError: It is absent or damaged; the message says how to get it.
  """
  if config.data.memory == 'device':
    dataset = _read_columns(config, log)
  else:
    dataset = _open_streams(config, log)
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
  unlabelled = blank if config.data.unlabelled.source == 'dataset' else None
  return task(
    config, Dataset(dict.fromkeys(_SPLITS, blank), (), '', unlabelled)
  )


def task(config: types.Config, dataset: Dataset) -> task_lib.Task:
  """The task of `config.data` on a dataset that `read` returned."""
  data, parts = config.data, dataset.splits
  in_memory = isinstance(parts['train'], types.Batch)
  make_batch = _make_from_columns if in_memory else _make_from_stream
  train, unlabelled = parts['train'], dataset.unlabelled
  if isinstance(train, types.Batch):
    train, rest = _hide_labels(train, data)
    if data.unlabelled.source == 'rest':
      unlabelled = rest
    if data.unlabelled.source == 'mixtures':
      unlabelled = _mixtures(train, data)
    train, unlabelled = (_repeated(s, data) for s in (train, unlabelled))
  return task_lib.Task(
    name=data.dataset,
    metadata={
      'dataset': data.dataset,
      # Fixed crops of one image are not further images.
      'train_examples': _count(train) // max(data.fixed_crops, 1),
      'unlabelled': _count(unlabelled) // max(data.fixed_crops, 1)
      if unlabelled is not None
      else 0,
      'class_names': list(dataset.class_names),
    },
    train=train,
    validation=parts['validation'],
    test=parts.get('test'),
    model_args={'classes': data.classes},
    task_loss=TASK_LOSS,
    metric='accuracy',
    fingerprint=dataset.fingerprint,
    baselines=lambda: (
      _baselines({**parts, 'train': train}) if in_memory else {}
    ),
    make_batch=make_batch(data),
    inputs=lambda: {'class_names': np.asarray(dataset.class_names)},
    unlabelled=None
    if unlabelled is None
    else feed.Unlabelled(unlabelled, data.unlabelled.share),
    unlabelled_fingerprint=dataset.unlabelled_fingerprint,
  )


def _splits(
  config: types.Config, read: Callable[[str], _T], log: types.Log
) -> dict[str, _T]:
  """{split: what `read` makes of it}, of all splits that the config names.

  The test split may be unreadable if it is not scored. It is not left out in any
  case, because the fingerprints of older runs cover it.
  """
  found = {}
  for name in _SPLITS:
    if not config.data[name]:
      continue
    try:
      found[name] = read(name)
    except (errors.ConfigError, errors.DataError) as e:
      if name != 'test' or config.test:
        raise
      log(f'config.test is False, and the test split is left out: {e}')
  return found


def _read_columns(config: types.Config, log: types.Log) -> Dataset:
  """All splits in memory, with the rows of the teacher's answers, if given."""
  data, states = config.data, config.teacher.states
  folder = data.dir if data.dataset == image_folder.NAME else ''
  answered = answers.Index(states, folder=folder) if states else None

  def columns(
    part: images.Columns,
    name: str,
    spec: str,
    data_dir: str,
    labelled: bool = True,
  ) -> types.Batch:
    batch = types.Batch(
      x=part.images, y=part.labels, mask=np.ones(len(part.labels), np.float32)
    )
    if answered is None:
      return batch
    assert part.ids is not None
    names = images.examples(
      name, spec, part.ids, data_dir=data_dir, labelled=labelled
    )
    rows = answered.rows(names, what=f'{name} {spec!r}')
    return batch._replace(teacher_x={types.TEACHER: rows})

  def load(name: str) -> images.Columns:
    return images.load_columns(
      data.dataset,
      data[name],
      data_dir=data.dir,
      limit=data.limit if name == 'train' else 0,
      size=data.size,
      smaller_side=data.smaller_side,
      log=log,
    )

  parts = _splits(config, load, log)
  splits = {
    name: columns(part, data.dataset, data[name], data.dir)
    for name, part in parts.items()
  }
  fingerprints = (part.fingerprint for part in parts.values())
  dataset = Dataset(
    splits, parts['train'].class_names, files.sha256(*fingerprints)
  )
  if data.unlabelled.source != 'dataset':
    return dataset
  name, split, folder = _other(data)
  other = images.load_columns(
    name,
    split,
    data_dir=folder,
    labelled=False,
    size=data.size,
    smaller_side=data.smaller_side,
    log=log,
  )
  sizes = [pixels.shape[1:] for pixels in (splits['train'].x, other.images)]
  if sizes[0] != sizes[1]:
    raise errors.DataError(
      f'the images of {name} {split!r} have shape {sizes[1]}, but those of '
      f'{data.dataset} have {sizes[0]}: images that differ in size have to be '
      "streamed (config.data.memory='stream')."
    )
  return dataset._replace(
    unlabelled=columns(other, name, split, folder, labelled=False),
    unlabelled_fingerprint=other.fingerprint,
  )


def _other(data: types.Config) -> tuple[str, str, str]:
  """Name, split and folder of the unlabelled examples."""
  other = data.unlabelled
  name = other.dataset or data.dataset
  # A folder of images belongs to one dataset; TFDS's data folder to all.
  same = (name == image_folder.NAME) == (data.dataset == image_folder.NAME)
  return name, other.split, other.dir or (data.dir if same else '')


def _hide_labels(
  train: types.Batch, data: types.Config
) -> tuple[types.Batch, types.Batch | None]:
  """(the examples that keep their labels, the others or None)."""
  count = len(train.mask)
  if data.labels.per_class:
    counts = np.bincount(train.y, minlength=data.classes)
    if counts.min() < data.labels.per_class:
      raise errors.ConfigError(
        f'config.data.labels.per_class is {data.labels.per_class}, but class '
        f'{counts.argmin()} has {counts.min()} training images.'
      )
    keep = data.labels.per_class * data.classes
  else:
    keep = max(round(data.labels.share * count), 1)
  if keep == count:
    return train, None
  ids = labels.balanced(train.y, keep, seed=data.labels.draw)
  rest = np.setdiff1d(np.arange(count), ids)
  # On the host: `Batch.take` would copy the images to a device.
  return tuple(
    jax.tree.map(lambda leaf, rows=rows: leaf[rows], train)
    for rows in (ids, rest)
  )


def _mixtures(train: types.Batch, data: types.Config) -> types.Batch:
  """Mixtures of two labelled images each, without a label."""
  count = data.unlabelled.mixtures or _PER_IMAGE * len(train.y)
  title = f'config.data.unlabelled.mixtures={count}'
  mixed = images.allocate(count, train.x[0], title)
  mixtures.mixtures(train.x, mixed, seed=data.labels.draw)
  return types.Batch(
    x=mixed,
    y=np.zeros(count, train.y.dtype),
    mask=np.ones(count, np.float32),
  )


def _repeated(split: Any, data: types.Config) -> Any:
  """Each fixed crop as an example of its own.

  The place of a crop in the image depends on the example's id alone, so that
  the teacher's states can be cached.
  """
  if not data.fixed_crops:
    return split
  return jax.tree.map(
    lambda leaf: np.concatenate([leaf] * data.fixed_crops), split
  )


def _open_streams(config: types.Config, log: types.Log) -> Dataset:
  """All splits as streams."""
  data = config.data
  dataset = records.load(data.dataset, data.dir)

  def stream(name: str) -> streamed_split.Split:
    return streamed_split.Split(dataset.records(data[name]), data, log)

  splits = _splits(config, stream, log)
  streams = Dataset(splits, dataset.class_names, dataset.fingerprint)
  if data.unlabelled.source != 'dataset':
    return streams
  name, split, folder = _other(data)
  other = records.load(name, folder, labelled=False)
  return streams._replace(
    unlabelled=streamed_split.Split(
      other.records(split, labelled=False), data, log
    ),
    unlabelled_fingerprint=other.fingerprint,
  )


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


def _count(split: task_lib.Split) -> int:
  return len(split.mask) if isinstance(split, types.Batch) else len(split)


def _baselines(
  parts: Mapping[str, Any],
) -> dict[str, dict[str, float]]:
  """Accuracy of always predicting the class with most training examples."""
  judged = {
    name: parts[name].y for name in ('validation', 'test') if name in parts
  }
  return baselines.most_frequent(parts['train'].y, judged)
