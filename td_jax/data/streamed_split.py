"""Splits of images that the host decodes while training, as `feed.Stream`s."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from td_jax import types
from td_jax.data import dataset
from td_jax.data import host_pipeline


class Split:
  """One split of a dataset on disk or in a bucket."""

  def __init__(
    self, records: dataset.Records, data: types.Config, log: types.Log
  ) -> None:
    """Nothing is read before the first batch.

    Args:
      records: The records of the split.
      data: The `data` block of a config.
      log: Receives warnings.
    """
    self._records, self._data, self._log = records, data, log
    self._skipped: dict[int, str] = {}  # Of all streams.
    # Each stream has threads and decodes ahead, so there is one for all steps
    # of a (seed, batch size, host).
    self._training: dict[tuple[int, int, int], host_pipeline.Stream] = {}

  def __len__(self) -> int:
    return len(self._records)

  @property
  def labels(self) -> np.ndarray | None:
    """int [n], if they are known before an image is read."""
    return self._records.labels

  def train(
    self, seed: int, step: int, batch: int, host_slice: slice
  ) -> types.Batch:
    """See `feed.Stream`."""
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
      # Also when the caller stops early: decoded batches hold memory.
      stream.close()

  def _options(self, batch: int, host_slice: slice) -> dict[str, Any]:
    local = host_slice.stop - host_slice.start
    return {
      'host': host_pipeline.Host(host_slice.start // local, batch // local),
      'skip_corrupt': self._data.skip_corrupt,
      'skipped': self._skipped,
      'log': self._log,
    }


class Blank:
  """A split of black images, for work that needs only their shapes."""

  def __init__(self, size: int):
    self._size = size

  def __len__(self) -> int:
    return 1

  def train(
    self, seed: int, step: int, batch: int, host_slice: slice
  ) -> types.Batch:
    """See `feed.Stream`."""
    del seed, step  # All images are the same.
    local = host_slice.stop - host_slice.start
    return types.Batch(
      x=np.zeros((local, self._size, self._size, 3), np.uint8),
      y=np.zeros(local, np.int32),
      mask=np.ones(local, np.float32),
    )

  def whole(self, batch: int, host_slice: slice) -> Iterator[types.Batch]:
    """See `feed.Stream`."""
    yield self.train(0, 0, batch, host_slice)


def _batch(columns: dict[str, np.ndarray]) -> types.Batch:
  return types.Batch(
    x=columns['image'], y=columns['label'], mask=columns['mask']
  )
