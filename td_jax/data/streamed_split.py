"""Splits of images that the host decodes as they are needed.

They implement `feed.Stream`.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from td_jax import types
from td_jax.data import host_pipeline
from td_jax.data import records as records_lib


class Split:
  """One split of a dataset on disk or in a bucket."""

  def __init__(
    self, records: records_lib.Records, data: types.Config, log: types.Log
  ) -> None:
    """`data` is the block of a config."""
    self._records, self._data, self._log = records, data, log
    self._training: dict[tuple[int, int, int], host_pipeline.Stream] = {}

  def __len__(self) -> int:
    return len(self._records)

  def train(
    self, seed: int, step: int, batch: int, host_slice: slice
  ) -> types.Batch:
    """See `feed.Stream`."""
    # Streams are kept, because restarting one throws its decoded images away.
    key = seed, batch, host_slice.start
    if key not in self._training:
      self._training[key] = host_pipeline.training(
        self._records,
        seed=seed,
        batch_size=batch,
        size=self._data.size,
        area=self._data.area,
        **self._options(batch, host_slice),
      )
    return _batch(self._training[key].batch(step))

  def whole(self, batch: int, host_slice: slice) -> Iterator[types.Batch]:
    """See `feed.Stream`."""
    stream = host_pipeline.evaluation(
      self._records,
      batch_size=batch,
      size=self._data.size,
      smaller_side=self._data.smaller_side,
      **self._options(batch, host_slice),
    )
    try:
      for step in range(stream.steps or 0):
        yield _batch(stream.batch(step))
    finally:
      stream.close()

  def _options(self, batch: int, host_slice: slice) -> dict[str, Any]:
    own = host_slice.stop - host_slice.start
    return {
      'host': host_pipeline.Host(host_slice.start // own, batch // own),
      'skip_corrupt': self._data.skip_corrupt,
      'log': self._log,
    }


class Blank:
  """A split of black images, for shapes."""

  def __init__(self, size: int):
    self._size = size

  def __len__(self) -> int:
    return 1

  def train(
    self, seed: int, step: int, batch: int, host_slice: slice
  ) -> types.Batch:
    """See `feed.Stream`."""
    del seed, step, batch  # All images are the same.
    own = host_slice.stop - host_slice.start
    return types.Batch(
      x=np.zeros((own, self._size, self._size, 3), np.uint8),
      y=np.zeros(own, np.int32),
      mask=np.ones(own, np.float32),
    )

  def whole(self, batch: int, host_slice: slice) -> Iterator[types.Batch]:
    """See `feed.Stream`."""
    yield self.train(0, 0, batch, host_slice)


def _batch(examples: dict[str, np.ndarray]) -> types.Batch:
  return types.Batch(
    x=examples['image'], y=examples['label'], mask=examples['mask']
  )
