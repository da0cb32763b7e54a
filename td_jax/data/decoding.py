"""JPEG and PNG files to pixels, in TensorFlow, inside tf.data's threads.

Pixels are grey levels from 0 to 255. The results are float32; `host_pipeline`
rounds them.
"""

from typing import Any

from td_jax.data import preprocess


def random_crop(
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


def whole_image(image: Any, *, size: int, smaller_side: int = 0) -> Any:
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
