"""A linear head on frozen features: multinomial logistic regression.

Label distillation needs a teacher with a head for the task. If the published
teacher has none, config.teacher.head='probe' fits one. The loss is the mean
cross-entropy on standardised features plus ridge / 2 |kernel|^2. It is convex,
so L-BFGS finds the same minimum from any start. The ridge is chosen by the
accuracy on validation.
"""

from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
from jax import numpy as jnp
import jaxtyping as jt
import numpy as np
import optax

from td_jax import errors
from td_jax import types

RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_MAX_STEPS = 500  # Steps of L-BFGS for each ridge.
# How far the logit of a class without examples is below all others. A thousand
# such classes still share less than 5% of what the least likely class has.
_BELOW = 10.0
_TOLERANCE = 1e-5  # L-BFGS stops at a gradient of this norm.

Features = jt.Float[np.ndarray, 'n d']
Labels = jt.Int[np.ndarray, ' n']


class Head(NamedTuple):
  """A head for standardised features."""

  kernel: jax.Array  # [d, classes]
  bias: jax.Array  # [classes]


class Probe(NamedTuple):
  """A fitted head for features as the teacher gives them."""

  kernel: np.ndarray  # float32 [d, classes]
  bias: np.ndarray  # float32 [classes]
  # `ridge`, `accuracy`, `validation_accuracy`, `steps` and `gradient_norm` of
  # this head, and under `tried` the same for every ridge.
  report: dict[str, Any]


def fit(
  features: Features,
  labels: Labels,
  *,
  classes: int,
  validation: tuple[np.ndarray, np.ndarray],
  ridges: Sequence[float] = RIDGES,
  log: types.Log = types.no_log,
) -> Probe:
  """Fits a head for each ridge and returns the best on validation.

  Args:
    features: float32, as the teacher gives them.
    labels: 0 ... classes - 1. A class that does not occur gets a logit below
      all others, so that it is never predicted.
    classes: Number of classes.
    validation: (features [v, d], labels [v]).
    ridges: Penalties to choose from, strongest first: of equally accurate
      heads the first wins.
    log: Receives a line for each ridge, which may take minutes, and one about
      classes that do not occur.

  Raises:
    errors.DataError: features and labels do not fit together, are not finite,
      or are of one class alone.
  """
  _check(features, labels, classes, 'training')
  _check(*validation, classes, 'validation')
  present, numbers = np.unique(labels, return_inverse=True)
  if len(present) < min(classes, 2):
    raise errors.DataError(
      f'training has examples of one class alone, class {present[0]} of {classes}, '
      'to fit the probe on; take more training examples.'
    )
  absent = np.setdiff1d(np.arange(classes), present)
  if len(absent):
    log(
      f'warning: {len(absent)} of {classes} classes have no example to fit the '
      f'head on, such as class {absent[0]}; it never predicts them.'
    )
  if validation[0].shape[1] != features.shape[1]:
    raise errors.DataError(
      f'validation has {validation[0].shape[1]} features per example, and '
      f'training has {features.shape[1]}.'
    )
  mean = features.mean(axis=0, dtype=np.float64)
  deviation = features.std(axis=0, dtype=np.float64)
  # Rounding gives a constant feature a tiny deviation. Dividing by it would
  # turn rounding errors into features.
  deviation[(features == features[0]).all(axis=0)] = 1.0
  x = jnp.asarray((features - mean) / deviation, jnp.float32)
  y = jnp.asarray(numbers)
  head = Head(jnp.zeros((x.shape[1], len(present))), jnp.zeros(len(present)))
  heads, tried = [], []
  for ridge in ridges:
    # The previous ridge's minimum is near, so starting there saves steps.
    head, steps, norm = _minimise(head, x, y, ridge)
    # The head absorbs the standardisation, in float64 before it is rounded.
    kernel = np.asarray(head.kernel) / deviation[:, None]
    bias = np.asarray(head.bias) - mean @ kernel
    kernel, bias = kernel.astype(np.float32), bias.astype(np.float32)
    kernel, bias = _with_absent(kernel, bias, present, classes, features)
    heads.append((kernel, bias))
    tried.append(
      {
        'ridge': ridge,
        'accuracy': _accuracy(kernel, bias, features, labels),
        'validation_accuracy': _accuracy(kernel, bias, *validation),
        'steps': int(steps),
        'gradient_norm': float(norm),
      }
    )
    log(
      f'ridge {ridge:g}: accuracy {tried[-1]["validation_accuracy"]:.4f} on '
      'validation'
    )
  # argmax returns the first maximum, which has the strongest ridge.
  best = int(np.argmax([each['validation_accuracy'] for each in tried]))
  kernel, bias = heads[best]
  return Probe(kernel, bias, {**tried[best], 'tried': tried})


def _with_absent(
  kernel: np.ndarray,
  bias: np.ndarray,
  present: np.ndarray,
  classes: int,
  features: Features,
) -> tuple[np.ndarray, np.ndarray]:
  """(kernel [d, classes], bias [classes]) from those of the classes `present`.

  The minimum would give the others a logit of minus infinity. Theirs is finite,
  so that distances between outputs stay finite too.
  """
  if len(present) == classes:
    return kernel, bias
  all_kernels = np.zeros((len(kernel), classes), np.float32)
  lowest = (features @ kernel + bias).min() - _BELOW
  all_biases = np.full(classes, lowest, np.float32)
  all_kernels[:, present], all_biases[present] = kernel, bias
  return all_kernels, all_biases


@jax.jit
def _minimise(
  head: Head, x: jax.Array, y: jax.Array, ridge: float | jax.Array
) -> tuple[Head, jax.Array, jax.Array]:
  """Returns (head at the minimum, steps of L-BFGS, norm of the gradient)."""

  def loss(head: Head) -> jax.Array:
    # The default precision on TPUs and GPUs is too low for the tolerance.
    logits = jnp.dot(x, head.kernel, precision='highest') + head.bias[None]
    costs = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return costs.mean() + ridge / 2 * jnp.vdot(head.kernel, head.kernel)

  solver = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(loss)

  def unfinished(carry: tuple[Any, ...]) -> jax.Array:
    _, _, step, norm = carry
    return (step < _MAX_STEPS) & (norm > _TOLERANCE)

  def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
    head, state, step, _ = carry
    # The line search has already computed both here, so they are read from
    # its state.
    value, grad = value_and_grad(head, state=state)
    updates, state = solver.update(
      grad, state, head, value=value, grad=grad, value_fn=loss
    )
    head = optax.apply_updates(head, updates)
    norm = optax.tree.norm(optax.tree.get(state, 'grad'))
    return head, state, step + 1, norm

  head, _, steps, norm = lax.while_loop(
    unfinished, body, (head, solver.init(head), 0, jnp.inf)
  )
  return head, steps, norm


def _accuracy(
  kernel: np.ndarray, bias: np.ndarray, features: Features, labels: Labels
) -> float:
  return float(np.mean((features @ kernel + bias).argmax(axis=1) == labels))


def _check(
  features: np.ndarray, labels: np.ndarray, classes: int, split: str
) -> None:
  if len(features) != len(labels) or not len(labels):
    raise errors.DataError(
      f'{split} has features of {len(features)} examples and labels of '
      f'{len(labels)}.'
    )
  if labels.min() < 0 or labels.max() >= classes:
    raise errors.DataError(
      f'{split} has labels {labels.min()} ... {labels.max()}, but the {classes}'
      f' classes are 0 ... {classes - 1}.'
    )
  if not np.isfinite(features).all():
    raise errors.DataError(
      f'{split} has features that are NaN or infinite; check the weights of '
      'the teacher.'
    )
