"""Interval arithmetic on printed numbers, whose further digits are unknown.

Fractions keep decimals exact, so that the binary form of a number does not
decide how a number halfway between two roundings is rounded.
"""

from collections.abc import Collection
import decimal
from fractions import Fraction
import functools
import itertools
import math
from typing import NamedTuple

LOWER, HIGHER = -1, 1  # Which direction is better.


class Range(NamedTuple):
  """A computed number, and how far the lost digits of its operands move it."""

  low: Fraction
  value: Fraction
  high: Fraction


@functools.cache
def exact(printed: float) -> Fraction:
  """The decimal number that was printed, not its nearest binary one."""
  return Fraction(repr(printed))


def half(digits: int) -> Fraction:
  """Half a unit of the last decimal: the most that rounding can lose."""
  return Fraction(1, 2 * 10**digits)


def improvement(
  score: Fraction, scratch: Fraction, *, digits: int, better: int
) -> Range:
  """Relative improvement in percent; both operands have `digits` decimals."""

  def percent(score: Fraction, scratch: Fraction) -> Fraction:
    return better * 100 * (score - scratch) / scratch

  # It is monotone in each operand, so that the extremes are in the corners.
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
  """The mean of numbers that share no operand, or all move alike with it."""
  return Range(*map(mean, zip(*ranges, strict=True)))


def agrees(computed: Range, printed: Fraction, *, digits: int) -> str:
  """Whether it rounds to `printed`: 'yes', 'within rounding' or 'no'."""
  lost = half(digits)
  if abs(computed.value - printed) <= lost:
    return 'yes'
  if computed.low <= printed + lost and printed - lost <= computed.high:
    return 'within rounding'
  return 'no'


def count(part: float, total: int, *, digits: int) -> int | None:
  """The n for which n / total rounds to `part`, or None."""
  # Integers, because tens of thousands of totals are tried.
  unit = 10**digits
  scaled = round(part * unit) * total
  n = (2 * scaled + unit) // (2 * unit)  # The nearest.
  return n if 2 * abs(n * unit - scaled) <= total else None


def show(number: Fraction, digits: int, sign: str = '') -> str:
  """A number in decimals, rounded half away from zero.

  `sign` is that of a format specification, such as '+'.
  """
  # The default precision of 28 digits could round twice.
  with decimal.localcontext(prec=40):
    value = decimal.Decimal(number.numerator) / number.denominator
    value = value.quantize(
      decimal.Decimal(1).scaleb(-digits), decimal.ROUND_HALF_UP
    )
  return f'{value:{sign}f}'


def cut(number: Fraction, digits: int) -> Fraction:
  """A number truncated to `digits` decimals."""
  return Fraction(math.trunc(number * 10**digits), 10**digits)
