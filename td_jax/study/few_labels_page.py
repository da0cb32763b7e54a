"""The tables and figures of the study of few labels, from its finished cells."""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from td_jax.paper import cells as cells_lib
from td_jax.paper import figures
from td_jax.storage import files
from td_jax.study import regimes
from td_jax.training import statistics

_SPLITS = ('validation', 'test')
_TEACHER_TITLES = {
  'kept': 'Honest teacher: it never saw the hidden ratings',
  'all': "The paper's teacher: it learnt from the hidden ratings too",
}
_SOURCES = {
  'none': 'labelled ratings only',
  'rest': 'with the pairs of the hidden ratings',
  'pairs': 'with random pairs',
}


class Finished:
  """Finished cells, by regime, row and genre."""

  def __init__(self, rows: Sequence[Mapping[str, Any]]):
    self._cells = {
      (regimes.Regime(**row['regime']), row['row'], row['column']): row
      for row in rows
    }

  def has(self, regime: regimes.Regime, row: str) -> bool:
    """Whether a row has run in every genre."""
    return all((regime, row, c) in self._cells for c in regimes.COLUMNS)

  def cells(self, regime: regimes.Regime, row: str) -> list[Mapping[str, Any]]:
    """The cells of a row, by genre."""
    return [self._cells[regime, row, c] for c in regimes.COLUMNS]

  def per_seed(
    self, regime: regimes.Regime, row: str, split: str
  ) -> np.ndarray:
    """RMSE [genres, seeds]."""
    return np.asarray(
      [cell[split]['per_seed'] for cell in self.cells(regime, row)]
    )

  def teacher(self, regime: regimes.Regime, row: str, split: str) -> float:
    """The teacher's mean RMSE over the genres."""
    scores = [
      teacher[split]
      for cell in self.cells(regime, row)
      for teacher in cell['teachers'].values()
    ]
    return float(np.mean(scores))

  def baseline(
    self, regime: regimes.Regime, row: str, name: str, split: str
  ) -> float:
    """The mean RMSE over the genres of a model without a network."""
    cells = self.cells(regime, row)
    return float(np.mean([cell['baselines'][name][split] for cell in cells]))


class _Score(NamedTuple):
  mean: float
  standard_error: float | None


def render(rows: Sequence[Mapping[str, Any]], results: pathlib.Path) -> None:
  """Writes results/few_labels.md and, once there is a line, its figure."""
  finished = Finished(rows)
  text = page(finished)
  files.write_atomically(results / 'few_labels.md', text)
  print(text)
  if any(_lines(finished, teacher, 'test') for teacher in _TEACHER_TITLES):
    draw(finished, results / 'few_labels.png')


def page(finished: Finished) -> str:
  """All tables, as Markdown."""
  lines = [
    '# Few labels on MovieLens-100K',
    '',
    'Written by `python -m td_jax.study.few_labels --render`. RMSE, lower is '
    'better: means over the eight genres and all seeds, ± the standard error '
    'over seeds. Gains are differences from scratch with the same labels, '
    'paired over seeds. Weights were chosen on the validation split of '
    f'{" and ".join(regimes.TUNED_ON)}, with as many trials for each method and '
    'regime; those for 1% and 20% of the labels are those for 5%. Validation '
    'keeps all of its ratings, whatever the share of labels.',
    '',
  ]
  for teacher, title in _TEACHER_TITLES.items():
    lines += [f'## {title}', '']
    for share in regimes.SHARES:
      lines += _table(finished, share, teacher)
  return '\n'.join(lines).rstrip() + '\n'


