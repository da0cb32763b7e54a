"""The front of the commands that take no config: options and one-line errors."""

import argparse
from collections.abc import Callable
from collections.abc import Sequence
import os
import pathlib
from typing import Any
from typing import NoReturn

from absl import logging

from td_jax import errors
from td_jax import types
from td_jax.run import command
from td_jax.run import process
from td_jax.run import terminal


def parser(
  description: str, *, workdir: str, results: str, teacher: bool = True
) -> argparse.ArgumentParser:
  """The options of a command that runs what a folder of results lacks.

  Args:
    description: What the command does.
    workdir: The default folder of its runs.
    results: What the folder of results holds, for --help.
    teacher: Whether it takes a published teacher, for images.
  """
  options = Parser(description=description)
  options.add_argument(
    '--workdir',
    default=workdir,
    type=folder,
    help='folder of the runs; the command resumes what it holds',
  )
  options.add_argument(
    '--results',
    default='results',
    type=folder,
    help=f'folder of {results}',
  )
  if teacher:
    options.add_argument(
      '--teacher',
      default='',
      help='for images: folder of the published weights',
    )
  return options


def folder(text: str) -> pathlib.Path:
  """A `type` of options: a local folder, where ~ is the home folder."""
  return pathlib.Path(os.path.expanduser(text))


def positive(text: str) -> int:
  """A `type` of options: a whole number of at least 1."""
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f'{value} is not at least 1')
  return value


class Parser(argparse.ArgumentParser):
  """A parser whose errors are one line."""

  def print_help(self, file: Any = None) -> None:
    """As every result: a stdout that cannot be written is an error."""
    del file  # argparse passes none.
    terminal.show(self.format_help().rstrip())

  def error(self, message: str) -> NoReturn:
    """Raises a ConfigError in place of printing the usage."""
    raise errors.ConfigError(
      f'{message}; {self.prog} --help lists the options.'
    )


def run(
  parser: argparse.ArgumentParser,
  body: Callable[[argparse.Namespace, types.Log], None],
  argv: Sequence[str] | None = None,
) -> None:
  """Parses the command line and runs `body` on it.

  Progress goes to stderr, so that stdout holds the result alone. An
  `errors.TdError` becomes one line on stderr and its exit code.

  Args:
    parser: The command's arguments.
    body: Receives the parsed arguments and a log.
    argv: The words to parse; None: those of the process.
  """
  # argparse and not absl, whose flags are global: these commands import each
  # other.
  logging.set_verbosity(logging.WARNING)
  with process.watch():
    command.exit_on_error(lambda: body(parser.parse_args(argv), terminal.say))
