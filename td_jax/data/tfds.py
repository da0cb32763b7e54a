"""TFDS and its network: imported late, asked carefully."""

import contextlib
import os
import socket
import sys
import threading
from typing import Any

from td_jax import errors


def module() -> Any:
  """Returns tensorflow_datasets, off any accelerator that JAX will use.

  Raises:
    DataError: it is not installed.
  """
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
  # Only its notice on stderr is unwanted, but that has no switch of its own.
  os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
  try:
    import tensorflow as tf  # 4-10 s: only for whoever needs it.
    import tensorflow_datasets as tfds
  except ImportError as error:
    raise errors.DataError(
      f'the data need TFDS, but {error}: pip install tensorflow-cpu'
      ' tensorflow-datasets.'
    ) from error
  # Raises if something else has started TensorFlow's devices already.
  with contextlib.suppress(RuntimeError):
    tf.config.set_visible_devices([], 'GPU')
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  return tfds


def answers(host: str, port: int = 443, seconds: float = 3.0) -> bool:
  """Whether `host` takes a TCP connection within `seconds`, DNS included.

  TFDS finds out too, but after 204 s of retries.
  """
  answered = threading.Event()

  def connect() -> None:
    with contextlib.suppress(OSError):
      socket.create_connection((host, port), timeout=seconds).close()
      answered.set()

  # A name lookup has no timeout of its own, so the thread may be left behind.
  thread = threading.Thread(target=connect, daemon=True)
  thread.start()
  thread.join(seconds)
  return answered.is_set()
