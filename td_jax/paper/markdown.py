"""Tables in Markdown, made from finished cells."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import pathlib
from typing import Any

import numpy as np

from td_jax import errors
from td_jax import methods
from td_jax.configs import movielens as movielens_config
from td_jax.paper import cells as cells_lib
from td_jax.paper import figures
from td_jax.paper import numbers
from td_jax.paper import table_specs
from td_jax.storage import files

# Tables 1 and 2 are made from others: (the paper's, our row: the paper's row).
_OVERALL = {
  '1': (
    ('3', '4'),
    numbers.TABLE1,
    {
      'ld': 'ld',
      'fd': 'fd',
      'fitnet': 'fitnet',
      'hybrid': 'hybrid',
      'td': 'td',
      'td_ld': '',
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
# The paper does not name the four genres of its ML(Sparse). The last four are
# those with the fewest ratings.
_SPARSE = 4
_METRICS = {'rmse': 'RMSE'}  # As text; other names are shown as they are.
_SUMMARY = '3'  # The table that docs/results.md summarises.


def needs(name: str) -> tuple[str, ...]:
  """The tables of `table_specs.TABLES` whose cells table `name` shows."""
  return _OVERALL[name][0] if name in _OVERALL else (name,)


def table(name: str, cells: Mapping[str, Sequence[cells_lib.Cell]]) -> str:
  """Table `name` in Markdown.

  Args:
    name: One of `NAMES`.
    cells: For each domain its finished runs, as `cells.read` returns them.

  Raises:
    errors.DataError: none of its rows has run.
  """
  if name in _OVERALL:
    return _overall(name, cells)
  spec = table_specs.TABLES[name]
  finished, rows = cells_lib.common(spec.domain, spec.rows, cells)
  if not rows:
    raise errors.DataError(
      f'no row of table {name} has run in all its columns; run it without '
      '--render first.'
    )
  # Ablations have one more column: they are variants of TD, and are compared
  # with it as well.
  ablation = _is_ablation(spec)
  heads = [
    '',
    *finished.columns,
    'mean',
    'over scratch',
    'minus best baseline (p)',
    *(['minus td (p)'] if ablation else []),
    'paper',
    'paper, over scratch',
    'seconds per seed',
  ]
  lines = []
  for baseline, scores in finished.baselines():
    lines.append([baseline, *_plain(scores), f'{np.mean(scores):.4f}'])
  for teacher, scores in finished.teachers().items():
    lines.append(
      [
        f'{teacher} (frozen)',
        *_plain(scores),
        f'{np.mean(scores):.4f}',
        *[''] * (2 + ablation),
        _paper_mean(spec, teacher, finished.columns),
      ]
    )
  # Only a significant winner is bold, lest a reader takes noise for a ranking.
  winner = finished.winner(rows)
  for row in rows:
    lines.append(_texts(finished, spec, row, bold=row == winner))
  return '\n'.join(
    [
      f'**Table {name}: {spec.title}.** {_caption(finished, rows)}',
      '',
      *_grid(heads, lines),
      '',
      _footer(finished, rows),
      '',
    ]
  )


def summary(cells: Mapping[str, Sequence[cells_lib.Cell]]) -> str:
  """The small version of table 3 that docs/results.md shows.

  Args:
    cells: As of `table`.

  Raises:
    errors.DataError: `scratch`, to which the others are compared, has not run.
  """
  spec = table_specs.TABLES[_SUMMARY]
  finished, rows = cells_lib.common(spec.domain, spec.rows, cells)
  if 'scratch' not in rows:
    raise errors.DataError(
      f'the summary of table {_SUMMARY} needs its row scratch; run it without '
      '--render first.'
    )
  metric = _METRICS.get(finished.metric, finished.metric)
  lines = []
  for baseline, scores in finished.baselines():
    lines.append([f'No network: {baseline}', f'{np.mean(scores):.4f}'])
  for scores in finished.teachers().values():
    lines.append(['Teacher (frozen)', f'{np.mean(scores):.4f}'])
  winner = finished.winner(rows)
  for row in rows:
    texts = [
      figures.full_name(row),
      f'{finished.per_seed(row).mean():.4f}',
      _over_scratch(finished, row),
      _paper_over_scratch(spec, row, finished),
    ]
    lines.append(_bold(texts) if row == winner else texts)
  heads = ['', f'mean {metric}', 'over scratch', 'over scratch in the paper']
  return '\n'.join(
    [
      *_grid(heads, lines),
      '',
      f'Test {metric}, {"lower" if finished.lower_is_better else "higher"} is '
      f'better: means over {len(finished.columns)} genres and '
      f'{_seed_count(finished, rows)} seeds.'
      + _about_bold(finished, winner, figures.full_name),
      '',
    ]
  )


def insert(page: pathlib.Path, mark: str, text: str) -> None:
  """Puts `text` between the two lines of `mark`, where `page` has them."""
  if not page.exists():
    return
  first, last = f'<!-- {mark} -->\n', f'<!-- end of {mark} -->\n'
  # Text outside the marks is written by hand and must survive. A page without
  # both marks is left alone.
  before, start, rest = page.read_text().partition(first)
  _, end, after = rest.partition(last)
  if start and end:
    files.write_atomically(page, before + first + text + last + after)


def paper_over_scratch(
  spec: table_specs.Table, row: str, finished: cells_lib.FinishedCells
) -> float | None:
  """The paper's mean improvement over its scratch in percent, or None."""
  key = spec.rows.get(row, row)
  against = numbers.TABLE3 if spec.domain == 'movielens' else numbers.TABLE4
  if key not in spec.printed or row == 'scratch':
    return None
  # Relative changes are averaged, not scores: this is how our own column is
  # computed, and the genres differ in level.
  scratch = np.asarray(_paper_scores(against['scratch'], finished.columns))
  scores = np.asarray(_paper_scores(spec.printed[key], finished.columns))
  change = scores / scratch - 1
  return float(100 * (-change if finished.lower_is_better else change).mean())


