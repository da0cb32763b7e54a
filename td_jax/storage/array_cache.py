"""Named arrays in files, which later processes read instead of computing."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.storage import files


class Cache:
  """Arrays in a folder, shared by all whose inputs have the same digest."""

  def __init__(
    self,
    folder: types.Path | None,
    digest: str,
    *,
    writes: bool,
    log: types.Log,
  ):
    """Opens a cache, without touching the disk.

    Args:
      folder: Created on the first write; None caches nothing.
      digest: Covers everything that the cached arrays are computed from.
      writes: Whether this process writes; the other hosts only read.
      log: Receives warnings.
    """
    self._folder, self._digest = folder, digest
    self._writes, self._log = writes, log

  def get(
    self, name: str, make: Callable[[], Mapping[str, Any]]
  ) -> Mapping[str, Any]:
    """Returns the arrays stored under `name`, or those that `make` returns."""
    if self._folder is None:
      return make()
    file = self._folder / f'{name}-{self._digest[:16]}.npz'
    try:
      with file.open('rb') as opened, np.load(opened) as stored:
        return dict(stored)
    except FileNotFoundError:
      pass
    # A file can be damaged in more ways than can be listed, and the remedy is
    # always the same: compute the arrays again.
    except Exception as error:
      self._log(f'warning: {file} is ignored: {errors.one_line(error)}')
    arrays = make()
    if self._writes:
      save(file, arrays, log=self._log)
    return arrays


NO_CACHE = Cache(None, '', writes=False, log=types.no_log)


def save(
  file: types.Path, arrays: Mapping[str, Any], *, log: types.Log
) -> None:
  """Writes `arrays` to `file` atomically; a failure is logged, not raised."""
  # A cache only saves time, so a full or read-only disk must not end a run.
  try:
    with files.io_errors(file):
      file.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(file) as opened:
      np.savez(opened, **arrays)
  except errors.IOFailedError as error:
    log(f'warning: {error} The next run has to compute it again.')
