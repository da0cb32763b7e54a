"""The tables and the figure of the study of few labels on CIFAR."""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

from td_jax.paper import cells as cells_lib
from td_jax.paper import figures
from td_jax.run import terminal
from td_jax.storage import files
from td_jax.study import finished as finished_lib
from td_jax.study import images

_SPLITS = ('validation', 'test')
_TITLES = {'cifar10': 'CIFAR-10', 'cifar100': 'CIFAR-100'}
_SOURCES = {
  'none': 'labelled images only',
  'rest': 'with the other images, unlabelled',
}


def render(rows: Sequence[Mapping[str, Any]], results: pathlib.Path) -> None:
  """Writes results/few_images.md and, once there is a line, its figure.

  Args:
    rows: The finished cells of the study.
    results: Where to write; its images.jsonl has the cells with all labels.
  """
  every = images.Regime(images.ALL, 'none')._asdict()
  rows = [
    *rows,
    *(
      {**cell, 'regime': every, 'draw': 0}
      for cell in cells_lib.read(results)['images']
    ),
  ]
  datasets = {
    column: finished_lib.Finished(rows, images, [column])
    for column in images.COLUMNS
  }
  text = page(datasets)
  files.write_atomically(results / 'few_images.md', text)
  terminal.show(text)
  if any(_lines(finished, 'test') for finished in datasets.values()):
    draw(datasets, results / 'few_images.png')


def page(datasets: Mapping[str, finished_lib.Finished]) -> str:
  """All tables, as Markdown."""
  lines = [
    '# Few labels on CIFAR',
    '',
    'Written by `python -m td_jax.study.few_labels --domain=images --render`. '
    'Accuracy, higher is better: means over three choices of the labels, a seed '
    'for each, ± the standard error. Gains are differences from the student with '
    'the same labels that learns from the task only, pair by pair. Weights were chosen on the '
    'validation split of CIFAR-10, with as many trials for each row.',
    '',
  ]
  for column, finished in datasets.items():
    lines += [f'## {_TITLES[column]}', '']
    for labels in images.PER_CLASS:
      lines += _table(finished, labels)
    lines += ['What all labels give is in [table 4](table4.md).', '']
  return '\n'.join(lines).rstrip() + '\n'


def _table(finished: finished_lib.Finished, labels: int) -> list[str]:
  """The rows with so many labels; [] if none has run."""
  scratch = images.Regime(labels, 'none'), images.SCRATCH
  shown = [
    (regime, row)
    for regime, row in images.rows()
    if regime.per_class == labels and finished.has(regime, row)
  ]
  if not finished.has(*scratch):
    return []
  teacher = ['Teacher (frozen, a linear head)', 'labelled images only']
  for split in _SPLITS:
    teacher += [f'{finished.teacher_samples(*scratch, split).mean():.4f}', '']
  body = [teacher]
  for regime, row in shown:
    cells = [figures.full_name(row, 'images'), _SOURCES[regime.unlabelled]]
    for split in _SPLITS:
      gap = finished.difference((regime, row), scratch, split)
      gain = finished_lib.Score(gap.mean, gap.standard_error).text(sign=True)
      cells += [
        finished.score(regime, row, split).text(),
        '' if (regime, row) == scratch else gain,
      ]
    body.append(cells)
  return [
    f'### {labels} labels in each class',
    '',
    *finished_lib.table(
      ['', 'learns from', 'validation', 'gain', 'test', 'gain'], body
    ),
  ]


def draw(
  datasets: Mapping[str, finished_lib.Finished], file: pathlib.Path
) -> None:
  """Accuracy against the number of labels, one panel for each dataset."""
  split = 'test'
  figure = figures.new(10.0, 4.6)
  panels = figure.subplots(1, 2)
  for axes, (column, finished) in zip(panels, datasets.items(), strict=True):
    lines = _lines(finished, split)
    if not lines:
      continue
    finished_lib.plot(axes, lines)
    ticks = sorted({labels for line in lines for labels, _ in line.points})
    axes.set_xticks(ticks, [f'{labels:g}' for labels in ticks])
    axes.set_xlabel('labels in each class')
    axes.set_title(_TITLES[column], fontsize='medium')
  panels[0].set_ylabel(f'{split} accuracy')
  handles, labels = panels[0].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc='outside lower center', ncols=3, frameon=False
  )
  figures.save(figure, file)


def _lines(
  finished: finished_lib.Finished, split: str
) -> list[finished_lib.Line]:
  """The lines of a panel that have a point."""
  random, blocks = images.RANDOM, images.SCRATCH
  shown = (
    ('teacher', 'none', 'Teacher, a linear head', figures.GREY, ':'),
    (random, 'none', 'From scratch', figures.BLACK, '--'),
    (blocks, 'none', "Task only, from the teacher's blocks", 'black', '-'),
    ('ld', 'none', 'LD', figures.SKY_BLUE, '--'),
    ('ld', 'rest', 'LD with unlabelled images', figures.BLUE, '-'),
    ('td_ld', 'rest', 'TD + LD with unlabelled images', figures.VERMILION, '-'),
  )
  lines = []
  for row, source, label, color, style in shown:
    points = []
    for labels in (*images.PER_CLASS, images.ALL):
      # With all labels no image is left without one.
      regime = images.Regime(labels, source if labels else 'none')
      measured = blocks if row == 'teacher' else row
      if not finished.has(regime, measured):
        continue
      if row == 'teacher':
        teacher = finished.teacher_samples(regime, measured, split)
        score = finished_lib.mean(teacher)
      else:
        score = finished.score(regime, measured, split)
      cell, *_ = finished.cells(regime, measured)
      points.append((labels or _per_class(cell), score))
    if points:
      lines.append(finished_lib.Line(label, color, style, points))
  return lines


def _per_class(cell: Mapping[str, Any]) -> float:
  """Labels in each class of a run with all labels."""
  return cell['train_examples'] / images.CLASSES[cell['column']]
