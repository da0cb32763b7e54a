"""The page and the figure of the study of the conversation."""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from td_jax.paper import cells as cells_lib
from td_jax.paper import figures
from td_jax.storage import files
from td_jax.study import conversation_images
from td_jax.study import conversation_ratings
from td_jax.study import conversation_rows
from td_jax.study import finished as finished_lib

_VARIANTS = conversation_rows.VARIANTS
# A reported cost, in units of the variance of each dimension.
_MISSED = 'ask/channel_state'


class _Domain(NamedTuple):
  title: str
  score: str  # What it is called, and which way is better.
  design: Any  # A `design.Design` with `HELD_BACK`.


_DOMAINS = {
  'ratings': _Domain(
    'Ratings: MovieLens-100K, 5% of the labels, the honest teacher',
    'RMSE, lower is better',
    conversation_ratings,
  ),
  'images': _Domain(
    'Images: CIFAR, 50 labelled images a class and no others',
    'Accuracy, higher is better',
    conversation_images,
  ),
}


def render(
  cells: Mapping[str, Sequence[Mapping[str, Any]]], results: pathlib.Path
) -> None:
  """Writes results/conversation.md and its figure.

  Args:
    cells: {domain: its finished cells}.
    results: The folder; findings.md is text by hand, and is taken over.
  """
  findings = results / 'conversation_findings.md'
  text = findings.read_text() if findings.exists() else ''
  written = page(cells, text)
  files.write_atomically(results / 'conversation.md', written)
  print(written)
  drawn = {
    domain: gains
    for domain, rows in cells.items()
    if (gains := _gains(_DOMAINS[domain].design, rows))
  }
  if drawn:
    draw(drawn, results / 'conversation.png')


def page(
  cells: Mapping[str, Sequence[Mapping[str, Any]]], findings: str
) -> str:
  """The page, as Markdown: the findings, then a table for each domain."""
  lines = [
    '# What the conversation adds',
    '',
    'Written by `python -m td_jax.study.conversation --render`. What is compared, and '
    'where, was [decided beforehand](conversation_plan.md).',
    '',
    *([findings.strip(), ''] if findings.strip() else []),
  ]
  for domain, rows in cells.items():
    lines += _section(_DOMAINS[domain], rows)
  return '\n'.join(lines).rstrip() + '\n'


