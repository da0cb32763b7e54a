"""The tables and the figure of the study of few labels on MovieLens.

Rendering the committed results also writes the table between the marks
`few labels` of README.md and docs/when-it-pays.md.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import math
import pathlib
from typing import Any

import numpy as np

from td_jax.paper import cells as cells_lib
from td_jax.paper import figures
from td_jax.paper import markdown
from td_jax.run import terminal
from td_jax.storage import files
from td_jax.study import finished as finished_lib
from td_jax.study import ratings
from td_jax.study import search

_SPLITS = ('validation', 'test')
_Samples = Callable[[str], np.ndarray]  # A split -> scores [n].
_TEACHERS = {'kept': 'honest teacher', 'all': "the paper's teacher"}
_TEACHER_TITLES = {
  'kept': 'Honest teacher: it never saw the hidden ratings',
  'all': "The paper's teacher: it learnt from the hidden ratings too",
}
_BIAS = 'user+movie bias'  # The model without a network.
_HEADLINE = 0.05  # The share of labels that README shows.
_ROOT = pathlib.Path(__file__).parents[2]
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
  terminal.show(text)
  small = headline(finished)
  if small and results.resolve() == _ROOT / 'results':
    for name in ('README.md', 'docs/when-it-pays.md'):
      markdown.insert(_ROOT / name, 'few labels', small)
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
  every = ratings.rows()
  missing = sum(not finished.has(*cell) for cell in every)
  if missing:
    lines += [f'{missing} of the {len(every)} rows have not run yet.', '']
  lines += _comparisons(finished)
  for teacher, title in _TEACHER_TITLES.items():
    lines += [f'## {title}', '']
    for share in ratings.SHARES:
      lines += _table(finished, share, teacher)
  lines += _weights(finished)
  return '\n'.join(lines).rstrip() + '\n'


def headline(finished: finished_lib.Finished) -> str:
  """The small table that README shows; '' until its rows have run."""
  share = _HEADLINE
  scratch = ratings.Regime(share, 'all', 'none'), ratings.SCRATCH
  every = ratings.Regime(1.0, 'all', 'none'), ratings.SCRATCH
  rows = (('none', 'ld'), ('rest', 'ld'), ('rest', 'fitnet'), ('rest', 'td_ld'))
  cells = {
    (teacher, source, row): (ratings.Regime(share, teacher, source), row)
    for teacher in _TEACHER_TITLES
    for source, row in rows
  }
  if not all(finished.has(*cell) for cell in (scratch, every, *cells.values())):
    return ''
  split = 'test'
  bias = finished_lib.mean(finished.baseline_samples(*scratch, _BIAS, split))
  alone = finished.score(*scratch, split).text()
  body = [
    ['From scratch', alone, alone],
    ['No network: user+movie bias', bias.text(), bias.text()],
  ]
  for source, row in rows:
    name = figures.full_name(row)
    body.append(
      [
        name if source == 'none' else f'{name}, with unlabelled pairs',
        *(
          finished.score(*cells[teacher, source, row], split).text()
          for teacher in _TEACHER_TITLES
        ),
      ]
    )
  body.append(
    [
      'Teacher (frozen)',
      *(
        finished_lib.mean(
          finished.teacher_samples(*cells[teacher, 'rest', 'ld'], split)
        ).text()
        for teacher in _TEACHER_TITLES
      ),
    ]
  )
  full = finished.score(*every, split).text()
  body.append(['From scratch, with all ratings', full, full])
  head = [
    f'{share:.0%} of the ratings',
    'honest teacher',
    "the paper's teacher",
  ]
  lines = finished_lib.table(head, body)
  return '\n'.join(
    [
      *lines,
      'Test RMSE, lower is better: means over eight genres and ten students, ± '
      'the standard error over five choices of the labels.',
      '',
    ]
  )


def _comparisons(finished: finished_lib.Finished) -> list[str]:
  """What the best rows gain, and over what; [] until they have run."""
  body = []

  def compare(
    regime: str, row: str, over: str, ours: _Samples, theirs: _Samples
  ) -> None:
    gaps = [_gap(ours(split), theirs(split)) for split in _SPLITS]
    body.append([regime, figures.full_name(row), over, *gaps])

  def scores(regime: ratings.Regime, row: str) -> _Samples:
    return lambda split: finished.samples(regime, row, split)

  scratch = ratings.Regime(_HEADLINE, 'all', 'none'), ratings.SCRATCH
  every = ratings.Regime(1.0, 'all', 'none'), ratings.SCRATCH
  for teacher, title in _TEACHERS.items():
    regime = ratings.Regime(_HEADLINE, teacher, 'rest')
    best = _best(finished, regime)
    if not (best and finished.has(*scratch) and finished.has(*every)):
      continue
    about, ours = f'{_HEADLINE:.0%}, {title}', scores(regime, best)
    rivals: dict[str, _Samples] = {
      'scratch': scores(*scratch),
      _BIAS: lambda split: finished.baseline_samples(*scratch, _BIAS, split),
      'the teacher': lambda split, cell=(regime, best): (
        finished.teacher_samples(*cell, split)
      ),
      'LD with the same pairs': scores(regime, 'ld'),
      'scratch with all ratings': scores(*every),
    }
    for over, theirs in rivals.items():
      if (best, over) != ('ld', 'LD with the same pairs'):
        compare(about, best, over, ours, theirs)
  pairs, alone = (ratings.Regime(1.0, 'all', s) for s in ('pairs', 'none'))
  best, rival = _best(finished, pairs), _best(finished, alone)
  if best and rival:
    over = f'{figures.full_name(rival)} without pairs'
    compare('100%', best, over, scores(pairs, best), scores(alone, rival))
  if not body:
    return []
  return [
    '## What the best rows gain',
    '',
    'The best row of a regime is chosen on validation. Differences of RMSE, ± the '
    'standard error; below 0 the row is better. p is that of a paired t-test.',
    '',
    *finished_lib.table(
      ['labels', 'best row with unlabelled pairs', 'over', *_SPLITS], body
    ),
  ]


def _gap(ours: np.ndarray, theirs: np.ndarray) -> str:
  """The difference of two means, paired if both are over the same samples."""
  if len(ours) == len(theirs):
    gap = cells_lib.difference(ours - theirs)
    text = finished_lib.Score(gap.mean, gap.standard_error).text(sign=True)
    return text if gap.p is None else f'{text} (p = {gap.p:.2g})'
  # Choices of labels cannot be paired with seeds.
  errors = [
    finished_lib.mean(each).standard_error or 0 for each in (ours, theirs)
  ]
  return finished_lib.Score(
    float(ours.mean() - theirs.mean()), math.hypot(*errors)
  ).text(sign=True)


def _best(finished: finished_lib.Finished, regime: ratings.Regime) -> str:
  """The row of a regime with the best validation; '' if none has run."""
  rows = [
    row
    for each, row in ratings.rows()
    if each == regime and finished.has(regime, row)
  ]
  return min(
    rows,
    key=lambda row: finished.score(regime, row, 'validation').mean,
    default='',
  )


def _weights(finished: finished_lib.Finished) -> list[str]:
  """The weights that the search has chosen, of each method in each regime."""
  body = []
  for regime in ratings.regimes():
    for method in search.METHODS:
      if not finished.has(regime, method):
        continue
      cell, *_ = finished.cells(regime, method)
      chosen = [
        f'{key.rpartition(".")[2]} {value:g}'
        for key, value in cell.get('weights', {}).items()
      ]
      body.append([regime.name, figures.full_name(method), ', '.join(chosen)])
  if not body:
    return []
  return [
    '## Weights, as chosen',
    '',
    *finished_lib.table(['labels, teacher, unlabelled', '', 'weights'], body),
  ]


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
    bias = finished.baseline_samples(*scratch, _BIAS, split)
    teachers = finished.teacher_samples(*shown[0], split)
    body[0] += [finished_lib.mean(bias).text(), '']
    body[1] += [finished.score(*scratch, split).text(), '']
    body[2] += [finished_lib.mean(teachers).text(), '']
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
      cell = _cell(share, teacher, row, source)
      if finished.has(*cell):
        points.append((share, finished.score(*cell, split)))
    if points:
      lines.append(finished_lib.Line(label, color, style, points))
  return lines + _references(finished, teacher, split)


def _references(
  finished: finished_lib.Finished, teacher: str, split: str
) -> list[finished_lib.Line]:
  """The teacher and the model without a network, as lines."""
  biases, teachers = [], []
  for share in ratings.SHARES:
    scratch = _cell(share, teacher, ratings.SCRATCH, 'none')
    if finished.has(*scratch):
      bias = finished.baseline_samples(*scratch, _BIAS, split)
      biases.append((share, finished_lib.mean(bias)))
    taught = _cell(share, teacher, 'ld', 'rest')
    if finished.has(*taught):
      scores = finished.teacher_samples(*taught, split)
      teachers.append((share, finished_lib.mean(scores)))
  return [
    finished_lib.Line(label, figures.GREY, style, points)
    for label, style, points in (
      ('User+movie bias, no network', '--', biases),
      ('Teacher', ':', teachers),
    )
    if points
  ]


def _cell(
  share: float, teacher: str, row: str, source: str
) -> tuple[ratings.Regime, str]:
  """The cell of a line at a share of labels."""
  full = share == ratings.SHARES[-1]
  return ratings.Regime(
    share,
    'all' if row == ratings.SCRATCH or full else teacher,
    'pairs' if full and source == 'rest' else source,
  ), row