def _caption(finished: cells_lib.FinishedCells, rows: Sequence[str]) -> str:
  metric = _METRICS.get(finished.metric, finished.metric)
  better = 'lower' if finished.lower_is_better else 'higher'
  about_bold = _about_bold(finished, finished.winner(rows))
  return (
    f'Test {metric}, mean ± standard error over '
    f'{_seed_count(finished, rows)} seeds; {better} is better.{about_bold}'
  )


def _about_bold(
  finished: cells_lib.FinishedCells,
  winner: str | None,
  name: Callable[[str], str] = str,
) -> str:
  """What bold means; '' if nothing is bold. `name` names the baseline."""
  baseline = finished.best_baseline(winner) if winner else None
  if winner is None or baseline is None:
    return ''
  return (
    f' Bold: the best row, which beats the best baseline, {name(baseline)}, '
    f'with p = {finished.difference(winner, baseline).p:.2g} (t-test paired '
    'over seeds).'
  )


def _footer(finished: cells_lib.FinishedCells, rows: Sequence[str]) -> str:
  """Steps, batch sizes, time and commits of the cells in a table."""
  used = [finished[row, column] for row in rows for column in finished.columns]
  minutes = sum(cell['seconds'] for cell in used) / 60
  commits = sorted(set.union(*(cell['commits'] for cell in used)))
  return (
    f'{_span(cell["steps"] for cell in used)} steps of batch size '
    f'{_span(cell["batch_size"] for cell in used)}; all cells took '
    f'{minutes:.0f} min; commit {", ".join(commits)}.'
  )


def _texts(
  finished: cells_lib.FinishedCells,
  spec: table_specs.Table,
  row: str,
  *,
  bold: bool,
) -> list[str]:
  """The texts of one row."""
  cells = [finished[row, column] for column in finished.columns]
  # k is shown where it can differ between runs: rows of ablations name it.
  name = table_specs.NAMES.get((spec.domain, row), row)
  if _uses_rounds(cells[0]['method']) and 'k=' not in row:
    name += f' (k={_span(cell["k"] for cell in cells)})'
  per_seed = finished.per_seed(row)
  mean = f'{per_seed.mean():.4f}'
  if bold:
    name, mean = _bold([name, mean])
  texts = [name]
  for cell in cells:
    error = cell['test']['standard_error']
    texts.append(
      f'{cell["test"]["mean"]:.4f}'
      + ('' if error is None else f' ± {error:.4f}')
    )
  texts += [
    mean,
    _over_scratch(finished, row),
    _difference(finished, row, finished.best_baseline(row)),
  ]
  if _is_ablation(spec):
    texts.append(_difference(finished, row, 'td' if row != 'td' else None))
  texts += [
    _paper_mean(spec, row, finished.columns),
    _paper_over_scratch(spec, row, finished),
  ]
  # Seeds train side by side in one program, so that this is a share of its time.
  seconds = sum(cell['seconds'] for cell in cells) / per_seed.size
  return [*texts, f'{seconds:.1f}']


# Cached, because a config is built for every row.
@functools.cache
def _uses_rounds(method_name: str) -> bool:
  """Whether `config.k`, the rounds of the conversation, matters to a method."""
  config = movielens_config.get_config(f'method={method_name}')
  # The task's loss has no say in whether a method has rounds.
  required = methods.needs(config, task_loss='squared_error')
  return methods.Need.ROUNDS in required


def _is_ablation(spec: table_specs.Table) -> bool:
  """Whether the rows are variants of TD, to be compared with it."""
  return not set(table_specs.BASELINE_METHODS) & set(spec.rows)


def _over_scratch(finished: cells_lib.FinishedCells, row: str) -> str:
  if 'scratch' not in finished.rows or row == 'scratch':
    return ''
  return f'{finished.over_scratch(row).mean():+.2f}%'


