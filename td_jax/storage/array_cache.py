"""Arrays kept in files, so that the next start reads what was made before."""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
from typing import Any
import uuid

import numpy as np

from td_jax import errors
from td_jax import types

# (name, make) -> make(), or what it gave when it was kept under that name.
Keep = Callable[[str, Callable[[], Mapping[str, Any]]], Mapping[str, Any]]


def keep_nothing(
  name: str, make: Callable[[], Mapping[str, Any]]
) -> Mapping[str, Any]:
  """A `Keep` that makes it anew each time."""
  del name  # Nothing is kept.
  return make()


def keeper(
  folder: types.Path, told: str, *, writes: bool, log: Callable[[str], Any]
) -> Keep:
  """A `Keep` of files in `folder`, for all whose input is the same.

  Args:
    folder: Is made if it is absent.
    told: Digest of all that is kept there depends on.
    writes: Whether this process does; others only read.
    log: Takes lines for whoever watches.
  """

  def keep(name, make):
    file = folder / f'{name}-{told[:16]}.npz'
    try:
      with file.open('rb') as opened, np.load(opened) as stored:
        return dict(stored)
    except FileNotFoundError:
      pass
    # It can be damaged in more ways than can be listed; it is made again.
    except Exception as error:
      log(f'warning: {file} is ignored: {errors.one_line(error)}')
    made = make()
    if writes:
      save(file, made, log=log)
    return made

  return keep


def save(
  file: types.Path, arrays: Mapping[str, Any], *, log: Callable[[str], Any]
) -> None:
  """Writes `file`, whole or not at all; failing to is logged, not fatal."""
  temporary = file.with_name(f'{uuid.uuid4().hex}.tmp')
  try:
    file.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open('wb') as opened:
      np.savez(opened, **arrays)
    temporary.replace(file)
  except OSError as error:
    log(
      f'warning: cannot write {file} ({errors.one_line(error)}); the next run'
      ' reads everything again'
    )
  finally:
    with contextlib.suppress(OSError):  # Gone, where it became `file`.
      temporary.unlink()
