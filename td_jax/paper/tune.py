"""Chooses hyper-parameters on validation, with as many trials for every method.

  python -m td_jax.paper.tune --workdir=runs/tables
  python -m td_jax.paper.tune --domain=images --workdir=runs/images --teacher=DIR
  python -m td_jax.paper.tune --best

The search has three parts, in this order. `--what=teacher` searches the teacher
of ratings: it is scored by its mean over the genres that it will teach, on three
windows of time, and the better half of the trials goes on to the next window.
`--what=student,steps` searches the settings that all methods share, with
scratch. The default searches the weights of each method, with everything that
was chosen before in the config; `--what=dropout` then searches that of TD's encoders
and decoders.

Settings are drawn at random, but the same ones in every call. A trial is a row
of results/search.jsonl or results/search_images.jsonl and is not run again;
several processes share the trials. The test split is never scored.
"""

if __name__ == '__main__':
  from td_jax.run import process

  process.watch()  # Hears signals before the imports that take time.

import argparse
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
import tempfile
from typing import Any

import numpy as np

from td_jax import data
from td_jax import errors
from td_jax import types
from td_jax.data import movielens
from td_jax.devices import parallel as parallel_lib
from td_jax.paper import table_specs
from td_jax.paper import tables
from td_jax.run import command_line
from td_jax.run import pipeline
from td_jax.run import preemption
from td_jax.run import process
from td_jax.run import saved
from td_jax.run import scores as scores_lib
from td_jax.run import terminal
from td_jax.storage import files
from td_jax.storage import results_log
from td_jax.training import statistics

FILES = {'movielens': 'search.jsonl', 'images': 'search_images.jsonl'}
# Where a method's settings are tried: the densest and the sparsest genre.
COLUMNS = {'movielens': ('Drama', 'War'), 'images': ('cifar10',)}
# The method that is trained where the search is not for a method.
_METHOD = {'student': 'scratch', 'steps': 'scratch', 'dropout': 'td'}
# The weighted terms of each method that is tuned.
TERMS = {
  'ld': ('logit',),
  'fd': ('feature',),
  'fitnet': ('hint',),
  'hybrid': ('logit', 'feature'),
  'td': ('interact', 'message', 'state'),
  'td_ld': ('logit', 'interact', 'message', 'state'),
}


def _weights(
  values: tuple[float, ...], logit: tuple[float, ...], **others: tuple[Any, ...]
) -> dict[str, dict[str, tuple[Any, ...]]]:
  """The spaces of all methods.

  Args:
    values: Weights to try for every term but the teacher's outputs.
    logit: Weights to try for the teacher's outputs.
    **others: What else to try for the methods that talk.
  """
  return {
    method: {
      f'distill.weights.{term}': logit if term == 'logit' else values
      for term in terms
    }
    | (others if 'interact' in terms else {})
    for method, terms in TERMS.items()
  }


# Half a decade apart: wide enough to find the order of magnitude.
_MANY = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
# Values of config.data.train_fraction, the windows of time of a teacher.
_WINDOWS = ('1.0', '0.9', '0.8')
# {domain: {what to search: {key of the config: values}}}.
SPACES: Mapping[str, Mapping[str, Mapping[str, tuple[Any, ...]]]] = {
  'movielens': {
    'teacher': {
      'teacher.model.dropout': (0.3, 0.4, 0.5, 0.6),
      'teacher.model.unknown_rate': (0.05, 0.1, 0.2),
      'teacher.optim.weight_decay': (0.1, 0.3, 1.0, 2.0, 4.0),
      'teacher.optim.learning_rate': (1e-3, 2e-3, 3e-3, 5e-3),
      'teacher.steps': (300, 500, 700, 1000),
      'teacher.batch_size': (512, 1024),
    },
    'student': {
      'model.dropout': (0.1, 0.2, 0.3, 0.5),
      'model.unknown_rate': (0.1, 0.2, 0.3, 0.4),
      'optim.weight_decay': (0.1, 0.3, 1.0, 2.0),
      'optim.learning_rate': (3e-4, 1e-3, 3e-3),
      'steps': (500, 1000, 2000),
      'batch_size': (256, 512),
    },
    'steps': {'steps': (200, 300, 500, 700, 1000, 1500)},
    **_weights(_MANY, _MANY, k=(1, 2)),
    'dropout': {'distill.dropout': (0.0, 0.1, 0.2, 0.3, 0.5)},
  },
  'images': {
    'student': {'optim.learning_rate': (3e-3, 1e-2, 3e-2)},
    **_weights((0.01, 0.1, 1.0), (0.3, 1.0, 3.0)),
  },
}


