"""How the examples of a split reach a compiled step.

A split is either in memory or streamed. In memory, its columns stay on the
device and the compiled program gathers each batch by example id. Streamed
batches come from the host. Either way the contents of a batch depend on
(seed, step) alone, so a resumed run continues exactly where it stopped.

With unlabelled examples, each batch is made of two parts of constant size, the
first with labels and the second without. Each part has its own epochs.
"""

from collections.abc import Callable
from collections.abc import Iterator
from typing import NamedTuple
from typing import Protocol
from typing import runtime_checkable

import jax
import numpy as np

from td_jax import errors
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


class Unlabelled(NamedTuple):
  """Examples without labels that are mixed into the batches of a split."""

  split: types.Batch | Stream  # Of the same kind as the labelled split.
  share: float  # The part of each batch, between 0 and 1.

  def count(self, batch: int) -> int:
    """How many examples of a batch have no label; at least one has."""
    return min(round(self.share * batch), batch - 1)


def feed(
  split: types.Batch | Stream,
  make_batch: MakeBatch | None,
  unlabelled: Unlabelled | None = None,
) -> Feed:
  """Wraps a split.

  Args:
    split: Columns with leaves [n, ...], padded at the end with mask 0; or a
      stream.
    make_batch: Turns a row into a Batch. In memory a row is example ids [b];
      for a stream it is the Batch that the stream delivered. None gathers the
      examples, or takes the streamed batch, unchanged.
    unlabelled: Further examples, whose labels are never read.
  """
  if isinstance(split, types.Batch):
    return _resident(split, make_batch or take, unlabelled)
  return _streamed(split, make_batch or _unchanged, unlabelled)


def example(feed: Feed, count: int = 1) -> types.Batch:
  """A batch of one example, for shapes; or of `count`, always the same ones."""
  rows = feed.train_rows(0, count, 0, 1, slice(0, count))
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


def _resident(
  columns: types.Batch,
  make_batch: MakeBatch,
  unlabelled: Unlabelled | None,
) -> Feed:
  first = len(columns.mask)  # The id of the first example without a label.
  examples = _examples(columns)
  further = 0
  if unlabelled:
    assert isinstance(unlabelled.split, types.Batch)
    further = _examples(unlabelled.split)
    columns = _joined(columns, unlabelled.split)
  size = len(columns.mask)

  def train_rows(
    seed: int, batch: int, start: int, stop: int, host_slice: slice
  ) -> types.PyTree:
    count = unlabelled.count(batch) if unlabelled else 0
    ids = shuffle.batches(
      seed=seed,
      examples=examples,
      batch_size=batch - count,
      start=start,
      stop=stop,
    )
    if count:
      others = shuffle.batches(
        seed=seed,
        stream=1,
        examples=further,
        batch_size=count,
        start=start,
        stop=stop,
      )
      ids = np.concatenate([ids, first + others], axis=1)
    return ids[:, host_slice]

  def eval_batches(
    batch: int, host_slice: slice
  ) -> Iterator[tuple[types.PyTree, types.PyTree]]:
    ids, mask = shuffle.padded(size, batch)
    yield ids[:, host_slice], mask[:, host_slice]

  return Feed(size, columns, make_batch, train_rows, eval_batches)


def _examples(columns: types.Batch) -> int:
  """The number of examples, without the padding."""
  return int(np.count_nonzero(columns.mask))


def _joined(columns: types.Batch, unlabelled: types.Batch) -> types.Batch:
  """Columns with labels, followed by columns without."""
  columns = columns._replace(labelled=np.ones_like(columns.mask))
  unlabelled = without_labels(unlabelled)
  return jax.tree.map(
    lambda *leaves: np.concatenate(leaves), columns, unlabelled
  )


def without_labels(batch: types.Batch) -> types.Batch:
  """Examples whose labels are removed."""
  return batch._replace(
    y=np.zeros_like(batch.y), labelled=np.zeros_like(batch.mask)
  )


def _streamed(
  stream: Stream, make_batch: MakeBatch, unlabelled: Unlabelled | None
) -> Feed:
  def one(seed: int, step: int, batch: int, host_slice: slice) -> types.Batch:
    if not unlabelled:
      return stream.train(seed, step, batch, host_slice)
    assert not isinstance(unlabelled.split, types.Batch)
    count = unlabelled.count(batch)
    part, further = (
      _scaled(host_slice, size, batch) for size in (batch - count, count)
    )
    rows = stream.train(seed, step, batch - count, part)
    rows = rows._replace(labelled=np.ones_like(rows.mask))
    if not count:
      return rows
    others = unlabelled.split.train(seed, step, count, further)
    return jax.tree.map(
      lambda *leaves: np.concatenate(leaves), rows, without_labels(others)
    )

  def train_rows(
    seed: int, batch: int, start: int, stop: int, host_slice: slice
  ) -> types.PyTree:
    batches = [
      one(seed, step, batch, host_slice) for step in range(start, stop)
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

  def eval_batches(
    batch: int, host_slice: slice
  ) -> Iterator[tuple[types.PyTree, types.PyTree]]:
    for rows in stream.whole(batch, host_slice):
      yield jax.tree.map(lambda leaf: leaf[None], rows), rows.mask[None]

  return Feed(0, (), make_batch, train_rows, eval_batches)


def _scaled(host_slice: slice, size: int, batch: int) -> slice:
  """A host's slice of a part of a batch, in proportion to that of the batch."""
  ends = [end * size for end in (host_slice.start, host_slice.stop)]
  if any(end % batch for end in ends):
    local = host_slice.stop - host_slice.start
    raise errors.ConfigError(
      f'a batch of {batch} has a part of {size} examples, which its '
      f'{batch // local} hosts cannot divide; choose another '
      'config.batch_size, or config.data.unlabelled.share.'
    )
  return slice(*(end // batch for end in ends))


def _unchanged(
  columns: types.PyTree, batch: types.Batch, key: types.Key | None
) -> types.Batch:
  del columns, key  # The stream delivered everything.
  return batch
