"""Image operations: random crops, flips, bilinear resizing, normalisation.

Crop, flip and resize are linear in the pixels and separate into rows and
columns. Each image therefore has one matrix for its rows and one for its
columns, and a batch takes two small matrix products. This avoids gathers, which
are slow on TPUs. Pixels are grey levels from 0 to 255 until `normalize`.

The crops are those of Inception (arXiv 1409.4842, section 6) as
google-research/vision_transformer draws them. The resize is TensorFlow's
bilinear one, with half-pixel centres and without antialiasing.
"""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping as jt
import numpy as np

AREA = (0.05, 1.0)  # Range of a crop's share, as in vision_transformer.
ASPECT = (3 / 4, 4 / 3)  # Range of width / height, in pixels.
FLIP = 0.5  # Probability.
DRAWS = 5  # Uniform numbers for each example: 4 for its box, 1 for its flip.


class Scale(NamedTuple):
  """Mean and standard deviation of grey levels: red, green, blue."""

  mean: tuple[float, float, float]
  std: tuple[float, float, float]


SYMMETRIC = Scale((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))  # To [-1, 1].


def normalize(
  images: jt.Float[jt.Array, '*b 3'], scale: Scale = SYMMETRIC
) -> jt.Float[jt.Array, '*b 3']:
  """Maps grey levels x to (x - mean) / std."""
  mean, std = (jnp.asarray(levels, images.dtype) for levels in scale)
  # Explicit axes: implicit rank promotion is an error in our tests.
  ones = (1,) * (images.ndim - 1)
  return (images - mean.reshape(*ones, 3)) / std.reshape(*ones, 3)


def example_keys(
  key: jt.Key[jt.Array, ''], places: jt.Int[jt.Array, ' b']
) -> jt.Key[jt.Array, ' b']:
  """Returns a key for each example.

  Args:
    key: The step's.
    places: Positions in the global batch, or ids. Keys that depended on the
      position within a device's batch would change with the number of devices.
  """
  return jax.vmap(jax.random.fold_in, (None, 0))(key, places)


def augment(
  images: jt.UInt8[jt.Array, 'b h w 3'],
  keys: jt.Key[jt.Array, ' b'],
  *,
  size: int,
  area: tuple[float, float] = AREA,
  aspect: tuple[float, float] = ASPECT,
  flip: float = FLIP,
) -> jt.Float[jt.Array, 'b {size} {size} 3']:
  """Returns random crops resized to `size`, some flipped left to right.

  Args:
    images: [b, h, w, 3].
    keys: One for each example, which depends on no other key.
    size: Height and width of the result.
    area: Range of the crop's share of the image.
    aspect: Range of the crop's width / height.
    flip: Probability of a flip.

  Returns:
    float32 grey levels [b, size, size, 3].
  """
  height, width = images.shape[1:3]
  draws = jax.vmap(lambda key: jax.random.uniform(key, (DRAWS,)))(keys)

  def matrices(draw: jax.Array) -> tuple[jax.Array, jax.Array]:
    top, left, rows, columns = crop_box(
      draw, height, width, area=area, aspect=aspect, xp=jnp
    )
    across = _interpolation(left, columns, size=size, extent=width)
    return (
      _interpolation(top, rows, size=size, extent=height),
      # Reversing the rows of this small matrix flips the image.
      jnp.where(draw[4] < flip, across[::-1], across),
    )

  down, across = jax.vmap(matrices)(draws)  # [b, size, h], [b, size, w]
  # By default TPUs multiply in bfloat16, which is too coarse for the weights.
  return jnp.einsum(
    'bih,bhwc,bjw->bijc',
    down,
    images.astype(jnp.float32),
    across,
    precision='highest',
  )


def resize(
  images: jt.UInt8[jt.Array, 'b h w 3'], size: int
) -> jt.Float[jt.Array, 'b {size} {size} 3']:
  """Stretches whole images to `size`, bilinearly; returns float32."""
  height, width = images.shape[1:3]
  return jnp.einsum(
    'ih,bhwc,jw->bijc',
    _interpolation(0, height, size=size, extent=height),
    images.astype(jnp.float32),
    _interpolation(0, width, size=size, extent=width),
    precision='highest',
  )