def trials(
  space: Mapping[str, tuple[Any, ...]], count: int
) -> list[dict[str, Any]]:
  """`count` distinct settings, drawn at random but the same in every call."""
  # One generator from a fixed seed: more trials later extend the same list.
  rng = np.random.default_rng(0)
  seen = []
  size = np.prod([len(values) for values in space.values()])
  while len(seen) < min(count, size):
    trial = {
      name: values[rng.integers(len(values))] for name, values in space.items()
    }
    if trial not in seen:
      seen.append(trial)
  return seen


def run(
  domain: str,
  chosen: Sequence[str],
  workdir: pathlib.Path,
  results: pathlib.Path,
  *,
  count: int,
  seeds: int,
  teacher: str = '',
  watch: preemption.Watch,
  log: types.Log,
) -> None:
  """Runs the missing trials of `chosen`.

  Args:
    domain: A key of `SPACES`.
    chosen: Keys of `SPACES[domain]`.
    workdir: The folder of `tables.run`, and so the same teacher.
    results: The folder of the result files.
    count: Trials for each of `chosen`.
    seeds: Students for each trial and column.
    teacher: For images: the folder of published weights.
    watch: Tells the train loop when to stop.
    log: Receives progress lines.
  """
  tables.begin(workdir, results)
  locks, file = workdir / 'tune', results / FILES[domain]
  watch.finished_work = f'the finished trials are in {file}'
  locks.mkdir(parents=True, exist_ok=True)
  for what, column, settings in _planned(domain, chosen, count, file, locks):
    with results_log.lock(locks / _name(what, column, settings)) as acquired:
      # Read again under the lock: another process may have run the trial.
      if not acquired or (what, column, settings) in _done(file):
        continue
      folder, method = '', _METHOD.get(what, what)
      if method in TERMS:
        folder = tables.teacher_of(
          domain, workdir, teacher, watch=watch, log=log
        )
        # The refitted teacher has trained on the validation split, on which
        # trials are scored; the one before its refit has not.
        if domain == 'movielens':
          folder += '/selection'
      config = table_specs.config(
        domain,
        method,
        '' if what == 'teacher' else column,
        seeds=range(seeds),
        teacher=folder,
        cache_dir=str(workdir / 'kept'),
      )
      config.test = config.refit_on_validation = False
      config.update_from_flattened_dict(settings)
      if what == 'teacher':
        config.data.train_fraction = float(column)
        outcome = _train_teachers(config, watch)
      else:
        outcome = _train(config, watch)
      row: dict[str, Any] = {
        'what': what,
        'column': column,
        'settings': settings,
      } | outcome
      with watch.saving():
        results_log.append(file, row)
    mean = row['validation']['mean']
    log(f'{what} {column} {settings}: {mean:.5f}, {row["seconds"]:.0f} s')


def _planned(
  domain: str,
  chosen: Sequence[str],
  count: int,
  file: pathlib.Path,
  locks: pathlib.Path,
) -> Iterator[tuple[str, str, dict[str, Any]]]:
  """(what, column, settings) of all trials."""
  for what in chosen:
    settings_left = trials(SPACES[domain][what], count)
    for column in _WINDOWS if what == 'teacher' else COLUMNS[domain]:
      for settings in settings_left:
        yield what, column, settings
      if what == 'teacher':
        # The next window needs the scores of all trials on this one. Wait for
        # the trials that other processes are running ...
        for settings in settings_left:
          with results_log.lock(
            locks / _name(what, column, settings), wait=True
          ):
            pass
          # ... and run those whose process has died.
          yield what, column, settings
        windows = _WINDOWS[: _WINDOWS.index(column) + 1]
        settings_left = _better_half(
          settings_left, windows, results_log.read(file)
        )


