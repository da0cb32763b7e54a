"""From image files, PIL images or arrays to the inputs of a network.

It prepares an image as an evaluation does: the whole image, or its middle, at the
size that the network was trained on. Pillow decodes it.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import Any

from jax import numpy as jnp
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import preprocess

# A file, a PIL image, or uint8 [h, w, 3] or grey [h, w].
Image = Any


class Encoder:
  """Images -> the inputs of a network: float32 [n, size, size, 3]."""

  blank: Image = np.zeros((1, 1, 3), np.uint8)  # For shapes.

  def __init__(self, config: types.Config):
    """Takes the config of a run."""
    data = config.data
    self._size, self._smaller_side = data.size, data.smaller_side
    self._scale = preprocess.Scale(data.mean, data.std)
    # What a stream delivers are whole grey levels.
    self._rounds = data.memory == 'stream'

  def __call__(self, images: Sequence[Image]) -> types.PyTree:
    """float32 [n, size, size, 3] of images [n], which may differ in size."""
    return self.inside(self.arrays(images))

  def arrays(self, images: Sequence[Image]) -> dict[str, np.ndarray]:
    """What the host makes of images: grey levels, `image` [n, size, size, 3]."""
    resized = np.stack(
      [
        preprocess.whole_image(
          pixels(image), size=self._size, smaller_side=self._smaller_side
        )
        for image in images
      ]
    )
    return {'image': np.floor(resized + 0.5) if self._rounds else resized}

  def inside(self, arrays: Mapping[str, Any]) -> types.PyTree:
    """What a compiled program makes of them: the input of a network."""
    return preprocess.normalize(jnp.asarray(arrays['image']), self._scale)


def pixels(image: Image) -> np.ndarray:
  """uint8 [h, w, 3] of a file, a PIL image or an array.

  Raises:
    errors.DataError: It is none of them, or the file cannot be read.
  """
  import PIL.Image

  if isinstance(image, (str, os.PathLike)):
    try:
      with PIL.Image.open(image) as opened:
        return _rgb(opened)
    # Pillow raises whatever its decoders meet.
    except Exception as e:
      raise errors.DataError(
        f'{image} cannot be read as an image: {errors.one_line(e)}.'
      ) from e
  if isinstance(image, PIL.Image.Image):
    return _rgb(image)
  array = np.asarray(image)
  if array.ndim == 2:
    array = np.repeat(array[..., None], 3, axis=2)
  if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
    raise errors.DataError(
      f'an image is an array of {array.dtype} with shape {array.shape}; it must '
      'be uint8 [h, w, 3] or [h, w], a PIL image, or the path of a file.'
    )
  return array


def _rgb(image: Any) -> np.ndarray:
  return np.asarray(image.convert('RGB'))
