"""The stages of a run, written down before anything is computed.

A student needs its teacher first, and a run that is refitted on validation is
preceded by one that is not, for the validation scores. With both, the plan is

  teacher/selection   the teacher, without the validation split
  teacher             the teacher, refitted on train + validation
  selection           the students, without the validation split
  .                   the students, refitted: the run itself
"""

from collections.abc import Mapping
from typing import NamedTuple

from td_jax import errors
from td_jax import methods
from td_jax import models
from td_jax import types
from td_jax.devices import parallel as parallel_lib
from td_jax.models import pretrained
from td_jax.run import completion
from td_jax.run import config as config_lib
from td_jax.run import memory
from td_jax.run import results
from td_jax.run import saved
from td_jax.run import workdir
from td_jax.storage import paths

SELECTION = 'selection'  # The folder of the stage before a refit.


class Stage(NamedTuple):
  """One training run; folders are relative to the plan's."""

  folder: str  # '' is the plan's own folder.
  config: types.Config
  teachers: Mapping[str, str]  # {name: folder, absolute or relative}
  selection: str = ''  # The stage that supplies the validation scores, if any.


class Plan(NamedTuple):
  """Stages in the order of execution; the last is the run itself."""

  path: types.Path
  stages: tuple[Stage, ...]
  parallel: parallel_lib.Parallel
  # The settings of the teacher's network; None if there is none of ours.
  teacher: types.Config | None = None


def make(
  config: types.Config, path: types.Path, *, log: types.Log = types.no_log
) -> Plan:
  """Plans the run of `config` in the folder `path`.

  The config is completed and, with the devices, checked here, once. Finished teachers in `path` are
  not planned again.

  Raises:
    errors.ConfigError: The config cannot work, or not on these devices.
    errors.DataError: The teacher's folder that the config names is no run.
  """
  config = resolved(config, log=log)
  parallel = devices(config)
  stages: list[Stage] = []
  teachers, network = {}, None
  for name in config_lib.teacher_names(config):
    given = config_lib.given_teacher(config)
    if given:
      teachers[name] = given
      if not config_lib.has_own_teacher(config):
        _check_teacher(config, given, log)
        network = _network(config, given)
    else:
      network = config.teacher.model
      teachers[name] = name
      if not (path / name / results.FILE).exists():
        stages += _refitted(name, config_lib.as_teacher(config), {})
    if network is not None:
      models.check_copy(config, network)
  before_refit = {}
  if config.score_before_refit or not config.refit_on_validation:
    before_refit = {
      name: folder
      if config_lib.has_own_teacher(config)
      else _before_refit(path, folder, stages, log)
      for name, folder in teachers.items()
    }
  if not config.refit_on_validation:
    # Validation judges this run itself, so its teacher must not know it.
    teachers = before_refit
  stages += _refitted('', config, teachers, before_refit)
  for stage in stages:
    own = stage.config.method == types.TEACHER and len(stages) > 1
    field = 'config.teacher.batch_size' if own else 'config.batch_size'
    parallel.check_batch_size(stage.config.batch_size, field)
    if not stage.folder.endswith(SELECTION):  # Else it is as its refit.
      memory.check(stage.config, parallel, network if stage.teachers else None)
  return Plan(path, tuple(stages), parallel, network)


def resolved(config: types.Config, *, log: types.Log) -> types.Config:
  """The config that the run of `config` stores: completed and checked.

  Raises:
    errors.TdError: See `make`.
  """
  config = completion.complete(config, log=log)
  config_lib.validate(config)
  if config.method == types.TEACHER:
    # The run is then that of the teacher's own recipe.
    own = config_lib.as_teacher(config)
    dropped = [
      change
      for change in config_lib.difference(config.to_dict(), own)
      if change.startswith('data.')
    ]
    if dropped:
      log(
        'a teacher learns from all examples that have a label, so this run changes '
        f'{"; ".join(dropped)}'
      )
    return own
  if config.data.unlabelled.source != 'none' and not methods.uses_unlabelled(
    config
  ):
    log(
      f'{config.method} learns from labels alone: config.data.unlabelled is ignored'
    )
    return config_lib.without_unlabelled(config)
  return config


def devices(config: types.Config) -> parallel_lib.Parallel:
  """The devices that `config.parallel` asks for."""
  block = config.parallel
  return parallel_lib.Parallel(block.kind, block.devices, fsdp=block.fsdp)


def _network(config: types.Config, folder: str) -> types.Config:
  """The settings of the teacher in `folder`: its own, or those of its weights."""
  if pretrained.is_published(folder):
    return config.teacher.model
  return saved.config_of(paths.as_path(folder)).model


def _check_teacher(config: types.Config, folder: str, log: types.Log) -> None:
  """Raises an error if a folder holds no teacher, or not the expected one."""
  if pretrained.is_published(folder):
    reader, expected = models.published_reader(config)
    reader.check(folder, expected)
    return
  if not (paths.as_path(folder) / workdir.CONFIG).exists():
    raise errors.DataError(
      f'config.teacher.checkpoint is {folder!r}, which is neither the folder of '
      'a run nor published weights: a .npz file, or a folder with config.json '
      'and model.safetensors.'
    )
  if 'labels' not in config.teacher:
    return
  trained = saved.config_of(paths.as_path(folder))
  if trained.method != types.TEACHER:
    log(
      f'warning: config.teacher.checkpoint is {folder}, which holds students '
      f'(method {trained.method!r}); their teacher is in its subfolder '
      f'{types.TEACHER}.'
    )
  expected = config_lib.as_teacher(config).data.labels
  stored = trained.data.labels
  # Without hidden labels the other keys do not matter.
  if (
    expected.share == stored.share == 1
    # Not the blocks: they are unequal where only one of them is locked.
    or expected.to_dict() == stored.to_dict()
  ):
    return
  raise errors.ConfigError(
    f'config.teacher.labels is {config.teacher.labels!r}, which takes a teacher '
    f'with config.data.labels={expected.to_dict()}, but {folder} was trained '
    f"with {stored.to_dict()}; choose another teacher, or 'all' for one that "
    'has seen all labels.'
  )


def _refitted(
  folder: str,
  config: types.Config,
  teachers: Mapping[str, str],
  before_refit: Mapping[str, str] | None = None,
) -> list[Stage]:
  """The stage of `config`, after one for its validation scores if needed."""
  if not (config.refit_on_validation and config.score_before_refit):
    return [Stage(folder, config, teachers)]
  selection = f'{folder}/{SELECTION}' if folder else SELECTION
  return [
    Stage(selection, config_lib.as_selection(config), before_refit or {}),
    Stage(folder, config, teachers, selection),
  ]


def _before_refit(
  path: types.Path, folder: str, planned: list[Stage], log: types.Log
) -> str:
  """The version of a teacher that has not trained on validation."""
  selection = f'{folder}/{SELECTION}'
  if any(stage.folder == selection for stage in planned):
    return selection
  if any(stage.folder == folder for stage in planned):
    return folder  # It is trained without a refit.
  run = paths.resolve(path, folder)
  if pretrained.is_published(str(run)):
    return folder
  if (run / SELECTION).exists():
    return selection
  if saved.config_of(run).refit_on_validation:
    log(
      f'warning: {run} has trained on validation and has no {SELECTION}/, so '
      'the validation scores of its students are too good.'
    )
  return folder
