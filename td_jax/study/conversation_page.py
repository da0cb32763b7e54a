"""The page and the figure of the study of the conversation."""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from td_jax.paper import cells as cells_lib
from td_jax.paper import figures
from td_jax.run import terminal
from td_jax.storage import files
from td_jax.study import conversation_images
from td_jax.study import conversation_ratings
from td_jax.study import conversation_rows
from td_jax.study import finished as finished_lib

_VARIANTS = conversation_rows.VARIANTS
# A reported cost, in units of the variance of each dimension.
_MISSED = 'ask/channel_state'


class _Section(NamedTuple):
  title: str
  score: str  # What it is called, and which way is better.
  domain: str
  design: Any  # A `design.Design` with `HELD_BACK`.
  regime: Any

  @property
  def rows(self) -> list[str]:
    """The variants that run in this regime."""
    return [row for regime, row in self.design.rows() if regime == self.regime]


_RMSE, _ACCURACY = 'RMSE, lower is better', 'Accuracy, higher is better'
_SECTIONS = (
  _Section(
    'Images: 50 labelled images a class and no others',
    _ACCURACY,
    'images',
    conversation_images,
    conversation_images.Regime(50),
  ),
  _Section(
    'Ratings: 5% of the labels, with unlabelled pairs',
    _RMSE,
    'ratings',
    conversation_ratings,
    conversation_ratings.Regime(0.05, 'rest'),
  ),
  _Section(
    'Ratings: 5% of the labels, labelled pairs alone',
    _RMSE,
    'ratings',
    conversation_ratings,
    conversation_ratings.Regime(0.05, 'none'),
  ),
)
Cells = Mapping[str, Sequence[Mapping[str, Any]]]


def render(cells: Cells, results: pathlib.Path) -> None:
  """Writes results/conversation.md and its figure.

  Args:
    cells: {domain: its finished cells}.
    results: Where to write; its conversation_findings.md is text by hand, with which
      the page begins.
  """
  findings = results / 'conversation_findings.md'
  text = page(cells, findings.read_text() if findings.exists() else '')
  files.write_atomically(results / 'conversation.md', text)
  terminal.show(text)
  gains = {
    section.title: found
    for section in _SECTIONS
    if (found := _gains(section, cells[section.domain]))
  }
  if gains:
    draw(gains, results / 'conversation.png')


def page(cells: Cells, findings: str) -> str:
  """The page, as Markdown: the findings, then the tables of each regime."""
  lines = [
    '# What the conversation adds',
    '',
    'Written by `python -m td_jax.study.conversation --render`. What is compared, and '
    'where, was [decided beforehand](conversation_plan.md).',
    '',
    *([findings.strip(), ''] if findings.strip() else []),
  ]
  for section in _SECTIONS:
    lines += _tables(section, cells[section.domain])
  return '\n'.join(lines).rstrip() + '\n'


