"""Image classification datasets that fit in memory, as columns.

A split is decoded once and cached beside the dataset as uint8. Later starts
read that cache, without TensorFlow. Larger datasets go through `host_pipeline`.

Images of TFDS are decoded by TensorFlow, and those in folders by Pillow.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from concurrent import futures
import os
import pathlib
from typing import Any
from typing import NamedTuple
import zipfile

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import dataset as dataset_lib
from td_jax.data import image_files
from td_jax.data import image_folder
from td_jax.data import labels as label_lib
from td_jax.data import preprocess
from td_jax.data import records
from td_jax.data import splits
from td_jax.data import tfds
from td_jax.storage import array_cache
from td_jax.storage import files
from td_jax.storage import paths

_BLOCK = 4096  # Records that are read at a time.
_FILES = 64  # Images of a folder that are decoded at a time.
_MOST_NAMED = 5  # Further damaged images that a message names.
_MAX_BYTES = 8 << 30  # The largest split that is held in memory.


class Columns(NamedTuple):
  """A split, or a subset of one, in the order of its records."""

  images: np.ndarray  # uint8 [n, h, w, 3]
  labels: np.ndarray  # int32 [n]
  class_names: tuple[str, ...]
  fingerprint: str  # SHA-256 of everything above.
  # [n], the numbers of the records in their split; None stands for all.
  ids: np.ndarray | None = None


def load_columns(
  name: str,
  spec: str,
  *,
  data_dir: str = '',
  limit: int = 0,
  seed: int = 0,
  labelled: bool = True,
  size: int = 0,
  smaller_side: int = 0,
  log: types.Log = print,
) -> Columns:
  """Loads a split whose images all have the same size, or are in a folder.

  Args:
    name: A dataset, as for `records.load`.
    spec: A split or a slice of one: 'train', 'train[:98%]'.
    data_dir: As for `records.load`.
    limit: Number of examples to select, evenly from all classes; 0 selects all.
    seed: Determines which ones. A smaller limit selects a subset of what a
      larger one does.
    labelled: Whether each image must have a label; -1 stands for none.
    size: If images of a folder differ in size, or `smaller_side` is not 0, they
      are brought to this side in pixels, see `preprocess.whole_image`.
    smaller_side: Likewise.
    log: Receives progress and warnings.

  Raises:
    errors.ConfigError: There is no such dataset or split, or the limit is too
      large.
    errors.DataError: The data are absent, damaged or without labels, or the
      images differ in size.
    errors.IOFailedError: A file cannot be read.
  """
  split, *_ = splits.parse(spec, name=name)
  cache, stamp = _cache(name, data_dir, split, labelled)
  if name == image_folder.NAME:
    stamp = files.sha256([stamp, size, smaller_side])
  # Whole splits are cached, so all slices and limits share one file.
  whole = _load_cache(cache, stamp, log) if cache else None
  if whole is None:
    dataset = records.load(name, data_dir, labelled=labelled)
    source = dataset.records(split, labelled=labelled)
    whole = _decode(
      dataset, source, split, size=size, smaller_side=smaller_side, log=log
    )
    if cache:
      arrays = {**whole._asdict(), 'stamp': stamp}
      del arrays['ids']  # A whole split has all.
      array_cache.save(cache, arrays, log=log)
  _, start, stop = splits.cut(spec, {split: len(whole.labels)}, name=name)
  ids = np.arange(start, stop)
  if limit:
    if not 0 < limit <= len(ids):
      raise errors.ConfigError(
        f'config.data.limit is {limit}, but {name} {spec!r} has {len(ids)}'
        ' examples; 0 selects all.'
      )
    ids = ids[label_lib.balanced(whole.labels[ids], limit, seed=seed)]
    images, labels = whole.images[ids], whole.labels[ids]
  else:
    # Indexing by `ids` would copy up to 8 GiB; a slice is a view.
    images, labels = whole.images[start:stop], whole.labels[start:stop]
  # Little-endian 64 bits on every machine, so that fingerprints agree.
  fingerprint = files.sha256(whole.fingerprint, ids.astype('<i8'))
  return Columns(images, labels, whole.class_names, fingerprint, ids)


def examples(
  name: str, spec: str, ids: np.ndarray, *, data_dir: str, labelled: bool
) -> list[str]:
  """The names of the records `ids` of a split, see `answers`."""
  split, *_ = splits.parse(spec, name=name)
  if name != image_folder.NAME:
    return [f'{split}/{number}' for number in ids.tolist()]
  reader = records.load(name, data_dir, labelled=labelled).reader(split)
  return [reader.location(number) for number in ids.tolist()]


def _columns(
  images: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> Columns:
  fingerprint = files.sha256(
    [images.shape, labels.shape, class_names], images, labels.astype('<i4')
  )
  return Columns(images, labels, tuple(class_names), fingerprint)


def _decode(
  dataset: dataset_lib.Dataset,
  source: dataset_lib.Records,
  split: str,
  *,
  size: int,
  smaller_side: int,
  log: types.Log,
) -> Columns:
  """Decodes all images of a whole split; see `load_columns`."""
  log(f'{dataset.name}: decoding the {len(source)} images of {split}, once')

  def columns(decoded: Iterator[tuple[np.ndarray, int]]) -> Columns:
    return _columns(
      *_stack(dataset, source, split, decoded), dataset.class_names
    )

  def fitted(pixels: np.ndarray) -> np.ndarray:
    levels = preprocess.whole_image(
      pixels, size=size, smaller_side=smaller_side
    )
    return np.floor(levels + 0.5).astype(np.uint8)

  if dataset.name != image_folder.NAME:
    return columns(_decode_tfds(source))
  if not smaller_side:
    # Whole images of one size are kept: the device stretches or crops them.
    try:
      return columns(_decode_files(source))
    except _OtherSizeError:
      if not size:
        raise
      log(
        f'{split}: images differ in size; each is stretched to {size} x {size}'
      )
  return columns(_decode_files(source, fitted))


class _OtherSizeError(errors.DataError):
  """An image has another size than the first."""


def _stack(
  dataset: dataset_lib.Dataset,
  source: dataset_lib.Records,
  split: str,
  decoded: Iterator[tuple[np.ndarray, int]],
) -> tuple[np.ndarray, np.ndarray]:
  """(images [n, h, w, 3], labels [n]) of pairs in the order of the records."""
  images, labels = np.empty(0), np.empty(len(source), np.int32)
  for row, (image, label) in enumerate(decoded):
    if not row:
      images = allocate(len(source), image, f'{dataset.name} {split}')
    if image.shape != images.shape[1:]:
      raise _OtherSizeError(
        f'{source.name(row)} has shape {image.shape}, but record 0 has '
        f'{images.shape[1:]}: images that differ in size have to be streamed '
        "(config.data.memory='stream')."
      )
    images[row], labels[row] = image, label
  return images, labels


def _decode_files(
  source: dataset_lib.Records,
  convert: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels,
) -> Iterator[tuple[np.ndarray, int]]:
  """(pixels, label) of the files of a folder, which Pillow decodes."""

  damaged: dict[int, str] = {}

  def one(number: int) -> tuple[np.ndarray, int] | None:
    try:
      [example] = source.read(np.array([number]))
      return convert(image_files.decode(example.image)), example.label
    except dataset_lib.CorruptError as e:
      damaged[number] = str(e)
      return None
    # A failing disk or a missing file: the image itself may be intact.
    except OSError as e:
      raise errors.IOFailedError(
        f'{source.name(number)} cannot be read: {errors.reason(e)}.'
      ) from e

  # Pillow decodes outside of Python's lock.
  with futures.ThreadPoolExecutor(image_files.threads()) as pool:
    for start in range(0, len(source), _FILES):
      stop = min(start + _FILES, len(source))
      for decoded in pool.map(one, range(start, stop)):
        # After a damaged image the others are decoded only to name all such.
        if decoded is not None and not damaged:
          yield decoded
  if damaged:
    raise errors.DataError(_of_damaged(source, damaged))


def _of_damaged(source: dataset_lib.Records, damaged: dict[int, str]) -> str:
  """What to say of {record: why it cannot be decoded}."""
  first, *others = sorted(damaged)
  text = f'{source.name(first)} is corrupt: {errors.sentence(damaged[first])}'
  if others:
    names = ', '.join(source.location(each) for each in others[:_MOST_NAMED])
    text += f' So are {len(others)} more: {names}'
    text += ', ...' if len(others) > _MOST_NAMED else '.'
  return (
    f'{text} Replace or remove what is damaged; with '
    "config.data.memory='stream', config.data.skip_corrupt=True leaves it out."
  )


def _decode_tfds(
  source: dataset_lib.Records,
) -> Iterator[tuple[np.ndarray, int]]:
  """(pixels, label) of the records of TFDS, which TensorFlow decodes."""
  tfds.module()  # First, since it configures TensorFlow.
  import tensorflow as tf

  decode = tf.autograph.experimental.do_not_convert(_pixels)
  for start in range(0, len(source), _BLOCK):
    ids = np.arange(start, min(start + _BLOCK, len(source)))
    try:
      examples = source.read(ids)
      decoded = list(
        tf.data.Dataset.from_tensor_slices([e.image for e in examples])
        .map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        .as_numpy_iterator()
      )
    except (dataset_lib.CorruptError, tf.errors.OpError, OSError, RuntimeError):
      # None of these errors names the record, so the block is read once more.
      _raise_first(source, ids)
      raise
    for image, example in zip(decoded, examples, strict=True):
      yield image, example.label


def _pixels(encoded: Any) -> Any:
  """Decodes a JPEG or PNG file to uint8 [h, w, 3]."""
  import tensorflow as tf

  return tf.io.decode_image(encoded, channels=3, expand_animations=False)


def _raise_first(source: dataset_lib.Records, ids: np.ndarray) -> None:
  """Raises an error that names the first record that cannot be read."""
  import tensorflow as tf

  for number in ids.tolist():
    try:
      _pixels(source.read(np.array([number]))[0].image)
    except (dataset_lib.CorruptError, tf.errors.InvalidArgumentError) as error:
      raise errors.DataError(
        f'{source.name(number)} is corrupt: {tfds.one_line(error)}'
      ) from error
    # A failing disk or a missing file: the record itself may be intact.
    except (tf.errors.OpError, OSError, RuntimeError) as error:
      raise errors.IOFailedError(
        f'{source.name(number)} cannot be read: {tfds.one_line(error)}'
      ) from error


def allocate(count: int, image: np.ndarray, title: str) -> np.ndarray:
  """Memory for `count` images like `image`: uint8 [count, h, w, 3].

  Raises:
    errors.DataError: It is too much; the message calls the images `title`.
  """
  size = count * image.size
  if size > _MAX_BYTES:
    raise errors.DataError(
      f'{title} takes {size / 2**30:.1f} GiB of memory, more than'
      f' {_MAX_BYTES >> 30}: it has to be streamed'
      " (config.data.memory='stream')."
    )
  return np.empty((count, *image.shape), np.uint8)


# The cache: one file per split, beside the data.


def _cache(
  name: str, data_dir: str, split: str, labelled: bool = True
) -> tuple[pathlib.Path | None, str]:
  """Returns the cache of a split and the stamp of the data it belongs to.

  Needs no TensorFlow. Raises as `records.load` does.
  """
  kind = '' if labelled else '-unlabelled'
  if name == image_folder.NAME:
    folder = pathlib.Path(data_dir).expanduser() / dataset_lib.CACHE
    return folder / f'{split}{kind}.npz', image_folder.stamp(data_dir)
  folder = tfds.find(name, data_dir)
  if paths.is_remote(folder):
    return None, ''  # The bucket may be shared, so nothing is written to it.
  stamp = files.sha256((folder / 'dataset_info.json').read_bytes())
  title = name.split(':', maxsplit=1)[0].replace('/', '-')
  file = f'{title}-{folder.name}-{split}{kind}.npz'
  return tfds.data_dir(data_dir) / dataset_lib.CACHE / file, stamp


def _load_cache(
  cache: pathlib.Path, stamp: str, log: types.Log
) -> Columns | None:
  """Returns the cached split, or None if it is absent, outdated or damaged."""
  if not os.path.exists(cache):
    return None
  try:
    with zipfile.ZipFile(cache) as archive:
      # Our caches are not compressed. A file that unpacks to more than its own
      # size is not ours, and could fill the memory.
      unpacked = sum(member.file_size for member in archive.infolist())
    if unpacked > cache.stat().st_size:
      raise ValueError(f'it unpacks to {unpacked} bytes')
    with np.load(cache, allow_pickle=False) as stored:
      if stored['stamp'] != stamp:
        raise ValueError('it was made of other data, or for another size')
      columns = _columns(
        stored['images'], stored['labels'], stored['class_names'].tolist()
      )
      fingerprint = str(stored['fingerprint'])
    if columns.fingerprint != fingerprint:
      raise ValueError('its pixels are not those that were stored')
  # A file can be damaged in more ways than can be listed, and the remedy is
  # always the same: decode the images again.
  except Exception as error:
    log(f'warning: {cache} is ignored: {errors.one_line(error)}')
    return None
  return columns
