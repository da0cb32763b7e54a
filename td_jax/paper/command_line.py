"""The front that the paper's commands share."""

import argparse
from collections.abc import Callable
import pathlib
import sys

from absl import logging

from td_jax import errors
from td_jax import types


def run(
  parser: argparse.ArgumentParser,
  body: Callable[[argparse.Namespace, types.Log], None],
) -> None:
  """Parses the command line and runs `body` on it.

  Progress goes to stderr, so that stdout holds the result alone. An
  `errors.TdError` becomes one line on stderr and its exit code.

  Args:
    parser: The command's arguments.
    body: Receives the parsed arguments and a log.
  """
  logging.set_verbosity(logging.WARNING)
  args = parser.parse_args()
  try:
    body(args, _log)
  except errors.TdError as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(e.exit_code)


def write(file: pathlib.Path, content: str | bytes) -> None:
  """Writes a generated file.

  Raises:
    errors.IOFailedError: the file cannot be written.
  """
  if isinstance(content, str):
    content = content.encode()
  try:
    file.write_bytes(content)
  except OSError as e:
    raise errors.IOFailedError(
      f'{file} cannot be written: {e.strerror or e}.'
    ) from e


def _log(line: str) -> None:
  # Flushed, because the log of a background job is read while it runs.
  print(line, file=sys.stderr, flush=True)