def _tables(section: _Section, rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """The tables of a section; [] before LD has run."""
  design, regime = section.design, section.regime
  every, development, held_back = (
    finished_lib.Finished(rows, design, columns)
    for columns in (design.COLUMNS, _development(design), design.HELD_BACK)
  )
  shown = [row for row in section.rows if every.has(regime, row)]
  if conversation_rows.LD not in shown:
    return []
  body = []
  for row in shown:
    variant = _VARIANTS[row]
    seconds, of_ld = (
      np.mean([cell['seconds'] for cell in every.cells(regime, each)])
      for each in (row, conversation_rows.LD)
    )
    gains = [
      _gain(section, rows, row, over) if over in shown and over != row else ''
      for over in (conversation_rows.LD, variant.against)
    ]
    body.append(
      [
        variant.title,
        development.score(regime, row, 'validation').text(),
        held_back.score(regime, row, 'test').text(),
        *gains,
        f'{seconds / of_ld:.1f}',
      ]
    )
  head = (
    'variant', 'validation', 'test, held back', 'gain over LD',
    'gain over what it changes', 'time',
  )  # fmt: skip
  return [
    f'## {section.title}',
    '',
    f'{section.score}: means over the columns and choices of the labels, ± the '
    'standard error over those choices. Held back: '
    f'{", ".join(_names(design.HELD_BACK))}. Gains are positive where the row is '
    'better, on the test split of what is held back, with p of a paired t-test, and in '
    'how many of all columns the row is better. Time is that of a run, in units of LD.',
    '',
    *finished_lib.table(head, body),
    *_quality(every, regime, shown),
    *_weights(every, regime, shown),
  ]


def _development(design: Any) -> list[str]:
  return [c for c in design.COLUMNS if c not in design.HELD_BACK]


def _gain(
  section: _Section,
  rows: Sequence[Mapping[str, Any]],
  row: str,
  over: str,
) -> str:
  """What `row` gains over another, such as '+0.0120 ± 0.0030 (p = 0.01; 6 of 8)'."""
  design, regime = section.design, section.regime

  def gain(columns: Sequence[str]) -> cells_lib.Difference:
    finished = finished_lib.Finished(rows, design, columns)
    one, other = (over, row) if design.LOWER_IS_BETTER else (row, over)
    return finished.difference((regime, one), (regime, other), 'test')

  gap = gain(design.HELD_BACK)
  better = sum(gain([column]).mean > 0 for column in design.COLUMNS)
  p = '' if gap.p is None else f'p = {gap.p:.2g}; '
  text = finished_lib.Score(gap.mean, gap.standard_error).text(sign=True)
  return f'{text} ({p}{better} of {len(design.COLUMNS)})'


def _quality(
  finished: finished_lib.Finished, regime: Any, shown: Sequence[str]
) -> list[str]:
  """How well the teacher decodes the student's questions."""
  body = []
  for row in shown:
    missed = [
      np.mean(cell['terms'][_MISSED])
      for cell in finished.cells(regime, row)
      if _MISSED in cell['terms']
    ]
    if missed:
      body.append(
        [_VARIANTS[row].title, finished_lib.mean(np.asarray(missed)).text()]
      )
  if not body:
    return []
  return [
    "The share of the variance of the teacher's low state that the decoded one misses, "
    'at the last step of training:',
    '',
    *finished_lib.table(['variant', 'missed variance'], body),
  ]


def _weights(
  finished: finished_lib.Finished, regime: Any, shown: Sequence[str]
) -> list[str]:
  body = []
  for row in shown:
    cell, *_ = finished.cells(regime, row)
    chosen = [
      f'{key.rpartition(".")[2]} {value:g}'
      for key, value in cell['weights'].items()
    ]
    body.append([_VARIANTS[row].title, ', '.join(chosen)])
  return [
    'Weights, as chosen on validation:',
    '',
    *finished_lib.table(['variant', 'weights'], body),
  ]


def _names(columns: Sequence[str]) -> list[str]:
  return [
    {'cifar10': 'CIFAR-10', 'cifar100': 'CIFAR-100'}.get(c, c) for c in columns
  ]


Gains = dict[str, dict[str, finished_lib.Score]]


def _gains(section: _Section, rows: Sequence[Mapping[str, Any]]) -> Gains:
  """{columns: {title of a variant: its gain over LD on test}}."""
  design, regime = section.design, section.regime
  groups = {
    'development': _development(design),
    'held back': design.HELD_BACK,
  }
  gains: Gains = {}
  for name, columns in groups.items():
    finished = finished_lib.Finished(rows, design, columns)
    for row in section.rows:
      one, other = row, conversation_rows.LD
      if one == other or not all(
        finished.has(regime, each) for each in (one, other)
      ):
        continue
      if design.LOWER_IS_BETTER:
        one, other = other, one
      gap = finished.difference((regime, one), (regime, other), 'test')
      score = finished_lib.Score(gap.mean, gap.standard_error)
      gains.setdefault(name, {})[_VARIANTS[row].title] = score
  return gains


def draw(gains: Mapping[str, Gains], file: pathlib.Path) -> None:
  """Gains over LD with their standard errors, a panel for each title."""
  figure = figures.new(11.0, 1.0 + 3.0 * len(gains))
  panels = figure.subplots(len(gains), 1, squeeze=False)[:, 0]
  styles = {
    'development': (figures.SKY_BLUE, 'o'),
    'held back': (figures.VERMILION, 's'),
  }
  for axes, (title, groups) in zip(panels, gains.items(), strict=True):
    names = list(
      dict.fromkeys(name for each in groups.values() for name in each)
    )
    for shift, (group, scores) in enumerate(groups.items()):
      color, marker = styles[group]
      axes.errorbar(
        [score.mean for score in scores.values()],
        [names.index(name) + 0.16 * shift for name in scores],
        xerr=[score.standard_error or 0 for score in scores.values()],
        color=color,
        marker=marker,
        linestyle='none',
        capsize=3,
        label=group,
      )
    axes.axvline(0, color=figures.GREY, linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_title(title, fontsize='medium')
    axes.grid(alpha=0.3)
  panels[-1].set_xlabel(
    'gain over LD on test, ± standard error; right is better'
  )
  panels[0].legend(frameon=False)
  figures.save(figure, file)
