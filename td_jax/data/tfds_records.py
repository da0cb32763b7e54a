"""Image classification datasets in the files that TFDS prepares."""

import collections
from collections.abc import Sequence
from concurrent import futures
import os
import threading
from typing import Any

import numpy as np

from td_jax import errors
from td_jax.data import dataset
from td_jax.data import tfds as tfds_lib
from td_jax.storage import files
from td_jax.storage import paths as paths_lib


def load(name: str, data_dir: str = '') -> dataset.Dataset:
  """Opens a prepared dataset; see `records.load`."""
  folder = tfds_lib.find(name, data_dir)
  tfds = tfds_lib.module()
  try:
    info = tfds.builder_from_directory(str(folder)).info
    keys = info.supervised_keys or ('image', 'label')
    features = dict(info.features.items())
    pair: list[Any] = [features.get(key) for key in keys]
  # TFDS lets the errors of its parsers through, which have no common type.
  except Exception as error:
    raise errors.DataError(
      f'{folder} cannot be read as TFDS data ({tfds_lib.one_line(error)}):'
      f' delete it. {tfds_lib.how_to_prepare(name, data_dir)}'
    ) from error
  image, label = pair
  if not (
    isinstance(image, tfds.features.Image)
    and isinstance(label, tfds.features.ClassLabel)
  ):
    raise errors.DataError(
      f'{name} is not an image classification dataset: its {keys[0]!r} and'
      f' {keys[1]!r} are {type(image).__name__} and {type(label).__name__}, not'
      ' Image and ClassLabel.'
    )
  kind = info.file_format.value
  readers = {'array_record': _ArrayRecords, 'tfrecord': _TFRecords}
  remote = paths_lib.is_remote(folder)
  if kind not in readers or (kind == 'array_record' and remote):
    raise errors.DataError(
      f'{folder} holds {kind} files, but only array_record (in local folders)'
      ' and tfrecord can be read. Prepare it again with'
      " tfds.load(..., builder_kwargs={'file_format': 'tfrecord'})."
    )
  shards = {
    split: tuple(map(int, split_info.shard_lengths))
    for split, split_info in info.splits.items()
  }
  names = tuple(label.names or ())

  def reader(split: str) -> dataset.Reader:
    paths = [os.fspath(path) for path in info.splits[split].filepaths]
    return readers[kind](paths, shards[split], keys)

  return dataset.Dataset(
    name=name,
    sizes={split: sum(lengths) for split, lengths in shards.items()},
    class_names=names,
    fingerprint=files.sha256([info.full_name, kind, shards, names]),
    reader=reader,
  )


def _parse(
  serialized: Sequence[bytes], keys: Sequence[str]
) -> list[dataset.Example]:
  """Returns the encoded image and the label of each tf.train.Example."""
  import tensorflow as tf

  features = {
    keys[0]: tf.io.FixedLenFeature([], tf.string),
    keys[1]: tf.io.FixedLenFeature([], tf.int64),
  }
  try:
    parsed = tf.io.parse_example(serialized, features)
  except tf.errors.InvalidArgumentError as error:
    raise dataset.CorruptError(tfds_lib.one_line(error)) from error
  images, labels = (parsed[key].numpy().tolist() for key in keys)
  return [dataset.Example(*pair) for pair in zip(images, labels, strict=True)]


class _ArrayRecords:
  """A `dataset.Reader` of array_record files, which allow random access."""

  any_kind, labels = False, None

  def __init__(
    self, paths: Sequence[str], sizes: Sequence[int], keys: Sequence[str]
  ):
    from array_record.python import array_record_data_source

    self.shards = (sum(sizes),)
    self._paths, self._ends, self._keys = paths, np.cumsum(sizes), keys
    # Without its range every file would be opened now, only to count records.
    self._source = array_record_data_source.ArrayRecordDataSource(
      [f'{path}[0:{size}]' for path, size in zip(paths, sizes, strict=True)]
    )

  def read(self, ids: Sequence[int]) -> list[dataset.Example]:
    try:
      return _parse(self._source.__getitems__(ids), self._keys)
    except RuntimeError as error:  # The only type that its C++ code raises.
      if 'Corrupted' in str(error):
        raise dataset.CorruptError(tfds_lib.one_line(error)) from error
      raise

  def prefetch(self, ids: Sequence[int]) -> None:
    del ids  # Reading one record is fast enough.

  def location(self, number: int) -> str:
    return self._paths[int(np.searchsorted(self._ends, number, side='right'))]