def _paper_over_scratch(
  spec: table_specs.Table, row: str, finished: cells_lib.FinishedCells
) -> str:
  percent = paper_over_scratch(spec, row, finished)
  return '' if percent is None else f'{percent:+.2f}%'


def _difference(
  finished: cells_lib.FinishedCells, row: str, other: str | None
) -> str:
  """The row minus the other, and its p; '' if there is no other."""
  if other is None or other not in finished.rows:
    return ''
  gap = finished.difference(row, other)
  if gap.standard_error is None:
    return f'{gap.mean:+.4f} to {other}'
  text = f'{gap.mean:+.4f} ± {gap.standard_error:.4f} to {other}'
  return text if gap.p is None else f'{text} ({gap.p:.2g})'


def _paper_scores(printed: Any, columns: Sequence[str]) -> list[float]:
  """The paper's numbers of a row in these columns."""
  if isinstance(printed, numbers.Scores):
    order = table_specs.COLUMNS['movielens']
    return [printed.mean[order.index(column)] for column in columns]
  return [getattr(printed, column) for column in columns]


def _paper_mean(
  spec: table_specs.Table, row: str, columns: Sequence[str]
) -> str:
  """The mean of the paper's numbers, or ''."""
  key = spec.rows.get(row, row)
  if key not in spec.printed:
    return ''
  return f'{np.mean(_paper_scores(spec.printed[key], columns)):.4f}'


def _overall(name: str, cells: Mapping[str, Sequence[cells_lib.Cell]]) -> str:
  """Tables 1 and 2: percent over scratch in five columns, and their mean."""
  _, printed, rows = _OVERALL[name]
  finished = {
    domain: cells_lib.common(domain, ('scratch', *rows), cells)[0]
    for domain in table_specs.COLUMNS
  }
  heads = ('ML(Dense)', 'ML(Sparse)', 'CIFAR10', 'CIFAR100', 'ImageNet')
  genres = table_specs.COLUMNS['movielens']
  lines = []
  for row, key in rows.items():
    ours = _improvements(finished, row)
    if not ours:
      continue
    texts = [row, *(f'{ours[h]:+.2f}' if h in ours else '' for h in heads)]
    texts.append(f'{np.mean(list(ours.values())):+.2f}')
    if key in printed:
      # Without the sixth number, the average that the paper prints.
      paper = list(printed[key])[: len(heads)]
      texts += [*(f'{n:+.2f}' for n in paper), f'{np.mean(paper):+.2f}']
    lines.append(texts)
  if not lines:
    raise errors.DataError(
      f'none of the rows of table {name} has run; run it without --render '
      'first.'
    )
  return '\n'.join(
    [
      f'**Table {name}: percent over scratch, from the tables of each '
      f'domain.** ML(Dense) is {genres[0]}; ML(Sparse) is the mean of '
      f'{", ".join(genres[-_SPARSE:])}. The paper does not name the genres '
      'behind its own two columns. CIFAR ran at laptop scale; ImageNet needs '
      'TPUs and has not run. A mean is over the columns that have run; the '
      "paper's is recomputed here, because its own average divides five columns "
      'by four.',
      '',
      *_grid(
        ['', *heads, 'mean', f'paper: {heads[0]}', *heads[1:], 'true mean'],
        lines,
      ),
      '',
    ]
  )


def _improvements(
  finished: Mapping[str, cells_lib.FinishedCells], row: str
) -> dict[str, float]:
  """Percent over scratch by column of tables 1 and 2, where it has run."""
  improvements = {}
  ratings, images = finished['movielens'], finished['images']
  if {row, 'scratch'} <= set(ratings.rows):
    over = ratings.over_scratch(row)
    improvements['ML(Dense)'] = over[0]
    improvements['ML(Sparse)'] = np.mean(over[-_SPARSE:])
  if {row, 'scratch'} <= set(images.rows):
    over = images.over_scratch(row)
    improvements |= {
      column.upper(): value
      for column, value in zip(images.columns, over, strict=True)
    }
  return improvements


def _seed_count(finished: cells_lib.FinishedCells, rows: Sequence[str]) -> int:
  return finished.per_seed(rows[0]).shape[1]


def _plain(scores: Iterable[float]) -> list[str]:
  return [f'{score:.4f}' for score in scores]


def _bold(texts: Iterable[str]) -> list[str]:
  return [f'**{text}**' if text else '' for text in texts]


def _grid(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
  """Rows of Markdown."""
  # Stricter renderers than GitHub's drop a line that has too few cells.
  padded = [[*line, *[''] * (len(heads) - len(line))] for line in lines]
  return [
    '| ' + ' | '.join(heads) + ' |',
    '|---' * len(heads) + '|',
    *('| ' + ' | '.join(line) + ' |' for line in padded),
  ]


def _span(values: Iterable[int]) -> str:
  """The least and the greatest, such as '500 to 4000', or the only one."""
  values = list(values)
  return ' to '.join(str(n) for n in sorted({min(values), max(values)}))
