"""Examples that the caller of `td_jax.distill` holds in memory, as a task."""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import baselines
from td_jax.data import feed
from td_jax.data import task as task_lib
from td_jax.storage import files

NAME = 'arrays'  # Of the domain.
CLASSIFICATION, REGRESSION = 'classification', 'regression'
_LOSSES = {CLASSIFICATION: 'cross_entropy', REGRESSION: 'squared_error'}
_METRICS = {CLASSIFICATION: 'accuracy', REGRESSION: 'rmse'}


class Dataset(NamedTuple):
  """The examples, and the networks that a config cannot name."""

  parts: Mapping[str, types.Batch]  # train, validation and perhaps test.
  unlabelled: types.PyTree | None  # Leaves [m, ...], as x of `parts`.
  classes: int  # 0: labels are numbers.
  student: Any  # A Linen module.
  teacher: Any  # What `models.frozen.network` takes.


def dataset(
  parts: Mapping[str, tuple[Any, Any]],
  *,
  unlabelled: Any,
  student: Any,
  teacher: Any,
) -> Dataset:
  """Checks the examples.

  Args:
    parts: {split: (x, y)}; the leaves of x are [n, ...], and y [n] are classes from
      0, or numbers.
    unlabelled: Leaves [m, ...], as x; or None.
    student: See `Dataset`.
    teacher: See `Dataset`.

  Raises:
    errors.ConfigError: They do not fit together.
  """
  batches = {name: _batch(name, *part) for name, part in parts.items()}
  train = batches['train']
  kinds = {batch.y.dtype.kind for batch in batches.values()}
  if len(kinds) > 1:
    raise errors.ConfigError(
      'labels are integers in one split and floats in another; classes are integers '
      'everywhere, and numbers are floats.'
    )
  classes = int(train.y.max()) + 1 if train.y.dtype.kind == 'i' else 0
  for name, batch in batches.items():
    if classes and not 0 <= batch.y.min() <= batch.y.max() < classes:
      raise errors.ConfigError(
        f'the labels of {name} are {batch.y.min()} to {batch.y.max()}; those of '
        f'train are the classes 0 to {classes - 1}.'
      )
    _check_shapes(name, batch.x, train.x)
  if unlabelled is not None:
    unlabelled = _floats(unlabelled)
    _check_shapes('unlabelled', unlabelled, train.x)
  return Dataset(batches, unlabelled, classes, student, teacher)


def task(config: types.Config, dataset: Dataset) -> task_lib.Task:
  """The task of these examples."""
  train = dataset.parts['train']
  kind = config.data.kind
  unlabelled, count = None, 0
  if dataset.unlabelled is not None and config.data.unlabelled.source != 'none':
    count = _count(dataset.unlabelled)
    further = types.Batch(
      dataset.unlabelled,
      np.zeros(count, train.y.dtype),
      np.ones(count, np.float32),
    )
    unlabelled = feed.Unlabelled(further, config.data.unlabelled.share)
  parts = dataset.parts
  unit = float(train.y.std()) if kind == REGRESSION else 1.0
  return task_lib.Task(
    name=NAME,
    metadata={'train_examples': len(train.y), 'unlabelled': count},
    train=train,
    validation=parts['validation'],
    test=parts.get('test'),
    model_args={'module': dataset.student, 'classes': dataset.classes},
    task_loss=_LOSSES[kind],
    metric=_METRICS[kind],
    unit=unit or 1.0,
    fingerprint=files.sha256(*jax.tree.leaves(dict(parts))),
    baselines=lambda: _baselines(parts, kind),
    inputs=None,
    unlabelled=unlabelled,
    unlabelled_fingerprint=files.sha256(*jax.tree.leaves(dataset.unlabelled)),
    teacher=dataset.teacher,
  )


def task_loss(config: types.Config) -> str:
  """A key of `losses.TASK_LOSSES`."""
  return _LOSSES[config.data.kind]


def read(config: types.Config, *, log: types.Log = print) -> Any:
  """Nothing can be read: the caller of `td_jax.distill` has the arrays.

  Raises:
    errors.ConfigError: Always.
  """
  del config, log  # Nothing depends on them.
  raise errors.ConfigError(
    'this is a run of td_jax.distill, whose data and networks no file has; call '
    'td_jax.distill with the same arguments and workdir.'
  )


def _batch(name: str, x: Any, y: Any) -> types.Batch:
  x, y = _floats(x), np.asarray(y)
  if y.ndim != 1 or y.dtype.kind not in 'iuf' or not len(y):
    raise errors.ConfigError(
      f'the labels of {name} are {y.dtype} with shape {list(y.shape)}; they must be '
      'integers or floats [n], with n at least 1.'
    )
  if _count(x) != len(y):
    raise errors.ConfigError(
      f'{name} has inputs of {_count(x)} examples and {len(y)} labels.'
    )
  y = y.astype(np.float32 if y.dtype.kind == 'f' else np.int32)
  return types.Batch(x, y, np.ones(len(y), np.float32))


def _floats(x: Any) -> Any:
  """NumPy arrays of the dtypes that JAX computes with."""

  def convert(leaf: Any) -> np.ndarray:
    leaf = np.asarray(leaf)
    return np.asarray(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype))

  return jax.tree.map(convert, x)


def _count(x: types.PyTree) -> int:
  """The number of examples, or -1 if the leaves differ in it."""
  counts = {leaf.shape[0] if leaf.ndim else -1 for leaf in jax.tree.leaves(x)}
  return counts.pop() if len(counts) == 1 else -1


def _check_shapes(name: str, x: types.PyTree, train: types.PyTree) -> None:
  def shapes(x: types.PyTree) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), x)

  if shapes(x) != shapes(train):
    raise errors.ConfigError(
      f'an input of {name} is {shapes(x)}, and one of train {shapes(train)}.'
    )


def _baselines(parts: Mapping[str, types.Batch], kind: str) -> baselines.Scores:
  """What a constant scores: the most frequent class, or the mean."""
  y = parts['train'].y
  scored = {name: part.y for name, part in parts.items() if name != 'train'}
  if kind == CLASSIFICATION:
    most = np.bincount(y).argmax()
    return {
      'most frequent class': {
        name: float(np.mean(y == most)) for name, y in scored.items()
      }
    }
  mean = y.mean(dtype=np.float64)
  return {
    'mean': {
      name: float(np.sqrt(np.mean((y - mean) ** 2)))
      for name, y in scored.items()
    }
  }
