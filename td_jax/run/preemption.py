"""On SIGTERM or SIGINT: finish the current dispatch, save, exit with 75."""

from collections.abc import Sequence
import signal
from types import FrameType
from typing import NoReturn

from td_jax import errors


class Watch:
  """Records that the process was asked to stop."""

  def __init__(
    self,
    signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
  ):
    self._signal = None
    self.workdir = ''  # The folder of the run, for messages, once it is known.
    for number in signals:
      signal.signal(number, self._record)

  @property
  def requested(self) -> bool:
    """Whether a signal has arrived."""
    return self._signal is not None

  def check(self, state: str) -> None:
    """Raises a PreemptedError if a signal has arrived.

    Args:
      state: What is safe by now, such as 'nothing to save yet'.
    """
    if self._signal is not None:
      self.stop(state)

  def stop(self, state: str) -> NoReturn:
    """Raises a PreemptedError; another process may have had the signal."""
    reason = 'another process was asked to stop'
    if self._signal is not None:
      reason = signal.Signals(self._signal).name
    folder = (
      f'--workdir={self.workdir}' if self.workdir else 'the same --workdir'
    )
    raise errors.PreemptedError(
      f'{reason}: {state}. Run the same command with {folder} to continue from '
      'there.'
    )

  def _record(self, number: int, frame: FrameType | None) -> None:
    # Raising here could tear a checkpoint, so the loop looks at the flag.
    del frame
    self._signal = number
