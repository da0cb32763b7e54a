"""What a printed number still says: arithmetic that keeps its lost digits.

Fractions keep decimals exact, so that a number in the middle between two
roundings is not decided by its binary form.
"""

from collections.abc import Collection
import decimal
from fractions import Fraction
import functools
import itertools
import math
from typing import NamedTuple

LOWER, HIGHER = -1, 1  # What is better.


class Range(NamedTuple):
  """A computed number, and how far its operands' lost digits may move it."""

  low: Fraction
  value: Fraction
  high: Fraction


@functools.cache
def exact(printed: float) -> Fraction:
  """The decimal number that was printed, not its nearest binary one."""
  return Fraction(repr(printed))


def half(digits: int) -> Fraction:
  """Half a unit of the last of so many decimals: what rounding may lose."""
  return Fraction(1, 2 * 10**digits)


def improvement(
  score: Fraction, scratch: Fraction, *, digits: int, better: int
) -> Range:
  """Relative improvement in percent; both operands have so many decimals."""

  def percent(score, scratch):
    return better * 100 * (score - scratch) / scratch

  # Monotone in each operand, hence extreme in a corner.
  lost = half(digits)
  corners = [
    percent(score + a, scratch + b)
    for a, b in itertools.product((-lost, lost), repeat=2)
  ]
  return Range(min(corners), percent(score, scratch), max(corners))


def mean(numbers: Collection[Fraction]) -> Fraction:
  """The mean, exactly."""
  return sum(numbers, Fraction()) / len(numbers)


def mean_range(ranges: Collection[Range]) -> Range:
  """The mean of numbers that share no operand, or move alike with it."""
  return Range(*map(mean, zip(*ranges, strict=True)))


def agrees(found: Range, printed: Fraction, *, digits: int) -> str:
  """`yes`, `within rounding` or `no`."""
  lost = half(digits)
  if abs(found.value - printed) <= lost:
    return 'yes'
  if found.low <= printed + lost and printed - lost <= found.high:
    return 'within rounding'
  return 'no'


def count(part: float, total: int, *, digits: int) -> int | None:
  """The n whose n / total has `part` as its decimals, or None."""
  # Integers: tens of thousands of totals are tried.
  unit = 10**digits
  scaled = round(part * unit) * total
  n = (2 * scaled + unit) // (2 * unit)  # The nearest.
  return n if 2 * abs(n * unit - scaled) <= total else None


def show(number: Fraction, digits: int, sign: str = '') -> str:
  """In decimals, halves away from zero; `sign` as in a format."""
  with decimal.localcontext(prec=40):
    value = decimal.Decimal(number.numerator) / number.denominator
    value = value.quantize(
      decimal.Decimal(1).scaleb(-digits), decimal.ROUND_HALF_UP
    )
  return f'{value:{sign}f}'


def cut(number: Fraction, digits: int) -> Fraction:
  """Without its further decimals."""
  return Fraction(math.trunc(number * 10**digits), 10**digits)
