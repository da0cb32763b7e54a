"""Batches of images that do not fit in memory, decoded on the host.

`batch(step)` is a function of the step alone: the record, the crop and the flip
at each position follow from the seed and the position. So a run resumes at any
step without replaying the ones before, and hosts agree without communication.
Within an epoch no record is skipped or repeated; a batch may span two epochs.

`decoding` runs ahead of the requested step. Any step may be requested, but only
the next one is fast: every other one restarts the decoding.
"""

from collections.abc import Callable
import functools
import importlib.util
from typing import Any
from typing import NamedTuple
import weakref

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import dataset
from td_jax.data import decoding
from td_jax.data import interleave
from td_jax.data import preprocess

# Shards that are read side by side. More of them mix better, but each host
# holds all shards of its lanes in memory.
_LANES = 16
_CROPS = 17  # Separates the random numbers of crops from those of the order.


class Host(NamedTuple):
  """The slice of every global batch that is wanted: the index-th of count."""

  index: int = 0  # pyright: ignore[reportIncompatibleMethodOverride]
  count: int = 1  # pyright: ignore[reportIncompatibleMethodOverride]


_ONLY_HOST = Host()


class _Positions(NamedTuple):
  """What one batch has at the positions of this host."""

  ids: np.ndarray  # int64 [b]
  mask: np.ndarray  # float32 [b]: 1 counts, 0 is padding.
  draws: np.ndarray  # float32 [b, DRAWS]


