"""Checks a config before anything is loaded or compiled.

There are no defaults here: every key is declared in `td_jax/configs/`.
"""

from collections.abc import Mapping
import itertools
import json
import math
from typing import Any

from td_jax import data
from td_jax import errors
from td_jax import methods
from td_jax import models
from td_jax import types
from td_jax.configs import common
from td_jax.devices import parallel
from td_jax.methods import losses
from td_jax.methods import schedules
from td_jax.storage import paths
from td_jax.training import optim

HEADS = ('stored', 'probe', 'none')  # For published teachers.
_CHOICES = {
  'domain': data.DOMAINS,
  'parallel.kind': parallel.KINDS,
  'student_init': models.INITS,
  'student_head': models.HEADS,
  'distill.distance': losses.DISTANCES,
  'distill.logit_distance': losses.DISTANCES,
  'distill.interact_target': ('chained', 'original'),
  'distill.interact_teaches': ('both', 'student'),
  'distill.states': ('raw', 'standardised'),
  'distill.questions': ('between', 'inputs'),
  'distill.feature_target': ('both', 'teacher'),
  'distill.hint_direction': ('paper', 'original'),
  'distill.student_encodes': ('low_and_high', 'low'),
}
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
  _check_keys(config)
  for field, choices in _CHOICES.items():
    errors.choose(f'config.{field}', _get(config, field), choices)
  # A user may have added a method by now.
  known = (*methods.METHODS, types.TEACHER)
  errors.choose('config.method', config.method, known)
  for field in ('seeds', 'eval_batch', 'parallel.fsdp'):
    _check_at_least(config, field, 1)
  for field in ('seed', 'k', 'parallel.devices'):
    _check_at_least(config, field, 0)
  _check_distill(config)
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
  own.stages = (0, 0)
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
  old = flatten(upgraded(stored))
  new = flatten(json.loads(to_json(config)))
  return [
    f'{key}: {old.get(key, "absent")!r} -> {new.get(key, "absent")!r}'
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key) and not key.startswith(_FREE)
  ]


def _check_keys(config: types.Config) -> None:
  """Keys that a config file of one's own lacks, or has misspelled."""
  present = flatten(config.to_dict())
  for key in flatten(common.run().to_dict()):
    if key not in present:
      raise errors.ConfigError(
        f'the config has no key {key!r}; td_jax/configs/common.py has it with '
        'its default.'
      )
  blocks = {'distill': common.distill(), 'optim': common.optimizer()}
  for name, block in blocks.items():
    known = [f'{name}.{key}' for key in flatten(block.to_dict())]
    for key in present:
      if key.startswith(f'{name}.') and key not in known:
        errors.choose('a key of the config', key, known)


def _check_distill(config: types.Config) -> None:
  """The settings of methods."""
  distill = config.distill
  if not distill.temperature > 0:
    raise errors.ConfigError(
      f'config.distill.temperature is {distill.temperature}; it must be above '
      '0.'
    )
  for field in ('hidden', 'message'):
    _check_at_least(config, f'distill.{field}', 1)
  _check_at_least(config, 'distill.noise', 0)
  errors.check_rate('config.distill.dropout', distill.dropout)
  for name, weight in distill.weights.items():
    schedules.check_weight(f'config.distill.weights.{name}', weight)


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


def _check_learner(
  config: types.Config, name: str, inputs: Mapping[str, Any]
) -> None:
  """The network, recipe and optimizer of a student or a teacher."""
  models.check(f'{name}.model', config.model, inputs)
  errors.choose(f'{name}.optim.name', config.optim.name, optim.OPTIMIZERS)
  errors.choose(
    f'{name}.optim.decay', config.optim.decay, ('cosine', 'constant')
  )
  if not 0 < config.optim.learning_rate < math.inf:
    raise errors.ConfigError(
      f'{name}.optim.learning_rate is {config.optim.learning_rate}; it must '
      'be above 0.'
    )
  for field in (
    'method_learning_rate',
    'warmup',
    'weight_decay',
    'clip',
    'skip_loss_above',
  ):
    _check_at_least(config, f'optim.{field}', 0, name)
  if 0 < config.optim.skip_loss_above <= 1:
    raise errors.ConfigError(
      f'{name}.optim.skip_loss_above is {config.optim.skip_loss_above}, which '
      'would skip ordinary losses; it must be above 1, or 0 to skip none.'
    )
  steps = ('steps_per_dispatch', 'log_every', 'eval_every')
  for field in ('steps', 'batch_size', *steps):
    _check_at_least(config, field, 1, name)
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
  if 'head' in teacher:
    errors.choose('config.teacher.head', teacher.head, HEADS)


def _check_published(config: types.Config, inputs: Mapping[str, Any]) -> None:
  """A teacher with published weights."""
  models.check('config.teacher.model', config.teacher.model, inputs)
  errors.choose('config.teacher.head', config.teacher.head, HEADS)
  if not config.teacher.checkpoint:
    raise errors.ConfigError(
      'config.teacher.checkpoint is empty; name the published weights of a '
      'ViT: a .npz, or a folder with config.json and model.safetensors.'
    )


def _check_stages(config: types.Config) -> None:
  if len(config.stages) != 2 or min(config.stages) < 0:
    raise errors.ConfigError(
      f'config.stages is {config.stages}; it takes two numbers >= 0: steps '
      'of the student alone, then of the communication alone.'
    )
  if sum(config.stages) >= config.steps:
    raise errors.ConfigError(
      f'config.stages is {config.stages}, which leaves none of '
      f'config.steps={config.steps} for joint training.'
    )


def _check_at_least(
  config: types.Config, field: str, least: int, name: str = 'config'
) -> None:
  value = _get(config, field)
  if not least <= value < math.inf:
    raise errors.ConfigError(
      f'{name}.{field} is {value}; it must be at least {least}.'
    )


def _get(config: types.Config, field: str) -> Any:
  """The value of a dotted key."""
  for part in field.split('.'):
    config = config[part]
  return config


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


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{dotted key: value} of nested mappings."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def _raise_no_json(value: Any) -> None:
  raise errors.ConfigError(f'{value!r} in the config cannot be stored as JSON.')
