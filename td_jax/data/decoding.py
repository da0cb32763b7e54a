"""The interface to what turns image files into pixels, ahead of the training.

There are two: `tensorflow_decoding` and `pillow_decoding`. They resize alike, but
their JPEG decoders round differently, by a few grey levels. Damage inside a JPEG is
noticed by a decoder that meets it: TensorFlow does not look outside of a crop.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import NamedTuple
from typing import Protocol
from typing import runtime_checkable

import numpy as np

AHEAD = 2  # Decoded batches that wait for the device.


class View(NamedTuple):
  """What to make of an image."""

  size: int  # Height and width in pixels.
  # Random crops, flipped at random: the range of their share of the image. None
  # takes the whole image.
  area: tuple[float, float] | None = None
  # Of whole images: 0 stretches them to a square, as vision_transformer does.
  # Otherwise an image is resized by areas, with its aspect, until its smaller
  # side is this, and cut to its middle, as big_vision does.
  smaller_side: int = 0


class Encoded(NamedTuple):
  """A batch of image files."""

  images: Sequence[bytes]
  draws: np.ndarray  # float32 [b, preprocess.DRAWS], uniform in [0, 1).
  labels: np.ndarray  # int32 [b]
  mask: np.ndarray  # float32 [b]


class Decoded(NamedTuple):
  """A batch of images."""

  images: np.ndarray  # uint8 [b, size, size, 3]
  labels: np.ndarray  # int32 [b]
  mask: np.ndarray  # float32 [b]


Read = Callable[[int], Encoded]  # Reads the files of a step.


@runtime_checkable
class Decoder(Protocol):
  """Makes a `View` of image files."""

  def pixels(self, image: bytes, draws: np.ndarray) -> np.ndarray:
    """uint8 [size, size, 3] of one file.

    Args:
      image: The contents of the file.
      draws: float32 [preprocess.DRAWS]; the same ones give the same crop.

    Raises:
      dataset.CorruptError: The file is damaged.
    """
    ...

  def batches(
    self, read: Read, size: int, first: int, stop: int | None
  ) -> Iterator[Decoded]:
    """The batches of the steps from `first` to `stop` - 1, decoded ahead.

    Closing the iterator, or losing it, ends the threads. It passes on the errors
    of `read` and of the decoder.

    Args:
      read: Called in threads, for each step once.
      size: Examples in a batch.
      first: The first step.
      stop: The step after the last one; None is endless.
    """
    ...
