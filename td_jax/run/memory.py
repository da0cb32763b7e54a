"""Foretells, from the config alone, that a run cannot fit into memory.

What is counted is less than what a run takes: the inputs of a batch, the numbers of
its examples, and the networks with their gradients and moments. Activations, the
teacher and the dataset come on top. So nothing is refused that would run.
"""

import math
from typing import Any

import jax

from td_jax import data
from td_jax import errors
from td_jax import models
from td_jax import types
from td_jax.data import task as task_lib
from td_jax.devices import parallel as parallel_lib
from td_jax.run import config as config_lib
from td_jax.training import optim

_ID = 4  # Bytes of the number of an example.
_LITTLE = 5e7  # Bytes that a message need not name.


def check(config: types.Config, parallel: parallel_lib.Parallel) -> None:
  """Raises a ConfigError if the run of `config` cannot fit into memory."""
  blank = data.DOMAINS[config.domain].blank(config)
  if blank is None:
    return  # Only the caller of `td_jax.distill` knows what networks see.
  where, bound = parallel.memory()
  parts = _batches(config, blank, parallel.shares)
  if sum(parts.values()) <= bound:
    # Not before: the tables of positions of a huge image are huge themselves.
    parts |= _networks(config, blank, config.parallel.fsdp)
  if sum(parts.values()) <= bound:
    return
  need = ', '.join(
    f'{_size(size)} for {what}'
    for what, size in parts.items()
    if size > _LITTLE
  )
  raise errors.ConfigError(
    f'the run takes at least {_size(sum(parts.values()))} of memory ({need}), but '
    f'{where} has {_size(bound)}; choose a smaller config.batch_size, '
    'config.steps_per_dispatch, config.seeds, config.model or, for images, '
    'config.data.size.'
  )


def _batches(
  config: types.Config, blank: task_lib.Blank, shares: int
) -> dict[str, int]:
  """Bytes of what a device, or a host of CPUs, holds of the examples."""
  one = _bytes(blank.x)
  numbers = config.steps_per_dispatch * config.seeds * config.batch_size
  parts = {
    f'the inputs of config.batch_size={config.batch_size}': (
      config.batch_size * one // shares
    ),
    f'the rows of config.steps_per_dispatch={config.steps_per_dispatch} x '
    f'config.seeds={config.seeds} batches': numbers * _ID,
  }
  if blank.is_streamed:  # Splits in memory are often smaller than that.
    field = f'the inputs of config.eval_batch={config.eval_batch}'
    parts[field] = config.eval_batch * one
  return parts


def _networks(
  config: types.Config, blank: task_lib.Blank, shards: int
) -> dict[str, int]:
  """Bytes of the students, the best of them, their gradients and moments."""
  model = models.build(config.model, blank.model_args)
  optimizer = optim.build(
    config.optim, steps=config.steps, stages=config_lib.NO_STAGES
  )

  def state(x: types.PyTree) -> tuple[types.PyTree, types.PyTree]:
    student = model.init(jax.random.key(0), x, train=False)
    return student, optimizer.init({'student': student, 'method': {}})

  student, moments = jax.eval_shape(state, blank.x)
  size = config.seeds * (3 * _bytes(student) + _bytes(moments)) // shards
  return {f'the networks of config.seeds={config.seeds} students': size}


def _bytes(tree: types.PyTree) -> int:
  return sum(
    math.prod(leaf.shape) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _size(count: Any) -> str:
  return f'{count / 1e9:,.1f} GB'
