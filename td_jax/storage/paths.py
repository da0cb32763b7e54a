"""Paths of folders on a local disk or in a bucket (gs://...)."""

import importlib.util
import os
import pathlib

from etils import epath

from td_jax import errors
from td_jax import types


def as_path(name: str) -> types.Path:
  """Returns a pathlib.Path, or an epath.Path if `name` is in a bucket.

  A shell does not expand the ~ of --workdir=~/runs, so it is expanded here.

  Raises:
    errors.ConfigError: It is in a bucket, and nothing that reads buckets is
      installed.
  """
  # Not an epath.Path in both cases: `is_remote` tells them apart by their type.
  if '://' not in name:
    return pathlib.Path(os.path.expanduser(name))
  if not any(map(importlib.util.find_spec, ('tensorflow', 'gcsfs'))):
    raise errors.ConfigError(
      f"{name} is in a bucket, which takes pip install 'td_jax[tfds]'."
    )
  return epath.Path(name)


def is_absolute(folder: str) -> bool:
  return '://' in folder or os.path.isabs(os.path.expanduser(folder))


def absolute(folder: str) -> str:
  """Returns `folder` independent of the current directory."""
  if '://' in folder:
    return folder
  return os.path.abspath(os.path.expanduser(folder))


def resolve(path: types.Path, folder: str) -> types.Path:
  """Returns the path of `folder`, which is absolute or relative to `path`."""
  return as_path(folder) if is_absolute(folder) else path / folder


def relative(folder: types.Path, base: types.Path) -> str:
  """The inverse of `resolve`: `folder` as seen from `base`."""
  # os.path.relpath works on text alone, so it serves buckets as well.
  return os.path.relpath(str(folder), str(base))


def is_remote(path: types.Path) -> bool:
  """Whether `path` is in a bucket."""
  return not isinstance(path, pathlib.Path)
