"""Executes a plan, and evaluates finished runs."""

from collections.abc import Mapping
import contextlib
import pathlib
from typing import Any

from td_jax import data
from td_jax import errors
from td_jax import methods
from td_jax import types
from td_jax.data import class_counts
from td_jax.data import task as task_lib
from td_jax.run import config as config_lib
from td_jax.run import experiment as experiment_lib
from td_jax.run import loop
from td_jax.run import memory
from td_jax.run import plan as plan_lib
from td_jax.run import preemption
from td_jax.run import profile as profile_lib
from td_jax.run import results as results_lib
from td_jax.run import saved
from td_jax.run import scores
from td_jax.run import teachers as teachers_lib
from td_jax.run import workdir
from td_jax.storage import paths


def run(
  config: types.Config,
  path: types.Path,
  *,
  watch: preemption.Watch,
  log: types.Log,
  dataset: Any = None,
  profile: profile_lib.Steps | None = None,
) -> dict[str, Any]:
  """Trains what `config` describes; resumes if `path` already holds the run.

  Args:
    config: The experiment.
    path: The run's folder.
    watch: Tells when to stop.
    log: Receives progress lines.
    dataset: What the domain's `read` would return; None reads it.
    profile: Steps of the run itself that are traced.

  Returns:
    The content of results.json.

  Raises:
    errors.TdError: See `errors.py`; everything resumable has been saved.
  """
  plan = plan_lib.make(config, path, log=log)
  return execute(plan, watch=watch, log=log, dataset=dataset, profile=profile)


def execute(
  plan: plan_lib.Plan,
  *,
  watch: preemption.Watch,
  log: types.Log,
  dataset: Any = None,
  profile: profile_lib.Steps | None = None,
) -> dict[str, Any]:
  """Runs all stages of a plan; returns the results of the last."""
  watch.will_save()
  *_, final = plan.stages
  domain = data.DOMAINS[final.config.domain]
  results: dict[str, dict[str, Any]] = {}
  with contextlib.ExitStack() as stack:

    def lock(path: types.Path) -> workdir.Workdir:
      folder = workdir.Workdir(path, writes=plan.parallel.is_main)
      return stack.enter_context(contextlib.closing(folder))

    # The run's own folder is locked before any stage starts. It is claimed
    # only once the data are read, so that a genre that does not exist leaves
    # no mark in it.
    top = lock(plan.path)
    if dataset is None:
      dataset = domain.read(final.config, log=log)
    final_task = domain.task(final.config, dataset)
    class_counts.report(final_task, log)
    memory.check_cache(final.config, final_task, plan.parallel, plan.teacher)
    top.claim(final.config)
    watch.check()
    for stage in plan.stages:
      if stage is final:
        folder, task = top, final_task
      else:
        log(f'first {stage.folder}, in {plan.path / stage.folder}')
        folder = lock(plan.path / stage.folder)
        task = domain.task(stage.config, dataset)
        folder.claim(stage.config)
        watch.check()
      stage_results = _train(
        plan,
        stage,
        folder=folder,
        task=task,
        watch=watch,
        log=log,
        profile=profile if stage is final else None,
      )
      if stage.selection:
        selection = results[stage.selection]
        stage_results = results_lib.with_validation(stage_results, selection)
        stage_results['seconds'] += selection['seconds']
      with watch.saving():
        folder.write(results_lib.FILE, stage_results)
      results[stage.folder] = stage_results
  return results[final.folder]


def prepare(
  config: types.Config, *, log: types.Log = types.no_log
) -> experiment_lib.Experiment:
  """Builds a training program without its loop, for measurements.

  `config` must name a teacher's folder, if its method needs a teacher.
  """
  plan = plan_lib.make(config, pathlib.Path(), log=log)
  *_, stage = plan.stages
  task = data.load(stage.config, log=log)
  teachers = _load_teachers(plan, stage, pathlib.Path(), task, log)
  experiment = experiment_lib.build(
    stage.config, plan.parallel, task, teachers, log=log
  )
  return experiment._replace(state=plan.parallel.place(experiment.state))


