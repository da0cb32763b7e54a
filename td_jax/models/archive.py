"""Reading arrays out of files of unknown origin, by name.

Shapes are told before any data are read, nothing that is stored is ever
executed or written to disk under a stored name, and what a damaged or hostile
file declares is checked against its size before memory is given to it.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import io
import math
import pathlib
import tempfile
from typing import NamedTuple
import zipfile

import ml_dtypes
import numpy as np
import safetensors

from td_jax import errors

# Weights shrink by a few per cent, and a head of zeros to nothing: an archive
# that grows more than this is a bomb.
_GROWTH = 16
_SMALL = 2**25  # Bytes that any archive may hold.
_HEAD = 2**14  # Bytes that the header of an array fits into.
_BFLOAT16 = np.dtype('V2')  # What NumPy makes of it in a file.


class Archive(NamedTuple):
  """Named arrays in an open file."""

  path: str
  shapes: dict[str, tuple[int, ...]]
  read: Callable[[str], np.ndarray]  # float32, of the shape told.


@contextlib.contextmanager
def local(path: str) -> Iterator[pathlib.Path]:
  """A file on this machine with the contents of `path`, which may be gs://.

  Raises:
    errors.DataError: there is none, or it can't be reached.
  """
  if '://' not in path:
    if not pathlib.Path(path).exists():
      raise errors.DataError(f'{path} does not exist.')
    yield pathlib.Path(path)
    return
  from etils import epath  # It is slow, and most paths are local.

  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / 'copy'
    with _explained(path):
      epath.Path(path).copy(copy)
    yield copy


@contextlib.contextmanager
def npz(file: pathlib.Path, path: str) -> Iterator[Archive]:
  """Opens a .npz; messages call it `path`.

  Raises:
    errors.DataError: it is damaged, holds Python objects or other things than
      floats, or declares sizes that it can't have.
  """
  with contextlib.ExitStack() as stack:
    with _explained(path):
      opened = stack.enter_context(zipfile.ZipFile(file))
      members = opened.infolist()
      names = [member.filename.removesuffix('.npy') for member in members]
      for name, times in collections.Counter(names).most_common(1):
        if times > 1:
          raise ValueError(f'it holds {name!r} {times} times')
      size = sum(member.file_size for member in members)
      if size > max(_SMALL, _GROWTH * file.stat().st_size):
        raise ValueError(
          f'it would unpack to {size} bytes from {file.stat().st_size}, which '
          'no file of weights does'
        )
    found = dict(zip(names, members, strict=True))
    layouts = {}
    for name, member in found.items():
      with _explained(path, name):
        layouts[name] = _header(opened, member)

    def read(name):
      shape, fortran_order, dtype, start = layouts[name]
      with _explained(path, name):
        with opened.open(found[name]) as stream:
          # All of it and no more: only then is the CRC checked, and only as
          # much as was declared is ever unpacked.
          data = stream.read(found[name].file_size)
        if dtype == _BFLOAT16:
          dtype = np.dtype(ml_dtypes.bfloat16)
        elif dtype.kind != 'f':
          raise ValueError(f'it is {dtype}, not of floats')
        flat = np.frombuffer(data, dtype, offset=start)
        return _floats(flat.reshape(shape, order='F' if fortran_order else 'C'))

    shapes = {name: layout[0] for name, layout in layouts.items()}
    yield Archive(path, shapes, read)


@contextlib.contextmanager
def safetensor(file: pathlib.Path, path: str) -> Iterator[Archive]:
  """Opens a .safetensors; as `npz`."""
  with contextlib.ExitStack() as stack:
    with _explained(path):
      opened = stack.enter_context(safetensors.safe_open(file, 'np'))
      names = opened.keys()
      parts = {name: opened.get_slice(name) for name in names}
      shapes = {name: tuple(part.get_shape()) for name, part in parts.items()}

    def read(name):
      with _explained(path, name):
        dtype = parts[name].get_dtype()
        if dtype not in ('F64', 'F32', 'F16', 'BF16'):
          raise ValueError(f'it is {dtype}, not of floats')
        return _floats(opened.get_tensor(name))

    yield Archive(path, shapes, read)


def _header(opened, member):
  """(shape, whether in Fortran order, dtype, where the data begin)."""
  with opened.open(member) as stream:
    # A header may declare any length; this is all that is looked at.
    head = io.BytesIO(stream.read(_HEAD))
  version = np.lib.format.read_magic(head)
  if version == (1, 0):
    layout = np.lib.format.read_array_header_1_0(head)
  elif version == (2, 0):
    layout = np.lib.format.read_array_header_2_0(head)
  else:
    raise ValueError(f'it is of version {version} of the .npy format')
  shape, fortran_order, dtype = layout
  if dtype.hasobject:
    raise ValueError('it is pickled Python objects, which are never loaded')
  needed = head.tell() + math.prod(shape) * dtype.itemsize
  if min(shape, default=0) < 0 or needed != member.file_size:
    raise ValueError(
      f'its header declares {list(shape)} {dtype}, which takes {needed} '
      f'bytes; it has {member.file_size}'
    )
  return shape, fortran_order, dtype, head.tell()


def _floats(values):
  values = np.asarray(values, np.float32)
  if not np.all(np.isfinite(values)):
    raise ValueError('it has values that are not finite')
  return values


@contextlib.contextmanager
def _explained(path, name=None):
  """Whatever a bad file makes of its reader becomes a DataError."""
  try:
    yield
  except errors.TdError:
    raise
  except Exception as e:  # zipfile, zlib and NumPy raise a dozen kinds.
    reason = (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
    leaf = '' if name is None else f', leaf {name}'
    raise errors.DataError(
      f'{path}{leaf} cannot be read: {reason.rstrip(".")}. Fetch the file '
      'again, or take another.'
    ) from e
