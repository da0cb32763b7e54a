"""A trace of some steps of a run, for TensorBoard, XProf or Perfetto."""

import re
from typing import Any
from typing import NamedTuple

import jax

from td_jax import errors
from td_jax import types

FOLDER = 'profile'  # Inside the folder of a run.


class Steps(NamedTuple):
  """Steps first + 1 to last."""

  first: int
  last: int


def parse(text: str) -> Steps | None:
  """The steps of --profile='10:20'; None for ''.

  Raises:
    errors.ConfigError: It has another form.
  """
  if not text:
    return None
  match = re.fullmatch(r'(\d+):(\d+)', text)
  if not match or int(match[1]) >= int(match[2]):
    raise errors.ConfigError(
      f"--profile is {text!r}; it takes two numbers of steps, as in '10:20'."
    )
  return Steps(int(match[1]), int(match[2]))


class Profiler:
  """Traces the dispatches that contain some steps."""

  def __init__(self, steps: Steps | None, folder: types.Path, log: types.Log):
    """Traces into `folder`; nothing if `steps` is None."""
    self._steps, self._folder, self._log = steps, folder / FOLDER, log
    self._running = False

  def before(self, step: int, stop: int) -> None:
    """Is called before the dispatch of steps step + 1 to stop."""
    if self._steps and stop > self._steps.first and not self._running:
      jax.profiler.start_trace(str(self._folder))
      self._running = True

  def after(self, stop: int, state: Any) -> None:
    """Is called after the dispatch up to step `stop`, whose result is `state`."""
    if self._running and self._steps and stop >= self._steps.last:
      jax.block_until_ready(state)
      self.close()

  def close(self) -> None:
    """Writes the trace, if one is running."""
    if self._running:
      jax.profiler.stop_trace()
      self._running, self._steps = False, None
      self._log(f'trace in {self._folder}; see it with tensorboard or xprof')
