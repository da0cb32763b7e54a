"""Says which classes a task's splits lack: an accuracy alone would hide it."""

from typing import Any

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import streamed_split
from td_jax.data import task as task_lib

_SPLITS = ('train', 'validation', 'test')


def report(task: task_lib.Task, log: types.Log) -> None:
  """Warns of classes that have no example in a split.

  Where the labels of a streamed split are not known before its images are read,
  nothing is said of it; see `warn`.

  Args:
    task: Nothing is said of one without classes.
    log: Receives a line for each such split.

  Raises:
    errors.DataError: There is one class only, which any network predicts.
  """
  classes = task.model_args.get('classes', 0)
  if task.metric != 'accuracy' or not classes:
    return
  if classes == 1:
    raise errors.DataError(
      f'{task.name} has one class only, so that every network has accuracy 1; '
      'add examples of another class.'
    )
  for name in _SPLITS:
    labels = known(getattr(task, name))
    if labels is not None:
      warn(task, name, labels, log)


def known(split: task_lib.Split | None) -> np.ndarray | None:
  """The labels [n] of a split, if they are known before its examples are read."""
  if isinstance(split, types.Batch):
    return np.asarray(split.y)[np.asarray(split.mask) > 0]
  return split.labels if isinstance(split, streamed_split.Split) else None


def warn(
  task: task_lib.Task, name: str, labels: np.ndarray, log: types.Log
) -> None:
  """Warns of classes that are not among the labels [n] of the split `name`."""
  classes = task.model_args['classes']
  names: Any = task.metadata.get('class_names') or range(classes)
  counts = np.bincount(labels, minlength=classes)
  absent = np.flatnonzero(counts == 0)
  if len(absent) == classes - 1:
    log(
      f'warning: all {len(labels)} examples of {name} are of class '
      f'{names[counts.argmax()]!r}, so that an accuracy on them says nothing.'
    )
  elif len(absent):
    log(
      f'warning: {name} has no example of {len(absent)} of {classes} classes, '
      f'such as {names[absent[0]]!r}.'
    )
