"""Chooses hyper-parameters on validation, as many trials for every method.

  python -m td_jax.paper.tune --workdir=runs/tables
  python -m td_jax.paper.tune --domain=images --workdir=runs/images --teacher=DIR
  python -m td_jax.paper.tune --best

First `--what=teacher` (of ratings: scored by its mean over the genres that it
will teach, on three windows of time, the better half of the trials going on to
the next), then `student` and `steps` (what all methods share, tried on
scratch); then, which is the default, each method's own weights, with what was
chosen before in the config. Settings are drawn at random, the same at every call. A
trial is a row of results/search.jsonl or results/search_images.jsonl, and is
not run again; several processes share the trials out. The test split is never
scored.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
import sys
import tempfile
from typing import Any

from absl import logging
import numpy as np

from td_jax import errors
from td_jax.data import movielens
from td_jax.devices import parallel as parallel_lib
from td_jax.paper import table_specs
from td_jax.paper import tables
from td_jax.run import pipeline
from td_jax.run import preemption
from td_jax.run import saved
from td_jax.run import scores
from td_jax.storage import digest
from td_jax.storage import results_log
from td_jax.training import statistics

FILES = {'movielens': 'search.jsonl', 'images': 'search_images.jsonl'}
# Where a method's settings are tried: the densest and the sparsest genre.
COLUMNS = {'movielens': ('Drama', 'War'), 'images': ('cifar10',)}
_METHOD = {'student': 'scratch', 'steps': 'scratch'}  # Of what is no method.
_TERMS = {
  'ld': ('logit',),
  'fd': ('feature',),
  'fitnet': ('hint',),
  'hybrid': ('logit', 'feature'),
  'td': ('interact', 'message', 'state'),
  'td_ld': ('logit', 'interact', 'message', 'state'),
}


def _weights(values, logit, **others):
  """The spaces of all methods: the weights of their terms, and `others`."""
  return {
    method: {
      f'distill.weights.{term}': logit if term == 'logit' else values
      for term in terms
    }
    | (others if 'interact' in terms else {})
    for method, terms in _TERMS.items()
  }


_MANY = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
_WINDOWS = ('1.0', '0.9', '0.8')  # Of a teacher: config.data.train_fraction.
# What is searched: {domain: {what: {key of the config: values}}}.
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
  },
  'images': {
    'student': {'optim.learning_rate': (3e-3, 1e-2, 3e-2)},
    **_weights((0.01, 0.1, 1.0), (0.3, 1.0, 3.0)),
  },
}


def trials(
  space: Mapping[str, tuple[Any, ...]], count: int
) -> list[dict[str, Any]]:
  """`count` distinct settings at random, the same at every call."""
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
  watch,
  log,
) -> None:
  """Runs the trials of `chosen` that are missing.

  Args:
    domain: Of `SPACES`.
    chosen: Of `SPACES[domain]`.
    workdir: As of `tables.run`, and with the same teacher.
    results: The folder of the rows.
    count: Trials of each.
    seeds: Students of each trial and column.
    teacher: Of images: the folder of published weights.
    watch: Says when to stop.
    log: Takes lines for whoever watches.
  """
  tables.begin(workdir, results)
  locks, file = workdir / 'tune', results / FILES[domain]
  locks.mkdir(parents=True, exist_ok=True)
  for what, column, settings in _planned(domain, chosen, count, file, locks):
    with results_log.lock(locks / _name(what, column, settings)) as ours:
      if not ours or (what, column, settings) in _done(file):
        continue  # Another process is at it, or has been.
      folder = ''
      if what in _TERMS:
        folder = tables.teacher_of(
          domain, workdir, teacher, watch=watch, log=log
        )
        if domain == 'movielens':
          folder += '/selection'  # Has not seen validation.
      config = table_specs.config(
        domain,
        _METHOD.get(what, what),
        '' if what == 'teacher' else column,
        seeds=range(seeds),
        teacher=folder,
        kept=str(workdir / 'kept'),
      )
      config.test = config.refit_on_validation = False
      config.update_from_flattened_dict(settings)
      if what == 'teacher':
        config.data.train_fraction = float(column)
        found = _teach(config, watch)
      else:
        found = _run(config, watch)
      row = {'what': what, 'column': column, 'settings': settings} | found
      results_log.append(file, row)
    mean = row['validation']['mean']
    log(f'{what} {column} {settings}: {mean:.5f}, {row["seconds"]:.0f} s')


def _planned(domain, chosen, count, file, locks):
  """(what, column, settings) of all trials."""
  for what in chosen:
    tried = trials(SPACES[domain][what], count)
    for column in _WINDOWS if what == 'teacher' else COLUMNS[domain]:
      for settings in tried:
        yield what, column, settings
      if what == 'teacher':
        for settings in tried:  # Those that other processes are still at.
          with results_log.lock(
            locks / _name(what, column, settings), wait=True
          ):
            pass
          yield what, column, settings  # If that process has died.
        seen = _WINDOWS[: _WINDOWS.index(column) + 1]
        tried = _better_half(tried, seen, results_log.read(file))


def _better_half(tried, windows, rows):
  """Of a teacher's settings, those of the best means over `windows`."""

  def score(settings):
    return np.mean(
      [
        row['validation']['mean']
        for row in rows
        if (row['what'], row['settings']) == ('teacher', settings)
        and row['column'] in windows
      ]
    )

  return sorted(tried, key=score)[: (len(tried) + 1) // 2]


def best(
  rows: Sequence[Mapping[str, Any]],
) -> dict[str, tuple[Any, float, int]]:
  """{what: (settings, score, trials)} of the best mean over the columns.

  Settings that lack a column do not count.
  """
  scores: dict[str, dict[str, list[float]]] = {}
  for row in rows:
    tried = scores.setdefault(row['what'], {})
    tried.setdefault(json.dumps(row['settings']), []).append(
      row['validation']['mean']
    )
  lower = {row['metric'] == 'rmse' for row in rows} == {True}
  found = {}
  for what, tried in scores.items():
    whole = max(map(len, tried.values()))
    means = {
      settings: float(np.mean(values))
      for settings, values in tried.items()
      if len(values) == whole
    }
    choice = (min if lower else max)(means, key=lambda key: means[key])
    found[what] = json.loads(choice), means[choice], len(means)
  return found


def _run(config, watch):
  """What a row says of the run of `config`."""
  with tempfile.TemporaryDirectory() as folder:
    results = pipeline.run(
      config, pathlib.Path(folder), watch=watch, log=lambda line: None
    )
  return {
    name: results[name]
    for name in ('metric', 'validation', 'best_step', 'seconds', 'commit')
  }


def _teach(config, watch):
  """As `_run`, of teachers, one a seed, by their mean over the genres.

  Genres overlap, so that this is not the score on all ratings.
  """
  found, scores = {}, []
  for seed in range(config.seeds):
    config.seed, config.data.genre = seed, ''
    with tempfile.TemporaryDirectory() as name:
      folder = pathlib.Path(name)
      results = pipeline.run(config, folder, watch=watch, log=lambda line: None)
      each = [_score(config, folder, genre) for genre in movielens.GENRES]
    scores.append(np.mean(each))
    found = {
      'metric': results['metric'],
      'best_step': found.get('best_step', []) + results['best_step'],
      'seconds': found.get('seconds', 0.0) + results['seconds'],
      'commit': results['commit'],
    }
  return found | {'validation': statistics.mean_and_stderr(np.asarray(scores))}


def _score(config, folder, genre):
  """The validation score of the teacher in `folder` on one genre."""
  config.data.genre = genre
  task = movielens.load(config, log=lambda line: None)
  found = saved.load(folder, task)
  assert task.validation is not None  # Nothing was refitted.
  score = scores.scorer(
    config,
    found.model,
    task.validation,
    task=task,
    parallel=parallel_lib.Parallel('single', 1),
    as_teacher=True,
  )
  return score(found.variables)[0]


def _done(file):
  return [
    (row['what'], row['column'], row['settings'])
    for row in results_log.read(file)
  ]


def _name(*told):
  return f'{digest.sha256(json.dumps(told))[:16]}.lock'


def main() -> None:
  """Runs the trials that are missing, and prints what is best."""
  logging.set_verbosity(logging.WARNING)
  parser = argparse.ArgumentParser(description='Choose hyper-parameters.')
  parser.add_argument('--domain', default='movielens', choices=SPACES)
  parser.add_argument(
    '--what', default=','.join(_TERMS), help='teacher, student, steps, methods'
  )
  parser.add_argument('--workdir', default='runs/tables', type=pathlib.Path)
  parser.add_argument('--results', default='results', type=pathlib.Path)
  parser.add_argument('--trials', default=6, type=int, help='of each')
  parser.add_argument('--seeds', default=2, type=int, help='of each trial')
  parser.add_argument('--teacher', default='', help='of images: its weights')
  parser.add_argument('--best', action='store_true', help='run nothing')
  args = parser.parse_args()
  try:
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
        watch=preemption.Watch(),
        log=lambda line: print(line, file=sys.stderr, flush=True),
      )
    rows = results_log.read(args.results / FILES[args.domain])
    for what, (settings, score, count) in best(rows).items():
      print(f'{what}: {score:.5f}, best of {count}: {json.dumps(settings)}')
  except errors.TdError as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(e.exit_code)


if __name__ == '__main__':
  main()
