"""How the examples of a split reach a compiled step.

A split is either in memory, as columns that stay on the device, of which a
program gathers its batches by example id; or a stream, whose batches come from
the host. Either way what is in which batch is a function of (seed, step) alone,
so that a resumed run reads on where the interrupted one stopped.
"""

from collections.abc import Callable
from collections.abc import Iterator
from typing import NamedTuple
from typing import Protocol
from typing import runtime_checkable

import jax
import numpy as np

from td_jax import types
from td_jax.data import shuffle

# (columns, row, key) -> Batch: `row` is one of `Feed.rows` without its leading
# axes; the key is for augmentation, None in evaluation.
Pick = Callable[[types.PyTree, types.PyTree, types.Key | None], types.Batch]


@runtime_checkable
class Stream(Protocol):
  """A split whose examples come from the host."""

  def __len__(self) -> int:
    """Examples of an epoch."""
    ...

  def train(self, seed: int, step: int, batch: int, part: slice) -> types.Batch:
    """Places `part` of the batch of a step; leaves [b', ...]."""
    ...

  def whole(self, batch: int, part: slice) -> Iterator[types.Batch]:
    """Places `part` of batches that hold every example once, padded."""
    ...


class Feed(NamedTuple):
  """A split, ready for a program; `part` is this process's of each batch."""

  size: int  # Examples in memory, padding included; 0 if they are streamed.
  columns: types.PyTree  # What stays on the device; leaves [n, ...].
  pick: Pick
  # (seed, batch, start, stop, part) -> leaves [steps, b', ...].
  rows: Callable[[int, int, int, int, slice], types.PyTree]
  # (batch, part) -> (rows, mask), leaves [batches, b', ...].
  whole: Callable[[int, slice], Iterator[tuple[types.PyTree, types.PyTree]]]


def feed(split: types.Batch | Stream, pick: Pick | None) -> Feed:
  """The feed of a split: columns with leaves [n, ...], or a stream.

  Columns may have padding at mask 0, at their end.
  `pick` makes a row a Batch: of example ids [b] and columns, or of the Batch
  that the stream brought. By default rows are batches as they are.
  """
  if isinstance(split, types.Batch):
    return _resident(split, pick or take)
  return _streamed(split, pick or _brought)


def example(feed: Feed) -> types.Batch:
  """A batch of one, to see shapes by."""
  rows = feed.rows(0, 1, 0, 1, slice(0, 1))
  row = jax.tree.map(lambda leaf: leaf[0], rows)
  # Else each operation of a crop is compiled by itself: 2 s on a CPU.
  return jax.jit(feed.pick)(feed.columns, row, jax.random.key(0))


def padded(columns: types.Batch, length: int) -> types.Batch:
  """`columns` [n, ...] with rows at mask 0 behind them, [length, ...]."""

  def pad(leaf):
    behind = [(0, length - len(leaf))] + [(0, 0)] * (leaf.ndim - 1)
    return np.pad(leaf, behind)

  return jax.tree.map(pad, columns)


def _resident(columns, pick):
  size = len(columns.mask)
  examples = int(np.count_nonzero(columns.mask))

  def rows(seed, batch, start, stop, part):
    return shuffle.batches(
      seed=seed, examples=examples, batch_size=batch, start=start, stop=stop
    )[:, part]

  def whole(batch, part):
    ids, mask = shuffle.padded(size, batch)
    yield ids[:, part], mask[:, part]

  return Feed(size, columns, pick, rows, whole)


def _streamed(stream, pick):
  def rows(seed, batch, start, stop, part):
    found = [stream.train(seed, s, batch, part) for s in range(start, stop)]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *found)

  def whole(batch, part):
    for found in stream.whole(batch, part):
      yield jax.tree.map(lambda leaf: leaf[None], found), found.mask[None]

  return Feed(0, (), pick, rows, whole)


def take(
  columns: types.PyTree, ids: types.PyTree, key: types.Key | None
) -> types.Batch:
  """The rows `ids` of columns, as they are."""
  del key  # Nothing is augmented.
  return columns.take(ids)


def _brought(columns, batch, key):
  del columns, key  # The stream brought it all.
  return batch
