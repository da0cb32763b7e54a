"""Compiled programs are kept on disk, so that a second start compiles nothing."""

import hashlib
import os
import pathlib
import platform

import jax

_VARIABLE = 'JAX_COMPILATION_CACHE_DIR'
_MAX_BYTES = 2 << 30  # The least recently used programs are dropped first.
_MIN_SECONDS = 0.1  # Programs that compile faster are not kept.
_CPU_INFO = '/proc/cpuinfo'


def enable() -> None:
  """Keeps compiled programs in the user's cache folder, up to 2 GiB.

  JAX's own settings have precedence: JAX_COMPILATION_CACHE_DIR names another
  folder, and JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
  """
  if os.environ.get(_VARIABLE):
    return
  folder = default_folder()
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return  # A home that cannot be written is no reason to stop.
  jax.config.update('jax_compilation_cache_dir', str(folder))
  jax.config.update('jax_compilation_cache_max_size', _MAX_BYTES)
  jax.config.update('jax_persistent_cache_min_compile_time_secs', _MIN_SECONDS)


def default_folder() -> pathlib.Path:
  """The folder of this kind of machine in the user's cache.

  Homes are shared between machines, and code for one CPU may not run on another.
  """
  cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  kind = hashlib.sha256(_processor().encode()).hexdigest()[:12]
  return pathlib.Path(cache).expanduser() / 'td_jax' / f'compiled-{kind}'


def _processor() -> str:
  """The instructions of this machine's CPU, or else its name."""
  try:
    with open(_CPU_INFO, encoding='utf-8') as lines:
      for line in lines:
        if line.startswith(('flags', 'Features')):
          return line
  except OSError:
    pass
  return platform.processor() or platform.machine()
