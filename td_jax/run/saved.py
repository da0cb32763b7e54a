"""A finished or interrupted run, read back: for evaluation, or as a teacher."""

from collections.abc import Mapping
import functools
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
import ml_collections

from td_jax import errors
from td_jax import models
from td_jax import types
from td_jax.data import feed
from td_jax.data import task as task_lib
from td_jax.run import config as config_lib
from td_jax.run import stored_config
from td_jax.run import workdir
from td_jax.storage import checkpoint
from td_jax.training import step


class Saved(NamedTuple):
  """The best networks of a run, one for each seed."""

  model: nn.Module
  variables: types.PyTree  # Leaves [seeds, ...].
  step: int  # The step of the checkpoint.
  dataset: str  # Fingerprint of the training data.


def config_of(folder: types.Path) -> types.Config:
  """The config of the run in `folder`, in its present form.

  Raises:
    errors.DataError: There is none, or it is damaged.
  """
  file = folder / workdir.CONFIG
  stored = stored_config.read(file)
  try:
    config = ml_collections.ConfigDict(stored_config.with_tuples(stored))
    config_lib.validate(config)
  except Exception as e:  # The file may hold anything.
    raise errors.DataError(
      f'{file} is not the config of a run ({errors.one_line(e)}).'
    ) from e
  return config


def load(folder: types.Path, task: task_lib.Task) -> Saved:
  """The best networks in the latest intact checkpoint of `folder`.

  Raises:
    errors.DataError: There is none, it is damaged, or it was trained on other
      records than those of `task`.
  """
  example = feed.example(feed.feed(task.train, task.make_batch))
  return networks(
    folder,
    task.model_args,
    example.x,
    check=functools.partial(check_dataset, folder, task),
  )


def networks(
  folder: types.Path,
  model_args: Mapping[str, Any],
  x: types.PyTree,
  *,
  check: checkpoint.Check = lambda record: None,
) -> Saved:
  """As `load`, without the training data.

  Args:
    folder: The run.
    model_args: `Task.model_args` of the run.
    x: An input of the networks, leaves [b, ...].
    check: As in `restore`.
  """
  config = config_of(folder)
  model = models.build(config.model, model_args)
  template = jax.eval_shape(
    lambda: jax.vmap(lambda seed: _best(model, seed, x))(
      jax.numpy.arange(config.seeds)
    )
  )
  items, record = restore(folder, {'best': template}, check=check)
  return Saved(model, items['best'].student, record['step'], record['dataset'])


def restore(
  folder: types.Path,
  templates: dict[str, types.PyTree],
  *,
  check: checkpoint.Check,
) -> tuple[dict[str, types.PyTree], dict[str, Any]]:
  """Items and record of the latest intact checkpoint.

  Args:
    folder: The run.
    templates: See `checkpoint.Checkpoints.restore`.
    check: Receives the record before any item is read.

  Raises:
    errors.DataError: There is none, or it is damaged.
  """
  if not (folder / workdir.CHECKPOINTS).is_dir():
    raise errors.DataError(
      f'{folder} has no checkpoints; train there first, with '
      f'--workdir={folder}.'
    )
  checkpoints = checkpoint.Checkpoints(
    folder / workdir.CHECKPOINTS, read_only=True
  )
  try:
    restored = checkpoints.restore(templates, check=check)
  finally:
    checkpoints.close()
  if restored is None:
    raise errors.DataError(
      f'{folder} has no complete checkpoint; train there first, with '
      f'--workdir={folder}.'
    )
  return restored


def check_dataset(
  folder: types.Path, task: task_lib.Task, record: dict[str, Any]
) -> None:
  """Raises a DataError if a checkpoint's record names other data."""
  if record['dataset'] != task.fingerprint:
    raise errors.DataError(
      f'{folder} was trained on other data (fingerprint '
      f'{record["dataset"][:12]}, here {task.fingerprint[:12]}). Choose '
      'another --workdir, or the data of that run.'
    )


def _best(model: nn.Module, seed: types.Array, x: types.PyTree) -> step.Best:
  student = model.init(jax.random.key(seed), x, train=False)
  return step.Best(jax.numpy.float32(0), jax.numpy.int32(0), student)
