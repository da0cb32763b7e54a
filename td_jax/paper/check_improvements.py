"""Whether tables 1 and 2 follow from the tables that they summarise."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterable
from fractions import Fraction
import functools
import itertools
from typing import NamedTuple

from td_jax.paper import check_section as section
from td_jax.paper import intervals
from td_jax.paper import numbers
from td_jax.paper.intervals import show

_SCRATCH = numbers.TABLE3['scratch'].mean


class Fit(NamedTuple):
  """How well a set of genres explains ML(Sparse)."""

  gap: Fraction  # The largest over the rows, in percentage points.
  genres: tuple[int, ...]
  way: str  # A key of `_WAYS`.
  matches: int  # Rows that agree, at least within rounding.


def averages() -> section.Section:
  """Checks whether "Avg." is the mean of the five columns before it."""
  rows, verdicts = [], {4: [], 5: []}
  for name, row in section.IMPROVEMENTS.items():
    *columns, printed = map(intervals.exact, row)
    total = sum(columns, Fraction())
    for divisor, column in verdicts.items():
      # Each of the five summands may have lost half a unit to rounding.
      value, lost = total / divisor, intervals.half(2) * 5 / divisor
      computed = intervals.Range(value - lost, value, value + lost)
      column.append(intervals.agrees(computed, printed, digits=2))
    rows.append(
      [name]
      + [' '.join(show(column, 2, '+') for column in columns)]
      + [show(total, 2), show(total / 4, 4), show(total / 5, 3)]
      + [show(printed, 2), verdicts[4][-1], verdicts[5][-1]]
    )
  td = intervals.mean([intervals.exact(n) for n in numbers.TABLE1['td'][:-1]])
  return section.Section(
    '"Avg." of tables 1 and 2',
    section.table(
      'row | dense, sparse, CIFAR10, CIFAR100, ImageNet | sum | sum / 4 '
      '| sum / 5 | printed | over 4 | over 5',
      rows,
    ),
    [
      '"Avg." follows five columns. It equals their sum over 4 in '
      f'{section.tally(verdicts[4])} rows of tables 1 and 2, and their sum '
      f'over 5 in {section.tally(verdicts[5])}. The mean of the five columns '
      f'of TD is {show(td, 2, "+")}%; the paper prints '
      f'{numbers.TABLE1["td"].average:+.2f}%.'
    ],
  )


@functools.cache
def genre_improvement(row: str, genre: int) -> intervals.Range:
  """A row of table 3 or 5 against scratch, in one genre (1 to 8)."""
  score, scratch = (
    intervals.exact(mean[genre - 1])
    for mean in (section.RMSE[row].mean, _SCRATCH)
  )
  return intervals.improvement(score, scratch, digits=4, better=intervals.LOWER)


def dense() -> section.Section:
  """Compares ML(Dense) with each genre."""
  rows, gaps, verdicts = [], [], []
  for name, row in section.IMPROVEMENTS.items():
    computed = [genre_improvement(name, genre) for genre in section.GENRES]
    printed = intervals.exact(row.dense)
    # Gaps as well as verdicts: they show how far off the closest genre is.
    gaps.append([abs(c.value - printed) for c in computed])
    verdicts.append([intervals.agrees(c, printed, digits=2) for c in computed])
    rows.append(
      [name, show(printed, 2, '+')] + [show(c.value, 3, '+') for c in computed]
    )
  worst = [max(column) for column in zip(*gaps, strict=True)]
  tallies = [section.tally(column) for column in zip(*verdicts, strict=True)]
  rows.append(['largest gap', ''] + [show(gap, 3) for gap in worst])
  rows.append(['rows that agree', '', *tallies])
  best = worst.index(min(worst))
  return section.Section(
    'ML(Dense) of tables 1 and 2, and the genres of tables 3 and 5',
    section.table(
      'row | printed | ' + ' | '.join(map(section.genres, section.GENRES)), rows
    ),
    [
      f'ML(Dense) is closest to Genre {best + 1}, but agrees with it in '
      f'{tallies[best]} rows, and differs by up to {show(worst[best], 3)} '
      'points.'
    ],
  )


def mean_of_improvements(row: str, genres: Collection[int]) -> intervals.Range:
  """Each genre's relative improvement, then their mean."""
  return intervals.mean_range([genre_improvement(row, g) for g in genres])


def improvement_of_mean(row: str, genres: Collection[int]) -> intervals.Range:
  """The mean RMSE of the genres, then its relative improvement."""
  score, scratch = (
    intervals.mean([intervals.exact(mean[genre - 1]) for genre in genres])
    for mean in (section.RMSE[row].mean, _SCRATCH)
  )
  # A mean of numbers with 4 decimals has lost at most what each of them has.
  return intervals.improvement(score, scratch, digits=4, better=intervals.LOWER)


_WAYS: dict[str, Callable[[str, Collection[int]], intervals.Range]] = {
  'mean of improvements': mean_of_improvements,
  'improvement of mean RMSE': improvement_of_mean,
}


def fits(rows: Collection[str], sizes: Iterable[int]) -> list[Fit]:
  """ML(Sparse) against all sets of genres of those sizes, closest first."""
  results = []
  # The paper names neither the genres nor the way of averaging: try all.
  sets = (itertools.combinations(section.GENRES, size) for size in sizes)
  for genres in itertools.chain.from_iterable(sets):
    for way, compute in _WAYS.items():
      gaps, matches = [], 0
      for row in rows:
        improved = compute(row, genres)
        printed = intervals.exact(section.IMPROVEMENTS[row].sparse)
        gaps.append(abs(improved.value - printed))
        matches += intervals.agrees(improved, printed, digits=2) != 'no'
      results.append(Fit(max(gaps), genres, way, matches))
  return sorted(results)


