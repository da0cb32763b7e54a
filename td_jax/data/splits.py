"""Slices of a split in TFDS's notation: 'train', 'train[:98%]', 'test[5:9]'."""

from collections.abc import Mapping
import re
from typing import NamedTuple

from td_jax import errors


class Slice(NamedTuple):
  """Records start..stop-1 of a split."""

  split: str
  start: int
  stop: int


def parse(spec: str, *, name: str) -> tuple[str, str | None, str | None]:
  """Returns split, lower and upper bound of `spec`, as text.

  Args:
    spec: 'split' or 'split[lower:upper]'. A bound that is left out is None.
    name: The dataset, for the message.

  Raises:
    errors.ConfigError: `spec` has another form.
  """
  # A number of records or a percentage, either of them negative or absent.
  bound = r'(-?\d+(?:\.\d+)?%|-?\d+)?'
  match = re.fullmatch(rf'([\w-]+)(?:\[{bound}:{bound}\])?', spec)
  if not match:
    raise errors.ConfigError(
      f"split {spec!r} of {name} is not of the form 'train', 'train[:98%]' or"
      " 'train[100:200]'."
    )
  return match[1], match[2], match[3]


def cut(spec: str, sizes: Mapping[str, int], *, name: str) -> Slice:
  """Resolves `spec` to record numbers, rounding percentages as TFDS does.

  Args:
    spec: As for `parse`; bounds count records or are percentages, and negative
      ones count from the end.
    sizes: Records of each whole split.
    name: The dataset, for the messages.

  Raises:
    errors.ConfigError: `spec` has another form, or there is no such split.
    errors.DataError: The slice is empty.
  """
  split, lower, upper = parse(spec, name=name)
  errors.choose(f'split of {name}', split, sizes)
  size = sizes[split]

  def number(bound: str | None, default: int) -> int:
    if bound is None:
      return default
    if bound.endswith('%'):
      # Python's round, as in TFDS: a half goes to the even number.
      value = round(float(bound[:-1]) * size / 100)
    else:
      value = int(bound)
    # Bounds beyond the split are cut to it, as in slices of Python.
    return min(max(value + size if value < 0 else value, 0), size)

  start, stop = number(lower, 0), number(upper, size)
  if start >= stop:
    raise errors.DataError(
      f'split {spec!r} of {name} is empty: {split} has {size} records.'
    )
  return Slice(split, start, stop)
