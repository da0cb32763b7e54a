"""The two outputs of a command: stderr for who watches, stdout for results."""

from collections.abc import Iterator
import contextlib
import os
import sys
from typing import TextIO

from td_jax import errors


def open_closed() -> None:
  """Opens /dev/null in place of each output that the process was started without.

  The next file that is opened would get its number, and whatever a library prints
  would go into that file.
  """
  for number, name in ((1, 'stdout'), (2, 'stderr')):
    if getattr(sys, name) is None:
      opened = os.open(os.devnull, os.O_WRONLY)
      if opened != number:
        os.dup2(opened, number)
      setattr(sys, name, os.fdopen(number, 'w'))


def say(line: str) -> None:
  """Prints a line to stderr; one that cannot be written is dropped."""
  if sys.stderr is None:  # Closed. print would take stdout.
    return
  # The work matters more than a line, and there may be space for the next one.
  with contextlib.suppress(OSError):
    print(line, file=sys.stderr, flush=True)


def show(text: str) -> None:
  """Prints a result to stdout; raises as `results` does."""
  with results() as opened:
    print(text, file=opened)


@contextlib.contextmanager
def results() -> Iterator[TextIO]:
  """Yields stdout, and flushes it.

  A reader that has seen enough, such as `head`, is no error.

  Raises:
    errors.IOFailedError: It cannot be written.
  """
  try:
    yield sys.stdout
    sys.stdout.flush()
  except BrokenPipeError:
    _give_up(sys.stdout)
  except OSError as e:
    _give_up(sys.stdout)
    raise errors.IOFailedError(
      f'stdout cannot be written ({errors.reason(e)}). What was saved is safe; send '
      'the output elsewhere and run the same command again.'
    ) from e


def _give_up(stream: TextIO) -> None:
  """Sends to /dev/null what a stream still holds: Python writes it at the end."""
  os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
