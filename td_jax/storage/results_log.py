"""Rows of finished work in a file, and who of several processes does what."""

from collections.abc import Iterator
import contextlib
import fcntl
import json
import pathlib
from typing import Any

from td_jax import errors


def read(file: pathlib.Path) -> list[dict[str, Any]]:
  """The whole rows of `file`; none if it is absent."""
  if not file.exists():
    return []
  rows = []
  for line in file.read_text(errors='replace').splitlines():
    with contextlib.suppress(ValueError):  # A crash cut it off.
      rows.append(json.loads(line))
  return rows


def append(file: pathlib.Path, row: dict[str, Any]) -> None:
  """Adds a row to `file`, after what a crash may have cut off.

  Raises:
    errors.IOFailedError: it cannot be written.
  """
  try:
    before = file.read_bytes() if file.exists() else b''
    cut = '\n' if before and not before.endswith(b'\n') else ''
    with file.open('a') as f:
      f.write(cut + json.dumps(row, sort_keys=True) + '\n')
  except OSError as e:
    raise errors.IOFailedError(
      f'could not write {file}: {e.strerror or e}.'
    ) from e


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
