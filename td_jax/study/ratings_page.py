"""The tables and the figure of the study of few labels on MovieLens."""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

from td_jax.paper import figures
from td_jax.storage import files
from td_jax.study import finished as finished_lib
from td_jax.study import ratings

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


def render(rows: Sequence[Mapping[str, Any]], results: pathlib.Path) -> None:
  """Writes results/few_labels.md and, once there is a line, its figure."""
  finished = finished_lib.Finished(rows, ratings, ratings.COLUMNS)
  text = page(finished)
  files.write_atomically(results / 'few_labels.md', text)
  print(text)
  if any(_lines(finished, teacher, 'test') for teacher in _TEACHER_TITLES):
    draw(finished, results / 'few_labels.png')


def page(finished: finished_lib.Finished) -> str:
  """All tables, as Markdown."""
  lines = [
    '# Few labels on MovieLens-100K',
    '',
    'Written by `python -m td_jax.study.few_labels --render`. RMSE, lower is '
    'better: means over the eight genres and ten students, ± the standard error '
    'over five choices of the labels, or over seeds with all labels. Gains are '
    'differences from scratch with the same labels, pair by pair. Weights were chosen on the validation split of '
    f'{" and ".join(ratings.TUNED_ON)}, with as many trials for each method and '
    'regime; those for 1% and 20% of the labels are those for 5%. Validation '
    'keeps all of its ratings, whatever the share of labels.',
    '',
  ]
  for teacher, title in _TEACHER_TITLES.items():
    lines += [f'## {title}', '']
    for share in ratings.SHARES:
      lines += _table(finished, share, teacher)
  return '\n'.join(lines).rstrip() + '\n'


def _table(
  finished: finished_lib.Finished, share: float, teacher: str
) -> list[str]:
  """The rows of a share of labels and a teacher; [] if none has run."""
  scratch = ratings.Regime(share, 'all', 'none'), ratings.SCRATCH
  shown = [
    (regime, row)
    for regime, row in ratings.rows()
    if (regime.share, regime.teacher) == (share, teacher)
    and row != ratings.SCRATCH
    and finished.has(regime, row)
  ]
  if not shown or not finished.has(*scratch):
    return []
  body = [
    ['No network: user+movie bias', 'labelled ratings only'],
    ['From scratch', 'labelled ratings only'],
    ['Teacher (frozen)', ''],
  ]
  for split in _SPLITS:
    bias = finished.baseline(*scratch, 'user+movie bias', split)
    body[0] += [f'{bias:.4f}', '']
    body[1] += [finished.score(*scratch, split).text(), '']
    body[2] += [f'{finished.teacher(*shown[0], split):.4f}', '']
  for regime, row in shown:
    cells = [figures.full_name(row), _SOURCES[regime.unlabelled]]
    for split in _SPLITS:
      gap = finished.difference(scratch, (regime, row), split)
      cells += [
        finished.score(regime, row, split).text(),
        finished_lib.Score(gap.mean, gap.standard_error).text(sign=True),
      ]
    body.append(cells)
  return [
    f'### {share:.0%} of the labels',
    '',
    *finished_lib.table(
      ['', 'learns from', 'validation', 'gain', 'test', 'gain'], body
    ),
  ]


def draw(finished: finished_lib.Finished, file: pathlib.Path) -> None:
  """RMSE against the share of labels, one panel for each teacher."""
  split = 'test'
  figure = figures.new(10.0, 4.6)
  panels = figure.subplots(1, 2, sharey=True)
  for axes, (teacher, title) in zip(
    panels, _TEACHER_TITLES.items(), strict=True
  ):
    finished_lib.plot(axes, _lines(finished, teacher, split))
    axes.set_xticks(
      ratings.SHARES, [f'{share:.0%}' for share in ratings.SHARES]
    )
    axes.set_xlabel('share of the ratings that students see')
    axes.set_title(title, fontsize='medium')
  panels[0].set_ylabel(f'{split} RMSE, mean over 8 genres')
  handles, labels = panels[-1].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc='outside lower center', ncols=3, frameon=False
  )
  figures.save(figure, file)


def _lines(
  finished: finished_lib.Finished, teacher: str, split: str
) -> list[finished_lib.Line]:
  """The lines of a panel that have a point."""
  shown = (
    ('scratch', 'none', 'From scratch', figures.BLACK, '-'),
    ('ld', 'none', 'LD', figures.SKY_BLUE, '--'),
    ('ld', 'rest', 'LD with unlabelled pairs', figures.BLUE, '-'),
    ('fitnet', 'rest', 'FitNet with unlabelled pairs', figures.GREEN, '-'),
    ('td_ld', 'rest', 'TD + LD with unlabelled pairs', figures.VERMILION, '-'),
  )
  lines = []
  for row, source, label, color, style in shown:
    points = []
    for share in ratings.SHARES:
      full = share == ratings.SHARES[-1]
      regime = ratings.Regime(
        share,
        'all' if row == ratings.SCRATCH or full else teacher,
        'pairs' if full and source == 'rest' else source,
      )
      if finished.has(regime, row):
        points.append((share, finished.score(regime, row, split)))
    if points:
      lines.append(finished_lib.Line(label, color, style, points))
  return lines
