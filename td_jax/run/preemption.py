"""SIGTERM and SIGINT: finish the dispatch at hand, save, exit 75."""

import signal
from typing import NoReturn

from td_jax import errors


class Watch:
  """Remembers that the process was told to stop."""

  def __init__(self):
    self._signal = None
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._remember)

  @property
  def requested(self) -> bool:
    return self._signal is not None

  def check(self, done: str) -> None:
    """Raises PreemptedError if a signal came; `done` says what is safe."""
    if self._signal is not None:
      self.stop(done)

  def stop(self, done: str) -> NoReturn:
    """Raises PreemptedError: this process was told to, or another of the run."""
    said = 'another process was told to stop'
    if self._signal is not None:
      said = signal.Signals(self._signal).name
    raise errors.PreemptedError(
      f'{said}: {done}. The same command with the same --workdir goes on '
      'from there.'
    )

  def _remember(self, number, frame):
    del frame  # The place it came at does not matter.
    self._signal = number
