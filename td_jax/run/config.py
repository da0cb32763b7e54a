"""Checks a config before anything is loaded or compiled.

There is no default here: every key is declared in `configs/`.
"""

from collections.abc import Mapping
import json
import math
from typing import Any

from td_jax import data
from td_jax import errors
from td_jax import methods
from td_jax import models
from td_jax import types
from td_jax.devices import parallel
from td_jax.methods import losses
from td_jax.methods import schedules
from td_jax.models import students
from td_jax.training import optim

HEADS = ('stored', 'probe', 'none')  # Of a published teacher.
TEACHER = 'teacher'  # A method too: the teacher learns from its task alone.
_CHOICES = {
  'domain': data.DOMAINS,
  'method': (*methods.METHODS, TEACHER),
  'parallel.kind': parallel.KINDS,
  'student_init': students.INITS,
  'distill.distance': losses.DISTANCES,
  'distill.logit_distance': losses.DISTANCES,
  'distill.interact_target': ('chained', 'original'),
  'distill.feature_target': ('both', 'teacher'),
  'distill.hint_direction': ('paper', 'original'),
  'distill.student_encodes': ('low_and_high', 'low'),
}
# The keys of a config that may differ when a run is resumed.
_FREE = (
  'allow_changed_config', 'checkpoint', 'parallel.', 'data.dir', 'eval_batch',
  'teacher.cache_dir',
)  # fmt: skip


def validate(config: types.Config) -> None:
  """Raises a ConfigError of one line for the first thing that cannot work."""
  for field, choices in _CHOICES.items():
    errors.choose(f'config.{field}', _get(config, field), choices)
  for field in ('seeds', 'eval_batch', 'parallel.fsdp'):
    _at_least(config, field, 1)
  for field in ('seed', 'k', 'distill.noise', 'parallel.devices'):
    _at_least(config, field, 0)
  if config.distill.temperature <= 0:
    raise errors.ConfigError(
      f'config.distill.temperature is {config.distill.temperature}; it must '
      'be above 0.'
    )
  for field in ('distill.hidden', 'distill.message'):
    _at_least(config, field, 1)
  errors.check_rate('config.distill.dropout', config.distill.dropout)
  for name, weight in config.distill.weights.items():
    schedules.check_weight(f'config.distill.weights.{name}', weight)
  _learner(config, 'config')
  data.DOMAINS[config.domain].check(config)
  _stages(config)
  if config.student_init != 'random' and config.model.name != 'vit':
    raise errors.ConfigError(
      f'config.student_init is {config.student_init!r}, which is for a ViT; '
      f"a {config.model.name!r} starts at 'random'."
    )
  if config.method == TEACHER and 'steps' not in config.teacher:
    raise errors.ConfigError(
      f"config.method is 'teacher', but config {config.name!r} has no recipe "
      'for one: its teacher is published.'
    )
  if config.method != TEACHER and not needs_teacher(config):
    return
  if 'steps' in config.teacher:
    _learner(config.teacher, 'config.teacher')
  else:
    _published(config)


def needs_teacher(config: types.Config) -> bool:
  """Whether the student learns from a teacher, or starts from one."""
  return config.method != TEACHER and (
    methods.needs_teacher(config.method) or config.student_init != 'random'
  )


def as_teacher(config: types.Config) -> types.Config:
  """The run that makes the teacher: its own recipe, all the data, one seed."""
  own = config.copy_and_resolve_references()
  own.update(
    {
      name: value
      for name, value in config.teacher.items()
      if name not in ('checkpoint', 'cache', 'head')
    }
  )
  own.method = TEACHER
  own.data.genre = ''
  own.seeds = 1
  own.stages = (0, 0)
  own.student_init = 'random'
  return own


def as_selection(config: types.Config) -> types.Config:
  """The run that validation scores: as `config`, but without the refit."""
  own = config.copy_and_resolve_references()
  own.refit_on_validation = own.test = False
  return own


def to_json(config: types.Config) -> str:
  return json.dumps(
    config.to_dict(), indent=2, sort_keys=True, default=_no_json
  )


