"""Result rows in a JSONL file, and locks that divide work among processes."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import pathlib
from typing import Any

from td_jax.storage import files


def read(file: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the complete rows of `file`, or no rows if it does not exist."""
  if not file.exists():
    return []
  rows = []
  for line in file.read_text(errors='replace').splitlines():
    # A crash while writing leaves a truncated line, which is not a result.
    with contextlib.suppress(ValueError):
      rows.append(json.loads(line))
  return rows


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
