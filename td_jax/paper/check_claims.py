"""Whether the paper's text follows from its tables."""

from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import itertools
import math
from typing import Any
from typing import NamedTuple

from td_jax.paper import check_section as section
from td_jax.paper import intervals
from td_jax.paper import numbers

_BASELINES = ('ld', 'fd', 'fitnet', 'hybrid')
_TD = numbers.TABLE3['td']
# The rows with which those of table 3 are compared.
_OTHERS = {
  'all four baselines': _BASELINES,
  'scratch': ('scratch',),
  'teacher': ('teacher',),
  'scratch and teacher': ('scratch', 'teacher'),
}


class _Claim(NamedTuple):
  section: str  # The paper's section.
  text: str
  holds: Sequence[bool]  # One for each column.
  least: int  # In how many columns it should hold.


def claims() -> section.Section:
  """Counts in how many columns the text's claims hold."""
  # The ablations too: any of them might be the row that the text describes.
  rows = {'td': _TD, **section.ABLATION_ROWS}
  wins = {
    name: [better_than(row, others) for others in _OTHERS.values()]
    for name, row in rows.items()
  }
  margins, close = _margins()
  zeros = {
    name: f'{row.error.count(0)} of 8' for name, row in numbers.TABLE3.items()
  }
  return section.Section(
    'What the text claims',
    [
      *section.table(
        'where | claim | holds | agrees',
        [
          [claim.section, claim.text]
          + [f'{sum(claim.holds)} of {len(claim.holds)}']
          + ['yes' if sum(claim.holds) >= claim.least else 'no']
          for claim in _claims()
        ],
      ),
      '',
      'Genres of table 3 in which the row is better than:',
      '',
      *section.table(
        'row | ' + ' | '.join(_OTHERS),
        [
          [name] + [f'{len(won)} of 8: {section.listed(won)}' for won in each]
          for name, each in wins.items()
        ],
      ),
      '',
      *section.table(
        'RMSE | td | best baseline | which | difference | its standard error',
        margins,
      ),
      '',
      *section.table(
        'standard errors of table 3 | ' + ' | '.join(zeros),
        [['printed as 0.0000', *zeros.values()]],
      ),
    ],
    _findings(wins, close, zeros),
  )


def better_than(row: numbers.Scores, others: Iterable[str]) -> list[int]:
  """The genres in which `row` is better than all of `others` in table 3."""
  means = [numbers.TABLE3[other].mean for other in others]
  won = _beats(row.mean, means, intervals.LOWER)
  return list(itertools.compress(section.GENRES, won))


def _margins() -> tuple[list[list[str]], list[int]]:
  """TD and its best baseline by genre; and the genres where they are close."""
  rows, close = [], []
  for column, genre in enumerate(section.GENRES):
    name = min(_BASELINES, key=lambda row: numbers.TABLE3[row].mean[column])
    baseline = numbers.TABLE3[name]
    # Exact decimals: a difference of 0.0002 is not to become 0.00019999.
    gap = intervals.exact(_TD.mean[column])
    gap -= intervals.exact(baseline.mean[column])
    # The runs of two rows are independent, so that their errors add in squares.
    error = math.hypot(_TD.error[column], baseline.error[column])
    close += [genre] * (abs(gap) < error)
    rows.append(
      [section.genres(genre), f'{_TD.mean[column]:.4f}']
      + [f'{baseline.mean[column]:.4f}', name]
      + [intervals.show(gap, 4, '+'), f'{error:.4f}']
    )
  return rows, close


def _findings(
  wins: Mapping[str, Sequence[Collection[int]]],
  close: Collection[int],
  zeros: Mapping[str, str],
) -> list[str]:
  td, together = ([len(w) for w in wins[name]] for name in ('td', 'together'))
  return [
    f'TD of table 3 is better than all four baselines in {td[0]} of 8 genres '
    f'(section 6.5 claims 7), than scratch in {td[1]}, than the teacher in '
    f'{td[2]}, and than both in {td[3]} ("most"). The row that trains together '
    f'is better than them in {section.listed(together)}.',
    f'{section.genres(*close)}: TD and the best baseline are less than one '
    'standard error of their difference apart.',
    'Over 5 runs from random weights (section 6.5) the standard error is '
    f'printed as 0.0000 for scratch in {zeros["scratch"]} genres, for LD in '
    f'{zeros["ld"]}, for FitNet in {zeros["fitnet"]}, for FD in '
    f'{zeros["fd"]}, and for Hybrid in {zeros["hybrid"]}.',
  ]


def _claims() -> list[_Claim]:
  lower, higher = intervals.LOWER, intervals.HIGHER
  better = {
    name: _beats(_TD.mean, [numbers.TABLE7[name].mean], lower)
    for name in ('no_message', 'no_state')
  }
  # 'Most' of eight genres is five or more.
  table5 = {name: row.mean for name, row in numbers.TABLE5.items()}
  images = _beats(numbers.TABLE9['td'], [numbers.TABLE9['no_state']], higher)
  return [
    _Claim(
      '4.2',
      'TD beats the baselines on 5 tasks (table 1)',
      # Without the sixth column, which is their average.
      _beats(numbers.TABLE1['td'], _baselines(numbers.TABLE1), higher)[:5],
      5,
    ),
    _Claim(
      '4.3',
      'most iterations are best (table 2)',
      _most_iterations(numbers.TABLE2, higher)[:5],
      5,
    ),
    _Claim('4.3', 'the same, table 5', _most_iterations(table5, lower), 8),
    _Claim(
      '4.3', 'the same, table 6', _most_iterations(numbers.TABLE6, higher), 3
    ),
    _Claim(
      '6.5',
      'TD beats the baselines in 7 genres',
      _beats(_TD.mean, [row.mean for row in _baselines(numbers.TABLE3)], lower),
      7,
    ),
    _Claim(
      '6.5',
      'TD beats student and teacher in most genres',
      _beats(
        _TD.mean,
        [numbers.TABLE3[name].mean for name in ('scratch', 'teacher')],
        lower,
      ),
      5,
    ),
    _Claim(
      '6.5',
      'TD beats the baselines on images (table 4)',
      _beats(numbers.TABLE4['td'], _baselines(numbers.TABLE4), higher),
      3,
    ),
    _Claim(
      '6.5',
      'L_MC is useful in most genres (table 7)',
      better['no_message'],
      5,
    ),
    _Claim(
      '6.5', 'L_SC is useful in most genres (table 7)', better['no_state'], 5
    ),
    _Claim('6.5', 'L_SC is useful on CIFAR (table 9)', images[:2], 2),
    _Claim('6.5', 'L_SC is not useful on ImageNet', [not images[2]], 1),
  ]


def _baselines(table: Mapping[str, Any]) -> list[Any]:
  return [table[name] for name in _BASELINES]


def _most_iterations(
  table: Mapping[str, Sequence[float]], better: int
) -> list[bool]:
  """In which columns the most iterations beat all others."""
  fewer = [row for name, row in table.items() if name != 'more_iterations']
  return _beats(table['more_iterations'], fewer, better)


def _beats(
  row: Sequence[float], others: Iterable[Sequence[float]], better: int
) -> list[bool]:
  """In which columns a row is strictly better than all others."""
  return [
    all(better * ours > better * theirs for theirs in rest)
    for ours, *rest in zip(row, *others, strict=True)
  ]
