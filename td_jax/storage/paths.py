"""Folders on a disk or in a bucket (gs://...)."""

import os
import pathlib

from etils import epath

from td_jax import types


def as_path(name: str) -> types.Path:
  """The path with this name, local or in a bucket."""
  return epath.Path(name) if '://' in name else pathlib.Path(name)


def is_absolute(folder: str) -> bool:
  """Whether `folder` does not depend on a base folder."""
  return '://' in folder or os.path.isabs(folder)


def absolute(folder: str) -> str:
  """Makes `folder` independent of the working directory."""
  return folder if is_absolute(folder) else os.path.abspath(folder)


def resolve(base: types.Path, folder: str) -> types.Path:
  """The path of `folder`, which is absolute or relative to `base`."""
  return as_path(folder) if is_absolute(folder) else base / folder


def relative(folder: types.Path, base: types.Path) -> str:
  """The inverse of `resolve`: `folder` as seen from `base`."""
  # os.path.relpath works on text alone, so it serves buckets as well.
  return os.path.relpath(str(folder), str(base))


def is_remote(path: types.Path) -> bool:
  """Whether `path` is in a bucket."""
  return not isinstance(path, pathlib.Path)
