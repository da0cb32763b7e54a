"""On SIGTERM, SIGINT or SIGHUP: finish the current dispatch, save, exit with 75.

Python hears a signal between two of its own instructions. A program that compiles
or runs on a device may not let it get there for a minute, and machines that are taken
away give 30 seconds. So a thread waits for the signal too, and ends the process if
it does not begin to save in time.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import NoReturn

from td_jax import errors

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PATIENCE = 8.0  # Seconds in which a save has to begin.
_AFTER_A_SAVE = (
  1.0  # Seconds in which the loop has to see the signal after one.
)


class Watch:
  """Records that the process was asked to stop."""

  def __init__(
    self,
    signals: Sequence[signal.Signals] = _SIGNALS,
    *,
    patience: float = _PATIENCE,
  ):
    """Listens to `signals`.

    Args:
      signals: Those that ask for a stop; none leaves the handlers as they are.
        SIGHUP stays ignored where it is, as under nohup. The others are heard
        even if whoever started the process ignored them: a machine that is
        taken away sends SIGTERM.
      patience: Seconds in which the process has to answer.
    """
    self._signal: int | None = None
    self._answered = threading.Event()
    self._saving = threading.Lock()
    self.workdir = ''  # The folder of the run, for messages, once it is known.
    self.patience = patience
    # What is safe if the process ends now.
    self.state = 'nothing to save yet'
    no_terminal = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    self._signals = [
      each for each in signals if not (each == signal.SIGHUP and no_terminal)
    ]
    for number in self._signals:
      signal.signal(number, self._record)
    if self._signals:
      receiver, sender = os.pipe()
      os.set_blocking(sender, False)
      # Written to by the signal itself, whatever Python is doing.
      signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
      threading.Thread(
        target=self._insist, args=(receiver,), daemon=True
      ).start()

  @property
  def requested(self) -> bool:
    """Whether a signal has arrived."""
    return self._signal is not None

  def check(self, state: str) -> None:
    """Raises a PreemptedError if a signal has arrived.

    Args:
      state: What is safe by now, such as 'nothing to save yet'.
    """
    self.state = state
    if self._signal is not None:
      self.stop(state)

  def stop(self, state: str) -> NoReturn:
    """Raises a PreemptedError; another process may have had the signal."""
    self._answered.set()
    raise errors.PreemptedError(self._message(self._signal, state))

  def finish(self) -> None:
    """Ignores all signals from here on, since the work is done."""
    self._answered.set()
    for number in self._signals:
      # Other handlers are gone before a process has ended.
      signal.signal(number, signal.SIG_IGN)

  @contextlib.contextmanager
  def saving(self) -> Iterator[None]:
    """Nothing ends the process while a checkpoint is written."""
    with self._saving:
      yield

  def _record(self, number: int, frame: FrameType | None) -> None:
    # Raising here could tear a checkpoint, so the loop looks at the flag.
    del frame
    self._signal = number

  def _insist(self, receiver: int) -> None:
    """Ends the process some time after a signal, unless it has ended itself."""
    number = 0
    while number not in self._signals:
      number = os.read(receiver, 1)[0]
    patience = self.patience
    while not self._answered.wait(patience):
      if self._saving.acquire(blocking=False):
        break
      patience = _AFTER_A_SAVE
    else:
      return
    message = self._message(number, self.state)
    # No clean-up: the main thread may be anywhere.
    print(f'error: {message}', file=sys.stderr, flush=True)
    os._exit(errors.PreemptedError.exit_code)

  def _message(self, number: int | None, state: str) -> str:
    reason = 'another process was asked to stop'
    if number is not None:
      reason = signal.Signals(number).name
    folder = (
      f'--workdir={self.workdir}' if self.workdir else 'the same --workdir'
    )
    return (
      f'{reason}: {state}. Run the same command with {folder} to continue from '
      'there.'
    )
