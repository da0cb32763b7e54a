"""Which of the paper's printed numbers agree with each other.

  python -m td_jax.paper.check --results=results

Writes paper_check.md from `numbers.py` alone: nothing of ours enters.
"""

import argparse
from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from collections.abc import Sequence
from fractions import Fraction
import functools
import itertools
import math
import pathlib
from typing import NamedTuple

from td_jax.paper import intervals
from td_jax.paper import numbers
from td_jax.paper.intervals import show

# Rows of tables 1 and 2, and the same rows where they are spelled out.
_IMPROVEMENTS = {**numbers.TABLE1, **numbers.TABLE2}
_RMSE = {**numbers.TABLE3, **numbers.TABLE5}
_ACCURACY = {**numbers.TABLE4, **numbers.TABLE6}

_BASELINES = ('ld', 'fd', 'fitnet', 'hybrid')
_GENRES = range(1, 9)
_DATASETS = numbers.Accuracies._fields
_TD, _SCRATCH = numbers.TABLE3['td'].mean, numbers.TABLE3['scratch'].mean
# Rows that are alternatives of each other, by table or part of one.
_ABLATIONS = {
  'iterations': numbers.TABLE5,
  'losses': {row: numbers.TABLE7[row] for row in ('no_message', 'no_state')},
  'noise': {row: numbers.TABLE8[row] for row in ('noise', 'no_noise')},
  'stages': {row: numbers.TABLE8[row] for row in ('separately', 'together')},
}
_ABLATION_ROWS = {
  name: row for part in _ABLATIONS.values() for name, row in part.items()
}


class Section(NamedTuple):
  """A part of the report; its findings are gathered at the end."""

  title: str
  lines: list[str]
  findings: list[str]


class Fit(NamedTuple):
  """How well a set of genres explains ML(Sparse)."""

  gap: Fraction  # The largest over the rows, in points of percent.
  genres: tuple[int, ...]
  way: str
  matches: int  # Rows that agree, at least within rounding.


def averages() -> Section:
  """Whether "Avg." is the mean of the five columns before it."""
  rows, said = [], {4: [], 5: []}
  for name, row in _IMPROVEMENTS.items():
    *columns, printed = map(intervals.exact, row)
    total = sum(columns, Fraction())
    for divisor, verdicts in said.items():
      value, lost = total / divisor, intervals.half(2) * 5 / divisor
      found = intervals.Range(value - lost, value, value + lost)
      verdicts.append(intervals.agrees(found, printed, digits=2))
    rows.append(
      [name]
      + [' '.join(show(column, 2, '+') for column in columns)]
      + [show(total, 2), show(total / 4, 4), show(total / 5, 3)]
      + [show(printed, 2), said[4][-1], said[5][-1]]
    )
  td = intervals.mean([intervals.exact(n) for n in numbers.TABLE1['td'][:-1]])
  return Section(
    '"Avg." of tables 1 and 2',
    _table(
      'row | dense, sparse, CIFAR10, CIFAR100, ImageNet | sum | sum / 4 '
      '| sum / 5 | printed | over 4 | over 5',
      rows,
    ),
    [
      '"Avg." follows five columns. It is their sum over 4 in '
      f'{_tally(said[4])} rows of tables 1 and 2, and over 5 in '
      f"{_tally(said[5])}. The mean of TD's five is {show(td, 2, '+')}%; "
      f'{numbers.TABLE1["td"].average:+.2f}% is printed.'
    ],
  )


@functools.cache
def genre_improvement(row: str, genre: int) -> intervals.Range:
  """Of a row of table 3 or 5 over scratch, in one genre (1 to 8)."""
  score, scratch = (
    intervals.exact(mean[genre - 1]) for mean in (_RMSE[row].mean, _SCRATCH)
  )
  return intervals.improvement(score, scratch, digits=4, better=intervals.LOWER)


