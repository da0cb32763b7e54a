"""Datasets by the name of their domain.

A new domain is a file with the functions of `Domain` and a line in `DOMAINS`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np

from td_jax import types
from td_jax.configs import allowed
from td_jax.data import arrays
from td_jax.data import classification
from td_jax.data import image_defaults
from td_jax.data import image_inputs
from td_jax.data import image_keys
from td_jax.data import movielens
from td_jax.data import own_table
from td_jax.data import table_inputs
from td_jax.data import table_task
from td_jax.data import task as task_lib


class Domain(NamedTuple):
  """What a kind of dataset offers to the rest of the package."""

  # {key of a config: what it takes} of the keys that this kind of data adds.
  keys: Mapping[str, allowed.Allowed]
  # Raises a ConfigError for a `data` block whose values do not fit together.
  check: Callable[[types.Config], None]
  # What `models.check` and `models.tokens` need to know about the inputs,
  # such as {'image_size': 384}.
  inputs: Callable[[types.Config], Mapping[str, Any]]
  # (config, log): fills in, in place, what a config leaves to the data.
  complete: Callable[[types.Config, types.Log], None]
  # (config, log=) -> the dataset, read once for all runs of a plan.
  read: Callable[..., Any]
  # (config, dataset) -> the task that this config makes of the dataset.
  task: Callable[[types.Config, Any], task_lib.Task]
  # config -> a task with the right shapes, where no data may be at hand.
  shapes: Callable[[types.Config], task_lib.Task]
  # config -> the smallest input that its data may have, before they are read; None
  # if nothing is known.
  blank: Callable[[types.Config], task_lib.Blank | None]
  # Changes a config in place so that its run uses all data, as a teacher does.
  use_all_data: Callable[[types.Config], None]
  # config -> a key of `losses.TASK_LOSSES`.
  task_loss: Callable[[types.Config], str]
  # (config, what `Task.inputs` made) -> a function: raw examples [n] -> x, the
  # input of a student, leaves [n, ...]. Its `blank` is such an example.
  encoder: Callable[[types.Config, Mapping[str, np.ndarray]], Any]


DOMAINS = {
  arrays.NAME: Domain(
    keys=arrays.ALLOWED,
    check=lambda config: None,
    inputs=lambda config: {},
    complete=lambda config, log: None,
    read=arrays.read,
    task=arrays.task,
    shapes=arrays.read,
    blank=lambda config: None,
    use_all_data=lambda config: None,
    task_loss=arrays.task_loss,
    encoder=lambda config, kept: arrays.read(config),
  ),
  'movielens': Domain(
    keys=movielens.ALLOWED,
    check=movielens.check,
    inputs=lambda config: {},
    complete=lambda config, log: None,
    read=movielens.read,
    task=movielens.task,
    shapes=movielens.load,
    blank=lambda config: table_inputs.BLANK,
    use_all_data=movielens.use_all_genres,
    task_loss=lambda config: table_task.REGRESSION,
    encoder=lambda config, kept: table_inputs.Encoder(kept),
  ),
  'table': Domain(
    keys=own_table.ALLOWED,
    check=own_table.check,
    inputs=lambda config: {},
    complete=own_table.complete,
    read=own_table.read,
    task=own_table.task,
    shapes=own_table.load,
    blank=lambda config: table_inputs.BLANK,
    use_all_data=own_table.use_all_tasks,
    task_loss=own_table.task_loss,
    encoder=lambda config, kept: table_inputs.Encoder(kept),
  ),
  'images': Domain(
    keys=image_keys.ALLOWED,
    check=image_keys.check,
    inputs=lambda config: {'image_size': config.data.size},
    complete=image_defaults.complete,
    read=classification.read,
    task=classification.task,
    shapes=classification.shapes,
    blank=image_inputs.blank,
    use_all_data=lambda config: None,
    task_loss=lambda config: classification.TASK_LOSS,
    encoder=lambda config, kept: image_inputs.Encoder(config),
  ),
}


def load(config: types.Config, *, log: types.Log) -> task_lib.Task:
  """Reads the dataset of `config` and makes its task."""
  domain = DOMAINS[config.domain]
  return domain.task(config, domain.read(config, log=log))
