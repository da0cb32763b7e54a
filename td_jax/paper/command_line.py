"""The front that the paper's commands share."""

import argparse
from collections.abc import Callable

from absl import logging

from td_jax import types
from td_jax.run import command


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
  # argparse and not absl, whose flags are global: these commands import each
  # other.
  logging.set_verbosity(logging.WARNING)
  args = parser.parse_args()
  command.exit_on_error(lambda: body(args, command.say))
