"""JPEG and PNG files to pixels, in TensorFlow, inside tf.data's threads.

It decodes no more of a JPEG than its crop, which makes it faster than
`pillow_decoding`; results/decode.json says how much.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from td_jax.data import dataset
from td_jax.data import decoding
from td_jax.data import image_files
from td_jax.data import preprocess
from td_jax.data import tfds as tfds_lib


class Decoder:
  """See `decoding.Decoder`."""

  def __init__(self, view: decoding.View, *, any_kind: bool):
    """See `host_pipeline.decoder`."""
    self._any_kind = any_kind
    tfds_lib.module()  # First, since it configures TensorFlow.
    import tensorflow as tf

    def pixels(image: Any, draws: Any) -> Any:
      if view.area:
        levels = _random_crop(image, draws, size=view.size, area=view.area)
      else:
        levels = _whole_image(
          image, size=view.size, smaller_side=view.smaller_side
        )
      levels.set_shape((view.size, view.size, 3))
      return tf.cast(levels + 0.5, tf.uint8)  # The cast truncates.

    # AutoGraph would only cost time: branches on tensors are written as tf.cond.
    self._pixels = tf.function(
      pixels,
      autograph=False,
      input_signature=[
        tf.TensorSpec([], tf.string),
        tf.TensorSpec([preprocess.DRAWS], tf.float32),
      ],
    )

  def pixels(self, image: bytes, draws: np.ndarray) -> np.ndarray:
    """See `decoding.Decoder`."""
    import tensorflow as tf

    try:
      return self._pixels(self._readable(image), draws).numpy()
    except tf.errors.InvalidArgumentError as error:
      raise dataset.CorruptError(tfds_lib.one_line(error)) from error

  def batches(
    self, read: decoding.Read, size: int, first: int, stop: int | None
  ) -> Iterator[decoding.Decoded]:
    """See `decoding.Decoder`."""
    import tensorflow as tf

    def columns(step: Any) -> tuple[Any, ...]:
      batch = read(int(step))
      # dtype=object, because an array of bytes strips trailing zeros.
      images = [self._readable(image) for image in batch.images]
      return (np.array(images, object), *batch[1:])

    def load(step: Any) -> tuple[Any, ...]:
      kinds = (tf.string, tf.float32, tf.int32, tf.float32)
      shapes = ([], [preprocess.DRAWS], [], [])
      batch = tf.numpy_function(columns, [step], kinds)
      for column, shape in zip(batch, shapes, strict=True):
        column.set_shape([size, *shape])
      return tuple(batch)

    def decode(
      image: Any, draws: Any, label: Any, mask: Any
    ) -> tuple[Any, Any, Any]:
      return self._pixels(image, draws), label, mask

    steps = tf.data.Dataset.range(first, stop or np.iinfo(np.int64).max)
    # Two calls at a time: one waits for a disk or a network while the other
    # copies. Decoding runs per image, on as many threads as tf.data sees fit.
    as_it_is = tf.autograph.experimental.do_not_convert
    data = steps.map(as_it_is(load), num_parallel_calls=2).unbatch()
    data = data.map(as_it_is(decode), num_parallel_calls=tf.data.AUTOTUNE)
    data = data.batch(size, drop_remainder=True).prefetch(decoding.AHEAD)
    return (decoding.Decoded(*batch) for batch in data.as_numpy_iterator())

  def _readable(self, image: bytes) -> bytes:
    return image_files.for_tensorflow(image) if self._any_kind else image


def _random_crop(
  image: Any, draws: Any, *, size: int, area: tuple[float, float]
) -> Any:
  """Decodes a random crop, flips it at random and resizes it.

  The crops are those of `preprocess.crop_box`.

  Args:
    image: The contents of a file, a string tensor.
    draws: float32 [preprocess.DRAWS], uniform in [0, 1).
    size: Height and width of the result.
    area: Range of the crop's share of the image.

  Returns:
    float32 [size, size, 3].
  """
  import tensorflow as tf

  pixels = _crop(image, draws, area=area)
  # tf.reverse, because slicing by -1 takes 3 ms; before the resize, because
  # the crop then still is uint8 and mostly smaller.
  pixels = tf.cond(
    draws[4] < preprocess.FLIP,
    lambda: tf.reverse(pixels, [1]),
    lambda: pixels,
  )
  return tf.image.resize(pixels, (size, size))  # casts to fp32


def _whole_image(image: Any, *, size: int, smaller_side: int = 0) -> Any:
  """Decodes a whole image, stretched to a square, or its middle.

  Args:
    image: The contents of a file, a string tensor.
    size: Height and width of the result.
    smaller_side: 0 stretches the whole image, as vision_transformer does. Else
      the image is resized so that its smaller side is this, with its aspect and
      by areas, and cut to its middle, as big_vision does.

  Returns:
    float32 [size, size, 3].
  """
  import tensorflow as tf

  pixels = tf.io.decode_image(image, channels=3, expand_animations=False)
  if not smaller_side:
    return tf.image.resize(pixels, (size, size))
  extent = tf.cast(tf.shape(pixels)[:2], tf.float32)
  extent = tf.round(extent * smaller_side / tf.reduce_min(extent))
  pixels = tf.image.resize(pixels, tf.cast(extent, tf.int32), 'area')
  return tf.image.resize_with_crop_or_pad(pixels, size, size)


def _crop(image: Any, draws: Any, *, area: tuple[float, float]) -> Any:
  """Returns a random crop of a file: uint8 [rows, columns, 3]."""
  import tensorflow as tf

  def box(shape: Any) -> Any:
    height, width = (tf.cast(shape[axis], tf.float32) for axis in (0, 1))
    edges = preprocess.crop_box(
      draws, height, width, area=area, aspect=preprocess.ASPECT, xp=tf
    )
    return tf.cast(tf.stack(edges), tf.int32)

  def jpeg():
    # The header has the shape, so that only the crop needs to be decoded.
    window = box(tf.io.extract_jpeg_shape(image))
    return tf.io.decode_and_crop_jpeg(image, window, channels=3)

  def other():
    pixels = tf.io.decode_image(image, channels=3, expand_animations=False)
    top, left, rows, columns = tf.unstack(box(tf.shape(pixels)))
    return pixels[top : top + rows, left : left + columns]

  return tf.cond(tf.io.is_jpeg(image), jpeg, other)
