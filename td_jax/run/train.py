"""The loop: the only one, for teachers and for students of every method."""

from collections.abc import Callable
import pathlib
import time
from typing import Any

import jax
import numpy as np

from td_jax import data
from td_jax import errors
from td_jax import types
from td_jax.devices import parallel as parallel_lib
from td_jax.run import config as config_lib
from td_jax.run import experiment
from td_jax.run import preemption
from td_jax.run import progress
from td_jax.run import report
from td_jax.run import saved
from td_jax.run import teachers
from td_jax.run import workdir
from td_jax.storage import checkpoint
from td_jax.storage import paths
from td_jax.training import metrics
from td_jax.training import step as step_lib

Log = Callable[[str], None]
_SELECTION = 'selection'  # The folder of the run that is not refitted.


def check(config: types.Config) -> tuple[types.Config, parallel_lib.Parallel]:
  """What will be run, and on which devices; raises a ConfigError if it can't.

  For `method=teacher` that is the teacher's own recipe.
  """
  config_lib.validate(config)
  if config.method == config_lib.TEACHER:
    config = config_lib.as_teacher(config)
  return config, _parallel(config, config.batch_size)


def run(
  config: types.Config,
  path: types.Path,
  *,
  watch: preemption.Watch,
  log: Log,
  taught_by: str = '',
) -> dict[str, Any]:
  """Trains what `config` names in folder `path`, or goes on with it.

  With `config.refit_on_validation` and `config.score_before_refit` that is done twice: in path/selection
  on the fitted part of the training examples, which gives the validation
  scores; then on all of them, which gives the test scores.

  Args:
    config: Of the experiment.
    path: The run's folder; what an earlier process left there is gone on with.
    watch: Says when to stop.
    log: Takes lines for whoever watches.
    taught_by: The teacher's folder, seen from `path`; '': what `config` names,
      or path/teacher, which is made first.

  Returns:
    What results.json holds.

  Raises:
    errors.TdError: see `errors.py`; what can be resumed has been saved.
  """
  config, parallel = check(config)
  folder = workdir.Workdir(path, writes=parallel.is_main)
  try:
    # First the data: a genre that does not exist must not mark the folder.
    task = data.DOMAINS[config.domain].load(config, log=log)
    folder.claim(config)
    watch.check('nothing to save yet')
    needs_teacher = config_lib.needs_teacher(config)
    if needs_teacher and not taught_by:
      taught_by = _teacher(config, path, watch, log)
    selected = None
    if config.refit_on_validation and config.score_before_refit:
      selected = run(
        config_lib.as_selection(config),
        path / _SELECTION,
        watch=watch,
        log=log,
        taught_by=_before_refit(path, taught_by, log),
      )
    teacher = None
    if needs_teacher:
      teacher = teachers.load(
        config, task, path=path, folder=taught_by, log=log
      )
    made = experiment.build(config, parallel, task, teacher)
    state, seconds = _learn(
      made,
      config,
      folder,
      parallel=parallel,
      task=task,
      watch=watch,
      log=log,
    )
    results = {
      'name': config.name,
      'method': config.method,
      'task': task.name,
      **task.metadata,
      'k': config.k,
      'seeds': experiment.seeds_of(config),
      'steps': config.steps,
      'batch_size': config.batch_size,
      'best_step': jax.device_get(state.best.step).tolist(),
      'seconds': seconds + (selected['seconds'] if selected else 0),
      'metric': task.metric,
      'dataset': task.fingerprint,
      'controls': task.baselines(),
      **experiment.scores(
        config,
        made.model,
        state.best.student,
        task=task,
        teacher=teacher,
        parallel=parallel,
      ),
      **report.environment(),
    }
    if selected:
      results = _with_validation(results, selected)
    folder.write('results.json', results)
    return results
  finally:
    folder.close()


def prepare(
  config: types.Config, *, log: Log = lambda line: None
) -> experiment.Experiment:
  """A training program without a loop around it, to be measured.

  `config` names a teacher's folder, if its method needs one.
  """
  config, parallel = check(config)
  task = data.DOMAINS[config.domain].load(config, log=log)
  teacher = None
  if config_lib.needs_teacher(config):
    teacher = teachers.load(
      config, task, path=pathlib.Path(), folder=config.teacher.checkpoint
    )
  made = experiment.build(config, parallel, task, teacher)
  return made._replace(state=parallel.place(made.state))


