"""The finished cells of the tables, and what is computed from their scores.

A cell is a row (a method and its settings) in a column (a genre or a dataset).
"""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np
from scipy import stats

from td_jax import errors
from td_jax.paper import table_specs
from td_jax.run import results
from td_jax.storage import results_log
from td_jax.training import statistics

Cell = Mapping[str, Any]  # A line of results/movielens.jsonl or images.jsonl.


class Difference(NamedTuple):
  """How two rows differ in their mean over the columns, paired over seeds."""

  mean: float
  standard_error: float | None  # None for a single seed.
  p: float | None  # Two-sided, Student's t; None where no error is known.


class FinishedCells:
  """Finished cells of a domain, by row and column."""

  def __init__(
    self, domain: str, cells: Sequence[Cell], *, seeds: int | None = None
  ):
    """Takes cells in the form of `results.upgraded`.

    Args:
      domain: A key of `table_specs.COLUMNS`.
      cells: Finished runs; several of one row and column have other seeds.
      seeds: How many seeds of each cell to use, the first ones; None: all.
    """
    runs = collections.defaultdict(list)
    for cell in cells:
      runs[cell['row'], cell['column']].append(cell)
    self._cells = {key: _joined(each, seeds) for key, each in runs.items()}
    present = {column for _, column in self._cells}
    self.columns = [c for c in table_specs.COLUMNS[domain] if c in present]
    names = dict.fromkeys(row for row, _ in self._cells)
    # A mean over other columns could not be compared, so that a row which has
    # not run in every column is left out.
    self.rows = [
      row
      for row in names
      if all((row, column) in self._cells for column in self.columns)
    ]
    self.metric = cells[0]['metric'] if cells else ''
    self.lower_is_better = self.metric == 'rmse'

  def __getitem__(self, key: tuple[str, str]) -> dict[str, Any]:
    return self._cells[key]

  def per_seed(self, row: str) -> np.ndarray:
    """Test scores [columns, seeds] of a row, for the seeds in all columns."""
    scores = [self[row, column]['test']['per_seed'] for column in self.columns]
    return np.asarray([each[: min(map(len, scores))] for each in scores])

  def baselines(self) -> Iterator[tuple[str, list[float]]]:
    """(name, scores) of the network-free models that all columns have."""
    cells = [self[self.rows[0], column] for column in self.columns]
    for name in cells[0]['baselines']:
      yield name, [cell['baselines'][name]['test'] for cell in cells]

  def teachers(self) -> dict[str, list[float]]:
    """{name: scores} of the frozen teachers, of the first row with any."""
    for row in self.rows:
      teachers = [self[row, column]['teachers'] for column in self.columns]
      if all(teachers):
        return {
          name: [each[name]['test'] for each in teachers]
          for name in teachers[0]
        }
    return {}

  def paired(self, row: str, other: str) -> tuple[np.ndarray, np.ndarray]:
    """Test scores [columns, seeds] of two rows, for the seeds that both have."""
    ours, theirs = self.per_seed(row), self.per_seed(other)
    # Seeds are numbered from 0, so that the first ones are the same.
    count = min(ours.shape[1], theirs.shape[1])
    return ours[:, :count], theirs[:, :count]

  def over_scratch(self, row: str) -> np.ndarray:
    """Relative improvement [columns] of the mean scores, in percent."""
    scores, scratch = (s.mean(axis=1) for s in self.paired(row, 'scratch'))
    change = 100 * (scores - scratch) / scratch
    return -change if self.lower_is_better else change

  def gain_per_seed(self, row: str) -> np.ndarray:
    """The mean over columns of the gain over scratch [seeds], in percent."""
    scores, scratch = self.paired(row, 'scratch')
    # Over scratch's mean, not its seed's score: the mean of these is then that
    # of `over_scratch`.
    change = (scores - scratch) / scratch.mean(axis=1, keepdims=True)
    return 100 * (-change if self.lower_is_better else change).mean(axis=0)

  def error_over_scratch(self, row: str) -> float | None:
    """Standard error of the mean of `over_scratch`, paired over seeds."""
    gains = self.gain_per_seed(row)
    return statistics.mean_and_stderr(gains)['standard_error']

  def difference(self, row: str, other: str) -> Difference:
    """The mean score of `row` minus that of `other`, paired over seeds."""
    ours, theirs = self.paired(row, other)
    return difference((ours - theirs).mean(axis=0))

  def best_baseline(self, row: str) -> str | None:
    """The best baseline method by mean, other than `row`; None without any."""
    return self._best(
      r for r in table_specs.BASELINE_METHODS if r in self.rows and r != row
    )

  def winner(self, rows: Iterable[str]) -> str | None:
    """The best of `rows` if it beats the best baseline at p < 0.05."""
    best = self._best(rows)
    baseline = self.best_baseline(best) if best else None
    if best is None or baseline is None:
      return None
    gap = self.difference(best, baseline)
    better = gap.mean < 0 if self.lower_is_better else gap.mean > 0
    return best if better and gap.p is not None and gap.p < 0.05 else None

  def _best(self, rows: Iterable[str]) -> str | None:
    best = min if self.lower_is_better else max
    return best(rows, key=lambda r: self.per_seed(r).mean(), default=None)


def difference(per_seed: np.ndarray) -> Difference:
  """The mean of differences [seeds], and how likely chance makes it so large."""
  gap = statistics.mean_and_stderr(per_seed)
  mean, error = gap['mean'], gap['standard_error']
  p = None
  # Without an error (one seed, or equal scores) t is undefined.
  if error:
    p = float(2 * stats.t.sf(abs(mean) / error, len(per_seed) - 1))
  return Difference(mean, error, p)


def read(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
  """{domain: finished runs} of a folder of results, in today's form."""
  return {
    domain: [
      results.upgraded(row)
      for row in results_log.read(folder / f'{domain}.jsonl')
    ]
    for domain in table_specs.COLUMNS
  }


def common(
  domain: str, rows: Iterable[str], cells: Mapping[str, Sequence[Cell]]
) -> tuple[FinishedCells, list[str]]:
  """Cells of the seeds that all of `rows` have, and the rows that have run."""
  every_seed = FinishedCells(domain, cells[domain])
  rows = [row for row in rows if row in every_seed.rows]
  count = min((every_seed.per_seed(row).shape[1] for row in rows), default=None)
  return FinishedCells(domain, cells[domain], seeds=count), rows


def _joined(runs: Sequence[Cell], seeds: int | None) -> dict[str, Any]:
  """One cell made from the runs of a row and column, which differ in seeds."""
  recipe = ('method', 'k', 'steps', 'batch_size')
  if len({tuple(run[key] for key in recipe) for run in runs}) > 1:
    raise errors.DataError(
      f'{runs[0]["row"]}, {runs[0]["column"]} has runs that differ in '
      f'{" or ".join(recipe)}; remove the rows of old settings from the results.'
    )
  by_seed = {}
  # Rows are in the order in which they were appended: if a seed ran twice, the
  # last run counts.
  for run in runs:
    share = run['seconds'] / len(run['seeds'])
    for seed, score in zip(run['seeds'], run['test']['per_seed'], strict=True):
      by_seed[seed] = score, share, run['commit']
  chosen = sorted(by_seed)[:seeds]
  scores, seconds, commits = zip(
    *(by_seed[seed] for seed in chosen), strict=True
  )
  return {
    **runs[-1],
    'seeds': chosen,
    'test': statistics.mean_and_stderr(scores),
    'seconds': sum(seconds),
    'commits': set(commits),
  }
