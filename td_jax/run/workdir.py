"""The folder of a run: its lock, config and results.

config.json     the config of the run
inputs.npz      what makes a network's input: class names, or a vocabulary
metrics.jsonl   a row every log_every steps; rows do not depend on the clock,
                so a resumed run writes the rows of an uninterrupted one
events.*        the same and the speed, for TensorBoard
checkpoints/    the two latest, each with the best students by validation
results.json    written at the end

A folder in a bucket (gs://...) works too, but has no lock.
"""

import contextlib
import datetime
import fcntl
import json
import os
from typing import Any

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import task as task_lib
from td_jax.run import config as config_lib
from td_jax.run import metrics_log
from td_jax.run import stored_config
from td_jax.storage import checkpoint
from td_jax.storage import files
from td_jax.storage import paths

CHECKPOINTS = 'checkpoints'
CONFIG = 'config.json'
INPUTS = 'inputs.npz'
_LOCK = '.lock'
_MODEL_ARGS = 'model_args'  # In that file, as JSON.


class Workdir:
  """The folder of one run, locked while the run is active."""

  def __init__(self, path: types.Path, *, writes: bool = True):
    """Creates and locks the folder.

    Args:
      path: The folder.
      writes: Whether this process writes; only one process of a run does.

    Raises:
      errors.ConfigError: No checkpoint can be saved under its name.
      errors.IOFailedError: It cannot be written, or another run holds it.
    """
    checkpoint.check_path(path)
    self.path, self._writes, self._lock = path, writes, None
    self._is_new = False
    if not writes:
      return
    try:
      self._is_new = not self.path.exists()
      self.path.mkdir(parents=True, exist_ok=True)
      # Opening the lock file proves nothing: a read-only folder may hold one
      # that can be opened.
      (self.path / '.probe').write_text('')
      (self.path / '.probe').unlink()
      if paths.is_remote(self.path):
        return
      self._lock = open(self.path / _LOCK, 'a+')
    # TensorFlow's errors of buckets are no OSErrors.
    except Exception as e:
      reason = errors.reason(e)
      if isinstance(e, FileExistsError):
        reason = 'it is a file, not a folder'
      raise errors.IOFailedError(
        f'--workdir={self.path} cannot be written: {reason}. Choose another '
        'folder or mend its permissions.'
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
    """Releases the lock, and removes a new folder that has remained empty."""
    if not self._lock:
      return
    with contextlib.suppress(OSError):  # Another run may just enter it.
      if self._is_new and os.listdir(self.path) == [_LOCK]:
        (self.path / _LOCK).unlink()
        self.path.rmdir()
    self._lock.close()

  def claim(self, config: types.Config) -> None:
    """Stores `config`, or checks that it matches the stored one.

    Raises:
      errors.ConfigError: The folder belongs to a run with another config, or
        holds something else, such as published weights.
      errors.DataError: The stored config is damaged, or lost.
    """
    file = self.path / CONFIG
    saves = self.path / CHECKPOINTS
    if (
      not file.exists()
      and saves.is_dir()
      and any(saves.iterdir())
      and not config.allow_changed_config
    ):
      raise errors.DataError(
        f'{self.path} has checkpoints, but no {CONFIG} that says of which run. Put '
        'it back, choose another --workdir, or set config.allow_changed_config=True '
        'to continue all the same.'
      )
    if file.exists() and 'method' not in files.read_json(file):
      raise errors.ConfigError(
        f'{file} is not of a run; it would be replaced. Choose another --workdir.'
      )
    # A folder without subfolders holds no work yet, so a command that failed
    # early (its teacher was missing, say) may be corrected and run again.
    started = file.exists() and any(
      entry.is_dir() for entry in self.path.iterdir()
    )
    if started and not config.allow_changed_config:
      changes = config_lib.difference(stored_config.read(file), config)
      if changes:
        raise errors.ConfigError(
          f'{self.path} holds a run of another config ({"; ".join(changes)}). '
          'Choose another workdir, or set config.allow_changed_config=True to '
          'continue all the same.'
        )
    self.write(CONFIG, json.loads(config_lib.to_json(config)))

  def write(self, name: str, value: Any) -> None:
    """Writes `value` as JSON to the file `name`."""
    if self._writes:
      text = json.dumps(value, indent=2, sort_keys=True) + '\n'
      files.write_atomically(self.path / name, text)

  def keep_inputs(self, task: task_lib.Task) -> None:
    """Stores what `inputs` reads."""
    if self._writes and task.inputs:
      arrays: dict[str, Any] = dict(task.inputs())
      arrays[_MODEL_ARGS] = np.asarray(json.dumps(dict(task.model_args)))
      with files.replacing(self.path / INPUTS) as opened:
        np.savez_compressed(opened, **arrays)

  def rows(
    self, step: int, config: types.Config, log: types.Log
  ) -> metrics_log.MetricsLog | metrics_log.NoLog:
    """Opens the metrics of the run, to continue after `step`."""
    if self._writes:
      return metrics_log.MetricsLog(
        self.path, step=step, config=config, log=log
      )
    return metrics_log.NoLog()


def inputs(
  folder: types.Path,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """(`Task.model_args`, what `Task.inputs` made) of the run in `folder`.

  Raises:
    errors.DataError: They are absent or damaged.
  """
  file = folder / INPUTS
  try:
    with file.open('rb') as opened, np.load(opened) as stored:
      arrays = dict(stored)
    return stored_config.with_tuples(
      json.loads(str(arrays.pop(_MODEL_ARGS)))
    ), arrays
  except FileNotFoundError as e:
    raise errors.DataError(
      f'{folder} has no {INPUTS}; is it the folder of a run? For a run of version '
      '0.2, start its command once more with the same --workdir: that adds the '
      'file and trains nothing.'
    ) from e
  except Exception as e:  # A damaged file may raise anything.
    raise errors.DataError(
      f'{file} cannot be read ({errors.one_line(e)}); start the command of the run '
      'once more with the same --workdir, which writes it again.'
    ) from e


def default(config_name: str) -> str:
  """A new folder under runs/, named after the config and the time."""
  # With microseconds, because a script may start several runs in one second.
  now = datetime.datetime.now().strftime('%Y%m%d-%H%M%S-%f')
  # A slash would lead out of runs/.
  return os.path.join('runs', f'{config_name.replace("/", "_")}-{now}')
