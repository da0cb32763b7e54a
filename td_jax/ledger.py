"""Rows of finished work in a file, and who of several processes does what."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import pathlib
from typing import Any


def read(file: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of `file`; none if it is absent."""
  if not file.exists():
    return []
  return [json.loads(line) for line in file.read_text().splitlines()]


def append(file: pathlib.Path, row: dict[str, Any]) -> None:
  """Adds a row to `file`."""
  with file.open('a') as f:
    f.write(json.dumps(row, sort_keys=True) + '\n')


@contextlib.contextmanager
def lock(file: pathlib.Path, *, wait: bool = False) -> Iterator[bool]:
  """Yields whether this process holds `file`, which a dead one lets go."""
  with file.open('w') as held:
    try:
      fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
      yield False
      return
    yield True
