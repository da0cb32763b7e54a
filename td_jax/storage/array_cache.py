"""Arrays stored in files, so that the next start reads instead of computing."""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
from typing import Any
import uuid

import numpy as np

from td_jax import errors
from td_jax import types

Arrays = Mapping[str, Any]


class Cache:
  """Named groups of arrays that depend on the same inputs."""

  def __init__(
    self, folder: types.Path, digest: str, *, writes: bool, log: types.Log
  ):
    """Opens the cache without reading anything.

    Args:
      folder: Created when first needed.
      digest: Identifies everything that the arrays depend on.
      writes: Whether this process writes; the others only read.
      log: Receives warnings.
    """
    self._folder, self._digest = folder, digest
    self._writes, self._log = writes, log

  def get(self, name: str, make: Callable[[], Arrays]) -> Arrays:
    """Returns the arrays stored under `name`, or makes and stores them."""
    file = self._folder / f'{name}-{self._digest[:16]}.npz'
    try:
      with file.open('rb') as opened, np.load(opened) as stored:
        return dict(stored)
    except FileNotFoundError:
      pass
    # A file can be damaged in more ways than can be listed, and the remedy is
    # the same for all of them: make it again.
    except Exception as error:
      self._log(f'warning: {file} is ignored: {errors.one_line(error)}')
    arrays = make()
    if self._writes:
      save(file, arrays, log=self._log)
    return arrays


class _NoCache(Cache):
  """Makes the arrays at every call."""

  def __init__(self):
    pass  # It has no folder.

  def get(self, name: str, make: Callable[[], Arrays]) -> Arrays:
    """Returns `make()`."""
    del name
    return make()


NO_CACHE = _NoCache()


def save(file: types.Path, arrays: Arrays, *, log: types.Log) -> None:
  """Writes `file`, whole or not at all; a failure is logged, not fatal."""
  # Several processes may write the same cache, each to a file of its own.
  temporary = file.with_name(f'{uuid.uuid4().hex}.tmp')
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open('wb') as opened:
      np.savez(opened, **arrays)
    temporary.replace(file)
  except OSError as error:
    log(
      f'warning: cannot write {file} ({errors.one_line(error)}); the next run'
      ' computes everything again'
    )
  finally:
    with contextlib.suppress(OSError):  # It is gone once it became `file`.
      temporary.unlink()