def most(row: str, size: int) -> tuple[Fraction, tuple[int, ...]]:
  """The largest improvement that any `size` genres give, and those genres."""
  return max(
    (compute(row, genres).value, genres)
    for genres in itertools.combinations(section.GENRES, size)
    for compute in _WAYS.values()
  )


def sparse() -> section.Section:
  """Compares ML(Sparse) with sets of genres."""
  searches, results = [], {}
  for rows, where in (
    (numbers.TABLE1, 'table 1'),
    (section.IMPROVEMENTS, 'tables 1 and 2'),
  ):
    for sizes, size in (([4], 'four'), (section.GENRES, 'any')):
      results[size] = fits(rows, sizes)
      best = results[size][0]
      matches = [fit.matches for fit in results[size]]
      searches.append(
        [f'{len(rows)} of {where}', size, str(len(matches) // len(_WAYS))]
        + [f'{section.listed(best.genres)} ({best.way})', show(best.gap, 3)]
        + [str(max(matches)), str(matches.count(len(rows)))]
      )
  # The last searches, over all rows of tables 1 and 2, are those that count.
  return _sparse_section(searches, results['four'], results['any'])


def _sparse_section(
  searches: list[list[str]], fours: list[Fit], sets: list[Fit]
) -> section.Section:
  """The section of fits of four genres, and of sets of any size."""
  four, any_ = fours[0], sets[0]
  complete = sum(fit.matches == len(section.IMPROVEMENTS) for fit in sets)
  parts = (range(5, 9), section.GENRES)
  rows, short = [], 0
  for name, row in section.IMPROVEMENTS.items():
    limit, genres = most(name, 4)
    # Below even the lowest number that would round to the printed one.
    short += limit < intervals.exact(row.sparse) - intervals.half(2)
    closest = _WAYS[four.way](name, four.genres)
    means = [mean_of_improvements(name, part) for part in parts]
    rows.append(
      [name, f'{row.sparse:+.2f}', show(closest.value, 3, '+')]
      + [f'{show(limit, 3, "+")} ({section.listed(genres)})']
      + [show(mean.value, 3, '+') for mean in means]
    )
  low, every = (
    show(mean_of_improvements('td', part).value, 2, '+') for part in parts
  )
  return section.Section(
    'ML(Sparse) of tables 1 and 2, and sets of genres of tables 3 and 5',
    [
      *section.table(
        'rows | size | sets | closest set | its largest gap '
        '| most rows that agree | sets where all rows do',
        searches,
      ),
      '',
      f'Below are the closest four genres by {four.way}; the four genres with '
      'which the row does best, by either way; and means of improvements.',
      '',
      *section.table(
        f'row | printed | {section.genres(*four.genres)} | its own best four '
        '| Genres 5 to 8 | all eight',
        rows,
      ),
    ],
    [
      f'{complete} of {len(sets) // len(_WAYS)} sets of the eight genres give '
      'ML(Sparse) in all rows. The closest set of four differs by up to '
      f'{show(four.gap, 2)} points, and the closest of any size '
      f'({section.genres(*any_.genres)}) by up to {show(any_.gap, 2)}. In '
      f'{short} of {len(rows)} rows, ML(Sparse) is above what any four genres '
      'give, even the four that are best for that row. (It may come from '
      'genres that the paper does not print.)',
      f'The mean improvement of TD is {low}% over Genres 5 to 8 and {every}% '
      f'over all eight; the paper prints {numbers.TABLE1["td"].sparse:+.2f}% '
      'for ML(Sparse).',
    ],
  )


def images() -> section.Section:
  """Compares CIFAR and ImageNet of tables 1 and 2 with tables 4 and 6."""
  rows, verdicts, gaps = [], [], []
  scratch = map(intervals.exact, numbers.TABLE4['scratch'])
  for dataset, base in zip(section.DATASETS, scratch, strict=True):
    for name, row in section.IMPROVEMENTS.items():
      computed = intervals.improvement(
        intervals.exact(getattr(section.ACCURACY[name], dataset)),
        base,
        digits=5,
        better=intervals.HIGHER,
      )
      printed = intervals.exact(getattr(row, dataset))
      verdict = intervals.agrees(computed, printed, digits=2)
      # Truncation explains a difference that rounding does not.
      if verdict == 'no' and intervals.cut(computed.value, 2) == printed:
        verdict = 'cut off'
      verdicts.append(verdict)
      gaps.append((abs(computed.value - printed), f'{name} on {dataset}'))
      rows.append(
        [dataset, name, show(printed, 2, '+'), show(computed.value, 4, '+')]
        + [f'{show(computed.low, 4, "+")} to {show(computed.high, 4, "+")}']
        + [verdict]
      )
  gap, where = max(gaps)
  return section.Section(
    'Images of tables 1 and 2, and tables 4 and 6',
    section.table('dataset | row | printed | computed | range | agrees', rows),
    [
      'The CIFAR and ImageNet columns of tables 1 and 2 follow from tables 4 '
      f'and 6 in {section.tally(verdicts)} cells. In '
      f'{verdicts.count("cut off")} more the further digits were cut off '
      'instead of rounded. Cells that differ for another reason: '
      f'{verdicts.count("no")}. The largest gap is {show(gap, 3)} points '
      f'({where}).'
    ],
  )
