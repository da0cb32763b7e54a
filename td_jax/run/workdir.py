"""The folder of a run: its lock, config, metrics and results.

config.json     what was run
metrics.jsonl   a row each log_every steps; nothing in it depends on the
                clock, so a resumed run's rows equal an uninterrupted one's
events.*        the same, and speed, for TensorBoard
checkpoints/    the two latest, each with the best student by validation
results.json    written at the end

A folder in a bucket (gs://...) works too, without the lock: there is none.
"""

from collections.abc import Mapping
import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.run import config as config_lib
from td_jax.storage import paths

CHECKPOINTS = 'checkpoints'


class Workdir:
  """One run's folder, held by one run at a time."""

  def __init__(self, path: types.Path, *, writes: bool = True):
    """Creates and locks the folder.

    Args:
      path: The folder.
      writes: Whether this process writes; of several of a run only one does.

    Raises:
      errors.IOFailedError: it cannot be written, or another run holds it.
    """
    self.path, self._writes, self._lock = path, writes, None
    if not writes:
      return
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      # A read-only folder may hold a lock file that can be opened.
      (self.path / '.probe').write_text('')
      (self.path / '.probe').unlink()
      if paths.is_remote(self.path):
        return
      self._lock = open(self.path / '.lock', 'a+')
    except OSError as e:
      raise errors.IOFailedError(
        f'--workdir={self.path} cannot be written: {e.strerror or e}. Choose '
        'another folder or mend its permissions.'
      ) from e
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      self._lock.close()
      raise errors.IOFailedError(
        f'--workdir={self.path} is in use by another run; wait for it or '
        'choose another folder.'
      ) from e

  def close(self) -> None:
    if self._lock:
      self._lock.close()

  def claim(self, config: types.Config) -> None:
    """Keeps `config`, or checks that the folder's own is the same.

    Raises:
      errors.ConfigError: the folder belongs to a run of another config.
    """
    file = self.path / 'config.json'
    # Before there is a folder in it nothing has been made: a command whose
    # teacher is not there, say, may be mended.
    begun = file.exists() and any(part.is_dir() for part in self.path.iterdir())
    if begun and not config.allow_changed_config:
      stored = config_lib.completed(read(file))
      changed = config_lib.difference(stored, config)
      if changed:
        raise errors.ConfigError(
          f'{self.path} holds a run of another config ({"; ".join(changed)})'
          '. Choose another --workdir, or set '
          '--config.allow_changed_config=True to go on all the same.'
        )
    self.write('config.json', json.loads(config_lib.to_json(config)))

  def write(self, name: str, value: Any) -> None:
    """Keeps `value` in file `name`."""
    if self._writes:
      text = json.dumps(value, indent=2, sort_keys=True) + '\n'
      _replace(self.path / name, text)

  def rows(self, step: int) -> 'Rows | NoRows':
    """The metrics of the run, to be continued after `step`."""
    return Rows(self.path, step=step) if self._writes else NoRows()


def read(file: types.Path) -> dict[str, Any]:
  """The JSON object in `file` of a run's folder.

  Raises:
    errors.DataError: it is absent or damaged.
  """
  try:
    found = json.loads(file.read_text())
    if not isinstance(found, dict):
      raise ValueError('it holds no object')
    return found
  except (OSError, ValueError) as e:
    raise errors.DataError(
      f'{file} cannot be read ({e}); is {file.parent} the folder of a run?'
    ) from e


class NoRows:
  """Of a process that leaves it to another to write."""

  def write(self, step: int, values: Mapping[str, np.ndarray], **more) -> None:
    pass

  def close(self) -> None:
    pass


class Rows:
  """metrics.jsonl and TensorBoard events of a run."""

  def __init__(self, path: types.Path, *, step: int):
    """Continues the files in `path` after `step`; later rows are dropped.

    Raises:
      errors.IOFailedError: they cannot be written.
    """
    name = 'metrics.jsonl'
    text = ''.join(_rows_until(path / name, step))
    self._remote, local = None, path
    if paths.is_remote(path):
      # Nothing can be appended to there: whole files are copied.
      self._remote, self._scratch = path, tempfile.TemporaryDirectory()
      local = pathlib.Path(self._scratch.name)
    _replace(local / name, text)
    with _named(path / name):
      self._file = open(local / name, 'a')
      self._events = _Events(local, step=step)

  def write(
    self,
    step: int,
    values: Mapping[str, np.ndarray],
    *,
    seconds_per_step: float | None = None,
  ) -> None:
    """One row; values are [seeds], as many numbers in the file."""
    row = {name: np.asarray(value).tolist() for name, value in values.items()}
    means = {name: float(np.mean(value)) for name, value in values.items()}
    if seconds_per_step is not None:
      means['steps_per_second'] = 1 / seconds_per_step
    with _named(self._file.name):
      self._file.write(json.dumps({'step': step} | row) + '\n')
      self._file.flush()
      self._events.write(step, means)
      if self._remote:
        for file in pathlib.Path(self._scratch.name).iterdir():
          (self._remote / file.name).write_bytes(file.read_bytes())

  def close(self) -> None:
    for file in (self._file, self._events):
      # What could not be written was told by `write`; here it would hide why
      # the run ends.
      with contextlib.suppress(OSError):
        file.close()


class _Events:
  """TensorBoard's file, written at once.

  tensorboardX's usual writer has a thread do that, which dies of a full disk;
  then its queue fills up and the run waits for ever.
  """

  def __init__(self, path, *, step):
    # Here, since --help need not wait for it.
    from tensorboardX import event_file_writer
    from tensorboardX.proto import event_pb2

    made: Any = event_pb2  # Its classes appear when it is imported.
    self._event = made.Event
    self._file = event_file_writer.EventsWriter(
      str(path / 'events'), f'.{os.getpid()}'
    )
    # Hides what an earlier process wrote after `step`.
    start = made.SessionLog(status=made.SessionLog.START)
    self._write(step=step + 1, session_log=start)

  def write(self, step, values):
    from tensorboardX import summary

    for name, value in values.items():
      self._write(step=step, summary=summary.scalar(name, value))
    self._file.flush()

  def close(self):
    self._file.close()

  def _write(self, **fields):
    self._file.write_event(self._event(wall_time=time.time(), **fields))


@contextlib.contextmanager
def _named(file):
  """An OSError becomes an IOFailedError that names `file`."""
  try:
    yield
  except OSError as e:
    raise errors.IOFailedError(
      f'could not write {file}: {e.strerror or e}.'
    ) from e


def _rows_until(file, step):
  """The whole rows of metrics.jsonl that are not later than `step`."""
  if not file.exists():
    return
  for line in file.read_text(errors='replace').splitlines(keepends=True):
    # What a crash cut off or left blank is later than any checkpoint.
    with contextlib.suppress(ValueError):
      if line.endswith('\n') and json.loads(line)['step'] <= step:
        yield line


def _replace(file, text):
  """Writes `file` at once, so that no reader sees half of it."""
  part = file.with_name(f'.{file.name}.part')
  with _named(file):
    try:
      part.write_text(text)
      part.replace(file)
    except OSError:
      with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)
      raise


def default(config_name: str) -> str:
  """A new folder under runs/, named after the config and the time."""
  now = datetime.datetime.now().strftime('%Y%m%d-%H%M%S')
  return os.path.join('runs', f'{config_name}-{now}')
