"""config.json, read back: in its present form, with every key of its kind."""

from typing import Any

from td_jax import types
from td_jax.configs import common
from td_jax.configs import movielens
from td_jax.run import config as config_lib
from td_jax.storage import files
from td_jax.storage import schema

# Blocks whose keys are known; the values are those of some config.
_DATA = {
  'movielens': movielens.get_config().data,
  'table': common.table('', columns='', others=''),
  'images': common.images('', ('', '', ''), classes=0, size=0, memory=''),
}
_MODELS = {
  'mlp': common.mlp(hidden=(), dropout=0.0, unknown_rate=0.0),
  'vit': common.vit(depth=1, split=(1, 1)),
}
_LEARNER = {
  'steps': int,
  'batch_size': int,
  'steps_per_dispatch': int,
  'log_every': int,
  'eval_every': int,
  'optim': schema.like(common.optimizer().to_dict()),
}
_TEACHER = {
  'checkpoint': str,
  'states': str,
  'build': str,
  'as_stored?': bool,
  'head?': str,
  'cache?': bool,
  'cache_dir?': str,
  # Of a teacher of our own.
  **{f'{key}?': kind for key, kind in _LEARNER.items()},
}


def read(file: types.Path) -> dict[str, Any]:
  """The config in `file`, whatever version of td_jax wrote it.

  Raises:
    errors.DataError: It is absent or damaged, or a key is missing or of another
      type than in our own configs.
  """
  stored = files.read_json(file, {'domain': str, 'model': {'name': str}})
  form = _form(stored['domain'], stored['model']['name'])
  return files.read_json(file, form, upgrade=config_lib.upgraded)


def _form(domain: str, model: str) -> dict[str, Any]:
  """The schema of a config with this domain and this kind of student."""
  form = schema.like(common.run().to_dict())
  # Numbers, or knots of a schedule.
  form['distill']['weights'] = {
    name: (float, [Any]) for name in common.distill().weights
  }
  return form | {
    'name': str,
    'method': str,
    **_LEARNER,
    'data': _like(_DATA.get(domain)),
    'model': _like(_MODELS.get(model)),
    'teacher': _TEACHER,
  }


def _like(block: types.Config | None) -> dict[str, Any]:
  return {} if block is None else schema.like(block.to_dict())
