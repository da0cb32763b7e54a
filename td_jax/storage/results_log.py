"""Result rows in a JSONL file, and locks that divide work among processes."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import fcntl
import json
import pathlib
from typing import Any

from td_jax import errors
from td_jax import types
from td_jax.storage import files
from td_jax.storage import schema

_OBJECT: dict[str, Any] = {}  # The schema of any JSON object.


def read(
  file: types.Path, form: Mapping[str, Any] = _OBJECT
) -> list[dict[str, Any]]:
  """Returns the complete rows of `file`, or no rows if it does not exist.

  Args:
    file: The file.
    form: The schema of a row, see `schema.py`.

  Raises:
    errors.DataError: A row is complete, but has another form.
  """
  return [row for _, row in lines(file, form)]


def lines(
  file: types.Path, form: Mapping[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
  """As `read`, with the line of each row."""
  if not file.exists():
    return
  text = file.read_text(errors='replace')
  for number, line in enumerate(text.splitlines(), 1):
    try:
      row = json.loads(line)
    except ValueError:
      # A crash while writing leaves a truncated line, which is not a result.
      continue
    except RecursionError as e:
      raise errors.DataError(
        f'{file}, line {number}: it is nested too deep. Remove that line.'
      ) from e
    try:
      row = schema.check(row, form)
    except ValueError as e:
      raise errors.DataError(
        f'{file}, line {number}: {e}. Remove that line.'
      ) from e
    yield line, row


def append(file: pathlib.Path, row: dict[str, Any]) -> None:
  """Appends a row to `file`.

  Raises:
    errors.IOFailedError: The file cannot be written.
  """
  with files.io_errors(file):
    content = file.read_bytes() if file.exists() else b''
    # After a truncated line the row must begin a new one, or both are lost.
    newline = '\n' if content and not content.endswith(b'\n') else ''
    with file.open('a') as opened:
      opened.write(newline + json.dumps(row, sort_keys=True) + '\n')


@contextlib.contextmanager
def lock(file: pathlib.Path, *, wait: bool = False) -> Iterator[bool]:
  """Locks `file` and yields True, or False if another process holds the lock.

  Args:
    file: Created if it is absent, and never removed.
    wait: Waits for the other process instead of yielding False.
  """
  # The kernel releases a flock when its process ends, however it ends; the
  # mere existence of a file would outlive a killed process.
  with file.open('w') as opened:
    try:
      fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      yield False
      return
    yield True