def _better_half(
  candidates: Sequence[dict[str, Any]],
  windows: Sequence[str],
  rows: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """The half of a teacher's settings with the best means over `windows`."""

  def score(settings: Mapping[str, Any]) -> float:
    return float(
      np.mean(
        [
          row['validation']['mean']
          for row in rows
          if (row['what'], row['settings']) == ('teacher', settings)
          and row['column'] in windows
        ]
      )
    )

  return sorted(candidates, key=score)[: (len(candidates) + 1) // 2]


def best(
  rows: Sequence[Mapping[str, Any]],
) -> dict[str, tuple[Any, float, int]]:
  """{what: (settings, score, trials)} of the best mean over the columns.

  Settings that lack a column do not count.
  """
  scores: dict[str, dict[str, list[float]]] = {}
  for row in rows:
    by_settings = scores.setdefault(row['what'], {})
    by_settings.setdefault(json.dumps(row['settings']), []).append(
      row['validation']['mean']
    )
  # A file holds one domain, and so one metric.
  lower = {row['metric'] == 'rmse' for row in rows} == {True}
  choices = {}
  for what, by_settings in scores.items():
    # Means over different columns cannot be compared.
    columns = max(map(len, by_settings.values()))
    means = {
      settings: float(np.mean(values))
      for settings, values in by_settings.items()
      if len(values) == columns
    }
    choice = (min if lower else max)(means, key=lambda key: means[key])
    choices[what] = json.loads(choice), means[choice], len(means)
  return choices


def _train(config: types.Config, watch: preemption.Watch) -> dict[str, Any]:
  """Trains `config`; returns the part of its results that a row holds."""
  with tempfile.TemporaryDirectory() as folder:
    results = pipeline.run(
      config, pathlib.Path(folder), watch=watch, log=types.no_log
    )
  return {
    name: results[name]
    for name in ('metric', 'validation', 'best_step', 'seconds', 'commit')
  }


def _train_teachers(
  config: types.Config, watch: preemption.Watch
) -> dict[str, Any]:
  """Like `_train`, for teachers: one per seed, scored by genre.

  The score is the mean over the genres. They overlap, so that this is not the
  score on all ratings.
  """
  outcome, means = {}, []
  # One run for each seed: a teacher's run trains a single network.
  for seed in range(config.seeds):
    config.seed, config.data.genre = seed, ''
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      results = pipeline.run(config, folder, watch=watch, log=types.no_log)
      by_genre = [_score(config, folder, genre) for genre in movielens.GENRES]
    means.append(np.mean(by_genre))
    outcome = {
      'metric': results['metric'],
      'best_step': outcome.get('best_step', []) + results['best_step'],
      'seconds': outcome.get('seconds', 0.0) + results['seconds'],
      'commit': results['commit'],
    }
  return outcome | {'validation': statistics.mean_and_stderr(np.asarray(means))}


def _score(config: types.Config, folder: pathlib.Path, genre: str) -> float:
  """The validation score of the teacher in `folder` on one genre."""
  config.data.genre = genre
  task = data.load(config, log=types.no_log)
  teacher = saved.load(folder, task)
  assert task.validation is not None  # Nothing has been refitted.
  score = scores_lib.scorer(
    config,
    teacher.model,
    task.validation,
    task=task,
    parallel=parallel_lib.Parallel('single', 1),
    teacher=types.TEACHER,
  )
  return float(score(teacher.variables)[0])


def _done(file: pathlib.Path) -> list[tuple[str, str, dict[str, Any]]]:
  """(what, column, settings) of the trials in a file."""
  return [
    (row['what'], row['column'], row['settings'])
    for row in results_log.read(file)
  ]


def _name(what: str, column: str, settings: Mapping[str, Any]) -> str:
  """The name of a trial's lock."""
  return f'{files.sha256(json.dumps([what, column, settings]))[:16]}.lock'


def _command(args: argparse.Namespace, log: types.Log) -> None:
  for what in args.what.split(','):
    errors.choose('--what', what, SPACES[args.domain])
  if not args.best:
    run(
      args.domain,
      args.what.split(','),
      args.workdir,
      args.results,
      count=args.trials,
      seeds=args.seeds,
      teacher=args.teacher,
      watch=process.watch(),
      log=log,
    )
  rows = results_log.read(args.results / FILES[args.domain])
  for what, (settings, score, count) in best(rows).items():
    terminal.show(
      f'{what}: {score:.5f}, best of {count}: {json.dumps(settings)}'
    )


def main() -> None:
  """Runs the missing trials, and prints the best settings."""
  parser = command_line.parser(
    'Choose hyper-parameters on validation.',
    workdir='runs/tables',
    results='the finished trials',
  )
  parser.add_argument('--domain', default='movielens', choices=SPACES)
  parser.add_argument(
    '--what',
    default=','.join(TERMS),
    help='what to search, separated by commas: teacher, student, steps, or '
    'methods',
  )
  parser.add_argument(
    '--trials', default=6, type=int, help='trials for each of --what'
  )
  parser.add_argument(
    '--seeds', default=2, type=int, help='students per trial and column'
  )
  parser.add_argument(
    '--best', action='store_true', help='print the best only; run nothing'
  )
  command_line.run(parser, _command)


if __name__ == '__main__':
  main()
