"""Image classification datasets that fit in memory, in columns.

A split is decoded once and kept beside the dataset, as uint8; the next start
reads that file, without TensorFlow. What does not fit is for `stream`.
"""

import os
import pathlib
from typing import NamedTuple
import zipfile

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import records
from td_jax.data import tfds
from td_jax.storage import array_cache as cache_lib
from td_jax.storage import digest

_BLOCK = 4096  # Records read at a time.
_MAX_BYTES = 8 << 30  # Of a split in memory.


class Columns(NamedTuple):
  """A split, or a part of one, in the order of its records."""

  images: np.ndarray  # uint8 [n, h, w, 3]
  labels: np.ndarray  # int32 [n]
  class_names: tuple[str, ...]
  fingerprint: str  # sha256 of everything above.


def load_columns(
  name: str,
  spec: str,
  *,
  data_dir: str = '',
  limit: int = 0,
  seed: int = 0,
  log: types.Log = print,
) -> Columns:
  """The images of a split whose images are all of one size.

  Args:
    name: a dataset, as `records.load` takes it.
    spec: a TFDS split: 'train', 'train[:98%]'.
    data_dir: as `records.load` takes it.
    limit: keeps this many, as many of each class as there are; 0 keeps all.
    seed: chooses which; a smaller limit keeps a part of what a larger one does.
    log: takes one line of text.

  Raises:
    errors.ConfigError: no such name, split or limit.
    errors.DataError: absent, damaged, without labels, or images of various
      sizes.
    errors.IOFailedError: a file cannot be read.
  """
  split, *_ = records.parse(spec, name=name)
  cache, stamp = _cache(name, data_dir, split)
  whole = _load_cache(cache, stamp, log) if cache else None
  if whole is None:
    whole = _decode(records.load(name, data_dir), split, log)
    if cache:
      cache_lib.save(cache, whole._asdict() | {'stamp': stamp}, log=log)
  _, start, stop = records.cut(spec, {split: len(whole.labels)}, name=name)
  keep = np.arange(start, stop)
  if limit:
    if not 0 < limit <= len(keep):
      raise errors.ConfigError(
        f'config.data.limit is {limit}, but {name} {spec!r} has {len(keep)} examples; 0'
        ' keeps all.'
      )
    keep = keep[balanced(whole.labels[keep], limit, seed=seed)]
    images, labels = whole.images[keep], whole.labels[keep]
  else:  # A slice copies nothing.
    images, labels = whole.images[start:stop], whole.labels[start:stop]
  fingerprint = digest.sha256(whole.fingerprint, keep.astype('<i8'))
  return Columns(images, labels, whole.class_names, fingerprint)


def balanced(labels: np.ndarray, limit: int, *, seed: int) -> np.ndarray:
  """Sorted places [limit] of `labels` [n], the classes as even as can be.

  Each class is permuted by `seed`; then classes take turns, so that every
  limit's choice holds those of the smaller ones.
  """
  turn = np.empty(len(labels))
  rng = np.random.default_rng(seed)
  for label in np.unique(labels):
    rows = np.flatnonzero(labels == label)
    # A fraction settles whose turn is first among the classes, evenly.
    turn[rows] = rng.permutation(len(rows)) + rng.random()
  return np.sort(np.argsort(turn, kind='stable')[:limit])


def _columns(images, labels, class_names):
  fingerprint = digest.sha256(
    [images.shape, labels.shape, class_names], images, labels.astype('<i4')
  )
  return Columns(images, labels, tuple(class_names), fingerprint)


