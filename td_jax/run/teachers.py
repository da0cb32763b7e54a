"""Frozen teachers: from runs of ours, or published weights with a fitted head."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import importlib
import importlib.util
import inspect
import json
import pathlib
import traceback
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
import numpy as np

from td_jax import errors
from td_jax import methods
from td_jax import models
from td_jax import types
from td_jax.configs import common
from td_jax.data import answers
from td_jax.data import class_counts
from td_jax.data import feed as feed_lib
from td_jax.data import task as task_lib
from td_jax.models import class_names
from td_jax.models import frozen
from td_jax.models import layers
from td_jax.models import pretrained
from td_jax.models import probe
from td_jax.run import saved
from td_jax.storage import array_cache
from td_jax.storage import files
from td_jax.storage import paths
from td_jax.training import evaluate

_SAMPLE, _SAMPLE_VALUES = 16, 64  # Examples, and numbers of their answers.


class Teacher(NamedTuple):
  """A frozen network."""

  model: nn.Module
  variables: types.PyTree
  folder: str  # As results.json names it: absolute, or relative to the run.
  # Arrays that are derived from it once, for all runs that share the cache.
  cache: array_cache.Cache = array_cache.NO_CACHE
  # Some of its answers, if only they tell that it is the same as before.
  sample: Sequence[float] = ()


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
      is taken; or published weights, as `pretrained.load` takes them. Not read if
      `teacher.build` or `teacher.states` says what the teacher is.
    log: Receives progress lines.

  Raises:
    errors.DataError: There is no teacher, it is damaged, or it does not fit
      the task.
  """
  if config.teacher.build or config.teacher.states:
    return _own(config, task, path=path, log=log)
  where = paths.resolve(path, folder)
  if not pretrained.is_published(str(where)):
    run = saved.load(where, task)
    first = jax.tree.map(lambda leaf: leaf[0], run.variables)
    return Teacher(run.model, first, folder)
  settings = config.teacher.model
  variables = _published(config, task, folder, log)
  model = models.build(settings, task.model_args)
  facts = [settings.to_dict(), config.teacher.head]
  cache, shared = _caches(config, task, variables, facts, path=path, log=log)
  variables = _with_head(
    config.teacher.head,
    variables,
    cache,
    # Zeros rather than no head, so that the parameter tree keeps its shape.
    zeros=lambda: jax.tree.map(np.zeros_like, variables['params']['head']),
    fit=lambda: fit_head(
      config, task, *headless(settings, variables), name=folder, log=log
    ),
  )
  return Teacher(model, variables, folder, shared)


def _own(
  config: types.Config,
  task: task_lib.Task,
  *,
  path: types.Path,
  log: types.Log,
) -> Teacher:
  """The teacher of `config.teacher.build` or of `config.teacher.states`."""
  build, states = config.teacher.build, config.teacher.states
  name = build or states
  head = config.teacher.get('head', 'stored')
  classes = task.model_args.get('classes', 0)
  feed = feed_lib.feed(task.train, task.make_batch)
  x = feed_lib.example(feed, _SAMPLE).input_of(types.TEACHER)
  try:
    if task.teacher is not None:
      model, variables = frozen.network(task.teacher)
    else:
      model, variables = built(build) if build else _answers(states)
    stored = classes if head == 'stored' else None
    frozen.check(model, variables, x, classes=stored)
    needs = methods.needs(config, task_loss=task.task_loss)
    looks = {methods.Need.TEACHER_STATES, methods.Need.TEACHER_LAYERS}
    if needs & looks and not model.has_states:
      raise errors.ConfigError(
        f'it has an output alone, but method {config.method!r} looks at hidden '
        "states; give it low and high states, or choose method 'ld'"
      )
  except errors.ConfigError as e:
    field = f'config.teacher.{"build" if build else "states"} is {name!r}'
    if task.teacher is not None:
      field = 'the teacher does not fit'
    raise errors.ConfigError(errors.sentence(f'{field}: {e}')) from e
  sample = _sample(model, variables, x)
  # Other code may give other answers with the same arrays.
  rounded = [f'{value:.3g}' for value in sample]
  facts = [build, head, _source(build), rounded]
  cache, shared = _caches(config, task, variables, facts, path=path, log=log)

  def zeros() -> dict[str, np.ndarray]:
    run = functools.partial(layers.apply, model)
    width = jax.eval_shape(run, variables, x)[-1].shape[-1]
    return {
      'kernel': np.zeros((width, classes), np.float32),
      'bias': np.zeros(classes, np.float32),
    }

  variables = _with_head(
    head,
    variables,
    cache,
    zeros=zeros,
    fit=lambda: fit_head(
      config,
      task,
      model,
      variables,
      name=name,
      log=log,
      teacher=types.TEACHER,
    ),
  )
  return Teacher(model, variables, name, shared, sample)


