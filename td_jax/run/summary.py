"""The table that a run prints when it ends."""

from collections.abc import Mapping
from typing import Any

from td_jax import types


def table(results: Mapping[str, Any]) -> str:
  """The scores of `results` in plain text: baselines, teachers, student."""
  metric = results['metric'].upper()
  splits = [name for name in ('validation', 'test') if name in results]
  rows = [['', *(f'{name} {metric}' for name in splits)]]
  scores = dict(results['baselines'])
  for name, teacher in results['teachers'].items():
    suffix = '' if name == types.TEACHER else f' {name}'
    scores[f'teacher{suffix} (frozen)'] = teacher
  rows += [
    [name, *(f'{score[split]:.6f}' for split in splits)]
    for name, score in scores.items()
  ]
  label = results['label']
  # A run with method=teacher trains the teacher itself, so it has no student.
  label = label if results['method'] == types.TEACHER else f'student ({label})'
  rows.append([label, *(_score(results[split]) for split in splits)])
  count = len(results['seeds'])
  title = (
    f'{results["task"]}: {count} {"seeds" if count > 1 else "seed"}, '
    f'{results["steps"]} steps, {results["seconds"]:.0f} s'
  )
  return '\n'.join([title, *aligned(rows)])


def _score(score: Mapping[str, Any]) -> str:
  mean = f'{score["mean"]:.6f}'
  if score['standard_error'] is None:
    return mean
  # Terminals without UTF-8 would fail on a plus-minus sign.
  return f'{mean} +- {score["standard_error"]:.6f}'


def aligned(rows: list[list[str]]) -> list[str]:
  """Pads columns to equal widths; the first is left-aligned."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '.join(
      [
        row[0].ljust(widths[0]),
        *(
          cell.rjust(width)
          for cell, width in zip(row[1:], widths[1:], strict=True)
        ),
      ]
    )
    for row in rows
  ]