def completed(stored: dict[str, Any]) -> dict[str, Any]:
  """A config as a run has stored it, with the keys that came after that run.

  Each has the value at which nothing is done but what was done before.
  """
  for learner in (stored, stored.get('teacher')):
    recipe = learner.get('optim') if isinstance(learner, dict) else None
    if isinstance(recipe, dict):  # What is damaged is left to whoever reads on.
      recipe.setdefault('skip_loss_above', 0.0)
  return stored


def difference(stored: Mapping[str, Any], config: types.Config) -> list[str]:
  """What a resumed run would change, as lines `key: old -> new`."""
  old = _flatten(stored)
  new = _flatten(json.loads(to_json(config)))
  return [
    f'{key}: {old.get(key, "absent")!r} -> {new.get(key, "absent")!r}'
    for key in sorted(old.keys() | new.keys())
    if old.get(key) != new.get(key) and not key.startswith(_FREE)
  ]


def _learner(config, name):
  """The network, its recipe and its optimizer, of student or teacher."""
  models.check(f'{name}.model', config.model)
  errors.choose(f'{name}.optim.name', config.optim.name, optim.OPTIMIZERS)
  errors.choose(
    f'{name}.optim.decay', config.optim.decay, ('cosine', 'constant')
  )
  if not 0 < config.optim.learning_rate < math.inf:
    raise errors.ConfigError(
      f'{name}.optim.learning_rate is {config.optim.learning_rate}; it must '
      'be above 0.'
    )
  for field in ('warmup', 'weight_decay', 'clip', 'skip_loss_above'):
    _at_least(config, f'optim.{field}', 0, name)
  if 0 < config.optim.skip_loss_above <= 1:
    raise errors.ConfigError(
      f'{name}.optim.skip_loss_above is {config.optim.skip_loss_above}, which would skip '
      'losses that are no spikes; it must be above 1, or 0 to skip none.'
    )
  for field in (
    'steps',
    'batch_size',
    'steps_per_dispatch',
    'log_every',
    'eval_every',
  ):
    _at_least(config, field, 1, name)
  for field, of in (
    ('log_every', 'steps_per_dispatch'),
    ('eval_every', 'log_every'),
  ):
    if config[field] % config[of]:
      raise errors.ConfigError(
        f'{name}.{field} is {config[field]}; it must be a multiple of '
        f'{name}.{of}, {config[of]}.'
      )


def _published(config):
  """A teacher whose weights somebody has published."""
  models.check('config.teacher.model', config.teacher.model)
  errors.choose('config.teacher.head', config.teacher.head, HEADS)
  if config.teacher.head == 'none' and methods.needs_output(config.method):
    raise errors.ConfigError(
      "config.teacher.head is 'none', and config.method="
      f'{config.method!r} learns from what the teacher answers; take '
      "'probe', or 'stored' if it has a head for the task."
    )
  if not config.teacher.checkpoint:
    raise errors.ConfigError(
      'config.teacher.checkpoint is empty; name the published weights of a '
      'ViT: a .npz, or a folder with config.json and model.safetensors.'
    )


def _stages(config):
  if len(config.stages) != 2 or min(config.stages) < 0:
    raise errors.ConfigError(
      f'config.stages is {config.stages}; it takes two numbers >= 0: steps '
      'of the student alone, then of the communication alone.'
    )
  if sum(config.stages) >= config.steps:
    raise errors.ConfigError(
      f'config.stages is {config.stages}, which leaves none of '
      f'config.steps={config.steps} for training together.'
    )


def _at_least(config, field, least, name='config'):
  value = _get(config, field)
  if not least <= value < math.inf:
    raise errors.ConfigError(
      f'{name}.{field} is {value}; it must be at least {least}.'
    )


def _get(config, field) -> Any:
  for part in field.split('.'):
    config = config[part]
  return config


def _flatten(tree, prefix=''):
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= _flatten(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def _no_json(value):
  raise errors.ConfigError(f'{value!r} in the config cannot be kept as JSON.')
