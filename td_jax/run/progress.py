"""How far a run is: a bar on a terminal, now and then a line elsewhere."""

from collections.abc import Callable
import datetime
import sys
import time

import tqdm

_SECONDS_BETWEEN_LINES = 5.0


class Bar:
  """Progress of one run, with the time it still takes."""

  def __init__(
    self, name: str, *, start: int, total: int, log: Callable[[str], None]
  ):
    self._name, self._start, self._total = name, start, total
    self._log = log
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm.tqdm(
        desc=name, initial=start, total=total, unit='step', leave=False
      )
    self._began = self._said = time.monotonic()

  def update(self, step: int, note: str) -> None:
    """Shows that `step` steps are done."""
    now = time.monotonic()
    if self._bar is not None:
      self._bar.set_postfix_str(note, refresh=False)
      self._bar.update(step - self._bar.n)
    elif step == self._total or now - self._said >= _SECONDS_BETWEEN_LINES:
      self._said = now
      pace = (now - self._began) / max(step - self._start, 1)
      eta = datetime.timedelta(seconds=round(pace * (self._total - step)))
      self._log(
        f'{self._name}: step {step}/{self._total}, {note}, '
        f'{1 / pace:.3g} steps/s, ETA {eta}'
      )

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()
