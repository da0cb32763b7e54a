"""Reads named arrays from files of unknown origin.

Shapes are known before any data are read. Nothing that is stored is ever
executed, or written to disk under a stored name. The sizes that a damaged or
hostile file declares are checked against its real size before memory is
allocated for them.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import io
import json
import math
import pathlib
import tempfile
from typing import NamedTuple
import zipfile

import ml_dtypes
import numpy as np
import safetensors

from td_jax import errors
from td_jax.storage import files

# Compression shrinks weights by a few per cent, and only a head of zeros to
# almost nothing. An archive that unpacks to more than this is a zip bomb.
_MAX_GROWTH = 16
_ALWAYS_ALLOWED = 2**25  # Bytes that any archive may unpack to.
_MAX_HEADER = 2**14  # Bytes of an array's header that are read.
INDEX = 'model.safetensors.index.json'  # Of weights in several files.
_BFLOAT16 = np.dtype('V2')  # NumPy's files store bfloat16 as this dtype.


class Archive(NamedTuple):
  """Named arrays in an open file."""

  path: str  # The name of the file in messages.
  shapes: dict[str, tuple[int, ...]]
  # name -> the array as float32; raises a DataError if it is damaged.
  read: Callable[[str], np.ndarray]


@contextlib.contextmanager
def local(path: str) -> Iterator[pathlib.Path]:
  """A local file with the contents of `path`, which may be gs://.

  Raises:
    errors.DataError: there is no such file, it cannot be reached, or it is a
      folder, a pipe or a device.
  """
  if '://' not in path:
    files.check_regular(path)
    if not pathlib.Path(path).exists():
      raise errors.DataError(f'{path} does not exist.')
    yield pathlib.Path(path)
    return
  # Importing epath is slow, and most paths are local.
  from etils import epath

  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / 'copy'
    with _as_data_error(path):
      epath.Path(path).copy(copy)
    yield copy


@contextlib.contextmanager
def npz(file: pathlib.Path, path: str) -> Iterator[Archive]:
  """Opens a .npz; messages refer to it as `path`.

  Raises:
    errors.DataError: the file is damaged, holds anything but floats, or
      declares sizes that it cannot have.
  """
  with contextlib.ExitStack() as stack:
    with _as_data_error(path):
      opened = stack.enter_context(zipfile.ZipFile(file))
      members = opened.infolist()
      names = [member.filename.removesuffix('.npy') for member in members]
      # zipfile allows duplicate names; only one member could then be read.
      for name, times in collections.Counter(names).most_common(1):
        if times > 1:
          raise ValueError(f'it holds {name!r} {times} times')
      size = sum(member.file_size for member in members)
      if size > max(_ALWAYS_ALLOWED, _MAX_GROWTH * file.stat().st_size):
        raise ValueError(
          f'it would unpack to {size} bytes from {file.stat().st_size}, which '
          'no file of weights does'
        )
    by_name = dict(zip(names, members, strict=True))
    headers = {}
    for name, member in by_name.items():
      with _as_data_error(path, name):
        headers[name] = _read_header(opened, member)

    def read(name: str) -> np.ndarray:
      header = headers[name]
      dtype = header.dtype
      with _as_data_error(path, name):
        with opened.open(by_name[name]) as stream:
          # zipfile checks the CRC only at the end of a member, so all of it is
          # read, but no more than the size that was checked above.
          data = stream.read(by_name[name].file_size)
        if dtype == _BFLOAT16:
          dtype = np.dtype(ml_dtypes.bfloat16)
        elif dtype.kind != 'f':
          raise ValueError(f'it is {dtype}, not of floats')
        flat = np.frombuffer(data, dtype, offset=header.start)
        order = 'F' if header.fortran_order else 'C'
        return _finite_floats(flat.reshape(header.shape, order=order))

    shapes = {name: header.shape for name, header in headers.items()}
    yield Archive(path, shapes, read)


@contextlib.contextmanager
def safetensor(file: pathlib.Path, path: str) -> Iterator[Archive]:
  """Opens a .safetensors, like `npz`."""
  with contextlib.ExitStack() as stack:
    with _as_data_error(path):
      opened = stack.enter_context(safetensors.safe_open(file, 'np'))
      names = opened.keys()
      slices = {name: opened.get_slice(name) for name in names}
      shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}

    def read(name: str) -> np.ndarray:
      with _as_data_error(path, name):
        dtype = slices[name].get_dtype()
        if dtype not in ('F64', 'F32', 'F16', 'BF16'):
          raise ValueError(f'it is {dtype}, not of floats')
        return _finite_floats(opened.get_tensor(name))

    yield Archive(path, shapes, read)


@contextlib.contextmanager
def sharded(folder: str) -> Iterator[Archive]:
  """Opens weights in several .safetensors, listed in `INDEX` in `folder`.

  Raises:
    errors.DataError: As for `safetensor`; or the list is damaged, or names a leaf
      that its file lacks.
  """
  path = f'{folder}/{INDEX}'
  with local(path) as file, _as_data_error(path):
    parts = dict(json.loads(file.read_text())['weight_map'])
    for name in set(parts.values()):
      if pathlib.PurePath(name).name != name:
        raise ValueError(f'{name!r} is not the name of a file')
  with contextlib.ExitStack() as stack:
    shards = {}
    for name in sorted(set(parts.values())):
      own = stack.enter_context(local(f'{folder}/{name}'))
      shards[name] = stack.enter_context(safetensor(own, f'{folder}/{name}'))
    shapes = {}
    for leaf, name in parts.items():
      if leaf not in shards[name].shapes:
        raise errors.DataError(
          f'{path}: leaf {leaf} is not in {name}. Download both files again.'
        )
      shapes[leaf] = shards[name].shapes[leaf]
    yield Archive(path, shapes, lambda leaf: shards[parts[leaf]].read(leaf))


class _Header(NamedTuple):
  shape: tuple[int, ...]
  fortran_order: bool
  dtype: np.dtype
  start: int  # Offset of the data in the member.


def _read_header(opened: zipfile.ZipFile, member: zipfile.ZipInfo) -> _Header:
  """Reads the header of one array; raises a ValueError if it is damaged."""
  with opened.open(member) as stream:
    # A header may declare any length, so only the first bytes are read.
    head = io.BytesIO(stream.read(_MAX_HEADER))
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
  return _Header(shape, fortran_order, dtype, head.tell())


def _finite_floats(values: np.ndarray) -> np.ndarray:
  """float32 `values`; raises a ValueError for NaN and infinity."""
  values = np.asarray(values, np.float32)
  if not np.all(np.isfinite(values)):
    raise ValueError('it has values that are not finite')
  return values


@contextlib.contextmanager
def _as_data_error(path: str, name: str | None = None) -> Iterator[None]:
  """Turns every exception from reading a damaged file into a DataError."""
  try:
    yield
  except errors.TdError:
    raise
  # zipfile, zlib, NumPy and safetensors raise a dozen types of exceptions that
  # no documentation lists.
  except Exception as e:
    # A ValueError is this module's or NumPy's and explains itself; the text of
    # other exceptions, such as a KeyError, may need its type.
    reason = errors.one_line(str(e) if isinstance(e, ValueError) else e)
    leaf = '' if name is None else f', leaf {name}'
    raise errors.DataError(
      f'{path}{leaf} cannot be read: {reason.rstrip(".")}. Download the file '
      'again, or take another.'
    ) from e
