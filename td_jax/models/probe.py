"""A linear head on frozen features: multinomial logistic regression.

Where the teacher has no head for the task, label distillation needs one
(`teacher_head='probe'`). The mean cross-entropy plus ridge / 2 |kernel|^2 on
standardised features is convex; L-BFGS finds its only minimum, whatever the
start. The ridge is the one that serves validation best.
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

RIDGES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_STEPS = 500  # Of L-BFGS, at most, for each ridge.
_FLAT = 1e-5  # The gradient's norm that counts as none.

Features = jt.Float[np.ndarray, 'n d']
Labels = jt.Int[np.ndarray, ' n']


class Head(NamedTuple):
  kernel: jax.Array  # [d, classes]
  bias: jax.Array  # [classes]


def fit(
  features: Features,
  labels: Labels,
  *,
  classes: int,
  validation: tuple[np.ndarray, np.ndarray],
  ridges: Sequence[float] = RIDGES,
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
  """Fits the head for each ridge, and keeps the best by validation accuracy.

  Args:
    features: float32, as the teacher gives them.
    labels: 0 ... classes - 1; each of them occurs.
    classes: how many there are.
    validation: (features [v, d], labels [v]).
    ridges: penalties to choose from, strongest first: it wins a draw.

  Returns:
    kernel [d, classes] and bias [classes] for features as they are given, and
    a report: ridge, accuracy, validation_accuracy, and for each ridge what it
    came to.

  Raises:
    errors.DataError: classes, labels and features do not go together.
  """
  _check(features, labels, classes, 'training')
  _check(*validation, classes, 'validation')
  absent = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
  if len(absent):
    raise errors.DataError(
      f'class {absent[0]} of {classes} has no example to fit the probe on.'
    )
  if validation[0].shape[1] != features.shape[1]:
    raise errors.DataError(
      f'validation has {validation[0].shape[1]} features an example, training'
      f' {features.shape[1]}.'
    )
  mean = features.mean(axis=0, dtype=np.float64)
  deviation = features.std(axis=0, dtype=np.float64)
  # Rounding makes a constant feature vary, and would then be blown up.
  deviation[(features == features[0]).all(axis=0)] = 1.0
  x = jnp.asarray((features - mean) / deviation, jnp.float32)
  y = jnp.asarray(labels)
  head = Head(jnp.zeros((x.shape[1], classes)), jnp.zeros(classes))
  heads, tried = [], []
  for ridge in ridges:
    # From the last one's minimum, which is near.
    head, steps, slope = _minimise(head, x, y, ridge)
    kernel = np.asarray(head.kernel) / deviation[:, None]
    bias = np.asarray(head.bias) - mean @ kernel
    kernel, bias = kernel.astype(np.float32), bias.astype(np.float32)
    heads.append((kernel, bias))
    tried.append(
      {
        'ridge': ridge,
        'accuracy': _accuracy(kernel, bias, features, labels),
        'validation_accuracy': _accuracy(kernel, bias, *validation),
        'steps': int(steps),
        'gradient_norm': float(slope),
      }
    )
  best = int(np.argmax([one['validation_accuracy'] for one in tried]))
  return *heads[best], {**tried[best], 'tried': tried}


@jax.jit
def _minimise(head, x, y, ridge):
  """Returns (the head at the minimum, L-BFGS's steps, the gradient's norm)."""

  def loss(head):
    logits = jnp.dot(x, head.kernel, precision='highest') + head.bias[None]
    costs = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return costs.mean() + ridge / 2 * jnp.vdot(head.kernel, head.kernel)

  solver = optax.lbfgs()
  value_and_grad = optax.value_and_grad_from_state(loss)

  def unfinished(carry):
    _, _, step, slope = carry
    return (step < _STEPS) & (slope > _FLAT)

  def body(carry):
    head, state, step, _ = carry
    # The line search has computed both at this point already.
    value, grad = value_and_grad(head, state=state)
    updates, state = solver.update(
      grad, state, head, value=value, grad=grad, value_fn=loss
    )
    head = optax.apply_updates(head, updates)
    slope = optax.tree.norm(optax.tree.get(state, 'grad'))
    return head, state, step + 1, slope

  head, _, steps, slope = lax.while_loop(
    unfinished, body, (head, solver.init(head), 0, jnp.inf)
  )
  return head, steps, slope


def _accuracy(kernel, bias, features, labels):
  return float(np.mean((features @ kernel + bias).argmax(axis=1) == labels))


def _check(features, labels, classes, split):
  if len(features) != len(labels) or not len(labels):
    raise errors.DataError(
      f'{split} has {len(features)} features and {len(labels)} labels.'
    )
  if labels.min() < 0 or labels.max() >= classes:
    raise errors.DataError(
      f'{split} has labels {labels.min()} ... {labels.max()}, but the {classes}'
      f' classes are 0 ... {classes - 1}.'
    )
  if not np.isfinite(features).all():
    raise errors.DataError(f'{split} has features that are not finite.')
