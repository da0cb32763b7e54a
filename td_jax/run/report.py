"""What a run says at its end: results.json, the closing table, figures."""

from collections.abc import Mapping
import functools
import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

from td_jax import errors

_PACKAGES = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def figure(width: float, height: float) -> Any:
  """An empty matplotlib figure of so many inches.

  Raises:
    errors.ConfigError: matplotlib is not installed.
  """
  try:
    from matplotlib import figure as plot  # Late: nothing else needs it.
  except ImportError as e:
    raise errors.ConfigError(
      "a figure needs matplotlib: pip install 'td_jax[plot]'."
    ) from e
  return plot.Figure(figsize=(width, height), layout='constrained')


def environment() -> dict[str, Any]:
  """Commit and versions, so that a number can be traced."""
  return {
    'commit': _commit(),
    'python': platform.python_version(),
    'versions': {name: importlib.metadata.version(name) for name in _PACKAGES},
  }


@functools.cache  # What runs was read when the process started.
def _commit():
  root = pathlib.Path(__file__).parents[2]

  def git(*command):
    return subprocess.run(
      ['git', *command],
      check=False,
      cwd=root,
      capture_output=True,
      text=True,
      timeout=10,
    )

  try:
    said = git('describe', '--always', '--abbrev=12')
    # Results may have been added to, but not the code.
    changed = git('diff', '--quiet', 'HEAD', '--', 'td_jax')
  except (OSError, subprocess.SubprocessError):
    return 'unknown'
  if said.returncode:
    return 'unknown'  # Not a git checkout.
  return said.stdout.strip() + ('-dirty' if changed.returncode else '')


def table(results: Mapping[str, Any]) -> str:
  """The closing table, in plain text."""
  metric = results['metric'].upper()
  splits = [name for name in ('validation', 'test') if name in results]
  rows = [['', *(f'{name} {metric}' for name in splits)]]
  scores = dict(results['controls'])
  if results['teacher']:
    scores['teacher (frozen)'] = results['teacher']
  rows += [
    [name, *(f'{score[part]:.6f}' for part in splits)]
    for name, score in scores.items()
  ]
  who = results['method']
  if who in ('td', 'td_ld'):
    who += f', k={results["k"]}'
  who = who if who == 'teacher' else f'student ({who})'
  rows.append([who, *(_cell(results[part]) for part in splits)])
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  count = len(results['seeds'])
  title = (
    f'{results["task"]}: {count} '
    f'{"seeds" if count > 1 else "seed"}, {results["steps"]} steps, '
    f'{results["seconds"]:.0f} s'
  )
  lines = [
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
  return '\n'.join([title, *lines])


def _cell(score):
  mean = f'{score["mean"]:.6f}'
  if score['standard_error'] is None:
    return mean
  return f'{mean} +- {score["standard_error"]:.6f}'