def _decode(dataset: records.Dataset, split: str, log: types.Log) -> Columns:
  """Decodes every record of a whole split."""
  tfds.module()  # With its settings.
  import tensorflow as tf

  source = dataset.records(split)
  log(f'{dataset.name}: decoding the {len(source)} images of {split}, once')
  images, labels = np.empty(0), np.empty(len(source), np.int32)
  for start in range(0, len(source), _BLOCK):
    ids = np.arange(start, min(start + _BLOCK, len(source)))
    try:
      examples = source.read(ids)
      encoded = [example.image for example in examples]
      decoded = list(
        tf.data.Dataset.from_tensor_slices(encoded)
        .map(_pixels, num_parallel_calls=tf.data.AUTOTUNE)
        .as_numpy_iterator()
      )
    except (records.CorruptError, tf.errors.OpError, OSError, RuntimeError):
      _raise_first(source, ids)
      raise
    if not start:
      images = _allocate(len(source), decoded[0], f'{dataset.name} {split}')
    for row, image, example in zip(
      ids.tolist(), decoded, examples, strict=True
    ):
      if image.shape != images.shape[1:]:
        raise errors.DataError(
          f'{source.name(row)} has shape {image.shape}, record 0'
          f' {images.shape[1:]}: images of various sizes have to be streamed.'
        )
      images[row], labels[row] = image, example.label
  return _columns(images, labels, dataset.class_names)


def _pixels(encoded):
  """uint8 [h, w, 3] of a JPEG or PNG file."""
  import tensorflow as tf

  return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def _raise_first(source, ids):
  """Raises an error that names the first record that cannot be had."""
  import tensorflow as tf

  for number in ids.tolist():
    try:
      _pixels(source.read(np.array([number]))[0].image)
    except (records.CorruptError, tf.errors.InvalidArgumentError) as error:
      raise errors.DataError(
        f'{source.name(number)} is corrupt: {records.one_line(error)}'
      ) from error
    # A disk, a lost file: it is not this record's fault.
    except (tf.errors.OpError, OSError, RuntimeError) as error:
      raise errors.IOFailedError(
        f'{source.name(number)} cannot be read: {records.one_line(error)}'
      ) from error


def _allocate(count, image, title):
  size = count * image.size
  if size > _MAX_BYTES:
    raise errors.DataError(
      f'{title} takes {size / 2**30:.1f} GiB of memory, more than'
      f' {_MAX_BYTES >> 30}: it has to be streamed.'
    )
  return np.empty((count, *image.shape), np.uint8)


# The cache: a file a split, beside the data.


def _cache(name, data_dir, split) -> tuple[pathlib.Path | None, str]:
  """Where the split is kept, and what the data beside it must be.

  Needs no TensorFlow. Raises as `records.load` does.
  """
  if name == records.IMAGE_FOLDER:
    folder = pathlib.Path(data_dir).expanduser() / records.CACHE
    return folder / f'{split}.npz', records.load(name, data_dir).fingerprint
  folder = records.find(name, data_dir)
  if '://' in str(folder):
    return None, ''  # Not ours to write to.
  stamp = digest.sha256((folder / 'dataset_info.json').read_bytes())
  title = name.split(':')[0].replace('/', '-')
  file = f'{title}-{folder.name}-{split}.npz'
  root = pathlib.Path(records.root(data_dir))
  return root / records.CACHE / file, stamp


def _load_cache(
  cache: pathlib.Path, stamp: str, log: types.Log
) -> Columns | None:
  """Returns the cached split; None if it is absent, old or damaged."""
  if not os.path.exists(cache):
    return None
  try:
    with zipfile.ZipFile(cache) as archive:
      # Nothing in it is compressed, so nothing can unpack to more.
      unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > cache.stat().st_size:
      raise ValueError(f'it unpacks to {unpacked} bytes')
    with np.load(cache, allow_pickle=False) as stored:
      if stored['stamp'] != stamp:
        raise ValueError('the data beside it have changed')
      found = _columns(
        stored['images'], stored['labels'], stored['class_names'].tolist()
      )
      kept = str(stored['fingerprint'])
    if found.fingerprint != kept:
      raise ValueError('its pixels are not those that were stored')
  # A cache can be damaged in more ways than can be listed, and the mend for
  # every one is to decode the images again.
  except Exception as error:
    log(f'warning: {cache} is ignored: {errors.one_line(error)}')
    return None
  return found
