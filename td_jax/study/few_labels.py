"""The study of few labels on MovieLens: trials, runs, tables and figures.

  python -m td_jax.study.few_labels --workdir=runs/few_labels
  python -m td_jax.study.few_labels --render

For each teacher and source of unlabelled pairs, the weights of every method are
chosen on the validation split of two genres, with as many trials for each
method; so are the steps, weight decay and dropout of scratch. Then every method
runs in all genres, TD without LD at 5% and 100% of the labels alone. There is no
refit: a student is scored on validation and test at its best step by validation.
Weights for 1% and 20% of the labels are those found at 5%.

There are two teachers. The paper's has learnt from all ratings of the training
split, also from those that are hidden from the students: what a student gains
from it may be its memory of the answers. The honest one has never seen them.

Trials are appended to results/few_labels_search.jsonl and runs to
results/few_labels.jsonl. What is there is not run again, and several processes
share the work: start one for each core (`taskset -c 0 python -m ... &`).
"""

import argparse
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

import numpy as np

from td_jax import types
from td_jax.paper import command_line
from td_jax.paper import tables
from td_jax.run import pipeline
from td_jax.run import preemption
from td_jax.storage import files
from td_jax.storage import results_log
from td_jax.study import few_labels_page
from td_jax.study import regimes

SEARCH = 'few_labels_search.jsonl'
CELLS = 'few_labels.jsonl'
_FIELDS = (
  'method', 'k', 'seeds', 'steps', 'batch_size', 'labels', 'unlabelled',
  'best_step', 'seconds', 'metric', 'validation', 'test', 'baselines',
  'commit', 'python', 'versions',
)  # fmt: skip
# What identifies a piece of work; the rest of a row is its outcome.
Key = dict[str, Any]