def dense() -> Section:
  """ML(Dense) against each genre."""
  rows, gaps, said = [], [], []
  for name, row in _IMPROVEMENTS.items():
    found = [genre_improvement(name, genre) for genre in _GENRES]
    printed = intervals.exact(row.dense)
    gaps.append([abs(f.value - printed) for f in found])
    said.append([intervals.agrees(f, printed, digits=2) for f in found])
    rows.append(
      [name, show(printed, 2, '+')] + [show(f.value, 3, '+') for f in found]
    )
  worst = [max(column) for column in zip(*gaps, strict=True)]
  tallies = [_tally(column) for column in zip(*said, strict=True)]
  rows.append(['largest gap', ''] + [show(gap, 3) for gap in worst])
  rows.append(['rows that agree', '', *tallies])
  best = worst.index(min(worst))
  return Section(
    'ML(Dense) of tables 1 and 2, and the genres of tables 3 and 5',
    _table('row | printed | ' + ' | '.join(map(_genres, _GENRES)), rows),
    [
      f'ML(Dense) is closest to Genre {best + 1}, but agrees with it in '
      f'{tallies[best]} rows and is up to {show(worst[best], 3)} points off.'
    ],
  )


def mean_of_improvements(row: str, genres: Collection[int]) -> intervals.Range:
  """Each genre's relative improvement, then their mean."""
  return intervals.mean_range([genre_improvement(row, g) for g in genres])


def improvement_of_mean(row: str, genres: Collection[int]) -> intervals.Range:
  """The mean RMSE of the genres, then its relative improvement."""
  score, scratch = (
    intervals.mean([intervals.exact(mean[genre - 1]) for genre in genres])
    for mean in (_RMSE[row].mean, _SCRATCH)
  )
  # A mean of numbers with 4 decimals has lost at most what each has.
  return intervals.improvement(score, scratch, digits=4, better=intervals.LOWER)


_WAYS: dict[str, Callable[[str, Collection[int]], intervals.Range]] = {
  'mean of improvements': mean_of_improvements,
  'improvement of mean RMSE': improvement_of_mean,
}


def fits(rows: Collection[str], sizes: Iterable[int]) -> list[Fit]:
  """ML(Sparse) against all sets of genres of those sizes, closest first."""
  found = []
  sets = (itertools.combinations(_GENRES, size) for size in sizes)
  for genres in itertools.chain.from_iterable(sets):
    for way, compute in _WAYS.items():
      gaps, matches = [], 0
      for row in rows:
        improved = compute(row, genres)
        printed = intervals.exact(_IMPROVEMENTS[row].sparse)
        gaps.append(abs(improved.value - printed))
        matches += intervals.agrees(improved, printed, digits=2) != 'no'
      found.append(Fit(max(gaps), genres, way, matches))
  return sorted(found)


def most(row: str, size: int) -> tuple[Fraction, tuple[int, ...]]:
  """The largest improvement that any so many genres give, and which."""
  return max(
    (compute(row, genres).value, genres)
    for genres in itertools.combinations(_GENRES, size)
    for compute in _WAYS.values()
  )