def evaluate_run(
  config: types.Config, path: types.Path, *, watch: preemption.Watch, log: Log
) -> dict[str, Any]:
  """Scores the best students of the run in `config.checkpoint`, or `path`.

  Network, task and method are those of the run; of `config` only `parallel`,
  `data.dir`, `eval_batch` and `checkpoint` count.
  """
  path = paths.as_path(config.checkpoint) if config.checkpoint else path
  trained = saved.config_of(path)
  for key in ('parallel', 'eval_batch'):
    trained[key] = config[key]
  trained.data.dir = config.data.dir
  parallel = _parallel(trained, 0)
  task = data.DOMAINS[trained.domain].load(trained, log=log)
  results = workdir.read(path / 'results.json')
  students = saved.load(path, task)
  log(f'evaluating {path}, checkpoint of step {students.step}')
  watch.check('nothing to save')
  teacher = None
  if results['teacher']:
    teacher = teachers.load(
      trained, task, path=path, folder=results['teacher']['folder'], log=log
    )
  found = results | experiment.scores(
    trained,
    students.model,
    parallel.place(students.variables),
    task=task,
    teacher=teacher,
    parallel=parallel,
  )
  watch.check('nothing to save')
  if not (trained.refit_on_validation and trained.score_before_refit):
    return found
  config = config.copy_and_resolve_references()
  config.checkpoint = str(path / _SELECTION)
  return _with_validation(
    found, evaluate_run(config, path, watch=watch, log=log)
  )


def _parallel(config, batch_size):
  spread = config.parallel
  return parallel_lib.Parallel(
    spread.kind, spread.devices, fsdp=spread.fsdp, batch_size=batch_size
  )


def _teacher(config, path, watch, log):
  """The teacher's folder: what `config` names, or path/teacher, made now."""
  if config.teacher.checkpoint:
    named = paths.absolute(config.teacher.checkpoint)
    return (
      named if config.refit_on_validation else _before_refit(path, named, log)
    )
  folder = 'teacher'
  if not (path / folder / 'results.json').exists():
    log(f'first the teacher, in {path / folder}')
    run(config_lib.as_teacher(config), path / folder, watch=watch, log=log)
  return folder


def _before_refit(path, taught_by, log):
  """The teacher that has not seen validation, seen from path/selection."""
  if not taught_by:
    return ''
  folder = paths.resolve(path, taught_by)
  if (folder / _SELECTION).exists():
    taught_by = f'{taught_by}/{_SELECTION}'
  elif (
    not teachers.is_published(str(folder))
    and saved.config_of(folder).refit_on_validation
  ):
    log(
      f'{folder} has learnt from validation, and has no {_SELECTION}/: '
      'validation scores of what it teaches are too good.'
    )
  return taught_by if paths.is_absolute(taught_by) else f'../{taught_by}'


def _with_validation(results, selected):
  """`results` of a refit, with the validation scores from before it."""
  taught = results['teacher']
  if taught:
    taught = taught | {'validation': selected['teacher']['validation']}
  return results | {'validation': selected['validation'], 'teacher': taught}