def evaluate(
  config: types.Config,
  path: types.Path,
  *,
  watch: preemption.Watch,
  log: types.Log,
) -> dict[str, Any]:
  """Scores the best students of the run in `config.checkpoint`, or `path`.

  Network, task and method are those of the run; only `parallel`, `eval_batch`,
  `checkpoint` and the place of the data of `config` are used.
  """
  path = paths.as_path(config.checkpoint) if config.checkpoint else path
  trained = _stored(path, config)
  _say_what_differs(trained, config, log)
  dataset = data.DOMAINS[trained.domain].read(trained, log=log)
  results = _evaluate(path, trained, dataset, watch=watch, log=log)
  if not (trained.refit_on_validation and trained.score_before_refit):
    return results
  path = path / plan_lib.SELECTION
  selection = _evaluate(
    path, _stored(path, config), dataset, watch=watch, log=log
  )
  return results_lib.with_validation(results, selection)


def _train(
  plan: plan_lib.Plan,
  stage: plan_lib.Stage,
  *,
  folder: workdir.Workdir,
  task: task_lib.Task,
  watch: preemption.Watch,
  log: types.Log,
  profile: profile_lib.Steps | None,
) -> dict[str, Any]:
  """Trains and scores one stage; returns its results."""
  config, parallel = stage.config, plan.parallel
  folder.keep_inputs(task)
  teachers = _load_teachers(plan, stage, folder.path, task, log)
  experiment = experiment_lib.build(config, parallel, task, teachers, log=log)
  state, seconds = loop.train(
    experiment,
    config,
    folder,
    parallel=parallel,
    task=task,
    watch=watch,
    log=log,
    profile=profile,
  )
  return results_lib.collect(
    config,
    task,
    scores.score(
      config,
      experiment.model,
      state.best.student,
      task=task,
      teachers=teachers,
      parallel=parallel,
    ),
    label=label(config),
    best=state.best,
    seconds=seconds,
  )


def label(config: types.Config) -> str:
  """The method as tables show it, such as 'td, k=1'."""
  if methods.Need.ROUNDS in config_lib.needs(config):
    return f'{config.method}, k={config.k}'
  return config.method


def _load_teachers(
  plan: plan_lib.Plan,
  stage: plan_lib.Stage,
  path: types.Path,
  task: task_lib.Task,
  log: types.Log,
) -> dict[str, teachers_lib.Teacher]:
  """The teachers of a stage, whose folders are named relative to `path`."""
  return {
    name: teachers_lib.load(
      stage.config,
      task,
      path=path,
      # A run's folder may be moved: teachers inside it stay relative.
      folder=folder
      if stage.config.teacher.build or paths.is_absolute(folder)
      else paths.relative(paths.resolve(plan.path, folder), path),
      log=log,
    )
    for name, folder in stage.teachers.items()
  }


def _stored(path: types.Path, config: types.Config) -> types.Config:
  """The stored config of a run, with the settings of this evaluation."""
  trained = saved.config_of(path)
  trained.parallel, trained.eval_batch = config.parallel, config.eval_batch
  for key in ('dir', 'csv', 'details'):
    if key in trained.data and key in config.data:
      trained.data[key] = config.data[key]
  return trained


def _say_what_differs(
  trained: types.Config, config: types.Config, log: types.Log
) -> None:
  """Warns of a given config that is not the one of the run."""
  with contextlib.suppress(errors.TdError):  # It is only compared.
    config = plan_lib.resolved(config, log=types.no_log)
  changes = config_lib.difference(trained.to_dict(), config)
  if changes:
    log(
      'warning: the given config differs from that of the run, which is used: '
      f'{"; ".join(changes)}.'
    )


def _evaluate(
  path: types.Path,
  config: types.Config,
  dataset: Any,
  *,
  watch: preemption.Watch,
  log: types.Log,
) -> dict[str, Any]:
  """The stored results of a run, with its scores computed anew."""
  parallel = plan_lib.devices(config)
  task = data.DOMAINS[config.domain].task(config, dataset)
  class_counts.report(task, log)
  results = results_lib.read(path)
  students = saved.load(path, task)
  log(f'evaluating {path}, checkpoint of step {students.step}')
  watch.check()
  teachers = {
    name: teachers_lib.load(
      config, task, path=path, folder=teacher['folder'], log=log
    )
    for name, teacher in results['teachers'].items()
  }
  new_scores: Mapping[str, Any] = scores.score(
    config,
    students.model,
    parallel.place(students.variables),
    task=task,
    teachers=teachers,
    parallel=parallel,
  )
  watch.check()
  return {**results, **new_scores}
