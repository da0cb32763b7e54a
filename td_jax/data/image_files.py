"""Image files of any kind to pixels, by Pillow.

A picture stands upright, as its EXIF orientation says. Grey, palette, CMYK and
16-bit images become 8-bit RGB; transparency is dropped, and of an animation the
first frame is read.
"""

import io
import os
from typing import Any

import numpy as np

from td_jax import errors
from td_jax.data import dataset
from td_jax.storage import files

SUFFIXES = (
  '.jpg', '.jpeg', '.jfif', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff'
)  # fmt: skip
# Pictures that Pillow cannot read, or not by itself.
UNREADABLE = ('.heic', '.heif', '.avif', '.jp2', '.dng', '.cr2', '.nef', '.svg')
# A file, a PIL image, or uint8 [h, w, 3] or grey [h, w].
Image = Any
_ORIENTATION = 0x0112  # The EXIF tag; 1 is upright.


def pixels(image: Image) -> np.ndarray:
  """uint8 [h, w, 3] of a file, a PIL image or an array.

  Raises:
    errors.DataError: It is none of them, or the file cannot be read.
  """
  import PIL.Image

  if isinstance(image, (str, os.PathLike)):
    files.check_regular(os.fspath(image))
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


def decode(encoded: bytes) -> np.ndarray:
  """uint8 [h, w, 3] of the contents of a file.

  Raises:
    dataset.CorruptError: They are no image, or a damaged one.
  """
  import PIL.Image

  try:
    with PIL.Image.open(io.BytesIO(encoded)) as opened:
      return _rgb(opened)
  except PIL.UnidentifiedImageError as e:  # Its message names no file.
    raise dataset.CorruptError('it is no image that can be read') from e
  except Exception as e:
    raise dataset.CorruptError(errors.one_line(e)) from e


def threads() -> int:
  """How many images to decode at a time: the cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # Not on Macs.
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def for_tensorflow(encoded: bytes) -> bytes:
  """A file that TensorFlow decodes to the same picture as `decode`.

  Most files are returned as they are. Others are decoded and returned as BMP,
  which takes little time to write and to read.
  """
  import PIL.Image

  try:
    with PIL.Image.open(io.BytesIO(encoded)) as opened:
      if (
        opened.format in ('JPEG', 'PNG')
        and opened.mode in ('L', 'RGB')
        and opened.getexif().get(_ORIENTATION, 1) == 1
      ):
        return encoded
      file = io.BytesIO()
      PIL.Image.fromarray(_rgb(opened)).save(file, 'bmp')
      return file.getvalue()
  # TensorFlow refuses a damaged file with an error that names its record.
  except Exception:
    return encoded


def _rgb(image: Any) -> np.ndarray:
  import PIL.ImageOps

  # `exif_transpose` copies an upright image too.
  if image.getexif().get(_ORIENTATION, 1) != 1:
    image = PIL.ImageOps.exif_transpose(image)
  if image.mode.startswith('I;16') or (image.mode, image.format) == (
    'I',
    'PNG',
  ):
    # 16 bits in one channel, which Pillow would clip to 255 instead of scale.
    levels = (np.asarray(image) >> 8).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=2)
  if image.mode in ('I', 'F'):
    raise ValueError('its pixels have 32 bits, whose range is not known')
  return np.asarray(image.convert('RGB'))
