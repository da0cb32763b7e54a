"""Tables in Markdown, made of finished cells."""

import collections
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np
from scipy import stats

from td_jax import errors
from td_jax import methods
from td_jax.paper import numbers
from td_jax.paper import table_specs
from td_jax.training import statistics

Cell = Mapping[str, Any]  # A line of results/movielens.jsonl or images.jsonl.

# Tables 1 and 2 are made of others: (the paper's, row of ours: the paper's).
_OVERALL = {
  '1': (
    ('3', '4'),
    numbers.TABLE1,
    {
      name: name if name in numbers.TABLE1 else ''
      for name in methods.METHODS
      if name != 'scratch'
    },
  ),
  '2': (
    ('5', '6'),
    numbers.TABLE2,
    {
      'td, k=0': 'no_interaction',
      'td': '1_iteration',
      'td, k=2': 'more_iterations',
    },
  ),
}
NAMES = tuple(sorted({*table_specs.TABLES, *_OVERALL}))
_SPARSE = 4  # The last so many genres stand for the paper's ML(Sparse).


def needs(name: str) -> tuple[str, ...]:
  """The tables of `table_specs.TABLES` whose cells table `name` shows."""
  return _OVERALL[name][0] if name in _OVERALL else (name,)


def table(name: str, cells: Mapping[str, Sequence[Cell]]) -> str:
  """Table `name` in Markdown.

  Args:
    name: Of `NAMES`.
    cells: For each domain its finished runs; several of one row and column are
      of different seeds.

  Raises:
    errors.DataError: nothing of it has been run.
  """
  if name in _OVERALL:
    return _overall(name, cells)
  shown = table_specs.TABLES[name]
  found, rows = common(shown.domain, shown.rows, cells)
  if not rows:
    raise errors.DataError(
      f'no row of table {name} has run in all its columns; run it without '
      '--render first.'
    )
  columns = found.columns
  better = 'lower' if found.lower_is_better else 'higher'
  lines = [
    f'**Table {name}: {shown.title}.** Test {found.metric}, mean +- standard '
    f'error over {found.per_seed(rows[0]).shape[1]} seeds; {better} is better.',
    '',
    '| | '
    + ' | '.join(columns)
    + ' | mean | over scratch | minus best baseline (p) | '
    + ('minus td (p) | ' if _is_ablation(shown) else '')
    + 'paper | paper, over scratch | s a seed |',
    '|---' * (len(columns) + 7 + _is_ablation(shown)) + '|',
  ]
  for control, scores in found.baselines():
    lines.append(_line([control, *_plain(scores), f'{np.mean(scores):.4f}']))
  scores = found.teacher()
  if scores:
    lines.append(
      _line(
        [
          'teacher (frozen)',
          *_plain(scores),
          f'{np.mean(scores):.4f}',
          *[''] * (2 + _is_ablation(shown)),
          _printed(shown, 'teacher', columns),
        ]
      )
    )
  lines += [_line(_cells(found, shown, row)) for row in rows]
  used = [found[row, column] for row in rows for column in columns]
  minutes = sum(cell['seconds'] for cell in used) / 60
  commits = ', '.join(sorted(set.union(*(cell['commits'] for cell in used))))
  lines += [
    '',
    f'{_span(cell["steps"] for cell in used)} steps of batch '
    f'{_span(cell["batch_size"] for cell in used)}; all cells '
    f'{minutes:.0f} min; commit {commits}.',
    '',
  ]
  return '\n'.join(lines)


def common(
  domain: str, rows: Iterable[str], cells: Mapping[str, Sequence[Cell]]
) -> 'tuple[Found, list[str]]':
  """Cells of the seeds that all of `rows` have, and those rows that have run."""
  found = Found(domain, cells[domain])
  rows = [row for row in rows if row in found.rows]
  count = min((found.per_seed(row).shape[1] for row in rows), default=None)
  return Found(domain, cells[domain], seeds=count), rows


def insert(page: pathlib.Path, mark: str, text: str) -> None:
  """Puts `text` between the two lines of `mark`, where `page` has them."""
  if not page.exists():
    return
  first, last = f'<!-- {mark} -->\n', f'<!-- end of {mark} -->\n'
  before, found, rest = page.read_text().partition(first)
  _, end, after = rest.partition(last)
  if found and end:
    page.write_text(before + first + text + last + after)


