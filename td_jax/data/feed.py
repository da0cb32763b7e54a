"""How the examples of a split reach a compiled step.

A split is either in memory or streamed. In memory, its columns stay on the
device and the compiled program gathers each batch by example id. Streamed
batches come from the host. Either way the contents of a batch depend on
(seed, step) alone, so a resumed run continues exactly where it stopped.
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

# (columns, row, key) -> Batch. `row` is an element of `Feed.train_rows`. The
# key drives augmentation and is None in evaluation.
MakeBatch = Callable[
  [types.PyTree, types.PyTree, types.Key | None], types.Batch
]


@runtime_checkable
class Stream(Protocol):
  """A split whose examples come from the host."""

  def __len__(self) -> int:
    """Number of examples in an epoch."""
    ...

  def train(
    self, seed: int, step: int, batch: int, host_slice: slice
  ) -> types.Batch:
    """This host's slice of the batch of a step; leaves [b', ...]."""
    ...

  def whole(self, batch: int, host_slice: slice) -> Iterator[types.Batch]:
    """This host's slices of padded batches that hold each example once."""
    ...


class Feed(NamedTuple):
  """A split, ready for a compiled program.

  `host_slice` selects the part of each global batch that this process feeds.
  """

  size: int  # Examples in memory, padding included; 0 if streamed.
  columns: types.PyTree  # What stays on the device; leaves [n, ...].
  make_batch: MakeBatch
  # (seed, batch, start, stop, host_slice) -> leaves [steps, b', ...].
  train_rows: Callable[[int, int, int, int, slice], types.PyTree]
  # (batch, host_slice) -> (rows, mask), leaves [batches, b', ...].
  eval_batches: Callable[
    [int, slice], Iterator[tuple[types.PyTree, types.PyTree]]
  ]


def feed(split: types.Batch | Stream, make_batch: MakeBatch | None) -> Feed:
  """Wraps a split.

  Args:
    split: Columns with leaves [n, ...], padded at the end with mask 0; or a
      stream.
    make_batch: Turns a row into a Batch. In memory a row is example ids [b];
      for a stream it is the Batch that the stream delivered. None gathers the
      examples, or takes the streamed batch, unchanged.
  """
  if isinstance(split, types.Batch):
    return _resident(split, make_batch or take)
  return _streamed(split, make_batch or _unchanged)


def example(feed: Feed) -> types.Batch:
  """A batch of one example, for shapes."""
  rows = feed.train_rows(0, 1, 0, 1, slice(0, 1))
  row = jax.tree.map(lambda leaf: leaf[0], rows)
  # Without jit every operation of a crop compiles on its own: 2 s on a CPU.
  return jax.jit(feed.make_batch)(feed.columns, row, jax.random.key(0))


def padded(columns: types.Batch, length: int) -> types.Batch:
  """Appends rows with mask 0 to `columns` [n, ...], up to [length, ...]."""

  def pad(leaf: np.ndarray) -> np.ndarray:
    widths = [(0, length - len(leaf))] + [(0, 0)] * (leaf.ndim - 1)
    return np.pad(leaf, widths)

  return jax.tree.map(pad, columns)


def take(
  columns: types.PyTree, ids: types.PyTree, key: types.Key | None
) -> types.Batch:
  """Gathers the rows `ids` of the columns, without augmentation."""
  del key  # Nothing is augmented.
  return columns.take(ids)


def _resident(columns: types.Batch, make_batch: MakeBatch) -> Feed:
  size = len(columns.mask)
  examples = int(np.count_nonzero(columns.mask))

  def train_rows(
    seed: int, batch: int, start: int, stop: int, host_slice: slice
  ) -> types.PyTree:
    return shuffle.batches(
      seed=seed, examples=examples, batch_size=batch, start=start, stop=stop
    )[:, host_slice]

  def eval_batches(
    batch: int, host_slice: slice
  ) -> Iterator[tuple[types.PyTree, types.PyTree]]:
    ids, mask = shuffle.padded(size, batch)
    yield ids[:, host_slice], mask[:, host_slice]

  return Feed(size, columns, make_batch, train_rows, eval_batches)


def _streamed(stream: Stream, make_batch: MakeBatch) -> Feed:
  def train_rows(
    seed: int, batch: int, start: int, stop: int, host_slice: slice
  ) -> types.PyTree:
    batches = [
      stream.train(seed, step, batch, host_slice) for step in range(start, stop)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

  def eval_batches(
    batch: int, host_slice: slice
  ) -> Iterator[tuple[types.PyTree, types.PyTree]]:
    for rows in stream.whole(batch, host_slice):
      yield jax.tree.map(lambda leaf: leaf[None], rows), rows.mask[None]

  return Feed(0, (), make_batch, train_rows, eval_batches)


def _unchanged(
  columns: types.PyTree, batch: types.Batch, key: types.Key | None
) -> types.Batch:
  del columns, key  # The stream delivered everything.
  return batch
