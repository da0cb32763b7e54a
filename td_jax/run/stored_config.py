"""config.json, read back: in its present form, with every key as it may be."""

from typing import Any

import ml_collections

from td_jax import errors
from td_jax import types
from td_jax.run import config as config_lib
from td_jax.run import config_keys
from td_jax.storage import files

# What has to be there before keys can be checked one by one.
_BLOCKS = ('data', 'distill', 'optim', 'parallel', 'teacher')
_FORM = {
  'domain': str,
  'method': str,
  'model': {'name': str},
  **{key: {} for key in _BLOCKS},
}


def read(file: types.Path) -> dict[str, Any]:
  """The config in `file`, whatever version of td_jax wrote it.

  Raises:
    errors.DataError: It is absent or damaged, or a key is missing or cannot have
      its value.
  """
  stored = files.read_json(file, _FORM, upgrade=config_lib.upgraded)
  try:
    config_keys.check(ml_collections.ConfigDict(with_tuples(stored)))
  except errors.ConfigError as e:
    raise errors.DataError(f'{file} is not the config of a run ({e}).') from e
  return stored


def with_tuples(value: Any) -> Any:
  """Turns lists into tuples: JSON has no tuples, and configs no lists."""
  if isinstance(value, dict):
    return {name: with_tuples(each) for name, each in value.items()}
  if isinstance(value, list):
    return tuple(with_tuples(each) for each in value)
  return value
