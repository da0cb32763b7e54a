"""What is said of splits that lack a class."""

import conftest
import ml_collections
import numpy as np
import pytest

from td_jax import errors
from td_jax import types
from td_jax.data import class_counts
from td_jax.data import image_folder
from td_jax.data import streamed_split
from td_jax.data import task as task_lib
from td_jax.run import pipeline


def _split(*labels):
  """Examples of these labels, and one of padding, whose label is 0."""
  y = np.array([*labels, 0], np.int32)
  return types.Batch(x=y, y=y, mask=(np.arange(len(y)) < len(y) - 1) * 1.0)


def _task(train, validation, test=None, *, classes=3, metric='accuracy'):
  return task_lib.Task(
    name='pets',
    metadata={'class_names': ['cat', 'dog', 'newt'][:classes]},
    train=train,
    validation=validation,
    test=test,
    model_args={'classes': classes},
    task_loss='cross_entropy',
    metric=metric,
    fingerprint='',
    baselines=dict,
  )


def _said(*labels, **about):
  lines = []
  task = _task(*(_split(*each) for each in labels), **about)
  class_counts.report(task, lines.append)
  return lines


def test_nothing_is_said_of_whole_splits():
  assert _said([0, 1, 2], [2, 1, 0]) == []
  assert _said([0], [0], metric='rmse') == []


def test_a_split_of_one_class_and_a_missing_class_are_named():
  train, test = _said([1, 2], [0, 1, 2], [2, 2])
  assert train == (
    "warning: train has no example of 1 of 3 classes, such as 'cat'."
  )
  assert test.startswith("warning: all 2 examples of test are of class 'newt'")


def test_a_stream_whose_labels_are_known_is_as_a_split_in_memory(tmp_path):
  """The names of folders are labels; no image is read."""
  for name in ('train/cat', 'train/dog', 'train/newt', 'validation/dog'):
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / '1.png').write_bytes(b'')
  folder = image_folder.load(str(tmp_path))

  def split(name):
    return streamed_split.Split(
      folder.records(name), ml_collections.ConfigDict(), lambda line: None
    )

  lines = []
  class_counts.report(_task(split('train'), split('validation')), lines.append)
  (line,) = lines
  assert line.startswith(
    "warning: all 1 examples of validation are of class 'dog'"
  )


def test_a_task_of_one_class_is_refused():
  with pytest.raises(errors.DataError, match='pets has one class only'):
    _said([0], [0], classes=1)


def test_a_run_says_it_before_it_trains(small_movielens, tmp_path, monkeypatch):
  del small_movielens  # Replaces the data alone.

  def report(task, log):
    raise errors.DataError(f'{task.name} was looked at')

  monkeypatch.setattr(class_counts, 'report', report)
  with pytest.raises(errors.DataError, match='was looked at'):
    pipeline.run(
      conftest.small_config('method=scratch'),
      tmp_path,
      watch=conftest.Watch(),
      log=lambda line: None,
    )
