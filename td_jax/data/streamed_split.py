"""Splits of images that the host decodes as they are used, as `feed.Stream`s."""

from collections.abc import Iterator

import numpy as np

from td_jax import types
from td_jax.data import host_pipeline
from td_jax.data import records as records_lib


class Split:
  """One split of a dataset on disk or in a bucket."""

  def __init__(
    self, records: records_lib.Records, data: types.Config, log
  ) -> None:
    """`data` is the block of a config."""
    self._records, self._data, self._log = records, data, log
    self._training: dict[tuple[int, int, int], host_pipeline.Stream] = {}

  def __len__(self) -> int:
    return len(self._records)

  def train(self, seed: int, step: int, batch: int, part: slice) -> types.Batch:
    """See `feed.Stream`."""
    key = seed, batch, part.start
    if key not in self._training:
      self._training[key] = host_pipeline.training(
        self._records,
        seed=seed,
        batch_size=batch,
        size=self._data.size,
        area=self._data.area,
        **self._options(batch, part),
      )
    return _batch(self._training[key].batch(step))

  def whole(self, batch: int, part: slice) -> Iterator[types.Batch]:
    """See `feed.Stream`."""
    found = host_pipeline.evaluation(
      self._records,
      batch_size=batch,
      size=self._data.size,
      smaller_side=self._data.smaller_side,
      **self._options(batch, part),
    )
    try:
      for step in range(found.steps or 0):
        yield _batch(found.batch(step))
    finally:
      found.close()

  def _options(self, batch, part):
    own = part.stop - part.start
    return {
      'host': host_pipeline.Host(part.start // own, batch // own),
      'skip_corrupt': self._data.skip_corrupt,
      'log': self._log,
    }


class Blank:
  """A split of black images, of which only the shapes are of interest."""

  def __init__(self, size: int):
    self._size = size

  def __len__(self) -> int:
    return 1

  def train(self, seed: int, step: int, batch: int, part: slice) -> types.Batch:
    """See `feed.Stream`."""
    del seed, step  # All images are the same.
    own = part.stop - part.start
    return types.Batch(
      x=np.zeros((own, self._size, self._size, 3), np.uint8),
      y=np.zeros(own, np.int32),
      mask=np.ones(own, np.float32),
    )

  def whole(self, batch: int, part: slice) -> Iterator[types.Batch]:
    """See `feed.Stream`."""
    yield self.train(0, 0, batch, part)


def _batch(found):
  return types.Batch(x=found['image'], y=found['label'], mask=found['mask'])