class Found:
  """Finished cells of a domain, by row and column."""

  def __init__(
    self, domain: str, cells: Sequence[Cell], *, seeds: int | None = None
  ):
    """Of the first `seeds` of each; None: of all."""
    runs = collections.defaultdict(list)
    for cell in cells:
      runs[cell['row'], cell['column']].append(cell)
    self._cells = {at: _joined(each, seeds) for at, each in runs.items()}
    present = {column for _, column in self._cells}
    self.columns = [c for c in table_specs.COLUMNS[domain] if c in present]
    named = dict.fromkeys(row for row, _ in self._cells)
    # Means are of rows that ran in all columns.
    self.rows = [
      row
      for row in named
      if all((row, column) in self._cells for column in self.columns)
    ]
    self.metric = cells[0]['metric'] if cells else ''
    self.lower_is_better = self.metric == 'rmse'

  def __getitem__(self, at):
    return self._cells[at]

  def per_seed(self, row):
    """Test scores [columns, seeds] of a row, of seeds that all columns have."""
    scores = [self[row, column]['test']['per_seed'] for column in self.columns]
    return np.asarray([each[: min(map(len, scores))] for each in scores])

  def controls(self):
    """(name, scores) of what needs no network, where all columns have it."""
    cells = [self[self.rows[0], column] for column in self.columns]
    for control in cells[0]['baselines']:
      yield control, [cell['baselines'][control]['test'] for cell in cells]

  def teacher(self):
    """The frozen teacher's scores, [] where no row had one."""
    for row in self.rows:
      cells = [self[row, column]['teacher'] for column in self.columns]
      if all(cells):
        return [cell['test'] for cell in cells]
    return []

  def paired(self, row, other):
    """Test scores [columns, seeds] of two rows, of the seeds that both have."""
    ours, theirs = self.per_seed(row), self.per_seed(other)
    count = min(ours.shape[1], theirs.shape[1])  # The first are the same.
    return ours[:, :count], theirs[:, :count]

  def over_scratch(self, row):
    """Relative improvement [columns] of the mean scores, in percent."""
    scores, scratch = (s.mean(axis=1) for s in self.paired(row, 'scratch'))
    change = 100 * (scores - scratch) / scratch
    return -change if self.lower_is_better else change

  def error_over_scratch(self, row):
    """Standard error of its mean over columns, paired over seeds; or None."""
    scores, scratch = self.paired(row, 'scratch')
    change = (scores - scratch) / scratch.mean(axis=1, keepdims=True)
    return statistics.mean_and_stderr(100 * change.mean(axis=0))[
      'standard_error'
    ]

  def best_baseline(self, row):
    """Of the other rows that are baselines, by mean; None if there is none."""
    others = [r for r in table_specs.BASELINES if r in self.rows and r != row]
    best = min if self.lower_is_better else max
    return best(others, key=lambda r: self.per_seed(r).mean(), default=None)


def _joined(runs, seeds):
  """One cell of the runs of a row and column, each of some of its seeds."""
  recipe = ('method', 'k', 'steps', 'batch_size')
  if len({tuple(run[key] for key in recipe) for run in runs}) > 1:
    raise errors.DataError(
      f'{runs[0]["row"]}, {runs[0]["column"]} has runs that differ in '
      f'{" or ".join(recipe)}; take those of old settings out of the results.'
    )
  found = {}
  for run in runs:  # Of a seed that ran twice the last counts.
    share = run['seconds'] / len(run['seeds'])
    for seed, score in zip(run['seeds'], run['test']['per_seed'], strict=True):
      found[seed] = score, share, run['commit']
  kept = sorted(found)[:seeds]
  scores, seconds, commits = zip(*(found[seed] for seed in kept), strict=True)
  return {
    **runs[-1],
    'seeds': kept,
    'test': statistics.mean_and_stderr(scores),
    'seconds': sum(seconds),
    'commits': set(commits),
  }


def _cells(found, shown, row):
  """The texts of one row."""
  cells = [found[row, column] for column in found.columns]
  name = row
  if 'talk' in methods.METHODS[cells[0]['method']]:
    name += '' if 'k=' in row else f' (k={_span(c["k"] for c in cells)})'
  per_seed = found.per_seed(row)
  texts = [name]
  for cell in cells:
    error = cell['test']['standard_error']
    texts.append(
      f'{cell["test"]["mean"]:.4f}'
      + ('' if error is None else f' +- {error:.4f}')
    )
  texts.append(f'{per_seed.mean():.4f}')
  over = ''
  if 'scratch' in found.rows and row != 'scratch':
    over = f'{found.over_scratch(row).mean():+.2f}%'
  texts += [over, _apart(found, row, found.best_baseline(row))]
  if _is_ablation(shown):
    texts.append(_apart(found, row, 'td' if row != 'td' else None))
  texts.append(_printed(shown, row, found.columns))
  printed = paper_over_scratch(shown, row, found)
  texts.append('' if printed is None else f'{printed:+.2f}%')
  seconds = sum(c['seconds'] for c in cells) / per_seed.size
  return [*texts, f'{seconds:.1f}']


