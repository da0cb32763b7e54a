"""Examples that the caller of `td_jax.distill` holds in memory, as a task."""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import jax
from jax import numpy as jnp
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.configs import allowed
from td_jax.data import baselines
from td_jax.data import feed
from td_jax.data import labels
from td_jax.data import task as task_lib
from td_jax.storage import files

NAME = 'arrays'  # Of the domain.
CLASSIFICATION, REGRESSION = 'classification', 'regression'
_LOSSES = {CLASSIFICATION: 'cross_entropy', REGRESSION: 'squared_error'}
_METRICS = {CLASSIFICATION: 'accuracy', REGRESSION: 'rmse'}
ALLOWED = {
  'data.kind': allowed.one_of(_LOSSES),
  **labels.keys(('none', 'given')),
}


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
    parts: {split: what `examples` returned}.
    unlabelled: Leaves [m, ...], as x; or None.
    student: See `Dataset`.
    teacher: See `Dataset`.

  Raises:
    errors.ConfigError: They do not fit together.
  """
  batches = {
    name: types.Batch(x, y, np.ones(len(y), np.float32))
    for name, (x, y) in parts.items()
  }
  train = batches['train']
  kinds = {batch.y.dtype.kind for batch in batches.values()}
  if len(kinds) > 1:
    raise errors.ConfigError(
      'labels are integers in one split and floats in another; integers are classes, '
      'and floats are the targets of a regression.'
    )
  classes = int(train.y.max()) + 1 if train.y.dtype.kind == 'i' else 0
  for name, batch in batches.items():
    if classes and batch.y.max() >= classes:
      raise errors.ConfigError(
        f'the labels of {name} go up to {batch.y.max()}; those of train are the '
        f'classes 0 to {classes - 1}.'
      )
    check_shapes(name, batch.x, train.x)
  if unlabelled is not None:
    unlabelled = inputs('unlabelled', unlabelled)
    check_shapes('unlabelled', unlabelled, train.x)
    if not count(unlabelled):
      raise errors.ConfigError('unlabelled has no examples; leave it out.')
  return Dataset(batches, unlabelled, classes, student, teacher)


def task(config: types.Config, dataset: Dataset) -> task_lib.Task:
  """The task of these examples."""
  train = dataset.parts['train']
  kind = config.data.kind
  unlabelled, further_count = None, 0
  if dataset.unlabelled is not None and config.data.unlabelled.source != 'none':
    further_count = count(dataset.unlabelled)
    further = types.Batch(
      dataset.unlabelled,
      np.zeros(further_count, train.y.dtype),
      np.ones(further_count, np.float32),
    )
    unlabelled = feed.Unlabelled(further, config.data.unlabelled.share)
  parts = dataset.parts
  unit = float(train.y.std()) if kind == REGRESSION else 1.0
  return task_lib.Task(
    name=NAME,
    metadata={'train_examples': len(train.y), 'unlabelled': further_count},
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


def examples(name: str, part: Any) -> tuple[Any, np.ndarray]:
  """(x, y) as NumPy arrays of the dtypes that JAX computes with.

  Raises:
    errors.ConfigError: `part` is no such pair; messages call it `name`.
  """
  if not isinstance(part, tuple | list) or len(part) != 2:
    raise errors.ConfigError(
      f'{name} is {type(part).__name__}; it must be (x, y): inputs and labels.'
    )
  x, y = inputs(name, part[0]), np.asarray(part[1])
  if y.ndim != 1 or y.dtype.kind not in 'biuf' or not len(y):
    raise errors.ConfigError(
      f'the labels of {name} are {y.dtype} with shape {list(y.shape)}; they must be '
      'integers or floats [n], with n at least 1.'
    )
  if count(x) != len(y):
    raise errors.ConfigError(
      f'{name}: inputs of {count(x)} examples and {len(y)} labels.'
    )
  if y.dtype.kind != 'f':
    if not 0 <= y.min() <= y.max() < 2**31:
      raise errors.ConfigError(
        f'the labels of {name} are {y.min()} to {y.max()}; integers are classes, '
        'which count from 0.'
      )
    return x, y.astype(np.int32)
  _check_finite(f'the labels of {name}', y)
  return x, y.astype(np.float32)


def inputs(name: str, x: Any) -> Any:
  """Inputs as NumPy arrays of the dtypes that JAX computes with, leaves [n, ...].

  Raises:
    errors.ConfigError: They are no arrays of numbers, or not of equal length.
  """
  try:
    if isinstance(x, list | tuple):
      x = np.asarray(x)
    x = jax.tree.map(lambda leaf: _numbers(name, leaf), x)
  except ValueError as e:  # Of NumPy, for lists of different lengths.
    raise errors.ConfigError(
      f'the inputs of {name} are no arrays: {errors.one_line(e)}'
    ) from e
  counts = sorted({len(leaf) for leaf in jax.tree.leaves(x)})
  if len(counts) != 1:
    raise errors.ConfigError(
      f'the inputs of {name} have leaves of {", ".join(map(str, counts)) or "no"} '
      'examples; all must have as many.'
    )
  return x


def _numbers(name: str, leaf: Any) -> np.ndarray:
  array = np.asarray(leaf)
  if array.dtype == jnp.bfloat16:
    array = array.astype(np.float32)
  if array.dtype.kind not in 'biuf' or not array.ndim:
    raise errors.ConfigError(
      f'the inputs of {name} have {array.dtype} with shape {list(array.shape)}; '
      'they must be numbers [n, ...].'
    )
  _check_finite(f'the inputs of {name}', array)
  return np.asarray(array, jax.dtypes.canonicalize_dtype(array.dtype))


def count(x: types.PyTree) -> int:
  """The number of examples of inputs."""
  return len(jax.tree.leaves(x)[0])


def check_shapes(name: str, x: types.PyTree, train: types.PyTree) -> None:
  """Raises a ConfigError if inputs differ from those of training."""

  def shapes(x: types.PyTree) -> Any:
    return jax.tree.map(lambda leaf: f'{leaf.dtype}{list(leaf.shape[1:])}', x)

  if shapes(x) != shapes(train):
    raise errors.ConfigError(
      f'an input of {name} is {shapes(x)}, and one of train {shapes(train)}.'
    )


def _check_finite(what: str, values: np.ndarray) -> None:
  if values.dtype.kind == 'f':
    with np.errstate(over='ignore'):
      finite = np.isfinite(values.astype(np.float32))
    finite = finite.all(axis=tuple(range(1, values.ndim)))
    if not finite.all():
      raise errors.ConfigError(
        f'{what} are not finite in {np.count_nonzero(~finite)} of {len(values)} '
        f'examples, first in number {int(finite.argmin())}.'
      )


def _baselines(parts: Mapping[str, types.Batch], kind: str) -> baselines.Scores:
  """What a constant scores: the most frequent class, or the mean."""
  y = parts['train'].y
  scored = {name: part.y for name, part in parts.items() if name != 'train'}
  if kind == CLASSIFICATION:
    return baselines.most_frequent(y, scored)
  mean = y.mean(dtype=np.float64)
  return {
    'mean': {
      name: float(np.sqrt(np.mean((y - mean) ** 2)))
      for name, y in scored.items()
    }
  }