def _learn(made, config, folder, *, parallel, task, watch, log):
  """Trains all seeds to the end; returns the state and the seconds it took."""
  began = time.monotonic()
  judge = _judge(made, config, parallel, task)
  checkpoints = checkpoint.Checkpoints(folder.path / workdir.CHECKPOINTS)
  rows = bar = None

  def save(step, state, pending):
    checkpoints.save(
      step,
      parallel.gather(_items(state)),
      {
        'step': step,
        'seconds': time.monotonic() - began,
        'dataset': task.fingerprint,
        # Of steps that are not in a row of metrics.jsonl yet.
        'pending': {name: value.tolist() for name, value in pending.items()},
      },
    )

  try:
    state, record = _resumed(made.state, checkpoints, folder.path, task)
    state, start = parallel.place(state), record['step']
    if start >= config.steps:
      return state, record['seconds']
    if start:
      log(f'resumed {folder.path} at step {start}')
      began -= record['seconds']
    rows = folder.rows(start)
    name = f'{config.method} {task.name}'
    bar = progress.Bar(name, start=start, total=config.steps, log=log)
    before = time.monotonic()
    ahead, pending = [], record['pending']
    for step in range(start, config.steps, config.steps_per_dispatch):
      stop = min(step + config.steps_per_dispatch, config.steps)
      state, measured = made.train(state, made.fixed, made.rows(step, stop))
      ahead.append(measured)  # [steps, seeds] each, and not waited for.
      in_row = stop % config.log_every == 0 or stop == config.steps
      if not (in_row or parallel.agree(watch.requested)):
        continue
      pending, ahead = _joined(pending, jax.device_get(ahead)), []
      taken = len(pending['loss'])
      _check_finite(pending, stop - taken, folder.path)
      due = stop % config.eval_every == 0 or stop == config.steps
      if in_row:
        row = {name: value.mean(axis=0) for name, value in pending.items()}
        pending = {}
        if due:
          state, row = judge(state, row)
        now = time.monotonic()
        rows.write(stop, row, seconds_per_step=(now - before) / taken)
        bar.update(stop, ', '.join(_notes(row)))
        before = now
      told = parallel.agree(watch.requested)
      if due or told:
        save(stop, state, pending)
      if told:
        checkpoints.wait()
        watch.stop(f'saved step {stop} in {folder.path}')
    checkpoints.wait()
    return state, time.monotonic() - began
  finally:
    for part in (bar, rows, checkpoints):
      if part is not None:
        part.close()


def _judge(made, config, parallel, task):
  """(state, row) -> both with what validation says of the present students."""
  metric = metrics.METRICS[task.metric]
  keep_best = jax.jit(jax.vmap(step_lib.keep_best), donate_argnums=0)
  validate = None
  if task.validation is not None:
    validate = experiment.scorer(
      config, made.model, task.validation, task=task, parallel=parallel
    )

  def judge(state, row):
    if validate is None:
      # The latest student counts as the best.
      return keep_best(
        state, -jax.device_get(state.step).astype(np.float32)
      ), row
    score = validate(state.params['student'])
    state = keep_best(state, score if metric.lower_is_better else -score)
    return state, row | {f'validation_{task.metric}': score}

  return judge


def _resumed(state, checkpoints, path, task) -> tuple[Any, Any]:
  """The state to start from, and the record that was saved with it."""
  restored = checkpoints.restore(_items(state))
  if not restored:
    return state, {'step': 0, 'seconds': 0.0, 'pending': {}}
  items, record = restored
  saved.check_dataset(path, record, task)
  pending = {
    name: np.asarray(values, np.float32)
    for name, values in record['pending'].items()
  }
  state = items['state']._replace(best=items['best'])
  return state, record | {'pending': pending}


def _joined(first, rest):
  """Metrics {name: [steps, seeds]}, one dispatch after the other."""
  parts = [first, *rest] if first else rest
  return {
    name: np.concatenate([part[name] for part in parts]) for name in parts[0]
  }


def _notes(row):
  for name, value in row.items():
    shown = name == 'loss' or (name == 'skipped' and value.any())
    if shown or name.startswith('validation_'):
      yield f'{name.replace("_", " ")} {value.mean():.4f}'


def _items(state):
  """What is saved: `best` apart, since evaluation needs nothing else."""
  return {'state': state._replace(best=None), 'best': state.best}


def _check_finite(measured, start, folder):
  """Raises a NonFiniteError for the first step that is not finite."""
  bad = {
    name: np.flatnonzero(~np.isfinite(values).all(axis=1))
    for name, values in measured.items()
  }
  # `loss` is the sum of the others: name the term that made it so.
  names = sorted(
    (steps[0], name == 'loss', name == 'grad_norm', name)
    for name, steps in bad.items()
    if len(steps)
  )
  if names:
    step, *_, name = names[0]
    raise errors.NonFiniteError(
      f'{name} is not finite at step {start + int(step) + 1}; the last '
      f'checkpoint in {folder} is finite. Lower config.optim.learning_rate '
      'or the weight of that term.'
    )
