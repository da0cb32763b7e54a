"""What a teacher answered elsewhere: a .npz of outputs and, if known, of states.

  example  [n]           which example each row is about, see below
  output   [n, ...]      logits, a number, or features for a head
  low      [n, (t,) d]   low states; optional
  high     [n, (t,) e]   high states; optional

An example of a folder of images is the path of its file, absolute or below the
folder. One of a TFDS dataset is its split and number, 'train/0', in the order of
`tfds.data_source`. One of a table is the number of its row in the file, from 0.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import os
from typing import Any
import unicodedata
import zipfile

import numpy as np

from td_jax import errors
from td_jax.storage import files

EXAMPLE, OUTPUT = 'example', 'output'
_STATES = ('low', 'high')


class Index:
  """The rows of a file, by example."""

  def __init__(self, path: str, *, folder: str = ''):
    """Reads which examples `path` is about.

    Args:
      path: The .npz.
      folder: The folder of images that paths are relative to, if there is one.

    Raises:
      errors.DataError: The file cannot be read, or names an example twice.
    """
    self._path, self._folder = path, folder
    names = np.atleast_1d(_load(path, (EXAMPLE,))[EXAMPLE])
    self._rows = {self._key(str(name)): row for row, name in enumerate(names)}
    if names.ndim != 1 or len(self._rows) != len(names):
      raise errors.DataError(
        f'{path}: {EXAMPLE!r} has shape {list(names.shape)} and names '
        f'{len(self._rows)} examples; it must be a list that names each once.'
      )

  def rows(self, examples: Sequence[str], *, what: str) -> np.ndarray:
    """The rows int32 [n] of examples.

    Args:
      examples: Their names.
      what: How messages call all of them, such as 'the split train'.

    Raises:
      errors.DataError: The file lacks one.
    """
    rows = [self._rows.get(self._key(name), -1) for name in examples]
    missing = rows.count(-1)
    if missing:
      raise errors.DataError(
        f'{self._path} lacks {missing} of {len(rows)} examples of {what}, such as '
        f'{examples[rows.index(-1)]!r}; it has {len(self._rows)}, such as '
        f'{next(iter(self._rows), "")!r}. Let the teacher answer on all of them.'
      )
    return np.asarray(rows, np.int32)

  def _key(self, name: str) -> str:
    # Macs and Linux spell accents in two ways.
    name = unicodedata.normalize('NFC', name)
    if not self._folder:
      return name
    return os.path.abspath(os.path.join(self._folder, name))


def read(path: str) -> dict[str, np.ndarray]:
  """{'output': float32 [n, ...]}, and 'low' and 'high' if the file has them.

  Raises:
    errors.DataError: The file cannot be read, or its arrays do not fit together.
  """
  names = _names(path)
  states = [name for name in _STATES if name in names]
  if len(states) == 1:
    raise errors.DataError(
      f'{path} has {states[0]!r} alone; give both {" and ".join(_STATES)}, or '
      'neither.'
    )
  arrays = _load(path, (EXAMPLE, OUTPUT, *states))
  count = len(arrays.pop(EXAMPLE))
  for name, array in arrays.items():
    if array.dtype.kind not in 'fiu' or array.ndim < 1 or len(array) != count:
      raise errors.DataError(
        f'{path}: {name!r} is {array.dtype} with shape {list(array.shape)}; it must '
        f'be of numbers, one row for each of the {count} examples.'
      )
    with np.errstate(over='ignore'):
      arrays[name] = array.astype(np.float32)
    if not np.isfinite(arrays[name]).all():
      raise errors.DataError(
        f'{path}: {name!r} has values that are not finite in float32.'
      )
    if name in _STATES and array.ndim not in (2, 3):
      raise errors.DataError(
        f'{path}: {name!r} has shape {list(array.shape)}; it must be [n, d] or '
        '[n, tokens, d].'
      )
  return arrays


def _names(path: str) -> list[str]:
  with _opened(path) as file:
    return file.files


def _load(path: str, names: Sequence[str]) -> dict[str, np.ndarray]:
  with _opened(path) as file:
    missing = [name for name in names if name not in file.files]
    if missing:
      raise errors.DataError(
        f'{path} has no array {missing[0]!r}; it has {", ".join(file.files)}.'
      )
    return {name: file[name] for name in names}


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
  """The opened .npz; raises a DataError if it cannot be read."""
  files.check_regular(path)
  try:
    file: Any = np.load(path, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
      raise ValueError('it is one array')
    with file:
      yield file
  except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as e:
    raise errors.DataError(
      f"the teacher's answers {path} cannot be read: {errors.reason(e)}. Write "
      'them with numpy.savez.'
    ) from e
