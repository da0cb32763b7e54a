"""Foretells that a run cannot fit into memory, before it is compiled.

What is counted is less than what a run takes, so that nothing is refused that would
run. From the config alone, before data are read:

- the inputs of a batch, and the numbers of its examples;
- the matrices of the students, of the best of them, of their gradients and moments,
  and of the teacher if the method asks it, each split by `config.parallel.fsdp`;
- of a step, the student's state after each layer, which its gradient reads, and the
  teacher's two states; or the attention weights of one block, if they are more.

From the number of examples, once data are read:

- the teacher's states that `config.teacher.cache` keeps.

The dataset, embeddings, a method's own parameters, all other arrays of a step and of an
evaluation, and teachers of the user's own come on top.
"""

from typing import Any

import jax
import numpy as np

from td_jax import data
from td_jax import errors
from td_jax import models
from td_jax import types
from td_jax.data import task as task_lib
from td_jax.devices import parallel as parallel_lib
from td_jax.methods import base
from td_jax.models import footprint
from td_jax.run import config as config_lib
from td_jax.training import optim

_ID = 4  # Bytes of the number of an example.
_LITTLE = 5e7  # Bytes that a message need not name.


def check(
  config: types.Config,
  parallel: parallel_lib.Parallel,
  teacher: types.Config | None = None,
) -> None:
  """Raises a ConfigError if the run of `config` cannot fit into memory.

  Args:
    config: The run.
    parallel: Its devices.
    teacher: The settings of its teacher's network, if it has one of ours.
  """
  parts = least(config, parallel, teacher)
  where, bound = parallel.memory()
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


def least(
  config: types.Config,
  parallel: parallel_lib.Parallel,
  teacher: types.Config | None,
) -> dict[str, int]:
  """{what: bytes} of what a device, or a host of CPUs, holds; see `check`."""
  blank = data.DOMAINS[config.domain].blank(config)
  if blank is None:
    return {}  # Only the caller of `td_jax.distill` knows what networks see.
  if not config_lib.needs(config):
    teacher = None
  return _batches(config, blank, parallel.shares) | _networks(
    config, parallel, teacher
  )


def check_cache(
  config: types.Config,
  task: task_lib.Task,
  parallel: parallel_lib.Parallel,
  teacher: types.Config | None,
) -> None:
  """Raises a ConfigError if the cached states of a teacher cannot fit into memory.

  Args:
    config: The students' run.
    task: Its task.
    parallel: Its devices.
    teacher: As for `check`.
  """
  if not (teacher and config.teacher.cache and config_lib.needs(config)):
    return
  splits = [task.train, *([task.unlabelled.split] if task.unlabelled else [])]
  count = sum(len(s.mask) for s in splits if isinstance(s, types.Batch))
  size = count * _footprint(config, teacher).states
  where, bound = parallel.memory()
  if size > bound:
    raise errors.ConfigError(
      f'config.teacher.cache=True keeps what the teacher answers to {count:,} '
      f'examples, at least {_size(size)}, but {where} has {_size(bound)} of memory; '
      'choose config.teacher.cache=False.'
    )


def _batches(
  config: types.Config, blank: task_lib.Blank, shares: int
) -> dict[str, int]:
  """Bytes of what a device, or a host of CPUs, holds of the examples."""
  one = sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(blank.x)
  )
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
  config: types.Config,
  parallel: parallel_lib.Parallel,
  teacher: types.Config | None,
) -> dict[str, int]:
  """Bytes of the networks, and of what a step computes with them."""
  student = _footprint(config, config.model)
  shards = config.parallel.fsdp
  # Of each student: itself, the best so far, its gradient and its moments.
  copies = config.seeds * (3 + _moments(config))
  # A CPU trains one student after the other.
  at_once = 1 if parallel.platform == 'cpu' else config.seeds
  examples = at_once * config.batch_size // parallel.shares
  parts = {
    f'the networks of config.seeds={config.seeds} students': (
      copies * student.parameters // shards
    )
  }
  kept, widest = student.kept, student.widest
  if teacher is not None:
    other = _footprint(config, teacher)
    parts['the teacher'] = other.parameters // shards
    if not config.teacher.cache:
      widest = max(widest, other.widest)
      if base.Need.TEACHER_STATES in config_lib.needs(config):
        kept += other.states
  field = f'a step on the examples of config.batch_size={config.batch_size}'
  return parts | {field: examples * max(kept, widest)}


def _footprint(
  config: types.Config, network: types.Config
) -> footprint.Footprint:
  inputs = data.DOMAINS[config.domain].inputs(config)
  return models.NETWORKS[network.name].footprint(network, inputs)


def _moments(config: types.Config) -> int:
  """How many numbers the optimizer keeps for each parameter."""
  optimizer = optim.build(
    config.optim, steps=config.steps, stages=config_lib.NO_STAGES
  )
  parameter = jax.ShapeDtypeStruct((1,), np.float32)
  state = jax.eval_shape(
    optimizer.init, {'student': {'kernel': parameter}, 'method': {}}
  )
  # Other leaves count steps, and have no axis.
  return sum(leaf.ndim for leaf in jax.tree.leaves(state))


def _size(count: Any) -> str:
  return f'{count / 1e9:,.1f} GB'
