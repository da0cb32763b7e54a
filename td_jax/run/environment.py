"""The commit and the versions that produced a result."""

from collections.abc import Iterable
import functools
import importlib.metadata
import pathlib
import platform
import subprocess
from typing import Any

_PACKAGES = ('jax', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


def environment() -> dict[str, Any]:
  """Commit, Python and package versions, to trace a number back to its code."""
  return {
    'commit': _commit(),
    'python': platform.python_version(),
    'versions': versions(_PACKAGES),
  }


def versions(packages: Iterable[str]) -> dict[str, str]:
  """Versions of installed packages; 'none' for one that is not installed."""
  result = {}
  for name in packages:
    try:
      result[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      result[name] = 'none'
  return result


# Cached, because the process runs the code it read when it started: a later
# commit in the same checkout must not be credited with its results.
@functools.cache
def _commit() -> str:
  root = pathlib.Path(__file__).parents[2]

  def git(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
      ['git', *command],
      check=False,
      cwd=root,
      capture_output=True,
      text=True,
      timeout=10,
    )

  try:
    described = git('describe', '--always', '--abbrev=12')
    # Only changes of the code count, not new rows in results/.
    changed = git('diff', '--quiet', 'HEAD', '--', 'td_jax')
  except (OSError, subprocess.SubprocessError):
    return 'unknown'
  if described.returncode:
    return 'unknown'  # An installed wheel, not a git checkout.
  return described.stdout.strip() + ('-dirty' if changed.returncode else '')
