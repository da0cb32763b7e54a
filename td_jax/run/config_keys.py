"""The keys of every config and what each takes.

`configs/common.py` declares the keys with their defaults and comments. What those of
one network or one kind of data take stands in `models.NETWORKS` and `data.DOMAINS`.
"""

import collections
from collections.abc import Collection
from collections.abc import Mapping
from typing import Any

from td_jax import data
from td_jax import errors
from td_jax import methods
from td_jax import models
from td_jax import types
from td_jax.configs import allowed
from td_jax.configs import common
from td_jax.devices import parallel
from td_jax.methods import losses
from td_jax.methods import schedules
from td_jax.training import optim

HEADS = ('stored', 'probe', 'none')  # For published teachers.
# A view: a user may have added a method by now.
_METHODS = collections.ChainMap(methods.METHODS, {types.TEACHER: {}})
# Compiled programs grow with these, so larger values would never start.
_ROUNDS = allowed.integer(0, 1000)
_STUDENTS = allowed.integer(1, 1000)

_RUN = {
  'name': allowed.text(),
  'domain': allowed.one_of(data.DOMAINS),
  'method': allowed.one_of(_METHODS),
  'seed': allowed.integer(0),
  'seeds': _STUDENTS,
  'k': _ROUNDS,
  'stages': allowed.several(
    allowed.integer(0),
    'two whole numbers >= 0: steps of the student alone, then of the '
    'communication alone',
    2,
  ),
  'student_init': allowed.one_of(models.INITS),
  'student_head': allowed.one_of(models.HEADS),
  'refit_on_validation': allowed.boolean(),
  'score_before_refit': allowed.boolean(),
  'test': allowed.boolean(),
  'eval_batch': allowed.integer(1),
  'checkpoint': allowed.text(),
  'allow_changed_config': allowed.boolean(),
  'wandb': allowed.text(),
  'parallel.kind': allowed.one_of(parallel.KINDS),
  'parallel.devices': allowed.integer(0),
  'parallel.fsdp': allowed.integer(1),
}
_DISTILL = {
  'hidden': allowed.WIDTH,
  'message': allowed.WIDTH,
  'dropout': allowed.RATE,
  'distance': allowed.one_of(losses.DISTANCES),
  'logit_distance': allowed.one_of(losses.DISTANCES),
  'temperature': allowed.number(above=0),
  'dkd_alpha': allowed.number(at_least=0),
  'dkd_beta': allowed.number(at_least=0),
  'dist_beta': allowed.number(at_least=0),
  'dist_gamma': allowed.number(at_least=0),
  'bd_nu': allowed.number(above=0),
  'rkd_distance': allowed.number(at_least=0),
  'rkd_angle': allowed.number(at_least=0),
  'at_power': allowed.integer(1, 16),
  'srrl_classifier': allowed.number(at_least=0),
  'interact_target': allowed.one_of(('chained', 'original')),
  'interact_teaches': allowed.one_of(('both', 'student')),
  'states': allowed.one_of(('raw', 'standardised')),
  'questions': allowed.one_of(('between', 'inputs')),
  'student_encodes': allowed.one_of(('low_and_high', 'low')),
  'noise': allowed.number(at_least=0),
  'feature_target': allowed.one_of(('both', 'teacher')),
  'hint_direction': allowed.one_of(('paper', 'original')),
  'remat': allowed.boolean(),
  'unroll': allowed.boolean(),
}
_LEARNER = {
  'steps': allowed.integer(1),
  'batch_size': allowed.integer(1),
  'steps_per_dispatch': allowed.integer(1),
  'log_every': allowed.integer(1),
  'eval_every': allowed.integer(1),
  'optim.name': allowed.one_of(optim.OPTIMIZERS),
  'optim.learning_rate': allowed.number(above=0),
  'optim.method_learning_rate': allowed.number(at_least=0),
  'optim.warmup': allowed.integer(0),
  'optim.decay': allowed.one_of(('cosine', 'constant')),
  'optim.weight_decay': allowed.number(at_least=0),
  'optim.momentum': allowed.RATE,
  'optim.clip': allowed.number(at_least=0),
  # A smaller factor would skip ordinary losses.
  'optim.skip_loss_above': allowed.zero_or(allowed.number(above=1)),
}
_TEACHER = {
  'checkpoint': allowed.text(),
  'states': allowed.text(),
  'build': allowed.text(),
  'cache': allowed.boolean(),
}
_PUBLISHED = {
  'as_stored': allowed.boolean(),
  'head': allowed.one_of(HEADS),
  'cache_dir': allowed.text(),
}


