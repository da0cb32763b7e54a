"""Batches of images too many for memory, decoded on the host as they are used.

`batch(step)` is a function of the step alone: which record, which crop and
which flip comes at which place follows from the seed and the place. So a run
resumes at any step without replaying, and hosts agree without talking. Within
an epoch no record is skipped or repeated; a batch may span two epochs.

tf.data decodes ahead of the step that is asked for. Asking for another step
than the next one is right, but restarts that. Training images are the random
crops of `preprocess.crop_box`; of a JPEG only the crop is decoded.
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple
import weakref

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import interleave as lanes_lib
from td_jax.data import preprocess
from td_jax.data import records as records_lib
from td_jax.data import tfds as tfds_lib

_AHEAD = 2  # Whole batches that wait decoded.
_CROPS = 17  # Tells the draws of crops from those of the order.


class Host(NamedTuple):
  """Which part of every global batch is wanted: the index-th of count."""

  index: int = 0
  count: int = 1


_WHOLE = Host()


class _Places(NamedTuple):
  """What comes at this host's places of one batch."""

  ids: np.ndarray  # int64 [b]
  mask: np.ndarray  # float32 [b]: 0 is padding.
  draws: np.ndarray  # float32 [b, DRAWS]


def training(
  records: records_lib.Records,
  *,
  seed: int,
  batch_size: int,
  size: int,
  area: tuple[float, float] = preprocess.AREA,
  aspect: tuple[float, float] = preprocess.ASPECT,
  flip: float = preprocess.FLIP,
  lanes: int = 16,
  group: int = 1,
  **options: Any,
) -> 'Stream':
  """Random crops in random order, without end.

  Args:
    records: what to read.
    seed: of the order, the crops and the flips.
    batch_size: global; a multiple of the hosts.
    size: height and width of the images.
    area: range of a crop's share of its image.
    aspect: range of a crop's width / height.
    flip: how often an image is flipped left to right.
    lanes: of files read front to back, how many are read side by side. Those
      of a host are in its memory. Hosts read apart if they divide it.
    group: how many of them make one lane's shuffle buffer.
    **options: host, dtype, skip_corrupt, workers, log: see `Stream`.

  Raises:
    errors.ConfigError: batch_size is no multiple of the hosts.
  """
  if len(records.shards) == 1:
    lanes = 1  # Any record at any time, or one file that is held anyway.
  order = lanes_lib.order(
    seed=seed,
    shards=records.shards,
    batch_size=batch_size,
    lanes=lanes,
    group=group,
  )

  def places(step: int, columns: slice) -> _Places:
    row = np.arange(step * batch_size, (step + 1) * batch_size)[columns]
    rng = np.random.default_rng((seed, step, _CROPS))
    draws = rng.random((batch_size, preprocess.DRAWS), np.float32)
    return _Places(
      order.ids(row), np.ones(len(row), np.float32), draws[columns]
    )

  def decode(image, draws):
    import tensorflow as tf

    pixels = _crop(image, draws, area=area, aspect=aspect)
    # Slicing by -1 takes 3 ms; and before resizing there are fewer bytes.
    pixels = tf.cond(
      draws[4] < flip, lambda: tf.reverse(pixels, [1]), lambda: pixels
    )
    return tf.image.resize(pixels, (size, size))  # To float32.

  width = batch_size // order.lanes
  return Stream(
    records,
    places,
    decode,
    batch_size=batch_size,
    size=size,
    expect=_half_time(records, width // group),
    **options,
  )


def evaluation(
  records: records_lib.Records,
  *,
  batch_size: int,
  size: int,
  smaller_side: int = 0,
  **options: Any,
) -> 'Stream':
  """Every record once, in order; the last batch is padded, at mask 0.

  Args:
    records: what to read.
    batch_size: global; a multiple of the hosts.
    size: height and width of the images.
    smaller_side: 0 stretches the whole image to `size`, as vision_transformer
      does; else the smaller side is resized to this, aspect kept, by areas,
      and the middle `size` by `size` pixels are taken, as big_vision does.
    **options: host, dtype, skip_corrupt, workers, log: see `Stream`.

  Raises:
    errors.ConfigError: batch_size is no multiple of the hosts, or size is more
      than smaller_side.
  """
  if smaller_side and smaller_side < size:
    raise errors.ConfigError(
      f'smaller_side is {smaller_side}, less than the crop of {size} pixels; 0'
      ' stretches the whole image.'
    )

  def places(step: int, columns: slice) -> _Places:
    row = np.arange(step * batch_size, (step + 1) * batch_size)[columns]
    mask = (row < len(records)).astype(np.float32)
    draws = np.zeros((len(row), preprocess.DRAWS), np.float32)
    # The last record pads: it is at hand.
    return _Places(np.minimum(row, len(records) - 1), mask, draws)

  def decode(image, draws):
    del draws  # Nothing is left to chance.
    return _middle(image, size=size, smaller_side=smaller_side)

  return Stream(
    records,
    places,
    decode,
    batch_size=batch_size,
    size=size,
    steps=-(-len(records) // batch_size),
    expect=_half_time(records, batch_size),
    **options,
  )


def _half_time(records, width):
  """Steps in which `width` records each are half a file: load the next then."""
  return max(1, len(records) // len(records.shards) // max(2 * width, 1))


class Stream:
  """Batches by step. Holds threads and memory until `close`."""

  def __init__(
    self,
    records: records_lib.Records,
    places: Callable[[int, slice], _Places],
    decode: Callable[[Any, Any], Any],
    *,
    batch_size: int,
    size: int,
    steps: int | None = None,
    expect: int = 1,
    host: Host = _WHOLE,
    dtype: str = 'uint8',
    skip_corrupt: bool = False,
    workers: int = 0,
    log: types.Log = print,
  ):
    """`training` and `evaluation` call this.

    Args:
      records: what to read.
      places: what comes where in the batch of a step, of some columns.
      decode: image file and draws [DRAWS] to float32 grey levels
        [size, size, 3], in TensorFlow.
      batch_size: global.
      size: height and width of the images.
      steps: how many batches there are; None is no end.
      expect: by how many steps reading runs ahead.
      host: which part of each batch is wanted.
      dtype: of the images: uint8 rounds what resizing gives, and is a fourth
        of the bytes; float32 keeps it. Grey levels in either case.
      skip_corrupt: whether a corrupt image is replaced by zeros at mask 0 and
        noted in `skipped`, or raised.
      workers: threads that decode; 0 lets tf.data choose.
      log: takes one line of text.
    """
    if batch_size % host.count:
      raise errors.ConfigError(
        f'batch_size is {batch_size}, no multiple of the {host.count} hosts.'
      )
    self.steps = steps
    self.skipped: dict[int, str] = {}  # Why, by record.
    self._records, self._places = records, places
    self._local = batch_size // host.count
    first = host.index * self._local
    self._columns = slice(first, first + self._local)
    self._size, self._expect = size, expect
    self._dtype = errors.choose('dtype', dtype, ('uint8', 'float32'))
    self._skip_corrupt, self._workers, self._log = skip_corrupt, workers, log
    self._next, self._running = 0, []
    # At the interpreter's end at the latest: threads of tf.data that come for
    # Python later than that wait for ever, and the process with them.
    weakref.finalize(self, self._running.clear)
    tfds_lib.module()  # With its settings.
    import tensorflow as tf

    def cast(image, draws):
      pixels = decode(image, draws)
      pixels.set_shape((size, size, 3))
      if self._dtype == 'float32':
        return pixels
      return tf.cast(pixels + 0.5, tf.uint8)  # Which cuts: this rounds.

    self._decode = tf.function(
      cast,
      input_signature=[
        tf.TensorSpec([], tf.string),
        tf.TensorSpec([preprocess.DRAWS], tf.float32),
      ],
    )

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """This host's part of the batch of `step`.

    Returns:
      image [b, size, size, 3], label int32 [b], mask float32 [b], with b the
      batch size over the hosts.

    Raises:
      errors.DataError: an image is corrupt, and those are not skipped; or it
        has no label.
      errors.IOFailedError: a file cannot be read.
    """
    if self.steps is not None and step >= self.steps:
      raise errors.DataError(
        f'batch {step} was asked for, but there are only {self.steps}.'
      )
    import tensorflow as tf

    if not self._running or step != self._next:
      self.close()
      self._running.append(self._start(step))
    self._next = step + 1
    try:
      image, label, mask = next(self._running[0])
    except tf.errors.OpError:
      # Which record it was is not said, and those after it may have moved up.
      self.close()
      return self._one_by_one(step)
    return {'image': image, 'label': label, 'mask': mask}

  def close(self) -> None:
    """Stops the threads; a later `batch` starts them again."""
    self._running.clear()

  def _start(self, step):
    """An iterator over (image, label, mask) from `step` on."""
    import tensorflow as tf

    calls = self._workers or tf.data.AUTOTUNE
    stop = self.steps or np.iinfo(np.int64).max
    kinds = (tf.string, tf.float32, tf.int32, tf.float32)

    def read(step):
      columns = tf.numpy_function(self._read, [step], kinds)
      for column, rest in zip(
        columns, ([], [preprocess.DRAWS], [], []), strict=True
      ):
        column.set_shape([self._local, *rest])
      return tuple(columns)

    def decode(image, draws, label, mask):
      return self._decode(image, draws), label, mask

    data = tf.data.Dataset.range(step, stop)
    data = data.map(read, num_parallel_calls=2).unbatch()
    data = data.map(decode, num_parallel_calls=calls)
    data = data.batch(self._local, drop_remainder=True).prefetch(_AHEAD)
    return data.as_numpy_iterator()

  def _read(self, step):
    """Everything of one batch but the pixels, each [b]."""
    places = self._places(int(step), self._columns)
    if self.steps is None or step + self._expect < self.steps:
      coming = self._places(int(step) + self._expect, self._columns)
      self._records.expect(coming.ids)
    examples = self._records.read(places.ids)
    # Of objects: an array of bytes would lose zeros at their ends.
    images = np.array([example.image for example in examples], object)
    labels = np.array([example.label for example in examples], np.int32)
    return images, places.draws, labels, places.mask

  def _one_by_one(self, step):
    """The batch of `step`, which has something in it that cannot be read."""
    import tensorflow as tf

    places = self._places(step, self._columns)
    shape = (self._local, self._size, self._size, 3)
    batch = {
      'image': np.zeros(shape, self._dtype),
      'label': np.zeros(self._local, np.int32),
      'mask': places.mask.copy(),
    }
    corrupt = (records_lib.CorruptError, tf.errors.InvalidArgumentError)
    for row, number in enumerate(places.ids.tolist()):
      try:
        example = self._records.read(places.ids[row : row + 1])[0]
        pixels = self._decode(example.image, places.draws[row])
      except corrupt as error:
        self._note(number, records_lib.one_line(error))
        batch['mask'][row] = 0
      except errors.TdError:  # Says itself what it is.
        raise
      # A disk, a network: whatever it is, it is not this record's fault.
      except Exception as error:
        raise errors.IOFailedError(
          f'{self._records.name(number)} cannot be read:'
          f' {records_lib.one_line(error)}'
        ) from error
      else:
        batch['image'][row], batch['label'][row] = pixels, example.label
    return batch

  def _note(self, number, reason):
    text = f'{self._records.name(number)} is corrupt: {reason}'
    if not self._skip_corrupt:
      raise errors.DataError(f'{text}. skip_corrupt leaves such images out.')
    if number not in self.skipped:
      self.skipped[number] = reason
      self._log(f'warning: {text}; left out, {len(self.skipped)} so far')


def _crop(image, draws, *, area, aspect):
  """A random crop of a JPEG or PNG file: uint8 [rows, columns, 3]."""
  import tensorflow as tf

  def box(shape):
    height, width = (tf.cast(shape[axis], tf.float32) for axis in (0, 1))
    found = preprocess.crop_box(
      draws, height, width, area=area, aspect=aspect, xp=tf
    )
    return tf.cast(tf.stack(found), tf.int32)

  def jpeg():
    window = box(tf.io.extract_jpeg_shape(image))
    return tf.io.decode_and_crop_jpeg(image, window, channels=3)

  def other():
    pixels = tf.io.decode_image(image, channels=3, expand_animations=False)
    top, left, rows, columns = tf.unstack(box(tf.shape(pixels)))
    return pixels[top : top + rows, left : left + columns]

  return tf.cond(tf.io.is_jpeg(image), jpeg, other)


def _middle(image, *, size, smaller_side):
  """The whole image or its middle: float32 [size, size, 3]."""
  import tensorflow as tf

  pixels = tf.io.decode_image(image, channels=3, expand_animations=False)
  if not smaller_side:
    return tf.image.resize(pixels, (size, size))
  extent = tf.cast(tf.shape(pixels)[:2], tf.float32)
  extent = tf.round(extent * smaller_side / tf.reduce_min(extent))
  pixels = tf.image.resize(pixels, tf.cast(extent, tf.int32), 'area')
  return tf.image.resize_with_crop_or_pad(pixels, size, size)
