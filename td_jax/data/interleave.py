"""Which record of a sharded dataset comes at which place.

Batches of B records fill the places 0, 1, 2, ... of an endless row; epoch e is
the places e * n .. (e + 1) * n - 1 and holds each of the n records once, so a
batch may end one epoch and begin the next.

Files that are read front to back cannot deliver a permutation of everything. So
a batch has lanes, each B / lanes of its places, side by side; in every epoch
the files, in random order, are cut into one piece a lane. A lane reads its
piece file by file and permutes the records of the `group` files it holds. Which
host feeds a lane makes no difference: hosts that have whole lanes read apart
from each other, and any number of them gives the same batches. One shard and
one lane is a permutation of everything.
"""

import functools
import math
from typing import NamedTuple

import numpy as np


class Order(NamedTuple):
  """What the order follows from; nothing else is remembered."""

  seed: int
  shards: tuple[int, ...]  # Records of each file; they are numbered in order.
  batch_size: int  # Global.
  lanes: int = 1  # A divisor of batch_size.
  group: int = 1  # Files that a lane holds at a time.

  def ids(self, places: np.ndarray) -> np.ndarray:
    """Records int64 [p] at `places` [p], whole numbers from 0."""
    examples = sum(self.shards)
    epochs = places // examples
    lanes = places % self.batch_size // (self.batch_size // self.lanes)
    ids = np.empty(places.shape, np.int64)
    for epoch in np.unique(epochs).tolist():
      pieces = _pieces(self, epoch)
      for lane in np.unique(lanes).tolist():
        here = (epochs == epoch) & (lanes == lane)
        rank = _before(self, places[here], lane)
        rank -= _before(self, epoch * examples, lane)
        ids[here] = pieces[lane][rank]
    return ids


def order(
  *, seed: int, shards: tuple[int, ...], batch_size: int, lanes: int, group: int
) -> Order:
  """An Order with the most lanes up to `lanes` that divide the batch."""
  lanes = math.gcd(lanes, batch_size)
  shards = tuple(size for size in shards if size)
  return Order(seed, shards, batch_size, lanes, group)


@functools.lru_cache(maxsize=4)  # A batch may span two epochs.
def _pieces(order: Order, epoch: int) -> list[np.ndarray]:
  """The records of `epoch`, int64, lane by lane in the order of reading."""
  rng = np.random.default_rng((order.seed, epoch))
  files = rng.permutation(len(order.shards)).tolist()
  numbers = np.split(np.arange(sum(order.shards)), np.cumsum(order.shards)[:-1])
  row = np.concatenate([numbers[file] for file in files])
  first = epoch * len(row)
  sizes = [
    int(_before(order, first + len(row), lane) - _before(order, first, lane))
    for lane in range(order.lanes)
  ]
  changes = np.cumsum([order.shards[file] for file in files])[:-1]
  pieces, start = [], 0
  for size in sizes:
    inside = changes[(changes > start) & (changes < start + size)] - start
    groups = np.split(
      row[start : start + size], inside[order.group - 1 :: order.group]
    )
    pieces.append(np.concatenate([rng.permutation(part) for part in groups]))
    start += size
  return pieces


def _before(order, places, lane):
  """How many places below each of `places`, one or many, belong to `lane`."""
  width = order.batch_size // order.lanes
  batches, column = np.divmod(places, order.batch_size)
  return batches * width + np.clip(column - lane * width, 0, width)
