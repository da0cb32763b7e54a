"""Checks a config before anything is loaded or compiled.

There are no defaults here: every key is declared in `td_jax/configs/`.
"""

from collections.abc import Mapping
import itertools
import json
from typing import Any

from td_jax import data
from td_jax import errors
from td_jax import methods
from td_jax import models
from td_jax import types
from td_jax.configs import allowed
from td_jax.configs import common
from td_jax.run import config_keys
from td_jax.storage import paths

NO_STAGES = (0, 0)  # Student and communication train together from the start.
# Keys that may change when a run is resumed: they do not affect its results.
_FREE = (
  'allow_changed_config', 'wandb', 'checkpoint', 'parallel.', 'data.dir', 'data.csv',
  'data.details', 'eval_batch',
  'teacher.cache_dir',
)  # fmt: skip
# Keys of version 0.1 and their names today, in the student's config and, where
# it has them, in the teacher's.
_RENAMED = {
  'dispatch': 'steps_per_dispatch',
  'refit': 'refit_on_validation',
  'select': 'score_before_refit',
  'kept': 'cache_dir',
  'optim.skip_above': 'optim.skip_loss_above',
  'data.until': 'data.train_fraction',
  'data.views': 'data.fixed_crops',
  'distill.student_sends': 'distill.student_encodes',
}


def validate(config: types.Config) -> None:
  """Raises a ConfigError of one line for the first thing that cannot work."""
  config_keys.check(config)
  if config.seed + config.seeds - 1 > allowed.MOST:
    raise errors.ConfigError(
      f'config.seed is {config.seed}, and the last of {config.seeds} students would '
      f'have a seed above {allowed.MOST}; choose a smaller one.'
    )
  domain = data.DOMAINS[config.domain]
  inputs = domain.inputs(config)
  _check_learner(config, 'config', inputs)
  domain.check(config)
  _check_stages(config)
  methods.check(config, task_loss=domain.task_loss(config))
  models.check_init(config)
  _check_teacher(config, inputs)


def seeds(config: types.Config) -> list[int]:
  """The seeds of the students that are trained side by side."""
  return list(range(config.seed, config.seed + config.seeds))


def needs(config: types.Config) -> frozenset[methods.Need]:
  """What the method of the run looks at; nothing for a teacher's own run."""
  task_loss = data.DOMAINS[config.domain].task_loss(config)
  return methods.needs(config, task_loss=task_loss)


def teacher_names(config: types.Config) -> tuple[str, ...]:
  """The teachers that students learn from or are initialised from."""
  if config.method == types.TEACHER:
    return ()
  if needs(config) or config.student_init != 'random':
    return (types.TEACHER,)
  return ()


def given_teacher(config: types.Config) -> str:
  """What the config names as its teacher, in one of three keys; '' for none."""
  teacher = config.teacher
  return (
    teacher.build
    or teacher.states
    or (teacher.checkpoint and paths.absolute(teacher.checkpoint))
  )


def has_own_teacher(config: types.Config) -> bool:
  """Whether its teacher is no network of `td_jax.models`."""
  return bool(config.teacher.build or config.teacher.states)


def as_teacher(config: types.Config) -> types.Config:
  """The run that trains the teacher: its own recipe, all data, one seed."""
  own = config.copy_and_resolve_references()
  own.update(
    {
      name: value
      for name, value in config.teacher.items()
      if name
      not in ('checkpoint', 'build', 'states', 'cache', 'head', 'labels')
    }
  )
  own.method = types.TEACHER
  own.data.unlabelled.source = 'none'
  data.DOMAINS[config.domain].use_all_data(own)
  own.seeds = 1
  own.stages = NO_STAGES
  own.student_init, own.student_head = 'random', 'zeros'
  return own


def without_unlabelled(config: types.Config) -> types.Config:
  """The same run on labelled examples alone."""
  own = config.copy_and_resolve_references()
  own.data.unlabelled.source = 'none'
  return own


def as_selection(config: types.Config) -> types.Config:
  """The run that gives validation scores: `config` before its refit."""
  own = config.copy_and_resolve_references()
  own.refit_on_validation = own.test = False
  return own


def to_json(config: types.Config) -> str:
  """The config as JSON text with sorted keys."""
  return json.dumps(
    config.to_dict(), indent=2, sort_keys=True, default=_raise_no_json
  )


def upgraded(stored: Mapping[str, Any]) -> dict[str, Any]:
  """Converts a stored config of any earlier version to the present keys.

  Renamed keys get their present names. A key that did not exist yet gets its
  default from `configs/common.py`; therefore the default of every new key must
  reproduce what the code did before the key existed.
  """
  config = json.loads(json.dumps(stored))  # A deep copy of plain JSON.
  learners = [config, config.get('teacher')]
  for learner in learners:
    # A damaged file may hold anything; the caller reports it later.
    if isinstance(learner, dict):
      for old, new in _RENAMED.items():
        _rename(learner, old, new)
      _fill(learner.get('optim'), common.optimizer().to_dict())
      _fill_vit(learner.get('model'))
  if 'method' in config:
    _fill(config, {'wandb': ''})
  if 'student_init' in config:
    _fill(config, {'student_head': 'zeros'})
  _fill(config.get('distill'), common.distill().to_dict())
  few_labels = common.few_labels(str(config.get('domain')))
  _fill(config.get('data'), few_labels.to_dict())
  _fill(config.get('teacher'), common.own_teacher().to_dict())
  if config.get('domain') == 'images':
    _fill(config.get('teacher'), {'as_stored': False})
  if config.get('domain') == 'movielens':
    _fill(config.get('data'), {'dataset': 'movielens/100k-ratings'})
    _fill(config.get('teacher'), {'labels': 'all'})
  return config