def _section(domain: _Domain, rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """The tables of a domain; [] before LD has run."""
  design = domain.design
  every = finished_lib.Finished(rows, design, design.COLUMNS)
  development, held_back = (
    finished_lib.Finished(rows, design, columns)
    for columns in (_development(design), design.HELD_BACK)
  )
  shown = [
    (regime, row) for regime, row in design.rows() if every.has(regime, row)
  ]
  ld = (design.rows()[0][0], conversation_rows.LD)
  if ld not in shown:
    return []
  body = []
  for regime, row in shown:
    variant = _VARIANTS[row]
    other = regime, variant.against
    compared = variant.against and every.has(*other)
    body.append(
      [
        variant.title,
        development.score(regime, row, 'validation').text(),
        held_back.score(regime, row, 'test').text(),
        _gain(design, rows, (regime, row), ld) if variant.against else '',
        _gain(design, rows, (regime, row), other) if compared else '',
        f'{_seconds(every, regime, row) / _seconds(every, *ld):.1f}',
      ]
    )
  names = ', '.join(_names(design.HELD_BACK))
  lines = [
    f'## {domain.title}',
    '',
    f'{domain.score}: means over the columns and choices of the labels, ± the standard '
    f'error over those choices. Held back: {names}. Gains are positive where the row is '
    'better, on the test split of what is held back, with p of a paired t-test, and in '
    'how many of all columns the row is better.',
    '',
    *finished_lib.table(
      [
        'variant', 'validation', 'held back', 'gain over LD',
        'gain over what it changes', 'time',
      ],
      body,
    ),
  ]  # fmt: skip
  return lines + _quality(every, shown) + _weights(every, shown)


def _development(design: Any) -> list[str]:
  return [c for c in design.COLUMNS if c not in design.HELD_BACK]


def _gain(
  design: Any,
  rows: Sequence[Mapping[str, Any]],
  one: tuple[Any, str],
  other: tuple[Any, str],
) -> str:
  """What `one` gains over `other`, such as '+0.0120 ± 0.0030 (p = 0.01; 6 of 8)'."""

  def gain(columns: Sequence[str]) -> cells_lib.Difference:
    finished = finished_lib.Finished(rows, design, columns)
    pair = (other, one) if design.LOWER_IS_BETTER else (one, other)
    return finished.difference(*pair, 'test')

  gap = gain(design.HELD_BACK)
  better = sum(gain([column]).mean > 0 for column in design.COLUMNS)
  p = '' if gap.p is None else f'p = {gap.p:.2g}; '
  text = finished_lib.Score(gap.mean, gap.standard_error).text(sign=True)
  return f'{text} ({p}{better} of {len(design.COLUMNS)})'


def _seconds(finished: finished_lib.Finished, regime: Any, row: str) -> float:
  return float(np.mean([c['seconds'] for c in finished.cells(regime, row)]))


def _quality(
  finished: finished_lib.Finished, shown: Sequence[tuple[Any, str]]
) -> list[str]:
  """How well the teacher decodes the student's questions."""
  body = []
  for regime, row in shown:
    missed = [
      np.mean(cell['terms'][_MISSED])
      for cell in finished.cells(regime, row)
      if _MISSED in (cell.get('terms') or {})
    ]
    if missed:
      score = finished_lib.mean(np.asarray(missed))
      body.append([_VARIANTS[row].title, score.text()])
  if not body:
    return []
  return [
    "The variance of the teacher's low state that the decoded one misses, as a share, "
    'at the last step of training:',
    '',
    *finished_lib.table(['variant', 'missed variance'], body),
  ]


def _weights(
  finished: finished_lib.Finished, shown: Sequence[tuple[Any, str]]
) -> list[str]:
  body = []
  for regime, row in shown:
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


def _gains(design: Any, rows: Sequence[Mapping[str, Any]]) -> Gains:
  """{columns: {title of a variant: its gain over LD on test}}."""
  groups = {
    'development': _development(design),
    'held back': design.HELD_BACK,
  }
  gains: Gains = {}
  for name, columns in groups.items():
    finished = finished_lib.Finished(rows, design, columns)
    for regime, row in design.rows():
      ld = regime, conversation_rows.LD
      if row == ld[1] or not (finished.has(regime, row) and finished.has(*ld)):
        continue
      gap = finished.difference((regime, row), ld, 'test')
      mean = -gap.mean if design.LOWER_IS_BETTER else gap.mean
      gains.setdefault(name, {})[_VARIANTS[row].title] = finished_lib.Score(
        mean, gap.standard_error
      )
  return gains


def draw(gains: Mapping[str, Gains], file: pathlib.Path) -> None:
  """Gains over LD with their standard errors, a panel for each domain."""
  figure = figures.new(11.0, 4.6)
  panels = figure.subplots(1, len(gains), squeeze=False)[0]
  styles = {
    'development': (figures.SKY_BLUE, 'o'),
    'held back': (figures.VERMILION, 's'),
  }
  for axes, (domain, groups) in zip(panels, gains.items(), strict=True):
    titles = list(dict.fromkeys(t for each in groups.values() for t in each))
    for shift, (group, by_title) in enumerate(groups.items()):
      color, marker = styles[group]
      axes.errorbar(
        [score.mean for score in by_title.values()],
        [titles.index(title) + 0.16 * shift for title in by_title],
        xerr=[score.standard_error or 0 for score in by_title.values()],
        color=color,
        marker=marker,
        linestyle='none',
        capsize=3,
        label=group,
      )
    axes.axvline(0, color=figures.GREY, linewidth=1)
    axes.set_yticks(range(len(titles)), titles)
    axes.invert_yaxis()
    axes.set_xlabel('gain over LD, test (right is better), ± standard error')
    axes.set_title(_DOMAINS[domain].title.split(':')[0], fontsize='medium')
    axes.grid(alpha=0.3)
  panels[0].legend(frameon=False)
  figures.save(figure, file)