def training(
  records: dataset.Records,
  *,
  seed: int,
  batch_size: int,
  size: int,
  area: tuple[float, float] | None = preprocess.AREA,
  **options: Any,
) -> 'Stream':
  """Returns an endless stream of random crops in random order.

  Args:
    records: What to read.
    seed: Determines the order, the crops and the flips.
    batch_size: Global; a multiple of the number of hosts.
    size: Height and width of the images.
    area: Range of a crop's share of its image; None takes whole images.
    **options: host, skip_corrupt and log; see `Stream`.

  Raises:
    errors.ConfigError: batch_size is not a multiple of the number of hosts.
  """
  order = interleave.order(
    seed=seed,
    shards=records.shards,
    batch_size=batch_size,
    # A single shard means random access: one lane permutes all records.
    lanes=_LANES if len(records.shards) > 1 else 1,
  )

  def positions(step: int, columns: slice) -> _Positions:
    places = np.arange(step * batch_size, (step + 1) * batch_size)[columns]
    # Drawn for the whole batch and then cut: a crop must not depend on the
    # number of hosts.
    rng = np.random.default_rng((seed, step, _CROPS))
    draws = rng.random((batch_size, preprocess.DRAWS), np.float32)
    return _Positions(
      order.ids(places), np.ones(len(places), np.float32), draws[columns]
    )

  return Stream(
    records,
    positions,
    decoding.View(size, area=area),
    batch_size=batch_size,
    prefetch=_half_a_shard(records, batch_size // order.lanes),
    **options,
  )


def evaluation(
  records: dataset.Records,
  *,
  batch_size: int,
  size: int,
  smaller_side: int = 0,
  **options: Any,
) -> 'Stream':
  """Returns a stream of every record once, in order.

  The end of the last batch is padded with mask 0.

  Args:
    records: What to read.
    batch_size: Global; a multiple of the number of hosts.
    size: Height and width of the images.
    smaller_side: See `decoding.View`.
    **options: host, skip_corrupt and log; see `Stream`.

  Raises:
    errors.ConfigError: batch_size is not a multiple of the number of hosts, or
      size is more than smaller_side.
  """
  if smaller_side and smaller_side < size:
    raise errors.ConfigError(
      f'smaller_side is {smaller_side}, less than the crop of {size} pixels; 0'
      ' stretches the whole image.'
    )

  def positions(step: int, columns: slice) -> _Positions:
    places = np.arange(step * batch_size, (step + 1) * batch_size)[columns]
    mask = (places < len(records)).astype(np.float32)
    draws = np.zeros((len(places), preprocess.DRAWS), np.float32)
    # Pad with the last record, whose shard is loaded already.
    return _Positions(np.minimum(places, len(records) - 1), mask, draws)

  return Stream(
    records,
    positions,
    decoding.View(size, smaller_side=smaller_side),
    batch_size=batch_size,
    steps=-(-len(records) // batch_size),
    prefetch=_half_a_shard(records, batch_size),
    **options,
  )


def _read(
  records: dataset.Records,
  positions: Callable[[int, slice], _Positions],
  step: int,
  *,
  columns: slice,
  prefetch: int,
  stop: int | None,
) -> decoding.Encoded:
  """Returns everything of one batch but the pixels."""
  here = positions(step, columns)
  if stop is None or step + prefetch < stop:
    records.prefetch(positions(step + prefetch, columns).ids)
  examples = records.read(here.ids)
  return decoding.Encoded(
    images=[example.image for example in examples],
    draws=here.draws,
    labels=np.array([example.label for example in examples], np.int32),
    mask=here.mask,
  )


def _half_a_shard(records: dataset.Records, width: int) -> int:
  """Returns in how many steps half a shard is read, at `width` records a step.

  The next shard is loaded that far ahead: early enough to be ready in time, and
  late enough to spare memory.
  """
  return max(1, len(records) // len(records.shards) // max(2 * width, 1))


def decoder(view: decoding.View, *, any_kind: bool) -> decoding.Decoder:
  """The fastest decoder that is installed.

  Args:
    view: What to make of a file.
    any_kind: See `dataset.Reader`.
  """
  if importlib.util.find_spec('tensorflow'):
    from td_jax.data import tensorflow_decoding

    return tensorflow_decoding.Decoder(view, any_kind=any_kind)
  from td_jax.data import pillow_decoding

  return pillow_decoding.Decoder(view)


class Stream:
  """Batches by step. Holds threads and memory until `close`."""

  def __init__(
    self,
    records: dataset.Records,
    positions: Callable[[int, slice], _Positions],
    view: decoding.View,
    *,
    batch_size: int,
    steps: int | None = None,
    prefetch: int = 1,
    host: Host = _ONLY_HOST,
    skip_corrupt: bool = False,
    skipped: dict[int, str] | None = None,
    log: types.Log = print,
  ):
    """Called by `training` and `evaluation`.

    Args:
      records: What to read.
      positions: (step, columns) -> what the batch has in these columns.
      view: What to make of an image. It is rounded to uint8, a fourth of the
        bytes.
      batch_size: Global.
      steps: Number of batches; None is endless.
      prefetch: Number of steps by which loading runs ahead of reading.
      host: Which slice of each batch to return.
      skip_corrupt: Replaces a corrupt image by zeros with mask 0 and lists it
        in `skipped`, instead of raising an error.
      skipped: The list of streams that have read the same records; a warning
        of an image is logged once.
      log: Receives warnings.
    """
    if batch_size % host.count:
      raise errors.ConfigError(
        f'batch_size is {batch_size}, not a multiple of the {host.count} hosts.'
      )
    self.steps = steps
    # {record: why it is corrupt}
    self.skipped: dict[int, str] = {} if skipped is None else skipped
    self._records, self._positions = records, positions
    self._local = batch_size // host.count
    first = host.index * self._local
    self._columns = slice(first, first + self._local)
    self._size = view.size
    # The threads must not refer to this object: it could then never be freed.
    self._read = functools.partial(
      _read,
      records,
      positions,
      columns=self._columns,
      prefetch=prefetch,
      stop=steps,
    )
    self._skip_corrupt, self._log = skip_corrupt, log
    # The running iterator, if any, in a list that the finalizer can clear.
    self._next, self._running = 0, []
    # Stop before the interpreter does: tf.data's threads that call Python later
    # than that wait for ever, and the process with them.
    weakref.finalize(self, self._running.clear)
    self._decoder = decoder(view, any_kind=records.any_kind)

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """Returns this host's slice of the batch of `step`.

    Returns:
      image uint8 [b, size, size, 3], label int32 [b] and mask float32 [b], with
      b the batch size divided by the number of hosts.

    Raises:
      errors.DataError: An image is corrupt and skip_corrupt is off, or it has
        no label.
      errors.IOFailedError: A file cannot be read.
    """
    if self.steps is not None and step >= self.steps:
      raise errors.DataError(
        f'batch {step} was requested, but there are only {self.steps}.'
      )
    if not self._running or step != self._next:
      self.close()
      self._running.append(
        self._decoder.batches(self._read, self._local, step, self.steps)
      )
    self._next = step + 1
    try:
      image, label, mask = next(self._running[0])
    except Exception:  # Of reading or decoding; not every one names its record.
      self.close()
      return self._one_by_one(step)
    return {'image': image, 'label': label, 'mask': mask}

  def close(self) -> None:
    """Stops the threads; a later `batch` starts them again."""
    self._running.clear()

  def _one_by_one(self, step: int) -> dict[str, np.ndarray]:
    """Returns the batch of `step`, in which something cannot be read."""
    here = self._positions(step, self._columns)
    shape = (self._local, self._size, self._size, 3)
    batch = {
      'image': np.zeros(shape, np.uint8),
      'label': np.zeros(self._local, np.int32),
      'mask': here.mask.copy(),
    }
    for row, number in enumerate(here.ids.tolist()):
      try:
        example = self._records.read(here.ids[row : row + 1])[0]
        pixels = self._decoder.pixels(example.image, here.draws[row])
      except dataset.CorruptError as error:
        self._report(number, str(error))
        batch['mask'][row] = 0
      except errors.TdError:
        raise  # Its message is already meant for the user.
      # A disk, a network or anything else: the record itself may be intact.
      except Exception as error:
        raise errors.IOFailedError(
          f'{self._records.name(number)} cannot be read: {errors.reason(error)}.'
          ' Once it can, the same command resumes.'
        ) from error
      else:
        batch['image'][row], batch['label'][row] = pixels, example.label
    return batch

  def _report(self, number: int, reason: str) -> None:
    """Logs a corrupt image once, or raises a DataError."""
    text = f'{self._records.name(number)} is corrupt: {errors.sentence(reason)}'
    if not self._skip_corrupt:
      raise errors.DataError(
        f'{text} config.data.skip_corrupt=True leaves such images out.'
      )
    if number not in self.skipped:
      self.skipped[number] = reason
      self._log(f'warning: {text} It is left out; {len(self.skipped)} so far.')
