"""The progress of a run: a bar on a terminal, occasional lines elsewhere."""

import datetime
import sys
import time

import tqdm

from td_jax import types

_SECONDS_BETWEEN_LINES = 5.0


class Bar:
  """Progress with an estimate of the remaining time."""

  def __init__(self, name: str, *, start: int, total: int, log: types.Log):
    self._name, self._start, self._total = name, start, total
    self._log = log
    self._bar = None
    if sys.stderr is not None and sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        desc=name, initial=start, total=total, unit='step', leave=False
      )
    self._start_time = self._last_line = time.monotonic()

  def update(self, step: int, note: str) -> None:
    """Shows that `step` steps are done."""
    now = time.monotonic()
    if self._bar is not None:
      self._bar.set_postfix_str(note, refresh=False)
      self._bar.update(step - self._bar.n)
    elif step == self._total or now - self._last_line >= _SECONDS_BETWEEN_LINES:
      self._last_line = now
      pace = (now - self._start_time) / max(step - self._start, 1)
      eta = datetime.timedelta(seconds=round(pace * (self._total - step)))
      self._log(
        f'{self._name}: step {step}/{self._total}, {note}, '
        f'{1 / pace:.3g} steps/s, ETA {eta}'
      )

  def close(self) -> None:
    """Removes the bar."""
    if self._bar is not None:
      self._bar.close()
