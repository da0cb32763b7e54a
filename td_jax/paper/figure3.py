"""--mode=cka: compares what a run's student and teachers represent, by class.

Figure 3 of the paper: low states, high states, and messages if the method has
them.
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
import json
from typing import Any
from typing import NamedTuple

import jax
from jax import numpy as jnp
import numpy as np

from td_jax import data
from td_jax import errors
from td_jax import types
from td_jax.data import feed as feed_lib
from td_jax.data import task as task_lib
from td_jax.methods import base
from td_jax.models import split
from td_jax.paper import cka
from td_jax.run import experiment
from td_jax.run import results
from td_jax.run import saved
from td_jax.run import teachers as teachers_lib
from td_jax.storage import files
from td_jax.storage import paths
from td_jax.training import evaluate

# From the input to the conversation. `jax.jit` returns mappings sorted by name.
_PANELS = ('low', 'high', 'message')
# {teacher: {panel: (student's features [b, d], teacher's [b, d'])}}
Features = dict[str, dict[str, tuple[jax.Array, jax.Array]]]


class _Trained(NamedTuple):
  """The networks of a finished run."""

  student: Any  # The Linen module.
  params: Mapping[str, types.PyTree]  # {'student', 'method'} of one seed.
  teachers: Mapping[str, teachers_lib.Teacher]
  method: base.Method


def compare(
  config: types.Config,
  path: types.Path,
  *,
  examples: int = 20,
  log: types.Log,
) -> dict[str, Any]:
  """Compares a run's first seed with its teachers; writes cka.json, cka.png.

  Args:
    config: Its keys `data.dir`, `eval_batch` and `checkpoint` are read; the
      others come from the run.
    path: The run, unless `config.checkpoint` names another.
    examples: How many test examples of each class to use.
    log: Receives progress lines.

  Returns:
    The content of cka.json: {teacher: {panel: see `cka.summary`}}.

  Raises:
    errors.ConfigError: the task has no classes, or the method no teacher.
    errors.IOFailedError: a file cannot be written.
  """
  path = paths.as_path(config.checkpoint) if config.checkpoint else path
  stored = saved.config_of(path)
  stored.data.dir, stored.eval_batch = config.data.dir, config.eval_batch
  task = data.load(stored, log=log)
  # results.json and not the config: it names the teacher that was used.
  outcome = results.read(path)
  if not outcome['teachers'] or 'classes' not in task.model_args:
    missing = 'classes' if outcome['teachers'] else 'teacher'
    raise errors.ConfigError(
      f'--mode=cka compares student and teacher class by class, and {path} '
      f'has no {missing}.'
    )
  trained = _restore(stored, task, path, outcome['teachers'], log)
  features, labels = _features(stored, task, trained, examples=examples)
  panels = {
    teacher: {
      name: cka.per_class(
        student,
        other,
        labels,
        classes=task.model_args['classes'],
        examples=examples,
      )
      for name in _PANELS
      if name in pairs
      for student, other in [pairs[name]]
    }
    for teacher, pairs in features.items()
  }
  summary = {name: cka.summary(each) for name, each in panels.items()}
  files.write_atomically(
    path / 'cka.json', json.dumps(summary, indent=1) + '\n'
  )
  cka.render(
    panels,
    path / 'cka.png',
    class_names=task.metadata.get('class_names'),
  )
  log(f'wrote {path / "cka.json"} and {path / "cka.png"}')
  return summary


def _restore(
  config: types.Config,
  task: task_lib.Task,
  path: types.Path,
  stored_teachers: Mapping[str, Mapping[str, Any]],
  log: types.Log,
) -> _Trained:
  """The first seed's networks at the last checkpoint, and the teachers."""
  loaded = {
    name: teachers_lib.load(
      config, task, path=path, folder=stored['folder'], log=log
    )
    for name, stored in stored_teachers.items()
  }
  student, template = experiment.abstract_state(
    config, task, {name: teacher.model for name, teacher in loaded.items()}
  )
  # The encoders are trained with the student, so that the last state counts;
  # `best` holds a student alone.
  items, _ = saved.restore(
    path,
    {'state': template._replace(best=None)},
    check=functools.partial(saved.check_dataset, path, task),
  )
  params = jax.tree.map(lambda leaf: leaf[0], items['state'].params)
  method = experiment.method_of(config, task)
  return _Trained(student, params, loaded, method)


def _features(
  config: types.Config,
  task: task_lib.Task,
  trained: _Trained,
  *,
  examples: int,
) -> tuple[dict[str, dict[str, tuple[np.ndarray, np.ndarray]]], np.ndarray]:
  """({teacher: {panel: (student's [n, d], teacher's [n, d'])}}, labels [n])."""
  run = _forward(trained)
  variables = {name: t.variables for name, t in trained.teachers.items()}
  split = task.validation if task.test is None else task.test
  assert split is not None  # Only MovieLens merges its validation.
  feed = feed_lib.feed(split, task.make_batch)
  # Only the first examples of each class are needed, whatever their order.
  room = np.full(task.model_args['classes'], examples)
  parts, labels = [], []
  for batch in evaluate.batches(feed, config.eval_batch):
    chosen = _first(np.asarray(batch.y), np.asarray(batch.mask) > 0, room)
    if chosen:
      features = run(trained.params, variables, batch)
      parts.append(
        jax.tree.map(lambda leaf, at=chosen: np.asarray(leaf)[at], features)
      )
      labels.append(np.asarray(batch.y)[chosen])
    # A split may be far larger than what the classes need.
    if not room.any():
      break
  features = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
  return features, np.concatenate(labels)


def _forward(
  trained: _Trained,
) -> Callable[
  [types.PyTree, Mapping[str, types.PyTree], types.Batch], Features
]:
  """(params, teachers' variables, batch) -> features of both sides."""

  # Weights are arguments: as constants they would be compiled into the program.
  @jax.jit
  def run(
    params: types.PyTree,
    variables: Mapping[str, types.PyTree],
    batch: types.Batch,
  ) -> Features:
    student = split.side(trained.student, params['student'], batch.x)
    sides = {
      name: split.side(teacher.model, variables[name], batch.input_of(name))
      for name, teacher in trained.teachers.items()
    }
    messages = {}
    if trained.method.messages:
      for name, side in sides.items():
        # A method has encoders for one teacher, and reads it from its lesson.
        lesson = base.Lesson(
          student=student,
          teachers={name: side},
          batch=batch,
          step=jnp.int32(0),
          rng=jax.random.key(0),  # Without dropout no key is used.
        )
        messages[name] = trained.method.messages(params['method'], lesson)
    features = {
      name: {
        'low': (student.states.low, side.states.low),
        'high': (student.states.high, side.states.high),
      }
      | ({'message': messages[name]} if name in messages else {})
      for name, side in sides.items()
    }
    # The tokens of an example together are one feature.
    return jax.tree.map(lambda leaf: leaf.reshape(len(leaf), -1), features)

  return run


def _first(labels: np.ndarray, real: np.ndarray, room: np.ndarray) -> list[int]:
  """Rows whose class still has room, which they take up in `room`."""
  chosen = []
  for row in np.flatnonzero(real).tolist():
    if room[labels[row]]:
      room[labels[row]] -= 1
      chosen.append(row)
  return chosen
