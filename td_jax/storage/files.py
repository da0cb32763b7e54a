"""Small files: written whole or not at all, and read with readable errors."""

from collections.abc import Iterator
import contextlib
import json
from typing import Any

from td_jax import errors
from td_jax import types


def write_atomically(file: types.Path, content: str | bytes) -> None:
  """Writes `file` so that no reader ever sees a part of it.

  Raises:
    errors.IOFailedError: It cannot be written; an earlier version is intact.
  """
  data = content.encode() if isinstance(content, str) else content
  # Renaming is atomic only within one file system, hence the same folder.
  part = file.with_name(f'.{file.name}.part')
  with io_errors(file):
    try:
      part.write_bytes(data)
      part.replace(file)
    except OSError:
      with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)
      raise


def read_json(file: types.Path) -> dict[str, Any]:
  """Reads the JSON object in `file`, which belongs to a run's folder.

  Raises:
    errors.DataError: It is absent or damaged.
  """
  try:
    value = json.loads(file.read_text())
    if not isinstance(value, dict):
      raise ValueError('it holds no object')
    return value
  except (OSError, ValueError) as e:
    raise errors.DataError(
      f'{file} cannot be read ({e}); is {file.parent} the folder of a run?'
    ) from e


@contextlib.contextmanager
def io_errors(file: types.Path | str) -> Iterator[None]:
  """Turns an OSError into an IOFailedError that names `file`."""
  try:
    yield
  except OSError as e:
    raise errors.IOFailedError(
      f'could not write {file}: {e.strerror or e}.'
    ) from e
