"""The interface to a dataset of encoded images: labelled records by number.

Records are numbered from 0 in the order of the files, which is the order that
the slices of TFDS count in.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple
from typing import Protocol
from typing import runtime_checkable

import numpy as np

from td_jax import errors
from td_jax.data import splits

CACHE = 'td_jax'  # Folder of our caches inside the data folder; never a split.


class CorruptError(Exception):
  """One record cannot be read, while others can; the message is the reason."""


class Example(NamedTuple):
  """One labelled image."""

  image: bytes  # The contents of a file.
  label: int  # Negative if there is none.


@runtime_checkable  # The tests check the types of all arguments.
class Reader(Protocol):
  """Reads the records of one whole split."""

  # Number of records in each file, if files are read from front to back; a
  # single number if every record can be read on its own.
  shards: tuple[int, ...]
  # Whether files are of every kind that `image_files` reads; else they are JPEG
  # and PNG, to be read as TensorFlow does.
  any_kind: bool

  @property
  def labels(self) -> Sequence[int] | None:
    """Those of all records, if they are known before a record is read."""
    ...

  def read(self, ids: Sequence[int]) -> list[Example]:
    """Returns records by number; raises CorruptError if one is damaged."""
    ...

  def prefetch(self, ids: Sequence[int]) -> None:
    """Starts to load what a later `read` of `ids` needs, if that is slow."""
    ...

  def location(self, number: int) -> str:
    """Returns the file that holds a record, for messages."""
    ...


class Records:
  """A split, or a slice of one, whose records are numbered from 0."""

  def __init__(
    self,
    dataset: str,
    spec: str,
    reader: Reader,
    *,
    start: int,
    stop: int,
    labelled: bool = True,
  ):
    """Selects the records start..stop-1 of `reader`.

    Args:
      dataset: Its name, for messages.
      spec: The slice as the user wrote it, for messages.
      reader: Reads the whole split.
      start: The first record of the split.
      stop: The record after the last one.
      labelled: Whether each record must have a label.
    """
    self._labelled = labelled
    self.shards = _clip(reader.shards, start, stop)
    self.any_kind = reader.any_kind
    self._title = f'{dataset} {spec!r}'
    self._reader, self._start, self._stop = reader, start, stop

  def __len__(self) -> int:
    return self._stop - self._start

  def read(self, ids: np.ndarray) -> list[Example]:
    """Returns the examples with the numbers `ids` [b].

    Raises:
      CorruptError: A record is damaged.
      errors.DataError: A record has no label.
    """
    examples = self._reader.read((ids + self._start).tolist())
    for number, example in zip(ids.tolist(), examples, strict=True):
      # Test splits whose labels are not published have -1 in TFDS.
      if self._labelled and example.label < 0:
        raise errors.DataError(
          f'{self.name(number)} has no label ({example.label}); choose another '
          'split.'
        )
    return examples

  @property
  def labels(self) -> np.ndarray | None:
    """int [n], if they are known before a record is read."""
    if self._reader.labels is None:
      return None
    return np.asarray(self._reader.labels[self._start : self._stop], int)

  def prefetch(self, ids: np.ndarray) -> None:
    """Starts to load what reading `ids` [b] will need, if that is slow."""
    self._reader.prefetch((ids + self._start).tolist())

  def name(self, number: int) -> str:
    """Returns a description of record `number`, for messages."""
    return f'record {number} of {self._title} ({self.location(number)})'

  def location(self, number: int) -> str:
    """Returns the file that holds record `number`, for messages."""
    return self._reader.location(number + self._start)


class Dataset(NamedTuple):
  """A dataset that is ready to be read."""

  name: str
  sizes: Mapping[str, int]  # Number of records of each whole split.
  class_names: tuple[str, ...]
  fingerprint: str  # SHA-256 of version, splits, sizes and class names.
  reader: Callable[[str], Reader]  # Name of a split -> its Reader.

  def records(self, spec: str, *, labelled: bool = True) -> Records:
    """Returns the records of a slice; raises as `splits.cut` does.

    Args:
      spec: 'split' or 'split[lower:upper]', see `splits.cut`.
      labelled: Whether each record must have a label.
    """
    split, start, stop = splits.cut(spec, self.sizes, name=self.name)
    return Records(
      self.name,
      spec,
      self.reader(split),
      start=start,
      stop=stop,
      labelled=labelled,
    )


def _clip(shards: Sequence[int], start: int, stop: int) -> tuple[int, ...]:
  """Returns how many records of each shard lie within start..stop-1."""
  ends = np.cumsum(shards)
  begins = ends - shards
  inside = np.minimum(ends, stop) - np.maximum(begins, start)
  # A shard outside the slice remains as 0, since shards go by position.
  return tuple(np.maximum(inside, 0).tolist())