def _with_head(
  head: str,
  variables: types.PyTree,
  cache: array_cache.Cache,
  *,
  zeros: Callable[[], Mapping[str, Any]],
  fit: Callable[[], Mapping[str, Any]],
) -> types.PyTree:
  """The variables with the head that `config.teacher.head` asks for."""
  if head == 'stored':
    return variables
  tree = zeros() if head == 'none' else dict(cache.get('head', fit))
  return {'params': variables['params'] | {'head': tree}}


def _sample(
  model: frozen.Network, variables: types.PyTree, x: types.PyTree
) -> list[float]:
  """What an own teacher answers to `x` [b, ...], to know it again."""
  *_, output = jax.jit(functools.partial(layers.apply, model))(variables, x)
  return np.asarray(output, np.float64).ravel()[:_SAMPLE_VALUES].tolist()


def _answers(states: str) -> tuple[frozen.Lookup, dict[str, Any]]:
  """The network and the variables of answers that were computed elsewhere."""
  arrays = answers.read(states)
  return frozen.Lookup('low' in arrays), frozen.variables(arrays)


def built(build: str) -> tuple[frozen.Functions, dict[str, Any]]:
  """The network and the variables that a user's function makes.

  Args:
    build: 'package.module:function' or 'FILE.py:function'.

  Raises:
    errors.ConfigError: There is no such function, or it fails.
  """
  module, _, name = build.rpartition(':')
  try:
    loaded = _module(module)
    if not callable(getattr(loaded, name, None)):
      own = (key for key, value in vars(loaded).items() if callable(value))
      errors.choose(f'the function of {module}', name, own)
    made = getattr(loaded, name)()
  except errors.ConfigError:
    raise
  except (Exception, SystemExit) as e:  # The user's code may raise anything.
    what = errors.one_line(e)
    if isinstance(e, SystemExit):
      what = f'it ends the process, by sys.exit({e.code!r})'
    # Our own lines, and those of Python's import, would mislead.
    *_, last = traceback.extract_tb(e.__traceback__)
    if last.filename != __file__ and '<frozen' not in last.filename:
      what = f'{what} ({last.filename}, line {last.lineno})'
    raise errors.ConfigError(what) from e
  return frozen.network(made)


def _module(name: str) -> Any:
  """The module of this name, or in this file (.py)."""
  if not name.endswith('.py'):
    return importlib.import_module(name)
  spec = importlib.util.spec_from_file_location(pathlib.Path(name).stem, name)
  assert spec and spec.loader  # It ends in .py.
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _source(build: str) -> str:
  """The text of the module of a user's function; '' if it has none."""
  module, _, _ = build.rpartition(':')
  try:
    if module.endswith('.py'):
      return pathlib.Path(module).read_text()
    return inspect.getsource(importlib.import_module(module)) if module else ''
  except (OSError, TypeError):
    return ''


def _caches(
  config: types.Config,
  task: task_lib.Task,
  variables: types.PyTree,
  facts: list[Any],
  *,
  path: types.Path,
  log: types.Log,
) -> tuple[array_cache.Cache, array_cache.Cache]:
  """The caches of a fitted head, and of scores and states.

  Without `teacher.cache_dir` only the head is stored, in the run itself: states may
  take more space than the run.
  """
  folder = config.teacher.get('cache_dir', '')
  cache = array_cache.Cache(
    paths.as_path(folder) if folder else path,
    _cache_digest(config, task, variables, facts),
    writes=jax.process_index() == 0,
    log=log,
  )
  return cache, cache if folder else array_cache.NO_CACHE


