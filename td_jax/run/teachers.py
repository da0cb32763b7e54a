"""Frozen teachers: from runs of ours, or published weights with a fitted head."""

from collections.abc import Mapping
import json
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
import numpy as np

from td_jax import errors
from td_jax import models
from td_jax import types
from td_jax.configs import common
from td_jax.data import feed as feed_lib
from td_jax.data import task as task_lib
from td_jax.models import probe
from td_jax.run import saved
from td_jax.storage import array_cache
from td_jax.storage import files
from td_jax.storage import paths
from td_jax.training import evaluate


class Teacher(NamedTuple):
  """A frozen network."""

  model: nn.Module
  variables: types.PyTree
  folder: str  # As results.json names it: absolute, or relative to the run.
  # Arrays that are derived from it once, for all runs that share the cache.
  cache: array_cache.Cache = array_cache.NO_CACHE


def is_published(folder: str) -> bool:
  """Whether `folder` holds published weights rather than a run of ours."""
  if folder.endswith('.npz'):
    return True
  return (paths.as_path(folder) / 'model.safetensors').exists()


def load(
  config: types.Config,
  task: task_lib.Task,
  *,
  path: types.Path,
  folder: str,
  log: types.Log = types.no_log,
) -> Teacher:
  """Loads a teacher.

  Args:
    config: The student's config; `teacher.model` and `teacher.head` describe
      published weights.
    task: The student's task.
    path: The student's run. A fitted head is stored there, unless
      `teacher.cache_dir` names a folder.
    folder: Absolute, or relative to `path`: a run of ours, whose first network
      is taken; or published weights, as `pretrained.load` takes them.
    log: Receives progress lines.

  Raises:
    errors.DataError: There is no teacher, it is damaged, or it does not fit
      the task.
  """
  if not is_published(folder):
    run = saved.load(paths.resolve(path, folder), task)
    first = jax.tree.map(lambda leaf: leaf[0], run.variables)
    return Teacher(run.model, first, folder)
  settings = config.teacher.model
  load_published = models.NETWORKS[settings.name].load_published
  if load_published is None:
    raise errors.ConfigError(
      f'config.teacher.checkpoint is {folder!r}, which holds published '
      f'weights, but config.teacher.model.name is {settings.name!r}, which '
      'cannot load any; name the folder of a run.'
    )
  variables = _published(config, task, folder, load_published)
  model = models.build(settings, task.model_args)
  cache_dir = config.teacher.cache_dir
  cache = array_cache.Cache(
    paths.as_path(cache_dir) if cache_dir else path,
    _cache_digest(config, task, variables),
    writes=jax.process_index() == 0,
    log=log,
  )
  if config.teacher.head == 'none':
    # Zeros rather than no head, so that the parameter tree keeps its shape.
    head = jax.tree.map(np.zeros_like, variables['params']['head'])
    variables = {'params': variables['params'] | {'head': head}}
  if config.teacher.head == 'probe':
    head = dict(
      cache.get(
        'head',
        lambda: fit_head(
          config,
          task,
          config.teacher.model,
          variables,
          name=folder,
          log=log,
        ),
      )
    )
    variables = {'params': variables['params'] | {'head': head}}
  # Without a folder for caches only the head is stored, in the run itself:
  # states may take more space than the run.
  return Teacher(
    model, variables, folder, cache if cache_dir else array_cache.NO_CACHE
  )


def _published(
  config: types.Config, task: task_lib.Task, folder: str, load_published: Any
) -> types.PyTree:
  """The variables of published weights, with a head for the task's classes."""
  settings, classes = config.teacher.model, task.model_args['classes']
  published = load_published(
    folder,
    image_size=config.data.size,
    classes=None if config.teacher.head == 'stored' else classes,
    expected={key: settings[key] for key in settings if key != 'name'},
  )
  stored = published.settings['classes']
  if stored != classes:
    raise errors.DataError(
      f'{folder} has a head of {stored} classes, but {task.name} has '
      f"{classes}; choose config.teacher.head='probe'."
    )
  return published.variables


def _cache_digest(
  config: types.Config, task: task_lib.Task, variables: types.PyTree
) -> str:
  """Identifies these weights on the data of this task."""
  data = config.data.to_dict()
  del data['dir']  # The fingerprint identifies the data that lie there.
  # The name this key had in version 0.1, so that its caches stay valid.
  data['views'] = data.pop('fixed_crops')
  few_labels = {key: data.pop(key) for key in ('labels', 'unlabelled')}
  teacher = config.teacher
  facts = [task.fingerprint, teacher.model.to_dict(), teacher.head, data]
  if few_labels != common.few_labels(config.domain).to_dict():
    # The head depends on the labels, and the states on the further examples, but
    # neither on how batches are mixed.
    del few_labels['unlabelled']['share']
    facts += [few_labels, task.unlabelled_fingerprint]
  return files.sha256(json.dumps(facts), *jax.tree.leaves(variables))


def fit_head(
  config: types.Config,
  task: task_lib.Task,
  settings: types.Config,
  variables: types.PyTree,
  *,
  name: str,
  log: types.Log,
) -> Mapping[str, np.ndarray]:
  """{'kernel', 'bias'} of a head fitted to a network's features.

  Args:
    config: Its `eval_batch` is read.
    task: Its training split has the labels that are kept.
    settings: The network, a `model` block.
    variables: Its variables; the head among them is not read.
    name: How progress lines call the network.
    log: Receives progress lines.
  """
  # With no classes the network's output is what would enter its head.
  model = models.build(settings, {'classes': 0})
  headless = {
    'params': {
      key: tree for key, tree in variables['params'].items() if key != 'head'
    }
  }

  def features(split: task_lib.Split) -> tuple[np.ndarray, np.ndarray]:
    feed = feed_lib.feed(split, task.make_batch)
    return evaluate.outputs(
      feed, model=model, variables=headless, batch=config.eval_batch
    )

  assert task.validation is not None  # Only MovieLens merges its validation.
  log(f'fitting a linear head to {name}, once')
  kernel, bias, report = probe.fit(
    *features(task.train),
    classes=task.model_args['classes'],
    validation=features(task.validation),
    log=log,
  )
  log(
    f'the head is fitted: accuracy {report["accuracy"]:.4f} on training, '
    f'{report["validation_accuracy"]:.4f} on validation, at ridge '
    f'{report["ridge"]:g}'
  )
  return {'kernel': kernel, 'bias': bias}