def _table(finished: Finished, share: float, teacher: str) -> list[str]:
  """The rows of a share of labels and a teacher; [] if none has run."""
  scratch = regimes.Regime(share, 'all', 'none')
  if not finished.has(scratch, regimes.SCRATCH):
    return []
  shown = [
    (regime, row)
    for regime, row in regimes.rows()
    if (regime.share, regime.teacher) == (share, teacher)
    and row != regimes.SCRATCH
    and finished.has(regime, row)
  ]
  if not shown:
    return []
  body = []
  for regime, row in shown:
    cells = [figures.full_name(row), _SOURCES[regime.unlabelled]]
    for split in _SPLITS:
      ours = finished.per_seed(regime, row, split)
      theirs = finished.per_seed(scratch, regimes.SCRATCH, split)
      gap = cells_lib.difference((theirs - ours).mean(axis=0))
      cells += [
        _shown(_score(ours)),
        _shown(_Score(gap.mean, gap.standard_error), sign=True),
      ]
    body.append(cells)
  head = [
    ['No network: user+movie bias', 'labelled ratings only'],
    ['From scratch', 'labelled ratings only'],
    ['Teacher (frozen)', ''],
  ]
  for split in _SPLITS:
    bias = finished.baseline(scratch, regimes.SCRATCH, 'user+movie bias', split)
    own = finished.per_seed(scratch, regimes.SCRATCH, split)
    head[0] += [f'{bias:.4f}', '']
    head[1] += [_shown(_score(own)), '']
    head[2] += [f'{finished.teacher(*shown[0], split):.4f}', '']
  return [
    f'### {share:.0%} of the labels',
    '',
    '| | learns from | validation | gain | test | gain |',
    '|---|---|---|---|---|---|',
    *('| ' + ' | '.join(cells) + ' |' for cells in head + body),
    '',
  ]


def draw(finished: Finished, file: pathlib.Path) -> None:
  """RMSE against the share of labels, one panel for each teacher."""
  split = 'test'
  figure = figures.new(10.0, 4.6)
  panels = figure.subplots(1, 2, sharey=True)
  for axes, (teacher, title) in zip(
    panels, _TEACHER_TITLES.items(), strict=True
  ):
    for line in _lines(finished, teacher, split):
      shares, scores = zip(*line.points, strict=True)
      axes.errorbar(
        [100 * share for share in shares],
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
    axes.set_xticks(
      [100 * share for share in regimes.SHARES],
      [f'{share:.0%}' for share in regimes.SHARES],
    )
    axes.minorticks_off()
    axes.set_xlabel('share of the ratings that students see')
    axes.set_title(title, fontsize='medium')
    axes.grid(alpha=0.3)
  panels[0].set_ylabel(f'{split} RMSE, mean over 8 genres')
  handles, labels = panels[-1].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc='outside lower center', ncols=3, frameon=False
  )
  figures.save(figure, file)


class _Line(NamedTuple):
  label: str
  color: str
  style: str
  points: list[tuple[float, _Score]]  # (share, score)


def _lines(finished: Finished, teacher: str, split: str) -> list[_Line]:
  """The lines of a panel that have a point."""
  shown = (
    ('scratch', 'none', 'From scratch', figures.BLACK, '-'),
    ('ld', 'none', 'LD', figures.SKY_BLUE, '--'),
    ('ld', 'rest', 'LD with unlabelled pairs', figures.BLUE, '-'),
    ('td_ld', 'none', 'TD + LD', figures.ORANGE, '--'),
    ('td_ld', 'rest', 'TD + LD with unlabelled pairs', figures.VERMILION, '-'),
  )
  lines = []
  for row, source, label, color, style in shown:
    points = []
    for share in regimes.SHARES:
      full = share == regimes.SHARES[-1]
      regime = regimes.Regime(
        share,
        'all' if row == regimes.SCRATCH or full else teacher,
        'pairs' if full and source == 'rest' else source,
      )
      if finished.has(regime, row):
        points.append((share, _score(finished.per_seed(regime, row, split))))
    if points:
      lines.append(_Line(label, color, style, points))
  return lines


def _score(per_seed: np.ndarray) -> _Score:
  """Mean and standard error over seeds of the mean over the genres."""
  found = statistics.mean_and_stderr(per_seed.mean(axis=0))
  return _Score(found['mean'], found['standard_error'])


def _shown(score: _Score, *, sign: bool = False) -> str:
  text = f'{score.mean:+.4f}' if sign else f'{score.mean:.4f}'
  if score.standard_error is None:
    return text
  return f'{text} ± {score.standard_error:.4f}'
