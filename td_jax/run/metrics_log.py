"""metrics.jsonl and the TensorBoard events of a run."""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import importlib
import json
import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.storage import files
from td_jax.storage import paths
from td_jax.storage import results_log

FILE = 'metrics.jsonl'
_ROW = {'step': int, '*': [float]}  # [seeds] of each metric.


def read(folder: types.Path) -> list[dict[str, Any]]:
  """The rows of the run in `folder`; none if it has no such file.

  Raises:
    errors.DataError: A row has another form.
  """
  rows = results_log.read(folder / FILE, _ROW)
  seeds = {
    len(value) for row in rows for name, value in row.items() if name != 'step'
  }
  if len(seeds) > 1:
    raise errors.DataError(
      f'{folder / FILE} has rows of {min(seeds)} and of {max(seeds)} seeds.'
    )
  return rows


class NoLog:
  """Used by processes that leave the writing to another."""

  def write(
    self, step: int, values: Mapping[str, np.ndarray], **more: float | None
  ) -> None:
    """Ignores the row."""

  def close(self) -> None:
    """Does nothing."""


class MetricsLog:
  """Appends rows to metrics.jsonl and the same scalars to the events."""

  def __init__(
    self,
    path: types.Path,
    *,
    step: int,
    config: types.Config | None = None,
    log: types.Log = types.no_log,
  ):
    """Continues the files in `path` after `step`; later rows are dropped.

    Args:
      path: The folder of a run.
      step: The step that the run continues from.
      config: The run's config; its `wandb` names a project, or is empty.
      log: Receives a warning if earlier rows are lost.

    Raises:
      errors.ConfigError: There is a project, and wandb is not installed.
      errors.DataError: A row has another form.
      errors.IOFailedError: They cannot be written.
    """
    self._wandb = _wandb(path, config) if config and config.wandb else None
    text = ''.join(_rows_until(path / FILE, step, config, log))
    self._remote, local = None, path
    if paths.is_remote(path):
      # Buckets cannot append, so whole files are copied there.
      self._remote, self._scratch = path, tempfile.TemporaryDirectory()
      local = pathlib.Path(self._scratch.name)
    files.write_atomically(local / FILE, text)
    with files.io_errors(path / FILE):
      self._file = open(local / FILE, 'a')
      self._events = _Events(local, step=step)

  def write(
    self,
    step: int,
    values: Mapping[str, np.ndarray],
    *,
    seconds_per_step: float | None = None,
  ) -> None:
    """Writes one row; values are [seeds], as many numbers in the file."""
    row = {name: np.asarray(value).tolist() for name, value in values.items()}
    means = {name: float(np.mean(value)) for name, value in values.items()}
    if seconds_per_step is not None:
      means['steps_per_second'] = 1 / seconds_per_step
    with files.io_errors(self._file.name):
      self._file.write(json.dumps({'step': step} | row) + '\n')
      self._file.flush()
      self._events.write(step, means)
      if self._wandb:
        self._wandb.log(means, step=step)
      if self._remote:
        for file in pathlib.Path(self._scratch.name).iterdir():
          (self._remote / file.name).write_bytes(file.read_bytes())

  def close(self) -> None:
    """Closes the files."""
    if self._wandb:
      self._wandb.finish()
    for file in (self._file, self._events):
      # `write` has already reported what could not be written; an error here
      # would hide the reason why the run ends.
      with contextlib.suppress(OSError):
        file.close()


def _wandb(path: types.Path, config: types.Config) -> Any:
  """A run of Weights & Biases, which continues that of the same folder."""
  try:
    wandb = importlib.import_module('wandb')
  except ImportError as e:
    raise errors.ConfigError(
      f'config.wandb is {config.wandb!r}, which takes pip install wandb.'
    ) from e
  return wandb.init(
    project=config.wandb,
    name=path.name,
    id=files.sha256(str(path))[:16],
    config=config.to_dict(),
    resume='allow',
  )


class _Events:
  """A TensorBoard file, written synchronously.

  tensorboardX's usual writer leaves that to a thread. On a full disk the
  thread dies, its queue fills up and the run waits for ever.
  """

  def __init__(self, path: pathlib.Path, *, step: int):
    # Imported here, because --help should not wait for it.
    from tensorboardX import event_file_writer
    from tensorboardX.proto import event_pb2

    proto: Any = event_pb2  # Its classes are created at import.
    self._event = proto.Event
    self._file = event_file_writer.EventsWriter(
      str(path / 'events'), f'.{os.getpid()}'
    )
    # Makes TensorBoard hide what an earlier process wrote after `step`.
    start = proto.SessionLog(status=proto.SessionLog.START)
    self._write(step=step + 1, session_log=start)

  def write(self, step: int, values: Mapping[str, float]) -> None:
    from tensorboardX import summary

    for name, value in values.items():
      self._write(step=step, summary=summary.scalar(name, value))
    self._file.flush()

  def close(self) -> None:
    self._file.close()

  def _write(self, **fields: Any) -> None:
    self._file.write_event(self._event(wall_time=time.time(), **fields))


def _rows_until(
  file: types.Path, step: int, config: types.Config | None, log: types.Log
) -> Iterator[str]:
  """The lines of metrics.jsonl up to `step`; warns if there should be more."""
  steps = set()
  for line, row in results_log.lines(file, _ROW):
    if row['step'] <= step:
      steps.add(row['step'])
      yield line + '\n'
  # With another config the rows may have been further apart.
  if config is None or config.allow_changed_config:
    return
  expected = set(range(config.log_every, step + 1, config.log_every))
  lost = sorted(expected - steps)
  if lost:
    log(
      f'warning: {file} lacks {len(lost)} of the {len(expected)} rows up to step '
      f'{step}, where the run goes on; the first is that of step {lost[0]}.'
    )
