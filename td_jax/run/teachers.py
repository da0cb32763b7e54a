"""Frozen teachers: of our own runs, and published ones with a head for the task."""

from collections.abc import Callable
import hashlib
import json
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
import numpy as np

from td_jax import errors
from td_jax import models
from td_jax import types
from td_jax.data import feed as feed_lib
from td_jax.data import task as task_lib
from td_jax.models import pretrained
from td_jax.models import probe
from td_jax.run import saved
from td_jax.storage import array_cache
from td_jax.storage import paths
from td_jax.training import evaluate


class Teacher(NamedTuple):
  """A frozen network, and where it is from."""

  model: nn.Module
  variables: types.PyTree
  folder: str  # Absolute, or seen from the student's run.
  keep: Callable[..., Any] = array_cache.NO_CACHE.get  # What is computed of it once.


def is_published(folder: str) -> bool:
  """Whether `folder` holds published weights, not a run of ours."""
  if folder.endswith('.npz'):
    return True
  return (paths.as_path(folder) / 'model.safetensors').exists()


def load(
  config: types.Config,
  task: task_lib.Task,
  *,
  path: types.Path,
  folder: str,
  log=lambda line: None,
) -> Teacher:
  """The teacher in `folder`, which may be seen from `path`.

  Args:
    config: Of the student; `teacher.model` and `teacher.head` are for published
      weights.
    task: Of the student.
    path: The student's run, where a head that is fitted is kept, unless
      `teacher.cache_dir` names a folder.
    folder: A run of ours, of which the first network is taken; or published
      weights, as `pretrained.load` takes them.
    log: Takes lines for whoever watches.

  Raises:
    errors.DataError: there is no teacher, or it is damaged or another.
  """
  if not is_published(folder):
    found = saved.load(paths.resolve(path, folder), task)
    first = jax.tree.map(lambda leaf: leaf[0], found.variables)
    return Teacher(found.model, first, folder)
  wanted = config.teacher.model
  if wanted.name != 'vit':
    raise errors.ConfigError(
      f'config.teacher.checkpoint is {folder!r}, the weights of a ViT, and '
      f'config.teacher.model.name is {wanted.name!r}; name the folder of a run.'
    )
  classes = task.model_args['classes']
  found = pretrained.load(
    folder,
    image_size=config.data.size,
    classes=None if config.teacher.head == 'stored' else classes,
    expected={key: wanted[key] for key in wanted if key != 'name'},
  )
  if found.settings['classes'] != classes:
    raise errors.DataError(
      f'{folder} has a head of {found.settings["classes"]} classes, and '
      f"{task.name} has {classes}; take config.teacher.head='probe'."
    )
  kept = (
    paths.as_path(config.teacher.cache_dir)
    if config.teacher.cache_dir
    else None
  )
  model, variables = models.build(wanted, task.model_args), found.variables
  keep = _keeper(config, task, variables, kept=kept or path, log=log)
  if config.teacher.head == 'none':
    head = jax.tree.map(np.zeros_like, variables['params']['head'])
    variables = {'params': variables['params'] | {'head': head}}
  if config.teacher.head == 'probe':
    head = dict(
      keep('head', lambda: _probe(config, task, variables, folder, log))
    )
    variables = {'params': variables['params'] | {'head': head}}
  return Teacher(
    model, variables, folder, keep if kept else array_cache.NO_CACHE.get
  )


def _keeper(config, task, variables, *, kept, log):
  """Of what is computed of these weights on the data of this task."""
  block, seen = config.teacher, config.data.to_dict()
  del seen['dir']  # The fingerprint says what was found there.
  facts = [task.fingerprint, block.model.to_dict(), block.head, seen]
  told = hashlib.sha256(json.dumps(facts).encode())
  for leaf in jax.tree.leaves(variables):
    told.update(np.ascontiguousarray(leaf).data)
  return array_cache.Cache(
    kept, told.hexdigest(), writes=jax.process_index() == 0, log=log
  ).get


def _probe(config, task, variables, folder, log):
  """{'kernel', 'bias'} of a head fitted to the frozen teacher's features."""
  model = models.build(config.teacher.model, {'classes': 0})
  bare = {
    'params': {
      name: tree for name, tree in variables['params'].items() if name != 'head'
    }
  }

  def features(split):
    feed = feed_lib.feed(split, task.make_batch)
    return evaluate.outputs(
      feed, model=model, variables=bare, batch=config.eval_batch
    )

  log(f'fitting a linear head to {folder}, once')
  kernel, bias, report = probe.fit(
    *features(task.train),
    classes=task.model_args['classes'],
    validation=features(task.validation),
  )
  log(
    f'the head is fitted: accuracy {report["accuracy"]:.4f} on training, '
    f'{report["validation_accuracy"]:.4f} on validation, at ridge '
    f'{report["ridge"]:g}'
  )
  return {'kernel': kernel, 'bias': bias}
