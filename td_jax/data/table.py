"""A table: examples in rows, as ids, numbers and what is known of an item."""

from collections.abc import Mapping
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Ids with a table of their own in a network; further ones are categories. These
# names are part of parameter trees, where an item is a movie.
USER, ITEM = 'user', 'movie'
MISSING = (
  '',
  'NA',
  'N/A',
  'NaN',
  'nan',
  'null',
  'None',
)  # Instead of a number.
Ids = Mapping[str, np.ndarray]  # {name of an id: int32 [n]}


class Examples(NamedTuple):
  """Some rows, or pairs that are in no row."""

  ids: Ids
  numbers: np.ndarray  # float32 [n, F]; NaN is missing.
  lines: np.ndarray | None = None  # [n], as in `Table`; None for pairs.

  def __len__(self) -> int:
    return len(self.numbers)


class Table(NamedTuple):
  """Rows in order: L with a target, then those without one; N in all."""

  # Numbers from 1 of the values of `USER`, `ITEM` and `category(0)`, ...
  ids: Ids
  # The values of each id by number; number 0 is '', a value that is missing.
  names: Mapping[str, Sequence[str]]
  numbers: np.ndarray  # float32 [N, F]; NaN is missing.
  target: np.ndarray  # [L]: float32, or int32 classes.
  fingerprint: str  # SHA-256 of all that the table holds.
  columns: Mapping[str, str]  # What users call each id, in the same order.
  number_names: tuple[str, ...] = ()  # [F]
  target_name: str = 'rating'
  class_names: tuple[str, ...] = ()  # () for a regression.
  # What is known of each item by number: a text, and bool [items, G].
  titles: Sequence[str] = ()
  tags: np.ndarray | None = None
  # int64 [N]: the number of each row in the file, from 0; None if there is no file.
  lines: np.ndarray | None = None

  @property
  def size(self) -> int:
    """The number of rows, N."""
    return len(self.numbers)

  def rows(self, rows: np.ndarray) -> Examples:
    """The examples in `rows` [n]."""
    return Examples(
      {name: ids[rows] for name, ids in self.ids.items()},
      self.numbers[rows],
      None if self.lines is None else self.lines[rows],
    )


def category(number: int) -> str:
  """The name of the id of a category."""
  return f'category_{number}'
