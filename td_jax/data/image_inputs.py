"""From image files, PIL images or arrays to the inputs of a network.

It prepares an image as an evaluation does: the whole image, or its middle, at the
size that the network was trained on.
"""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

from td_jax import types
from td_jax.data import image_files
from td_jax.data import preprocess
from td_jax.data import task as task_lib


def blank(config: types.Config) -> task_lib.Blank:
  """The input that `config` describes, without an image."""
  data = config.data
  return task_lib.Blank(
    {'classes': data.classes},
    jax.ShapeDtypeStruct((1, data.size, data.size, 3), jnp.float32),
    is_streamed=data.memory == 'stream',
  )


class Encoder:
  """Images -> the inputs of a network: float32 [n, size, size, 3]."""

  blank: image_files.Image = np.zeros((1, 1, 3), np.uint8)  # For shapes.

  def __init__(self, config: types.Config):
    """Takes the config of a run."""
    data = config.data
    self._size, self._smaller_side = data.size, data.smaller_side
    self._scale = preprocess.Scale(data.mean, data.std)
    # What a stream delivers are whole grey levels.
    self._rounds = data.memory == 'stream'

  def __call__(self, images: Sequence[image_files.Image]) -> types.PyTree:
    """float32 [n, size, size, 3] of images [n], which may differ in size."""
    return self.inside(self.arrays(images))

  def arrays(
    self, images: Sequence[image_files.Image]
  ) -> dict[str, np.ndarray]:
    """What the host makes of images: grey levels, `image` [n, size, size, 3]."""
    resized = np.stack(
      [
        preprocess.whole_image(
          image_files.pixels(image),
          size=self._size,
          smaller_side=self._smaller_side,
        )
        for image in images
      ]
    )
    return {'image': np.floor(resized + 0.5) if self._rounds else resized}

  def inside(self, arrays: Mapping[str, Any]) -> types.PyTree:
    """What a compiled program makes of them: the input of a network."""
    return preprocess.normalize(jnp.asarray(arrays['image']), self._scale)