def _is_ablation(shown):
  """Whether the rows are kinds of TD, to be compared with it."""
  return not set(table_specs.BASELINES) & set(shown.rows)


def _apart(found, row, other):
  """The row minus the other, paired seed by seed, and its p; or ''."""
  if other not in found.rows:
    return ''
  ours, theirs = found.paired(row, other)
  gap = statistics.mean_and_stderr((ours - theirs).mean(axis=0))
  count = len(gap['per_seed'])
  if count < 2:
    return f'{gap["mean"]:+.4f} to {other}'
  error = gap['standard_error']
  text = f'{gap["mean"]:+.4f} +- {error:.4f} to {other}'
  if not error:
    return text
  p = 2 * stats.t.sf(abs(gap['mean']) / error, count - 1)  # Student's, paired.
  return f'{text} ({p:.2g})'


def _numbers(printed, columns):
  """The paper's numbers of a row in these columns."""
  if isinstance(printed, numbers.Scores):
    return [
      printed.mean[table_specs.COLUMNS['movielens'].index(c)] for c in columns
    ]
  return [getattr(printed, column) for column in columns]


def _printed(shown, row, columns):
  """The mean of the paper's numbers, or ''."""
  key = shown.rows.get(row, row)
  if key not in shown.printed:
    return ''
  return f'{np.mean(_numbers(shown.printed[key], columns)):.4f}'


def paper_over_scratch(
  shown: table_specs.Table, row: str, found: Found
) -> float | None:
  """The paper's mean improvement over its scratch in percent, if it has any."""
  key = shown.rows.get(row, row)
  against = numbers.TABLE3 if shown.domain == 'movielens' else numbers.TABLE4
  if key not in shown.printed or row == 'scratch':
    return None
  scratch = np.asarray(_numbers(against['scratch'], found.columns))
  change = np.asarray(_numbers(shown.printed[key], found.columns)) / scratch - 1
  return float(100 * (-change if found.lower_is_better else change).mean())


def _overall(name, cells):
  """Tables 1 and 2: percent over scratch in five columns, and their mean."""
  _, printed, rows = _OVERALL[name]
  found = {
    domain: common(domain, ('scratch', *rows), cells)[0]
    for domain in table_specs.COLUMNS
  }
  heads = ('ML(Dense)', 'ML(Sparse)', 'CIFAR10', 'CIFAR100', 'ImageNet')
  lines = [
    f'**Table {name}: percent over scratch, from the tables of each domain.** '
    f'ML(Dense) is {table_specs.COLUMNS["movielens"][0]}, ML(Sparse) the mean of '
    f'{", ".join(table_specs.COLUMNS["movielens"][-_SPARSE:])}; the paper does not '
    'say which genres its own is of. CIFAR at laptop scale; ImageNet needs '
    'TPUs and has not run. Means are true means of the columns that are there.',
    '',
    '| | ' + ' | '.join(heads) + ' | mean | paper: ' + ' | '.join(heads) + ' |'
    ' true mean |',
    '|---' * 13 + '|',
  ]
  for row, key in rows.items():
    ours = _improvements(found, row)
    if not ours:
      continue
    texts = [row, *(f'{ours[h]:+.2f}' if h in ours else '' for h in heads)]
    texts.append(f'{np.mean(list(ours.values())):+.2f}')
    if key in printed:
      numbers = list(printed[key])[: len(heads)]
      texts += [*(f'{n:+.2f}' for n in numbers), f'{np.mean(numbers):+.2f}']
    lines.append(_line(texts))
  if len(lines) == 4:
    raise errors.DataError(
      f'none of the rows of table {name} has run; run it without --render '
      'first.'
    )
  return '\n'.join([*lines, ''])


def _improvements(found, row):
  """Percent over scratch by column of tables 1 and 2, where it has run."""
  shown = {}
  ratings, images = found['movielens'], found['images']
  if {row, 'scratch'} <= set(ratings.rows):
    over = ratings.over_scratch(row)
    shown['ML(Dense)'] = over[0]
    shown['ML(Sparse)'] = np.mean(over[-_SPARSE:])
  if {row, 'scratch'} <= set(images.rows):
    over = images.over_scratch(row)
    shown |= {
      column.upper(): value
      for column, value in zip(images.columns, over, strict=True)
    }
  return shown


def _plain(scores):
  return [f'{score:.4f}' for score in scores]


def _line(texts):
  return '| ' + ' | '.join(texts) + ' |'


def _span(numbers: Iterable[int]) -> str:
  numbers = list(numbers)
  return ' to '.join(str(n) for n in sorted({min(numbers), max(numbers)}))
