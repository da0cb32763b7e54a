"""Atomic writes, JSON files and SHA-256 digests."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import hashlib
import json
import os
from typing import IO
from typing import Any
import uuid

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.storage import schema

_OBJECT: dict[str, Any] = {}  # The schema of any JSON object.


@contextlib.contextmanager
def io_errors(file: types.Path | str) -> Iterator[None]:
  """Turns an OSError of its body into an IOFailedError that names `file`."""
  try:
    yield
  except OSError as error:
    raise errors.IOFailedError(
      f'could not write {file}: {error.strerror or error}.'
    ) from error


@contextlib.contextmanager
def replacing(file: types.Path) -> Iterator[IO[bytes]]:
  """Yields a temporary file that replaces `file` once its body succeeds.

  Readers therefore see the old contents or the new ones, never a part. If the
  body raises, `file` stays as it was and the temporary file is removed.

  Raises:
    errors.IOFailedError: The file cannot be written.
  """
  # The name is unique because several processes may write the same file at the
  # same time. Renaming is atomic only within one file system: hence `beside`.
  beside = file.with_name(f'.{file.name}.{uuid.uuid4().hex[:8]}.part')
  with io_errors(file):
    try:
      with beside.open('wb') as opened:
        yield opened
      beside.replace(file)
    except BaseException:
      # An error of the cleanup would hide the one that matters.
      with contextlib.suppress(OSError):
        beside.unlink(missing_ok=True)
      raise


def write_atomically(file: types.Path, content: str | bytes) -> None:
  """Writes `file` completely or, if that fails, not at all.

  Raises:
    errors.IOFailedError: The file cannot be written.
  """
  with replacing(file) as opened:
    opened.write(content.encode() if isinstance(content, str) else content)


def check_regular(file: types.Path | str) -> None:
  """Raises a DataError for a folder, a pipe or a device in place of a file.

  A pipe would never answer, and a device such as /dev/zero would never end. What
  does not exist is left to the caller.
  """
  if '://' in str(file) or os.path.isfile(file) or not os.path.exists(file):
    return
  what = 'a folder' if os.path.isdir(file) else 'a pipe or a device'
  raise errors.DataError(f'{file} is {what}; it must be a file.')


def read_json(
  file: types.Path,
  form: Mapping[str, Any] = _OBJECT,
  *,
  upgrade: Callable[[dict[str, Any]], dict[str, Any]] = lambda content: content,
) -> dict[str, Any]:
  """Reads the JSON object in `file`, which belongs to the folder of a run.

  Args:
    file: The file.
    form: The schema of the object, see `schema.py`.
    upgrade: Turns the object of an earlier version into one of this form.

  Raises:
    errors.DataError: The file is absent or damaged, or has another form.
  """
  try:
    content = json.loads(file.read_text())
    return schema.check(upgrade(schema.check(content, _OBJECT)), form)
  # Deep nesting exceeds Python's recursion limit.
  except (OSError, ValueError, RecursionError) as error:
    raise errors.DataError(
      f'{file} cannot be read ({error}); is {file.parent} the folder of a run?'
    ) from error


def sha256(*parts: Any) -> str:
  """Returns the SHA-256, in hexadecimal, of the concatenated bytes of `parts`.

  Text counts as UTF-8, bytes as they are, an array as its values in C order,
  and anything else as its JSON with sorted keys. Nothing separates the parts,
  and an array's shape and dtype do not count: pass them as parts of their own
  where they matter.
  """
  # Checkpoints, caches and results store these digests. A change of the bytes
  # that are hashed would make every old run look damaged or different.
  digest = hashlib.sha256()
  for part in parts:
    if isinstance(part, str):
      digest.update(part.encode())
    elif isinstance(part, bytes):
      digest.update(part)
    elif hasattr(part, '__array__'):  # NumPy's or JAX's.
      digest.update(np.ascontiguousarray(part).data)
    else:
      digest.update(json.dumps(part, sort_keys=True).encode())
  return digest.hexdigest()