def _fill_vit(model: Any) -> None:
  """Adds the keys of a ViT that did not exist yet."""
  if isinstance(model, dict) and model.get('name') == 'vit':
    _fill(model, {'registers': 0, 'pre_norm': False, 'mlp': 'gelu'})


def difference(stored: Mapping[str, Any], config: types.Config) -> list[str]:
  """What a resumed run would change, as lines `key: old -> new`."""
  old = config_keys.flatten(upgraded(stored))
  new = config_keys.flatten(json.loads(to_json(config)))
  return [
    f'{key}: {old.get(key, "absent")!r} -> {new.get(key, "absent")!r}'
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key) and not key.startswith(_FREE)
  ]


def _check_teacher(config: types.Config, inputs: Mapping[str, Any]) -> None:
  """The recipe of a teacher of our own, or the block of a published one."""
  has_recipe = 'steps' in config.teacher
  if config.method == types.TEACHER and not has_recipe:
    raise errors.ConfigError(
      f"config.method is 'teacher', but config {config.name!r} has no recipe "
      'to train one: its teacher is published.'
    )
  if config.method != types.TEACHER and not teacher_names(config):
    return
  if has_own_teacher(config):
    _check_own(config)
    return
  if has_recipe:
    _check_learner(config.teacher, 'config.teacher', inputs)
  else:
    _check_published(config, inputs)
  if methods.Need.SAME_TOKENS in needs(config):
    student, teacher = (
      models.tokens(model, inputs)
      for model in (config.model, config.teacher.model)
    )
    if student != teacher:
      raise methods.base.tokens_differ(student, teacher)
    if methods.Need.SEVERAL_TOKENS in needs(config) and not student:
      raise methods.base.no_tokens()


def _check_learner(
  config: types.Config, name: str, inputs: Mapping[str, Any]
) -> None:
  """The network, recipe and optimizer of a student or a teacher."""
  models.check(f'{name}.model', config.model, inputs)
  steps = ('steps_per_dispatch', 'log_every', 'eval_every')
  # Rows end where a dispatch ends, and validations where a row ends.
  for unit, field in itertools.pairwise(steps):
    if config[field] % config[unit]:
      raise errors.ConfigError(
        f'{name}.{field} is {config[field]}; it must be a multiple of '
        f'{name}.{unit}, {config[unit]}.'
      )


def _check_own(config: types.Config) -> None:
  """A teacher that a function of the user makes, or that answered elsewhere."""
  teacher = config.teacher
  given = {
    f'config.teacher.{key}': teacher[key]
    for key in ('build', 'states', 'checkpoint')
    if teacher[key]
  }
  if len(given) > 1:
    raise errors.ConfigError(
      f'{" and ".join(f"{key} is {value!r}" for key, value in given.items())}; give '
      'one of them.'
    )
  ((field, value),) = given.items()
  module, _, function = teacher.build.rpartition(':')
  names = (
    [function] if module.endswith('.py') else [*module.split('.'), function]
  )
  if teacher.build and not all(name.isidentifier() for name in names):
    raise errors.ConfigError(
      f"{field} is {value!r}; it must name a function, as in 'package.module:"
      "function' or 'FILE.py:function'."
    )
  if teacher.states and methods.Need.TEACHER_LAYERS in needs(config):
    raise errors.ConfigError(
      f'{field} is {value!r}, but in method {config.method!r} the teacher interprets '
      "messages, which takes its layers; choose 'ld', 'fd', 'fitnet' or 'hybrid', or "
      'give config.teacher.build.'
    )
  if config.student_init != 'random':
    raise errors.ConfigError(
      f'config.student_init is {config.student_init!r}, but a student cannot take '
      f"over layers of {field}; choose config.student_init='random' and "
      "config.student_head='zeros'."
    )


def _check_published(config: types.Config, inputs: Mapping[str, Any]) -> None:
  """A teacher with published weights."""
  models.check('config.teacher.model', config.teacher.model, inputs)
  if not config.teacher.checkpoint:
    raise errors.ConfigError(
      'config.teacher.checkpoint is empty; name the published weights of a '
      'ViT: a .npz, or a folder with config.json and model.safetensors.'
    )


def _check_stages(config: types.Config) -> None:
  if sum(config.stages) >= config.steps:
    raise errors.ConfigError(
      f'config.stages is {config.stages}, which leaves none of '
      f'config.steps={config.steps} for joint training.'
    )


def _rename(config: dict[str, Any], old: str, new: str) -> None:
  """Renames a key, which may be dotted, of nested dictionaries."""
  *parents, last = old.split('.')
  block: Any = config
  for parent in parents:
    block = block.get(parent) if isinstance(block, dict) else None
  if isinstance(block, dict) and last in block:
    block[new.rpartition('.')[2]] = block.pop(last)


def _fill(block: Any, defaults: Mapping[str, Any]) -> None:
  """Adds the keys of `defaults` that `block` lacks."""
  if not isinstance(block, dict):
    return
  for key, value in json.loads(json.dumps(defaults)).items():
    if isinstance(value, dict):
      _fill(block.get(key), value)
    block.setdefault(key, value)


def _raise_no_json(value: Any) -> None:
  raise errors.ConfigError(f'{value!r} in the config cannot be stored as JSON.')
