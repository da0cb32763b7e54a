"""Talking-model distillation (arXiv 2310.03188) in JAX, Flax and optax.

`distill` trains a student on arrays, `Frozen` makes a teacher of functions, and
`load` returns the student of a finished run. `converse` is Algorithm 1. `methods`,
`models`, `talk` and `losses` are modules. All of them are imported when they are
first used, so that commands start quickly.
"""

import importlib
from typing import Any

__version__ = '0.2.0'
_FUNCTIONS = {
  'Frozen': 'td_jax.models.frozen',
  'converse': 'td_jax.methods.talk',
  'distill': 'td_jax.use.distill',
  'load': 'td_jax.use.student',
}
_LAZY = {
  'losses': 'td_jax.methods.losses',
  'methods': 'td_jax.methods',
  'models': 'td_jax.models',
  'talk': 'td_jax.methods.talk',
}


def __getattr__(name: str) -> Any:
  if name in _FUNCTIONS:
    return getattr(importlib.import_module(_FUNCTIONS[name]), name)
  if name in _LAZY:
    return importlib.import_module(_LAZY[name])
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
