"""Deterministic shuffled order of a sharded dataset.

The epochs form one endless sequence of positions, which batches of B positions
cut into steps: with n records epoch e is the positions e * n .. (e + 1) * n - 1
and holds each record once, so a batch may end one epoch and begin the next.

Files that are read from front to back cannot deliver a permutation of all
records. A batch therefore consists of lanes, each B / lanes adjacent positions.
In every epoch the files, in random order, are divided among the lanes. A lane
reads its piece file by file and permutes the records of each file.

The lanes do not depend on the hosts: any number of hosts yields the same
batches. If the lanes divide evenly among the hosts, each host reads files of
its own. One shard and one lane is a permutation of all records.
"""

import functools
import math
from typing import NamedTuple

import numpy as np


class Order(NamedTuple):
  """Everything that determines the order; reading it leaves no state."""

  seed: int
  shards: tuple[int, ...]  # Records per file; they are numbered file by file.
  batch_size: int  # Global.
  lanes: int = 1  # Divides batch_size.

  def ids(self, positions: np.ndarray) -> np.ndarray:
    """Returns the records, int64 [p], at `positions`, int [p] from 0."""
    examples = sum(self.shards)
    epochs = positions // examples
    lanes = positions % self.batch_size // (self.batch_size // self.lanes)
    ids = np.empty(positions.shape, np.int64)
    for epoch in np.unique(epochs).tolist():
      pieces = _pieces(self, epoch)
      for lane in np.unique(lanes).tolist():
        here = (epochs == epoch) & (lanes == lane)
        # An epoch may begin inside a batch, so a lane's rank within the epoch
        # is a difference of two counts.
        rank = _count_before(self, positions[here], lane)
        rank -= _count_before(self, epoch * examples, lane)
        ids[here] = pieces[lane][rank]
    return ids


def order(
  *, seed: int, shards: tuple[int, ...], batch_size: int, lanes: int
) -> Order:
  """Returns an Order with at most `lanes` lanes that divide the batch."""
  lanes = math.gcd(lanes, batch_size)
  shards = tuple(size for size in shards if size)
  return Order(seed, shards, batch_size, lanes)


@functools.lru_cache(maxsize=4)  # A batch may span two epochs.
def _pieces(order: Order, epoch: int) -> list[np.ndarray]:
  """Returns the records of `epoch`, int64, of each lane in reading order."""
  # Resumed runs must read the same order: do not change which numbers are drawn
  # from this generator, nor their order.
  rng = np.random.default_rng((order.seed, epoch))
  files = rng.permutation(len(order.shards)).tolist()
  numbers = np.split(np.arange(sum(order.shards)), np.cumsum(order.shards)[:-1])
  sequence = np.concatenate([numbers[file] for file in files])
  first = epoch * len(sequence)
  last = first + len(sequence)
  sizes = [
    int(_count_before(order, last, lane) - _count_before(order, first, lane))
    for lane in range(order.lanes)
  ]
  file_ends = np.cumsum([order.shards[file] for file in files])[:-1]
  pieces, start = [], 0
  for size in sizes:
    inside = file_ends[(file_ends > start) & (file_ends < start + size)] - start
    # A file that two lanes share is cut, and each lane permutes its own part.
    parts = np.split(sequence[start : start + size], inside)
    pieces.append(np.concatenate([rng.permutation(part) for part in parts]))
    start += size
  return pieces


def _count_before(
  order: Order, positions: int | np.ndarray, lane: int
) -> np.integer | np.ndarray:
  """Returns how many positions below each of `positions` belong to `lane`."""
  width = order.batch_size // order.lanes
  batches, column = np.divmod(positions, order.batch_size)
  return batches * width + np.clip(column - lane * width, 0, width)
