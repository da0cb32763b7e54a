"""Image maths: random crops, flips, bilinear resizing, normalisation.

Crop, flip and resize are linear in the pixels and act on rows and columns
apart, so each image has one matrix for its rows and one for its columns, and a
batch is two small matrix products: no gathers, which TPUs dislike. Pixels are
grey levels, 0 to 255, until `normalize`.

The crops are those of Inception (arXiv 1409.4842, section 6) as
google-research/vision_transformer draws them; the resize is TensorFlow's
bilinear one, with half-pixel centres and without antialiasing.
"""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping as jt

AREA = (0.05, 1.0)  # Of the image; vision_transformer's.
ASPECT = (3 / 4, 4 / 3)  # Width / height, in pixels.
FLIP = 0.5
DRAWS = 5  # Uniform numbers an example: 4 of its box, 1 of its flip.


class Scale(NamedTuple):
  """Mean and deviation of grey levels, [3] each: red, green, blue."""

  mean: tuple[float, float, float]
  std: tuple[float, float, float]


SYMMETRIC = Scale((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))  # To [-1, 1].
IMAGENET = Scale((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def normalize(
  images: jt.Float[jt.Array, '*b 3'], scale: Scale = SYMMETRIC
) -> jt.Float[jt.Array, '*b 3']:
  """Grey levels to (x - mean) / std."""
  mean, std = (jnp.asarray(part, images.dtype) for part in scale)
  ones = (1,) * (images.ndim - 1)
  return (images - mean.reshape(*ones, 3)) / std.reshape(*ones, 3)


def example_keys(
  key: jt.Key[jt.Array, ''], places: jt.Int[jt.Array, ' b']
) -> jt.Key[jt.Array, ' b']:
  """A key an example, from the step's key and its place in the global batch."""
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
  """Random crops resized to `size`, half of them flipped left to right.

  Args:
    images: [b, h, w, 3].
    keys: one an example: what is drawn for it depends on no other.
    size: height and width of the result.
    area: range of the crop's share of the image.
    aspect: range of its width / height.
    flip: how often it is flipped.

  Returns:
    float32 grey levels [b, size, size, 3].
  """
  height, width = images.shape[1:3]
  draws = jax.vmap(lambda key: jax.random.uniform(key, (DRAWS,)))(keys)

  def one(draw):
    top, left, rows, columns = crop_box(
      draw, height, width, area=area, aspect=aspect, xp=jnp
    )
    across = _interpolation(left, columns, size=size, extent=width)
    return (
      _interpolation(top, rows, size=size, extent=height),
      jnp.where(draw[4] < flip, across[::-1], across),
    )

  down, across = jax.vmap(one)(draws)  # [b, size, h], [b, size, w]
  # TPUs would multiply in bfloat16, which cannot hold the weights.
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
  """Whole images stretched to `size`, bilinear: float32 grey levels."""
  height, width = images.shape[1:3]
  return jnp.einsum(
    'ih,bhwc,jw->bijc',
    _interpolation(0, height, size=size, extent=height),
    images.astype(jnp.float32),
    _interpolation(0, width, size=size, extent=width),
    precision='highest',
  )


def crop_box(
  draws: Any,
  height: Any,
  width: Any,
  *,
  area: tuple[float, float],
  aspect: tuple[float, float],
  xp: Any,
) -> tuple[Any, Any, Any, Any]:
  """A random box of whole pixels within an image, Inception's distribution.

  The ratio is uniform in `aspect`, then the height is uniform among the whole
  numbers that keep the area within `area` and the box within the image, then
  the place is uniform. Rounding may leave the area a little outside its range.

  Args:
    draws: [..., 4 or more], uniform in [0, 1).
    height: of the image, pixels; a number or [...].
    width: likewise.
    area: range of the box's share of the image.
    aspect: range of its width / height.
    xp: numpy, jax.numpy or tensorflow, whichever `draws` belong to.

  Returns:
    (top, left, rows, columns), float [...], whole numbers.
  """
  ratio = aspect[0] + draws[..., 0] * (aspect[1] - aspect[0])
  least = xp.round(xp.sqrt(area[0] * height * width / ratio))
  most = xp.sqrt(area[1] * height * width / ratio)
  # The widest box that rounds to the image's width.
  most = xp.minimum(xp.minimum(most, (width + 0.499) / ratio), height * 1.0)
  most = xp.maximum(xp.floor(most), 1.0)
  rows = _whole(draws[..., 1], xp.minimum(least, most), most, xp)
  rows = xp.maximum(rows, 1.0)
  columns = xp.minimum(xp.maximum(xp.round(rows * ratio), 1.0), width * 1.0)
  top = _whole(draws[..., 2], 0.0 * rows, height - rows, xp)
  left = _whole(draws[..., 3], 0.0 * columns, width - columns, xp)
  return top, left, rows, columns


def _whole(draw, low, high, xp):
  """A whole number uniform in low..high."""
  return low + xp.floor(draw * (high - low + 1.0))


def _interpolation(start, length, *, size, extent):
  """Bilinear weights [size, extent] that read [start, start + length).

  Row i has at most two weights, of the pixels beside the centre of the i-th of
  `size` equal parts; centres beyond the outermost pixel's centre read that.
  """
  at = (jnp.arange(size) + 0.5) * (length / size) - 0.5
  at = jnp.clip(at, 0, length - 1) + start
  pixels = jnp.arange(extent, dtype=at.dtype)
  return jnp.maximum(0, 1 - jnp.abs(at[:, None] - pixels[None, :]))