def check(config: types.Config) -> None:
  """Raises a ConfigError for a key that is absent or unknown, or for its value."""
  flat = flatten(config.to_dict())
  required = known(config)
  models.check_settings('config.model', config.model)
  if 'teacher.model.name' in flat:
    models.check_settings('config.teacher.model', config.teacher.model)
  # A teacher of another kind may keep keys of the usual one.
  optional = {f'teacher.{key}' for key in (*_PUBLISHED, 'labels')}
  for key in flat:
    if key not in required and key not in optional and not _is_users(key, flat):
      raise _unknown(key, {*required, *optional})
  for key, takes in required.items():
    if key not in flat:
      raise _missing(key)
    allowed.check(f'config.{key}', flat[key], takes)


def known(config: types.Config) -> dict[str, allowed.Allowed]:
  """{dotted key: what it takes} of the keys that a config of this kind has.

  Raises:
    errors.ConfigError: Its `domain` or the name of a network is none.
  """
  flat = flatten(config.to_dict())
  networks = {'model.name': allowed.one_of(models.NETWORKS)}
  has_recipe = 'teacher.steps' in flat
  has_network = has_recipe or 'teacher.model.name' in flat
  named = networks | {'domain': _RUN['domain']}
  if has_network:
    named |= _under('teacher', networks)
  for key, takes in named.items():
    if key not in flat:
      raise _missing(key)
    allowed.check(f'config.{key}', flat[key], takes)
  keys = _RUN | _LEARNER | named | _distill() | _under('teacher', _TEACHER)
  keys |= _under('model', models.NETWORKS[flat['model.name']].keys)
  keys |= {
    key: takes
    for key, takes in data.DOMAINS[flat['domain']].keys.items()
    # A teacher that td_jax does not train has no recipe to hide labels from.
    if has_recipe or not key.startswith('teacher.')
  }
  if has_network:
    network = models.NETWORKS[flat['teacher.model.name']].keys
    keys |= _under('teacher.model', network)
    keys |= _under('teacher', _LEARNER if has_recipe else _PUBLISHED)
  return keys


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{dotted key: value} of nested mappings."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{prefix}{key}.')
    else:
      flat[f'{prefix}{key}'] = value
  return flat


def _under(
  block: str, keys: Mapping[str, allowed.Allowed]
) -> dict[str, allowed.Allowed]:
  return {f'{block}.{key}': takes for key, takes in keys.items()}


def _distill() -> dict[str, allowed.Allowed]:
  """The settings of methods; a user may have declared another weight."""
  weights = dict.fromkeys(common.distill().weights, schedules.WEIGHT)
  return _under('distill', _DISTILL | _under('weights', weights))


def _missing(key: str) -> errors.ConfigError:
  return errors.ConfigError(
    f'the config has no key {key!r}; td_jax/configs/common.py has it with '
    'its default.'
  )


def _unknown(key: str, keys: Collection[str]) -> errors.ConfigError:
  """Names the keys beside one that does not exist, or all if it stands alone."""
  block = key.rpartition('.')[0]
  beside = [other for other in keys if other.rpartition('.')[0] == block]
  try:
    errors.choose('a key of the config', key, beside or keys)
  except errors.ConfigError as e:
    return e
  raise AssertionError(f'{key} is known')


def _is_users(key: str, flat: Mapping[str, Any]) -> bool:
  """Whether a key is of data or a network of the user's that declares no keys."""
  if key.startswith('data.'):
    return not data.DOMAINS[flat['domain']].keys
  block, _, field = key.rpartition('.')
  if block in ('model', 'teacher.model') and field != 'name':
    return not models.NETWORKS[flat[f'{block}.name']].keys
  return False
