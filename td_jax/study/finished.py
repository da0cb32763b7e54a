"""The finished cells of a study, and what its pages compute from them."""

import collections
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import numpy as np

from td_jax.paper import cells as cells_lib
from td_jax.training import statistics

Regime = Any  # As in `design.py`.


class Score(NamedTuple):
  """A mean over choices of labels, or over seeds."""

  mean: float
  standard_error: float | None  # None for a single one.

  def text(self, *, sign: bool = False) -> str:
    """Such as '0.9930 ± 0.0004'."""
    text = f'{self.mean:+.4f}' if sign else f'{self.mean:.4f}'
    if self.standard_error is None:
      return text
    return f'{text} ± {self.standard_error:.4f}'


class Line(NamedTuple):
  """A line of a figure."""

  label: str
  color: str
  style: str
  points: list[tuple[float, Score]]  # (labels, score)


class Finished:
  """Finished cells of some columns, by regime and row."""

  def __init__(
    self,
    rows: Sequence[Mapping[str, Any]],
    design: Any,
    columns: Sequence[str],
  ):
    """Takes the rows of a file of cells.

    Args:
      rows: The rows; those of other columns are ignored.
      design: A `design.Design`.
      columns: The columns over which scores are averaged.
    """
    self._draws, self._columns = design.draws, columns
    self._cells = collections.defaultdict(list)
    # In the order of their draws, so that rows are paired with each other.
    for row in sorted(rows, key=lambda row: row['draw']):
      key = design.Regime(**row['regime']), row['row'], row['column']
      self._cells[key].append(row)

  def has(self, regime: Regime, row: str) -> bool:
    """Whether a row has run in every column, with every choice of labels."""
    wanted = len(self._draws(regime))
    return all(
      len(self._cells.get((regime, row, column), ())) == wanted
      for column in self._columns
    )

  def cells(self, regime: Regime, row: str) -> list[Mapping[str, Any]]:
    """The cells of a row, by column and then by draw of the labels."""
    return [cell for c in self._columns for cell in self._cells[regime, row, c]]

  def samples(self, regime: Regime, row: str, split: str) -> np.ndarray:
    """Scores [n], means over the columns: one for each choice of labels.

    Students with the same labels are not independent, so that they count as one.
    With all labels there is a score for each seed.
    """
    return self._samples(regime, row, lambda cell: cell[split]['per_seed'])

  def teacher_samples(self, regime: Regime, row: str, split: str) -> np.ndarray:
    """The scores [n] of the teacher of each of `samples`."""
    return self._samples(
      regime,
      row,
      lambda cell: (
        [np.mean([each[split] for each in cell['teachers'].values()])]
        * len(cell[split]['per_seed'])
      ),
    )

  def baseline_samples(
    self, regime: Regime, row: str, name: str, split: str
  ) -> np.ndarray:
    """The scores [n] of a model without a network, for each of `samples`."""
    return self._samples(
      regime,
      row,
      lambda cell: (
        [cell['baselines'][name][split]] * len(cell[split]['per_seed'])
      ),
    )

  def _samples(
    self,
    regime: Regime,
    row: str,
    scores: Callable[[Mapping[str, Any]], Sequence[Any]],
  ) -> np.ndarray:
    per_seed = np.asarray(
      [
        [scores(cell) for cell in self._cells[regime, row, column]]
        for column in self._columns
      ]
    )  # [columns, draws, seeds]
    per_seed = per_seed.mean(axis=0)
    return per_seed[0] if len(per_seed) == 1 else per_seed.mean(axis=1)

  def score(self, regime: Regime, row: str, split: str) -> Score:
    """The mean score of a row."""
    return mean(self.samples(regime, row, split))

  def difference(
    self,
    one: tuple[Regime, str],
    other: tuple[Regime, str],
    split: str,
  ) -> cells_lib.Difference:
    """The score of (regime, row) `one` minus `other`, sample by sample."""
    return cells_lib.difference(
      self.samples(*one, split) - self.samples(*other, split)
    )


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
  """A table in Markdown, and an empty line."""
  rows = [head, ['---'] * len(head), *body]
  return [*('| ' + ' | '.join(row) + ' |' for row in rows), '']


def plot(axes: Any, lines: Sequence[Line]) -> None:
  """Draws lines with error bars over a logarithmic number of labels."""
  for line in lines:
    labels, scores = zip(*line.points, strict=True)
    axes.errorbar(
      labels,
      [score.mean for score in scores],
      yerr=[score.standard_error or 0 for score in scores],
      label=line.label,
      color=line.color,
      linestyle=line.style,
      marker='o',
      ms=4,
      capsize=3,
    )
  axes.set_xscale('log')
  axes.minorticks_off()
  axes.grid(alpha=0.3)


def mean(samples: np.ndarray) -> Score:
  """The mean of samples [n] and its standard error."""
  found = statistics.mean_and_stderr(samples)
  return Score(found['mean'], found['standard_error'])
