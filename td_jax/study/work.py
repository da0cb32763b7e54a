"""Pieces of work that several processes share, each a row of a results file."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import datetime
import itertools
import pathlib
import shutil
import tempfile
import time
from typing import Any

from td_jax import types
from td_jax.run import metrics_log
from td_jax.run import pipeline
from td_jax.run import preemption
from td_jax.storage import files
from td_jax.storage import results_log

# What identifies a piece of work; the rest of a row is its outcome.
Key = dict[str, Any]


def run_all(
  what: str,
  work: Sequence[Key],
  file: pathlib.Path,
  run: Callable[[Key], dict[str, Any]],
  *,
  title: Callable[[Key], str],
  workdir: pathlib.Path,
  watch: preemption.Watch,
  log: types.Log,
) -> None:
  """Runs the part of `work` that `file` lacks, and appends each outcome.

  Args:
    what: What a piece of work is called, in the plural.
    work: All pieces; their keys have the same names.
    file: The rows of finished work, of any process.
    run: Returns the outcome of a piece, with its mean under `validation`.
    title: Names a piece in progress lines.
    workdir: Holds the locks, in a folder called `what`.
    watch: Tells where the finished work is; no signal tears a row of it.
    log: Receives progress lines.
  """
  watch.finished_work = f'the finished {what} are in {file}'
  locks = workdir / what
  locks.mkdir(exist_ok=True)
  began, first = time.monotonic(), len(left(work, file))
  # The second time round it waits for what other processes are running, since
  # the next part may need all outcomes, and runs what a killed process has left.
  for wait, key in itertools.product((False, True), work):
    if key not in left([key], file):
      continue
    lock = locks / f'{digest(key)}.lock'
    with results_log.lock(lock, wait=wait) as acquired:
      # Read again under the lock: another process may have finished it.
      if not acquired or not left([key], file):
        continue
      outcome = run(key)
      with watch.saving():
        results_log.append(file, key | outcome)
    remaining = len(left(work, file))
    pace = (time.monotonic() - began) / max(first - remaining, 1)
    score = outcome['validation']['mean']
    log(
      f'{title(key)}: {score:.4f}; {remaining} of {len(work)} {what} left, '
      f'ETA {datetime.timedelta(seconds=round(pace * remaining))}'
    )


def left(work: Sequence[Key], file: pathlib.Path) -> list[Key]:
  """The work that `file` does not hold yet."""
  rows = results_log.read(file)
  if not rows or not work:
    return list(work)
  done = {digest({name: row.get(name) for name in work[0]}) for row in rows}
  return [key for key in work if digest(key) not in done]


def digest(key: Key) -> str:
  """A short name of a piece of work."""
  return files.sha256([key])[:16]


def train(
  config: types.Config,
  fields: Iterable[str],
  *,
  workdir: pathlib.Path,
  watch: preemption.Watch,
  log: types.Log = types.no_log,
) -> dict[str, Any]:
  """Trains `config` in a temporary folder; returns `fields` of its results.

  The folders of teachers are left out: they mean nothing on other machines.
  The field `curve` is [step, [a score for each seed]] of every validation, and
  `terms` are the last reported means of the loss and its terms, for each seed.
  """
  folder = pathlib.Path(tempfile.mkdtemp(dir=workdir))
  try:
    outcome = pipeline.run(config, folder, watch=watch, log=log)
    for teacher in outcome['teachers'].values():
      del teacher['folder']
    score = f'validation_{outcome["metric"]}'
    logged = metrics_log.read(folder)
    outcome['curve'] = [
      [row['step'], row[score]] for row in logged if score in row
    ]
    outcome['terms'] = next(row for row in reversed(logged) if 'loss' in row)
  finally:
    shutil.rmtree(folder, ignore_errors=True)
  return {name: outcome.get(name) for name in fields}
