"""TensorFlow Datasets: its late import, its data folder and its network."""

import contextlib
import importlib.util
import os
import re
import socket
import sys
import threading
from typing import Any

from td_jax import errors
from td_jax import types
from td_jax.storage import paths

_GOOGLE = 'storage.googleapis.com'
# Archives that TFDS cannot download itself; the user has to provide them.
_MANUAL = {
  'imagenet2012': 'ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar',
}


def module() -> Any:
  """Imports tensorflow_datasets and keeps TensorFlow off JAX's accelerators.

  Raises:
    errors.DataError: TFDS is not installed.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  # This silences a notice on stderr, which has no switch of its own.
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  try:
    # Imported here: it takes 4-10 s, which cached data do not need to wait for.
    import tensorflow as tf
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise errors.DataError(
      f"the data need TensorFlow and TFDS, but {error}: pip install 'td_jax[tfds]'."
    ) from error
  # Raises if other code has initialised TensorFlow's devices already.
  with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], 'GPU')
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  return tfds


def one_line(error: Exception) -> str:
  """Shortens an exception of TensorFlow, without the names of its nodes."""
  text = str(error)
  if 'defined at (most recent call last)' in text:
    # The trace of the graph leads; a paragraph of its own says what is wrong.
    text = text.rpartition('\n\n')[2]
  text = re.sub(r'\[\[.*?\]\]|\{\{.*?\}\}|\[Op:.*?\]|name: $', '', text)
  return f'{type(error).__name__}: {errors.one_line(text)}'


# Folders.


def data_dir(path: str = '') -> types.Path:
  """Returns TFDS's data folder; for '' its default."""
  default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  folder = paths.as_path(path or default)
  return folder if paths.is_remote(folder) else folder.expanduser().absolute()


def newest_version(folder: types.Path, version: str = '') -> types.Path | None:
  """Returns the newest prepared version in a dataset's folder, if there is one.

  Args:
    folder: Holds a folder for each version.
    version: The only one that counts; '' is any.
  """
  # TFDS prepares data in folders named incomplete.*; they do not count.
  versions = {
    tuple(map(int, info.parent.name.split('.'))): info.parent
    for info in folder.glob('*/dataset_info.json')
    if re.fullmatch(r'\d+\.\d+\.\d+', info.parent.name)
    and version in ('', info.parent.name)
  }
  return versions[max(versions)] if versions else None


def find(name: str, path: str = '') -> types.Path:
  """Finds the newest prepared version of a dataset without importing TFDS.

  Args:
    name: As TFDS writes it, with or without a config and a version.
    path: As for `data_dir`.

  Raises:
    errors.ConfigError: The name has the wrong form.
    errors.DataError: The dataset is not prepared there.
  """
  # The pattern also keeps names such as '../x' inside the data folder.
  match = re.fullmatch(r'(\w+(?:/\w[\w.-]*)?)(?::(\d+\.\d+\.\d+))?', name)
  if not match:
    raise errors.ConfigError(
      f'dataset {name!r} is not a TFDS name, such as cifar10, cifar10:3.0.2 or'
      ' imagenet2012_subset/10pct; nor is it image_folder.'
    )
  root = data_dir(path)
  if paths.is_remote(root) and not answers(_GOOGLE):
    raise errors.DataError(
      f'{name} cannot be read from {root}: {_GOOGLE} does not answer.'
    )
  folder = newest_version(root / match[1], match[2] or '')
  if folder is None:
    prepared = sorted(
      {
        str(info.parent.parent.relative_to(root))
        for pattern in ('*/*', '*/*/*')
        for info in root.glob(f'{pattern}/dataset_info.json')
      }
    )
    raise errors.DataError(
      f'{name} is not prepared in {root} (there: '
      f'{", ".join(prepared) or "nothing"}). {how_to_prepare(name, path)}'
    )
  return folder


def how_to_prepare(name: str, path: str = '') -> str:
  """Returns a sentence with the command that prepares a dataset."""
  where = f', data_dir={path!r}' if path else ''
  install = ''
  if not importlib.util.find_spec('tensorflow_datasets'):
    install = "pip install 'td_jax[tfds]' and "
  manual = _MANUAL.get(re.split('[/:]', name)[0], '')
  if manual:
    manual = f'put {manual} in {data_dir(path)}/downloads/manual and '
  return (
    f'To prepare it, {install}{manual}run: python -c "import tensorflow_datasets as'
    f' tfds; tfds.load({name!r}{where})"'
  )


# The network.


def answers(host: str, port: int = 443, seconds: float = 3.0) -> bool:
  """Whether `host` accepts a TCP connection within `seconds`, DNS included.

  Ask before TFDS does: without a network it retries for 204 s.
  """
  answered = threading.Event()

  def connect() -> None:
    with contextlib.suppress(OSError):
      socket.create_connection((host, port), timeout=seconds).close()
      answered.set()

  # A name lookup has no timeout, so the thread may outlive this call.
  thread = threading.Thread(target=connect, daemon=True)
  thread.start()
  thread.join(seconds)
  return answered.is_set()
