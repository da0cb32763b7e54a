"""Image files of any kind to pixels, by Pillow and NumPy, in threads."""

import collections
from collections.abc import Iterator
from concurrent import futures

import numpy as np

from td_jax.data import decoding
from td_jax.data import image_files
from td_jax.data import preprocess


class Decoder:
  """See `decoding.Decoder`."""

  def __init__(self, view: decoding.View):
    """Takes what to make of a file."""
    self._view = view

  def pixels(self, image: bytes, draws: np.ndarray) -> np.ndarray:
    """See `decoding.Decoder`."""
    size, area, smaller_side = self._view
    picture = image_files.decode(image)
    if area:
      levels = preprocess.random_crop(picture, draws, size=size, area=area)
    else:
      levels = preprocess.whole_image(
        picture, size=size, smaller_side=smaller_side
      )
    return (levels + np.float32(0.5)).astype(np.uint8)  # The cast truncates.

  def batches(
    self, read: decoding.Read, size: int, first: int, stop: int | None
  ) -> Iterator[decoding.Decoded]:
    """See `decoding.Decoder`."""
    del size  # Every batch says its own.
    readers = futures.ThreadPoolExecutor(1)
    # Pillow and NumPy decode and resize outside of Python's lock.
    decoders = futures.ThreadPoolExecutor(image_files.threads())

    def start(
      step: int,
    ) -> tuple[decoding.Encoded, list[futures.Future[np.ndarray]]]:
      batch = read(step)
      pairs = zip(batch.images, batch.draws, strict=True)
      return batch, [decoders.submit(self.pixels, *pair) for pair in pairs]

    try:
      waiting, step = collections.deque(), first
      while waiting or step != stop:
        while step != stop and len(waiting) <= decoding.AHEAD:
          waiting.append(readers.submit(start, step))
          step += 1
        batch, images = waiting.popleft().result()
        yield decoding.Decoded(
          np.stack([image.result() for image in images]),
          batch.labels,
          batch.mask,
        )
    finally:
      for pool in (readers, decoders):
        pool.shutdown(wait=False, cancel_futures=True)
