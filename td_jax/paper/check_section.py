"""The parts that the checks of the paper's numbers share."""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Sequence
from typing import NamedTuple

from td_jax.paper import numbers

# Rows of tables 1 and 2, and the tables that print the same rows in full.
IMPROVEMENTS = {**numbers.TABLE1, **numbers.TABLE2}
RMSE = {**numbers.TABLE3, **numbers.TABLE5}
ACCURACY = {**numbers.TABLE4, **numbers.TABLE6}
# Rows that are alternatives to each other, by table or part of one.
ABLATIONS = {
  'iterations': numbers.TABLE5,
  'losses': {row: numbers.TABLE7[row] for row in ('no_message', 'no_state')},
  'noise': {row: numbers.TABLE8[row] for row in ('noise', 'no_noise')},
  'stages': {row: numbers.TABLE8[row] for row in ('separately', 'together')},
}
ABLATION_ROWS = {
  name: row for part in ABLATIONS.values() for name, row in part.items()
}
GENRES = range(1, 9)
DATASETS = numbers.Accuracies._fields


class Section(NamedTuple):
  """A part of the report; its findings are gathered at the end."""

  title: str
  lines: list[str]
  findings: list[str]


def tally(verdicts: Collection[str]) -> str:
  """How many of the verdicts of `intervals.agrees` are positive."""
  yes, within = ([*verdicts].count(v) for v in ('yes', 'within rounding'))
  more = f' (and {within} within rounding)' if within else ''
  return f'{yes} of {len(verdicts)}{more}'


def listed(values: Iterable[int]) -> str:
  """The values as text, such as '1, 3, 7'."""
  return ', '.join(map(str, values)) or 'none'


def genres(*numbers_: int) -> str:
  """The genres as text, such as 'Genres 1, 3'."""
  return f'Genre{"s" * (len(numbers_) != 1)} {listed(numbers_)}'


def table(head: str, rows: Sequence[Sequence[str]]) -> list[str]:
  """Lines of Markdown; the cells of `head` are already separated by bars."""
  return [
    f'| {head} |',
    '|---' * (head.count('|') + 1) + '|',
    *('| ' + ' | '.join(row) + ' |' for row in rows),
  ]


def signed(values: Iterable[float]) -> list[str]:
  """Percentages as the paper prints them."""
  return [f'{value:+.2f}' for value in values]