def sparse() -> Section:
  """ML(Sparse) against sets of genres."""
  searches, found = [], {}
  for rows, where in (
    (numbers.TABLE1, 'table 1'),
    (_IMPROVEMENTS, 'tables 1 and 2'),
  ):
    for sizes, size in (([4], 'four'), (_GENRES, 'any')):
      found[size] = fits(rows, sizes)
      best = found[size][0]
      matches = [fit.matches for fit in found[size]]
      searches.append(
        [f'{len(rows)} of {where}', size, str(len(matches) // len(_WAYS))]
        + [f'{_list(best.genres)} ({best.way})', show(best.gap, 3)]
        + [str(max(matches)), str(matches.count(len(rows)))]
      )
  four, any_ = (found[size][0] for size in ('four', 'any'))
  whole = sum(fit.matches == len(_IMPROVEMENTS) for fit in found['any'])
  parts = (range(5, 9), _GENRES)
  rows, short = [], 0
  for name, row in _IMPROVEMENTS.items():
    limit, genres = most(name, 4)
    short += limit < intervals.exact(row.sparse) - intervals.half(2)
    closest = _WAYS[four.way](name, four.genres)
    means = [mean_of_improvements(name, part) for part in parts]
    rows.append(
      [name, f'{row.sparse:+.2f}', show(closest.value, 3, '+')]
      + [f'{show(limit, 3, "+")} ({_list(genres)})']
      + [show(mean.value, 3, '+') for mean in means]
    )
  low, every = (
    show(mean_of_improvements('td', part).value, 2, '+') for part in parts
  )
  return Section(
    'ML(Sparse) of tables 1 and 2, and sets of genres of tables 3 and 5',
    [
      *_table(
        'rows | size | sets | closest set | its largest gap '
        '| most rows that agree | sets where all rows do',
        searches,
      ),
      '',
      f'Below: the closest four by {four.way}; the four with which the row '
      'does best, by either; means of improvements.',
      '',
      *_table(
        f'row | printed | {_genres(*four.genres)} | its own best four '
        '| Genres 5 to 8 | all eight',
        rows,
      ),
    ],
    [
      f'{whole} of {len(found["any"]) // len(_WAYS)} sets of the eight genres '
      'give ML(Sparse) in all rows; the closest set of four is up to '
      f'{show(four.gap, 2)} points off, the closest of any size '
      f'({_genres(*any_.genres)}) {show(any_.gap, 2)}. In {short} of '
      f'{len(rows)} rows it is above what any four genres give, even those '
      'best for that row. (It may be of genres that are not printed.)',
      f"TD's mean improvement is {low}% over Genres 5 to 8 and {every}% over "
      f'all eight; {numbers.TABLE1["td"].sparse:+.2f}% is printed for '
      'ML(Sparse).',
    ],
  )


def images() -> Section:
  """CIFAR and ImageNet of tables 1 and 2 against tables 4 and 6."""
  rows, said, gaps = [], [], []
  scratch = map(intervals.exact, numbers.TABLE4['scratch'])
  for dataset, base in zip(_DATASETS, scratch, strict=True):
    for name, row in _IMPROVEMENTS.items():
      found = intervals.improvement(
        intervals.exact(getattr(_ACCURACY[name], dataset)),
        base,
        digits=5,
        better=intervals.HIGHER,
      )
      printed = intervals.exact(getattr(row, dataset))
      verdict = intervals.agrees(found, printed, digits=2)
      if verdict == 'no' and intervals.cut(found.value, 2) == printed:
        verdict = 'cut off'
      said.append(verdict)
      gaps.append((abs(found.value - printed), f'{name} on {dataset}'))
      rows.append(
        [dataset, name, show(printed, 2, '+'), show(found.value, 4, '+')]
        + [f'{show(found.low, 4, "+")} to {show(found.high, 4, "+")}', verdict]
      )
  gap, where = max(gaps)
  return Section(
    'Images of tables 1 and 2, and tables 4 and 6',
    _table('dataset | row | printed | computed | range | agrees', rows),
    [
      'The CIFAR and ImageNet columns of tables 1 and 2 follow from tables 4 '
      f'and 6 in {_tally(said)} cells; in {said.count("cut off")} more the '
      f'further digits were cut off; other differences: '
      f'{said.count("no")}. The largest gap is {show(gap, 3)} points ({where}).'
    ],
  )


def ablations() -> Section:
  """With which ablation rows the numbers of TD coincide."""
  rows, below = [], {part: [] for part in _ABLATIONS}
  errors = numbers.TABLE3['td'].error
  for column, genre in enumerate(_GENRES):
    names = [
      name + '*' * (row.error[column] == errors[column])
      for name, row in _ABLATION_ROWS.items()
      if row.mean[column] == _TD[column]
    ]
    best = {
      part: min(row.mean[column] for row in of.values())
      for part, of in _ABLATIONS.items()
    }
    for part, score in best.items():
      below[part] += [genre] * (_TD[column] < score)
    rows.append(
      [_genres(genre), f'{_TD[column]:.4f}', ', '.join(names)]
      + [f'{score:.4f}' for score in best.values()]
    )
  lowest = sum(
    _TD[n] <= min(row.mean[n] for row in _ABLATION_ROWS.values())
    for n in range(8)
  )
  images_ = [
    (f'table {number}: {name}', row)
    for number, table in ((6, numbers.TABLE6), (9, numbers.TABLE9))
    for name, row in table.items()
    if name != 'td'
  ]
  td = numbers.TABLE4['td']
  highest = sum(
    td[n] >= max(row[n] for _, row in images_) for n in range(len(td))
  )
  image_rows = [
    [dataset, f'{td[n]:.5f}']
    + [', '.join(name for name, row in images_ if row[n] == td[n])]
    for n, dataset in enumerate(_DATASETS)
  ]
  whole = [name for name, row in _ABLATION_ROWS.items() if row.mean == _TD]
  together, apart_, none = (
    _ABLATION_ROWS[name].mean
    for name in ('together', 'separately', 'no_interaction')
  )
  differs = [g for g in _GENRES if together[g - 1] != _TD[g - 1]]

  def scores(mean):
    return ', '.join(f'{mean[genre - 1]:.4f}' for genre in differs)

  repeated = (numbers.TABLE7['td'], numbers.TABLE9['td']) == (
    numbers.TABLE3['td'],
    td,
  )
  return Section(
    'TD of tables 3 and 4, and the ablations of tables 5 to 9',
    [
      *_table(
        'RMSE | td | rows that print the same | '
        + ' | '.join(f'best of {part}' for part in _ABLATIONS),
        rows,
      ),
      '',
      'With an asterisk the standard error is the same too. Tables 7 and 9 '
      f'repeat TD of tables 3 and 4: {"yes" if repeated else "no"}.',
      '',
      *_table('accuracy | td | rows that print the same', image_rows),
      '',
      *_table(
        'tables 1, 2 | ' + ' | '.join(numbers.Improvement._fields),
        [
          [name] + [f'{number:+.2f}' for number in _IMPROVEMENTS[name]]
          for name in ('td', 'more_iterations')
        ],
      ),
    ],
    [
      f'TD is as good as the best of all ablation rows in {lowest} of 8 genres '
      f'and on {highest} of {len(td)} image datasets, and the same as one or '
      f'more of them each time; {len(whole)} rows are the same in all genres. '
      'That is what the best of several settings, picked for each genre by '
      'its test score, would give.',
      f'{_genres(*differs)}: trained together, as section 6.5 says of all '
      f'experiments, the RMSE is {scores(together)}; TD is {scores(_TD)}, the '
      f'row of separate stages ({scores(apart_)}), and that of no interaction '
      f'({scores(none)}).',
      'Table 5 has a row for all numbers of iterations that were tried '
      '(section 6.3), and noise is added or not; yet TD is below all of the '
      f'former in {_genres(*below["iterations"])}, and of the latter in '
      f'{_genres(*below["noise"])}.',
    ],
  )


def denominators() -> Section:
  """How many test images the accuracies were counted on."""
  tables = (numbers.TABLE4, numbers.TABLE6, numbers.TABLE9)
  distinct = [
    sorted({row[n] for table in tables for row in table.values()})
    for n in range(len(_DATASETS))
  ]
  # CIFAR10 and CIFAR100 have equally many test images.
  groups = {
    'CIFAR': (10_000, distinct[0] + distinct[1]),
    'ImageNet': (50_000, distinct[2]),
  }
  lines, findings = [], []
  for name, (size, accuracies) in groups.items():
    kept = size - size % 512
    fitting = [
      total
      for total in range(1, size + 1)
      if all(intervals.count(a, total, digits=5) for a in accuracies)
    ]
    lines += _table(
      f'{name} | n of {kept} | n of {size}',
      [
        [f'{accuracy:.5f}']
        + [
          str(intervals.count(accuracy, total, digits=5) or '-')
          for total in (kept, size)
        ]
        for accuracy in accuracies
      ],
    )
    lines += [
      '',
      f'Denominators up to {size} that give all of them: {_list(fitting)}. A '
      f'number of five decimals is some n/{kept} by chance in '
      f'{show(Fraction(kept, 1000), 1)}% of cases.',
      '',
    ]
    findings.append(
      f'{name}: {_fitting(accuracies, kept)} distinct accuracies are n/{kept} '
      f'({kept} = {kept // 512} * 512), {_fitting(accuracies, size)} n/{size}; '
      f'denominators up to {size} that give them all: {len(fitting)}. An '
      'evaluation in batches of 512 that drops the remainder, the last '
      f'{size - kept} images, counts like this.'
    )
  lines += _table(
    'batch | ' + ' | '.join(f'whole batches | {name}' for name in groups),
    [
      [str(batch)]
      + [
        text
        for size, accuracies in groups.values()
        for kept in [size - size % batch]
        for text in (str(kept), _fitting(accuracies, kept))
      ]
      for batch in (2**n for n in range(5, 13))
    ],
  )
  return Section('Test images behind an accuracy', lines, findings)


def claims() -> Section:
  """What the text says of tables 1 to 9, counted."""
  rows = {'td': numbers.TABLE3['td'], **_ABLATION_ROWS}
  others = {
    'all four baselines': _BASELINES,
    'scratch': ['scratch'],
    'teacher': ['teacher'],
    'scratch and teacher': ['scratch', 'teacher'],
  }
  wins = {
    name: [better_than(row, than) for than in others.values()]
    for name, row in rows.items()
  }
  margins, close = [], []
  for column, genre in enumerate(_GENRES):
    name = min(_BASELINES, key=lambda row: numbers.TABLE3[row].mean[column])
    td, other = numbers.TABLE3['td'], numbers.TABLE3[name]
    apart = intervals.exact(_TD[column]) - intervals.exact(other.mean[column])
    error = math.hypot(td.error[column], other.error[column])
    close += [genre] * (abs(apart) < error)
    margins.append(
      [_genres(genre), f'{_TD[column]:.4f}', f'{other.mean[column]:.4f}']
      + [name, show(apart, 4, '+'), f'{error:.4f}']
    )
  zeros = {
    name: f'{row.error.count(0)} of 8' for name, row in numbers.TABLE3.items()
  }
  td, together = ([len(w) for w in wins[name]] for name in ('td', 'together'))
  return Section(
    'What the text says',
    [
      *_table(
        'where | claim | holds | agrees',
        [
          [where, claim, f'{sum(holds)} of {len(holds)}']
          + ['yes' if sum(holds) >= least else 'no']
          for where, claim, holds, least in _claims()
        ],
      ),
      '',
      'Genres of table 3 where the row is better than:',
      '',
      *_table(
        'row | ' + ' | '.join(others),
        [
          [name] + [f'{len(won)} of 8: {_list(won)}' for won in found]
          for name, found in wins.items()
        ],
      ),
      '',
      *_table(
        'RMSE | td | best baseline | which | difference | its standard error',
        margins,
      ),
      '',
      *_table(
        'standard errors of table 3 | ' + ' | '.join(zeros),
        [['printed as 0.0000', *zeros.values()]],
      ),
    ],
    [
      f'TD of table 3 is better than all four baselines in {td[0]} of 8 genres '
      f'(section 6.5 says 7), than scratch in {td[1]}, than the teacher in '
      f'{td[2]}, than both in {td[3]} ("most"). The row that trains together '
      f'is so in {_list(together)}.',
      f'{_genres(*close)}: TD and the best baseline are less than one standard '
      'error of their difference apart.',
      'Over 5 runs from random weights (section 6.5) the standard error is '
      f'printed as 0.0000 for scratch in {zeros["scratch"]} genres, LD in '
      f'{zeros["ld"]}, FitNet in {zeros["fitnet"]}, FD in {zeros["fd"]}, '
      f'Hybrid in {zeros["hybrid"]}.',
    ],
  )


def _claims():
  """Where, what, in which columns it holds, and in how many it should."""
  lower, higher = intervals.LOWER, intervals.HIGHER

  def baselines(table):
    return [table[name] for name in _BASELINES]

  def rounds(table, last):
    return last, [row for name, row in table.items() if row is not last]

  table2, fewer2 = rounds(numbers.TABLE2, numbers.TABLE2['more_iterations'])
  table5, fewer5 = rounds(numbers.TABLE5, numbers.TABLE5['more_iterations'])
  table6, fewer6 = rounds(numbers.TABLE6, numbers.TABLE6['more_iterations'])
  both = [numbers.TABLE3[name].mean for name in ('scratch', 'teacher')]
  means = [row.mean for row in baselines(numbers.TABLE3)]
  message, state = (
    _beats(_TD, [numbers.TABLE7[name].mean], lower)
    for name in ('no_message', 'no_state')
  )
  pictures = _beats(numbers.TABLE9['td'], [numbers.TABLE9['no_state']], higher)
  improved = _beats(numbers.TABLE1['td'], baselines(numbers.TABLE1), higher)
  more2 = _beats(table2, fewer2, higher)
  more5 = _beats(table5.mean, [row.mean for row in fewer5], lower)
  more6 = _beats(table6, fewer6, higher)
  seen = _beats(numbers.TABLE4['td'], baselines(numbers.TABLE4), higher)
  return [
    ('4.2', 'TD beats the baselines on 5 tasks (table 1)', improved[:5], 5),
    ('4.3', 'most iterations are best (table 2)', more2[:5], 5),
    ('4.3', 'the same, table 5', more5, 8),
    ('4.3', 'the same, table 6', more6, 3),
    ('6.5', 'TD beats the baselines in 7 genres', _beats(_TD, means, lower), 7),
    ('6.5', 'student and teacher in most', _beats(_TD, both, lower), 5),
    ('6.5', 'TD beats the baselines on images (table 4)', seen, 3),
    ('6.5', 'L_MC is useful in most genres (table 7)', message, 5),
    ('6.5', 'L_SC is useful in most genres (table 7)', state, 5),
    ('6.5', 'L_SC is useful on CIFAR (table 9)', pictures[:2], 2),
    ('6.5', 'L_SC is not useful on ImageNet', [not pictures[2]], 1),
  ]


def _beats(row, others, better: int) -> list[bool]:
  """In which columns a row is strictly better than all others."""
  return [
    all(better * ours > better * theirs for theirs in rest)
    for ours, *rest in zip(row, *others, strict=True)
  ]


def better_than(row: numbers.Scores, others: Iterable[str]) -> list[int]:
  """Genres in which `row` is better than all those rows of table 3."""
  means = [numbers.TABLE3[other].mean for other in others]
  won = _beats(row.mean, means, intervals.LOWER)
  return list(itertools.compress(_GENRES, won))


def report() -> str:
  """The whole of paper_check.md."""
  parts = (averages, dense, sparse, images, ablations, denominators, claims)
  sections = [part() for part in parts]
  lines = [
    "# The paper's numbers beside each other",
    '',
    'Made by `python -m td_jax.paper.check` from tables 1 to 9 of arXiv '
    '2310.03188 (td_jax/paper.py). Improvements are in percent of scratch. '
    '`yes`: what is computed rounds to what is printed; `within rounding`: the '
    'digits that its operands lost could make it so; `cut off`: it was cut, '
    'not rounded.',
  ]
  for number, section in enumerate(sections, start=1):
    lines += ['', f'## {number}. {section.title}', '', *section.lines]
  lines += ['', '## Findings', '']
  lines += [f'- {text}' for section in sections for text in section.findings]
  return '\n'.join([*lines, ''])


def _tally(said: Collection[str]) -> str:
  """How many agree."""
  yes, within = ([*said].count(what) for what in ('yes', 'within rounding'))
  more = f' (and {within} within rounding)' if within else ''
  return f'{yes} of {len(said)}{more}'


def _fitting(accuracies: Collection[float], total: int) -> str:
  found = [intervals.count(a, total, digits=5) for a in accuracies]
  return f'{len(found) - found.count(None)} of {len(found)}'


def _list(numbers: Iterable[int]) -> str:
  return ', '.join(map(str, numbers)) or 'none'


def _genres(*genres: int) -> str:
  return f'Genre{"s" * (len(genres) != 1)} {_list(genres)}'


def _table(head: str, rows: Sequence[Sequence[str]]) -> list[str]:
  """Markdown; the head's cells are parted by bars already."""
  return [
    f'| {head} |',
    '|---' * (head.count('|') + 1) + '|',
    *('| ' + ' | '.join(row) + ' |' for row in rows),
  ]


def main() -> None:
  """Writes the report."""
  parser = argparse.ArgumentParser(description="The paper's numbers, checked.")
  parser.add_argument('--results', default='results', type=pathlib.Path)
  args = parser.parse_args()
  text = report()
  (args.results / 'paper_check.md').write_text(text)
  print(text)


if __name__ == '__main__':
  main()
