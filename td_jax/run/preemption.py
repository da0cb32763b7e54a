"""On SIGTERM, SIGINT or SIGHUP: finish the current dispatch, save, exit with 75.

Python hears a signal between two of its own instructions. A program that compiles
or runs on a device may not let it get there for a minute, and machines that are taken
away give 30 seconds. So a thread waits for the signal too, and ends the process if
it does not begin to save in time.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import os
import signal
import threading
from types import FrameType
from typing import NoReturn

from td_jax import errors
from td_jax.run import terminal

NOTHING = 'nothing to save'
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_AT_ONCE = 0.5  # Seconds in which to end where there is nothing to save.
_PATIENCE = 8.0  # Seconds in which a save has to begin.
_AFTER_A_SAVE = (
  1.0  # Seconds in which the loop has to see the signal after one.
)


class Watch:
  """Records that the process was asked to stop.

  As a context manager it ignores signals after its body.
  """

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
      patience: Seconds in which a process that `will_save` has to answer.
    """
    self._signal: int | None = None
    self._answered = threading.Event()
    self._saving = threading.Lock()
    self._settle: Callable[[], str] | None = None
    self._patience_of_saves = patience
    self._patience = min(patience, _AT_ONCE)
    self.workdir = ''  # The folder of the run, for messages, once it is known.
    self.state = NOTHING  # What is safe if the process ends now.
    # The same for a command whose runs do not outlive it.
    self.finished_work = ''
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

  def __enter__(self) -> 'Watch':
    return self

  def __exit__(self, *exception: object) -> None:
    self.finish()

  @property
  def requested(self) -> bool:
    """Whether a signal has arrived."""
    return self._signal is not None

  def will_save(self) -> None:
    """Says that there is work to save from here on, which may take seconds.

    Until then a signal ends the process almost at once.
    """
    self._patience, self.state = self._patience_of_saves, NOTHING

  def check(self) -> None:
    """Raises a PreemptedError if a signal has arrived."""
    if self._signal is not None:
      self.stop(self.state)

  def stop(self, state: str) -> NoReturn:
    """Raises a PreemptedError; another process may have had the signal.

    Args:
      state: What is safe by now, such as 'saved step 8'.
    """
    self._answer()
    raise errors.PreemptedError(self._message(self._signal, state))

  def finish(self) -> None:
    """Ignores all signals from here on: the exit code is decided."""
    self._answer()
    for number in self._signals:
      # Other handlers are gone before a process has ended.
      signal.signal(number, signal.SIG_IGN)

  @contextlib.contextmanager
  def saving(self) -> Iterator[None]:
    """Nothing ends the process while its body writes."""
    with self._saving:
      yield

  @contextlib.contextmanager
  def settling(self, settle: Callable[[], str]) -> Iterator[None]:
    """For a body whose saves go on in the background.

    Args:
      settle: Waits for a save that is being written; returns what is safe then.
    """
    self._settle = settle
    try:
      yield
    finally:
      with self._saving:
        self._settle = None

  def _answer(self) -> None:
    """Keeps `_insist` from ending the process, or waits until it has done so."""
    with self._saving:
      self._answered.set()

  def _record(self, number: int, frame: FrameType | None) -> None:
    # Raising here could tear a checkpoint, so the loop looks at the flag.
    del frame
    self._signal = number

  def _insist(self, receiver: int) -> None:
    """Ends the process some time after a signal, unless it has ended itself."""
    number = 0
    while number not in self._signals:
      number = os.read(receiver, 1)[0]
    patience = self._patience
    while not self._answered.wait(patience):
      if self._saving.acquire(blocking=False):
        if not self._answered.is_set():
          self._end(number)
        self._saving.release()
      patience = _AFTER_A_SAVE

  def _end(self, number: int) -> NoReturn:
    """Ends the process, once a save in the background is finished."""
    error: errors.TdError
    try:
      state = self._settle() if self._settle else self.state
      error = errors.PreemptedError(self._message(number, state))
    except errors.TdError as e:  # The save has failed.
      error = e
    # No clean-up: the main thread may be anywhere.
    terminal.say(f'error: {error}')
    os._exit(error.exit_code)

  def _message(self, number: int | None, state: str) -> str:
    state = self.finished_work or state
    reason = 'another process was asked to stop'
    if number is not None:
      reason = signal.Signals(number).name
    if not self.workdir:  # Of a command without one, or before it is known.
      return f'{reason}: {state}. Run the same command again.'
    end = '' if state == NOTHING else ' to continue from there'
    return f'{reason}: {state}. Run the same command with --workdir={self.workdir}{end}.'