class _TFRecords:
  """A `dataset.Reader` of tfrecord files, which are read from front to back.

  Whole files stay in memory: those in use and those that are needed next.
  """

  any_kind, labels = False, None
  _THREADS = 8  # Files that load at the same time.
  _BUFFER = 8 << 20  # Bytes of one read; large ones suit buckets.

  def __init__(
    self, paths: Sequence[str], sizes: tuple[int, ...], keys: Sequence[str]
  ):
    self.shards = sizes
    self._paths, self._ends, self._keys = paths, np.cumsum(sizes), keys
    # In the order of last use, the most recent last.
    self._loaded: collections.OrderedDict[int, futures.Future[Any]] = (
      collections.OrderedDict()
    )
    self._capacity = 2
    self._lock = threading.Lock()
    self._pool = futures.ThreadPoolExecutor(self._THREADS)

  def read(self, ids: Sequence[int]) -> list[dataset.Example]:
    shards = self._shards(ids)
    loads = self._load(shards)
    rows = np.asarray(ids) - self._begin(shards)
    examples = []
    for shard, row in zip(shards.tolist(), rows.tolist(), strict=True):
      try:
        example = loads[shard].result()[row]
      except Exception:
        # Do not remember the failure: a network may recover.
        with self._lock:
          self._loaded.pop(shard, None)
        raise
      if isinstance(example, Exception):
        raise example
      examples.append(example)
    return examples

  def prefetch(self, ids: Sequence[int]) -> None:
    self._load(self._shards(ids))

  def location(self, number: int) -> str:
    return self._paths[int(self._shards([number])[0])]

  def _shards(self, ids: Sequence[int]) -> np.ndarray:
    return np.searchsorted(self._ends, ids, side='right')

  def _begin(self, shards: np.ndarray) -> np.ndarray:
    return self._ends[shards] - np.asarray(self.shards)[shards]

  def _load(self, shards: np.ndarray) -> dict[int, futures.Future[Any]]:
    """Returns futures of the contents of `shards`; evicts old ones."""
    needed = np.unique(shards).tolist()
    with self._lock:
      # Three times the files of one call: those in use, those needed next and,
      # between two epochs, some of both.
      self._capacity = max(self._capacity, 3 * len(needed))
      for shard in needed:
        if shard not in self._loaded:
          self._loaded[shard] = self._pool.submit(self._contents, shard)
        self._loaded.move_to_end(shard)
      while len(self._loaded) > self._capacity:
        self._loaded.popitem(last=False)
      return {shard: self._loaded[shard] for shard in needed}

  def _contents(
    self, shard: int
  ) -> list[dataset.Example | dataset.CorruptError]:
    """Returns every record of a file, with an error in place of a lost one."""
    import tensorflow as tf

    path, size = self._paths[shard], self.shards[shard]
    # Batches of 256 are fast. If the file is damaged, a second pass record by
    # record keeps all that come before the damage.
    for count in (256, 1):
      contents: list[dataset.Example | dataset.CorruptError] = []
      records = tf.data.TFRecordDataset(path, buffer_size=self._BUFFER)
      try:
        for batch in records.batch(count):
          contents += self._examples(batch.numpy().tolist())
        reason = f'the file ends after {len(contents)} of {size} records'
        break
      except tf.errors.DataLossError as error:
        # The record's length is lost too, and so are all records behind it.
        reason = tfds_lib.one_line(error)
    return contents + [dataset.CorruptError(reason)] * (size - len(contents))

  def _examples(
    self, batch: list[bytes]
  ) -> list[dataset.Example | dataset.CorruptError]:
    try:
      return list(_parse(batch, self._keys))
    except dataset.CorruptError as error:
      # TensorFlow does not name the record that it could not parse.
      if len(batch) == 1:
        return [error]
      return [result for one in batch for result in self._examples([one])]