def _published(
  config: types.Config,
  task: task_lib.Task,
  folder: str,
  log: types.Log,
) -> types.PyTree:
  """The variables of published weights, with a head for the task's classes."""
  reader, expected = models.published_reader(config)
  classes = task.model_args['classes']
  published = reader.load(
    folder,
    image_size=config.data.size,
    classes=None if config.teacher.head == 'stored' else classes,
    expected=expected,
  )
  stored = published.settings['classes']
  if stored != classes:
    raise errors.DataError(
      f'{folder} has a head of {stored} classes, but {task.name} has '
      f"{classes}; choose config.teacher.head='probe'."
    )
  if config.teacher.head != 'stored':
    return published.variables
  order = class_names.order(
    published.class_names,
    task.metadata.get('class_names', []),
    where=folder,
    log=log,
  )
  params = published.variables['params']
  head = {name: leaf[..., order] for name, leaf in params['head'].items()}
  return {'params': {**params, 'head': head}}


def _cache_digest(
  config: types.Config,
  task: task_lib.Task,
  variables: types.PyTree,
  facts: list[Any],
) -> str:
  """Identifies these weights on the data of this task."""
  data = config.data.to_dict()
  for place in ('dir', 'csv', 'details'):
    data.pop(place, None)  # The fingerprint identifies the data that lie there.
  few_labels = {key: data.pop(key) for key in ('labels', 'unlabelled')}
  facts = [task.fingerprint, *facts, data]
  if few_labels != common.few_labels(config.domain).to_dict():
    # The head depends on the labels, and the states on the further examples, but
    # neither on how batches are mixed.
    del few_labels['unlabelled']['share']
    facts += [few_labels, task.unlabelled_fingerprint]
  return files.sha256(json.dumps(facts), *jax.tree.leaves(variables))


def headless(
  settings: types.Config, variables: types.PyTree
) -> tuple[nn.Module, types.PyTree]:
  """A network (a `model` block) and its variables, without the head.

  With no classes its output is what would enter the head.
  """
  params = {
    key: tree for key, tree in variables['params'].items() if key != 'head'
  }
  return models.build(settings, {'classes': 0}), {'params': params}


def fit_head(
  config: types.Config,
  task: task_lib.Task,
  model: nn.Module,
  variables: types.PyTree,
  *,
  name: str,
  log: types.Log,
  teacher: str = '',
) -> Mapping[str, np.ndarray]:
  """{'kernel', 'bias'} of a head fitted to a network's features.

  Args:
    config: Its `eval_batch` is read.
    task: Its training split has the labels that are kept.
    model: A network whose output are the features, as `headless` returns it.
    variables: Its variables.
    name: How progress lines call the network.
    log: Receives progress lines.
    teacher: The network gets the input of the teacher with this name, if any.
  """

  def features(split: task_lib.Split) -> tuple[np.ndarray, np.ndarray]:
    feed = feed_lib.feed(split, task.make_batch)
    return evaluate.outputs(
      feed,
      model=model,
      variables=variables,
      batch=config.eval_batch,
      teacher=teacher,
    )

  assert task.validation is not None  # Only MovieLens merges its validation.
  log(f'fitting a linear head to {name}, once')
  validation = features(task.validation)
  if class_counts.known(task.validation) is None:
    class_counts.warn(task, 'validation', validation[1], log)
  kernel, bias, report = probe.fit(
    *features(task.train),
    classes=task.model_args['classes'],
    validation=validation,
    log=log,
  )
  log(
    f'the head is fitted: accuracy {report["accuracy"]:.4f} on training, '
    f'{report["validation_accuracy"]:.4f} on validation, at ridge '
    f'{report["ridge"]:g}'
  )
  return {'kernel': kernel, 'bias': bias}
