"""Folders, here or in a bucket (gs://...)."""

import os
import pathlib

from etils import epath

from td_jax import types


def as_path(name: str) -> types.Path:
  """A local folder, or one in a bucket."""
  return epath.Path(name) if '://' in name else pathlib.Path(name)


def is_absolute(folder: str) -> bool:
  return '://' in folder or os.path.isabs(folder)


def absolute(folder: str) -> str:
  """`folder` as seen from anywhere."""
  return folder if is_absolute(folder) else os.path.abspath(folder)


def resolve(path: types.Path, folder: str) -> types.Path:
  """The path of `folder`, which is absolute or as seen from `path`."""
  return as_path(folder) if is_absolute(folder) else path / folder


def is_remote(path: types.Path) -> bool:
  """Whether `path` is in a bucket."""
  return not isinstance(path, pathlib.Path)