def whole_image(
  image: jt.UInt8[np.ndarray, 'h w 3'], *, size: int, smaller_side: int = 0
) -> jt.Float[np.ndarray, '{size} {size} 3']:
  """Stretches an image to a square, or takes its middle; in NumPy.

  It computes what `resize` does, without compiling a
  program for every size of an image.

  Args:
    image: [h, w, 3].
    size: Height and width of the result.
    smaller_side: 0 stretches the whole image. Else the image is resized by areas,
      with its aspect, until its smaller side is this, and cut to its middle.

  Returns:
    float32 grey levels [size, size, 3].
  """
  extents = image.shape[:2]
  if smaller_side:
    sides = [round(n * smaller_side / min(extents)) for n in extents]
    down, across = (
      _areas(size=side, extent=n)[(side - size) // 2 :][:size]
      for side, n in zip(sides, extents, strict=True)
    )
  else:
    down, across = (
      _interpolation(0, n, size=size, extent=n, xp=np) for n in extents
    )
  return _resampled(image, down, across)


def random_crop(
  image: jt.UInt8[np.ndarray, 'h w 3'],
  draws: jt.Float[np.ndarray, ' d'],
  *,
  size: int,
  area: tuple[float, float],
) -> jt.Float[np.ndarray, '{size} {size} 3']:
  """Resizes a random crop and flips it at random; in NumPy.

  It computes what `augment` does, from other random numbers.

  Args:
    image: [h, w, 3].
    draws: `DRAWS` numbers, uniform in [0, 1).
    size: Height and width of the result.
    area: Range of the crop's share of the image.

  Returns:
    float32 grey levels [size, size, 3].
  """
  top, left, rows, columns = (
    int(edge)
    for edge in crop_box(
      draws, *image.shape[:2], area=area, aspect=ASPECT, xp=np
    )
  )
  crop = image[top : top + rows, left : left + columns]
  down, across = (
    _interpolation(0, n, size=size, extent=n, xp=np) for n in (rows, columns)
  )
  return _resampled(crop, down, across[::-1] if draws[4] < FLIP else across)


def crop_box(
  draws: Any,
  height: Any,
  width: Any,
  *,
  area: tuple[float, float],
  aspect: tuple[float, float],
  xp: Any,
) -> tuple[Any, Any, Any, Any]:
  """Returns a random box of whole pixels within an image, as Inception does.

  The ratio is uniform in `aspect`. Then the height is uniform among the whole
  numbers that keep the area within `area` and the box within the image. Then
  the position is uniform. Rounding may leave the area slightly outside its
  range.

  Args:
    draws: [..., 4 or more], uniform in [0, 1).
    height: Height of the image in pixels, a number or [...].
    width: Width of the image, likewise.
    area: Range of the box's share of the image.
    aspect: Range of the box's width / height.
    xp: The library of `draws`: numpy, jax.numpy or tensorflow.

  Returns:
    (top, left, rows, columns), whole numbers as float [...].
  """
  ratio = aspect[0] + draws[..., 0] * (aspect[1] - aspect[0])
  # As the width is ratio * height, area / ratio is the square of the height.
  least = xp.round(xp.sqrt(area[0] * height * width / ratio))
  most = xp.sqrt(area[1] * height * width / ratio)
  # 0.499 admits the widest box that still rounds to the image's width.
  most = xp.minimum(xp.minimum(most, (width + 0.499) / ratio), height * 1.0)
  most = xp.maximum(xp.floor(most), 1.0)
  rows = _whole(draws[..., 1], xp.minimum(least, most), most, xp)
  rows = xp.maximum(rows, 1.0)
  columns = xp.minimum(xp.maximum(xp.round(rows * ratio), 1.0), width * 1.0)
  top = _whole(draws[..., 2], 0.0 * rows, height - rows, xp)
  left = _whole(draws[..., 3], 0.0 * columns, width - columns, xp)
  return top, left, rows, columns


def _whole(draw: Any, low: Any, high: Any, xp: Any) -> Any:
  """Maps a uniform draw to a whole number, uniform in low..high."""
  return low + xp.floor(draw * (high - low + 1.0))


def _interpolation(
  start: jax.Array | int,
  length: jax.Array | int,
  *,
  size: int,
  extent: int,
  xp: Any = jnp,
) -> Any:
  """Returns bilinear weights [size, extent] that read [start, start + length).

  Row i has at most two weights, those of the pixels on either side of the
  centre of the i-th of `size` equal parts. A centre beyond that of the first or
  last pixel reads this pixel alone.
  """
  # Half-pixel centres, as in TensorFlow; without the clip, crops would blend in
  # pixels from outside the box.
  at = (xp.arange(size) + 0.5) * (length / size) - 0.5
  at = xp.clip(at, 0, length - 1) + start
  pixels = xp.arange(extent, dtype=at.dtype)
  return xp.maximum(0, 1 - xp.abs(at[:, None] - pixels[None, :]))


def _resampled(
  image: np.ndarray, down: np.ndarray, across: np.ndarray
) -> np.ndarray:
  """The weights [size, h] of rows and [size, w] of columns, times [h, w, 3]."""
  return _weighted(_weighted(image, down, axis=0), across, axis=1)


def _weighted(image: np.ndarray, weights: np.ndarray, axis: int) -> np.ndarray:
  """Weighted sums [size, ...] along an axis, of few neighbouring pixels each.

  A matrix product takes longer, and its threads hinder those that decode.
  """
  first = np.argmax(weights > 0, axis=1)
  width = np.max(np.count_nonzero(weights, axis=1))
  total: np.ndarray = np.zeros((), np.float32)
  for offset in range(width):
    at = np.minimum(first + offset, weights.shape[1] - 1)
    # Behind the last pixel there is none to add.
    weight = np.where(first + offset == at, weights[np.arange(len(at)), at], 0)
    shape = [1, 1, 1]
    shape[axis] = len(at)
    total = total + image.take(at, axis) * weight.astype(np.float32).reshape(
      shape
    )
  return total


def _areas(*, size: int, extent: int) -> np.ndarray:
  """Returns weights [size, extent]: means over equal parts of [0, extent)."""
  edges = np.arange(size + 1) * (extent / size)
  pixels = np.arange(extent)
  overlap = np.minimum(edges[1:, None], pixels[None] + 1) - np.maximum(
    edges[:-1, None], pixels[None]
  )
  return np.maximum(overlap, 0) * (size / extent)