class Study:
  """The work of the study: what is done, and what is left."""

  def __init__(
    self,
    workdir: pathlib.Path,
    results: pathlib.Path,
    *,
    watch: preemption.Watch,
    log: types.Log,
  ):
    """Nothing is run yet.

    Args:
      workdir: The folder of teachers, locks and compiled programs.
      results: The folder of the two result files.
      watch: Tells the train loop when to stop.
      log: Receives progress lines.
    """
    tables.begin(workdir, results)
    self._workdir, self._results = workdir, results
    self._watch, self._log = watch, log

  def search(self, *, trials: int, seeds: int) -> None:
    """Runs the missing trials of all weights."""
    work = [
      {
        'regime': regime._asdict(),
        'method': method,
        'column': column,
        'weights': weights,
      }
      for regime, method in regimes.tuned()
      for weights in regimes.trials(method, trials)
      for column in regimes.TUNED_ON
    ]

    def run(key: Key) -> dict[str, Any]:
      regime = regimes.Regime(**key['regime'])
      config = regimes.config(
        regime,
        key['method'],
        key['column'],
        seeds=range(seeds),
        teacher=self._teacher(regime, key['column']),
        weights=key['weights'],
      )
      config.test = False
      return self._run(
        config, ('metric', 'validation', 'best_step', 'seconds', 'commit')
      )

    self._all('trials', work, self._results / SEARCH, run)

  def cells(self, *, seeds: int) -> None:
    """Runs the missing cells with the weights that the search has chosen."""
    chosen = best(results_log.read(self._results / SEARCH))
    work = [
      {'regime': regime._asdict(), 'row': row, 'column': column}
      for regime, row in regimes.rows()
      for column in regimes.COLUMNS
    ]

    def run(key: Key) -> dict[str, Any]:
      regime, row = regimes.Regime(**key['regime']), key['row']
      weights = chosen[regimes.tuned_as(regime, row)]
      config = regimes.config(
        regime,
        row,
        key['column'],
        seeds=range(seeds),
        teacher=self._teacher(regime, key['column']),
        weights=weights,
      )
      outcome = self._run(config, (*_FIELDS, 'teachers'))
      for teacher in outcome['teachers'].values():
        del teacher['folder']  # It means nothing on other machines.
      return outcome | {'weights': weights}

    self._all('cells', work, self._results / CELLS, run)

  def _all(
    self,
    what: str,
    work: Sequence[Key],
    file: pathlib.Path,
    run: Callable[[Key], dict[str, Any]],
  ) -> None:
    """Runs the part of `work` that `file` lacks, and appends each outcome."""
    locks = self._workdir / what
    locks.mkdir(exist_ok=True)
    began, first = time.monotonic(), len(_left(work, file))
    # The second time round it waits for what other processes are running, since
    # the cells need all trials, and runs what a killed process has left.
    for wait, key in itertools.product((False, True), work):
      if key not in _left([key], file):
        continue
      lock = locks / f'{_digest(key)}.lock'
      with results_log.lock(lock, wait=wait) as acquired:
        # Read again under the lock: another process may have finished it.
        if not acquired or not _left([key], file):
          continue
        outcome = run(key)
        results_log.append(file, key | outcome)
      left = len(_left(work, file))
      pace = (time.monotonic() - began) / max(first - left, 1)
      score = outcome['validation']['mean']
      self._log(
        f'{_title(key)}: {score:.4f}; {left} of {len(work)} {what} left, '
        f'ETA {datetime.timedelta(seconds=round(pace * left))}'
      )

  def _teacher(self, regime: regimes.Regime, column: str) -> str:
    """The folder of a regime's teacher, which is trained unless it is there."""
    config = regimes.teacher_config(regime, column)
    honest = config.data.labels.share < 1
    name = f'teacher-{regime.share:g}-{column}' if honest else 'teacher'
    folder = self._workdir / name
    # Other processes wait here until the first has trained the teacher.
    with results_log.lock(self._workdir / f'{name}.lock', wait=True):
      if not (folder / 'results.json').exists():
        pipeline.run(config, folder, watch=self._watch, log=self._log)
    return str(folder)

  def _run(self, config: types.Config, fields: Iterable[str]) -> dict[str, Any]:
    """Trains `config` in a temporary folder: a run takes seconds."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=self._workdir))
    try:
      outcome = pipeline.run(
        config, folder, watch=self._watch, log=types.no_log
      )
    finally:
      shutil.rmtree(folder, ignore_errors=True)
    return {name: outcome[name] for name in fields}


def best(
  trials: Sequence[dict[str, Any]],
) -> dict[tuple[regimes.Regime, str], dict[str, Any]]:
  """{(regime, method): the weights with the best mean over the genres}."""
  scores: dict[tuple[regimes.Regime, str], dict[str, list[float]]] = {}
  weights = {}
  for trial in trials:
    group = regimes.Regime(**trial['regime']), trial['method']
    name = _digest(trial['weights'])
    weights[name] = trial['weights']
    scores.setdefault(group, {}).setdefault(name, []).append(
      trial['validation']['mean']
    )
  return {
    group: weights[
      min(
        # A mean over other genres could not be compared.
        (n for n, s in by.items() if len(s) == len(regimes.TUNED_ON)),
        key=lambda name, by=by: np.mean(by[name]),
      )
    ]
    for group, by in scores.items()
  }


def _left(work: Sequence[Key], file: pathlib.Path) -> list[Key]:
  """The work that `file` does not hold yet."""
  rows = results_log.read(file)
  if not rows or not work:
    return list(work)
  done = {_digest({name: row.get(name) for name in work[0]}) for row in rows}
  return [key for key in work if _digest(key) not in done]


def _digest(key: Key) -> str:
  return files.sha256([key])[:16]


def _title(key: Key) -> str:
  regime = regimes.Regime(**key['regime'])
  return f'{regime.name}: {key.get("row") or key["method"]}, {key["column"]}'


def _command(args: argparse.Namespace, log: types.Log) -> None:
  if not args.render:
    study = Study(args.workdir, args.results, watch=preemption.Watch(), log=log)
    study.search(trials=args.trials, seeds=args.trial_seeds)
    study.cells(seeds=args.seeds)
  few_labels_page.render(results_log.read(args.results / CELLS), args.results)


def main() -> None:
  """Runs what is missing, then renders the tables and figures."""
  parser = argparse.ArgumentParser(
    description='The study of few labels on MovieLens.'
  )
  parser.add_argument(
    '--workdir',
    default='runs/few_labels',
    type=pathlib.Path,
    help='folder of the runs; the command resumes what it holds',
  )
  parser.add_argument(
    '--results',
    default='results',
    type=pathlib.Path,
    help='folder of the finished trials and cells, tables and figures',
  )
  parser.add_argument(
    '--trials', default=6, type=int, help='trials for each method and regime'
  )
  parser.add_argument(
    '--trial_seeds', default=2, type=int, help='students per trial and genre'
  )
  parser.add_argument('--seeds', default=10, type=int, help='students per cell')
  parser.add_argument(
    '--render', action='store_true', help='render only; run nothing'
  )
  command_line.run(parser, _command)


if __name__ == '__main__':
  main()
