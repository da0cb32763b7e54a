"""results.json: what a run leaves for tables, evaluation and other runs."""

from collections.abc import Mapping
from typing import Any

import jax

from td_jax import errors
from td_jax import types
from td_jax.data import task as task_lib
from td_jax.run import config as config_lib
from td_jax.run import environment
from td_jax.storage import files
from td_jax.storage import schema
from td_jax.training import metrics
from td_jax.training import step as step_lib

FILE = 'results.json'
_SCORE = {
  'mean': float,
  'standard_error': (float, None),
  'per_seed': [float],
}
_FORM = {
  'name': str,
  'method': str,
  'label': str,
  'task': str,
  'k': int,
  'seeds': [int],
  'steps': int,
  'batch_size': int,
  'best_step': [int],
  'seconds': float,
  'metric': str,
  'dataset': str,
  'baselines': {},
  'teachers': {},
}


def collect(
  config: types.Config,
  task: task_lib.Task,
  scores: Mapping[str, Any],
  *,
  label: str,
  best: step_lib.Best,
  seconds: float,
) -> dict[str, Any]:
  """The results of a finished run.

  Args:
    config: The run's config.
    task: The run's task.
    scores: `scores.score` of the run's best students.
    label: The method as tables show it, such as 'td, k=1'.
    best: The best students; leaves [seeds, ...].
    seconds: Training time.
  """
  return {
    'name': config.name,
    'method': config.method,
    'label': label,
    'task': task.name,
    **task.metadata,
    'k': config.k,
    'seeds': config_lib.seeds(config),
    'steps': config.steps,
    'batch_size': config.batch_size,
    'best_step': jax.device_get(best.step).tolist(),
    'seconds': seconds,
    'metric': task.metric,
    'dataset': task.fingerprint,
    'baselines': task.baselines(),
    **scores,
    **environment.environment(),
  }


def with_validation(
  results: Mapping[str, Any], selection: Mapping[str, Any]
) -> dict[str, Any]:
  """Adds the validation scores of the run that was made before a refit.

  After a refit the students and their teachers have trained on the validation
  split, so `results` has no validation scores of its own.
  """
  teachers = {
    name: teacher | {'validation': selection['teachers'][name]['validation']}
    for name, teacher in results['teachers'].items()
  }
  return {
    **results,
    'validation': selection['validation'],
    'teachers': teachers,
  }


def read(folder: types.Path) -> dict[str, Any]:
  """Reads the results of the run in `folder`, also those of older versions.

  Raises:
    errors.DataError: There are none, or the file is damaged.
  """
  file = folder / FILE
  found = files.read_json(file, upgrade=_checked)
  seeds = {
    len(found['seeds']),
    *(len(found[name]['per_seed']) for name in _splits(found)),
  }
  if len(seeds) > 1 or 0 in seeds or found['metric'] not in metrics.METRICS:
    raise errors.DataError(
      f'{file} does not fit together: it has {len(found["seeds"])} seeds, metric '
      f'{found["metric"]!r} and the scores of {max(seeds)} students.'
    )
  return found


def _checked(results: Mapping[str, Any]) -> dict[str, Any]:
  """Results of any version in the present form.

  Raises:
    ValueError: A key is missing or has a wrong value.
  """
  found = schema.check(upgraded(results), _FORM)
  # Every network is scored on the same splits.
  scores = dict.fromkeys(_splits(found), float)
  return schema.check(
    found,
    dict.fromkeys(scores, _SCORE)
    | {
      'baselines': {'*': scores},
      'teachers': {'*': {'folder': str} | scores},
    },
  )


def _splits(results: Mapping[str, Any]) -> list[str]:
  """The splits that a run was scored on."""
  return [name for name in ('validation', 'test') if name in results]


def upgraded(results: Mapping[str, Any]) -> dict[str, Any]:
  """Converts results of version 0.1 to the present form.

  They had one 'teacher' (or None) in place of 'teachers', 'controls' in place
  of 'baselines', and no 'label'.
  """
  results = dict(results)
  if 'teacher' in results:
    teacher = results.pop('teacher')
    results['teachers'] = {types.TEACHER: teacher} if teacher else {}
  if 'controls' in results:
    results['baselines'] = results.pop('controls')
  if 'label' not in results and 'method' in results:
    # The two methods of version 0.1 that used config.k.
    rounds = results['method'] in ('td', 'td_ld')
    suffix = f', k={results["k"]}' if rounds else ''
    results['label'] = results['method'] + suffix
  return results
