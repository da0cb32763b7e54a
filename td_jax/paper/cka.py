"""How alike two representations are: linear CKA, and Figure 3 of the paper.

CKA is HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) with the linear kernel
(Kornblith et al., Similarity of Neural Network Representations Revisited,
2019): 1 for features that differ by a rotation and a scale. The estimator of
HSIC is an argument, a function of two Gram matrices about the mean:

  biased_hsic    Kornblith et al.; unrelated features are far from 0 where
                 examples are few (0.7 with 20 of them)
  unbiased_hsic  Song et al., Feature Selection via Dependence Maximization,
                 2012, equation 4: about 0, and now and then below it
"""

from collections.abc import Callable
from collections.abc import Mapping
import functools
import pathlib
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp
import jaxtyping as jt
import numpy as np

from td_jax.paper import figures
from td_jax import errors

Gram = jt.Float[jax.Array, '*batches n n']
Hsic = Callable[[Gram, Gram], jax.Array]
Matrix = jt.Float[np.ndarray, 'classes classes']


def gram(features: jt.Float[jax.Array, '*batches n d']) -> Gram:
  """Inner products of all pairs of examples, about the mean example."""
  # HSIC is the same about any point, but float32 loses digits far from 0.
  centred = features - features.mean(axis=-2, keepdims=True)
  return jnp.einsum('...nd,...md->...nm', centred, centred, precision='highest')


def biased_hsic(x: Gram, y: Gram) -> jax.Array:
  """Returns tr(XY) / (n - 1)^2, [*batches], of n >= 2 examples."""
  return (x * y).sum(axis=(-2, -1)) / (x.shape[-1] - 1) ** 2


def unbiased_hsic(x: Gram, y: Gram) -> jax.Array:
  """Returns [*batches], right in the mean over draws of n >= 4 examples."""
  n = x.shape[-1]
  apart = 1 - jnp.eye(n, dtype=x.dtype)
  x, y = (g * jnp.broadcast_to(apart, g.shape) for g in (x, y))
  x_rows, y_rows = x.sum(axis=-1), y.sum(axis=-1)  # [*batches, n]
  pairs = (x * y).sum(axis=(-2, -1))
  triples = (x_rows * y_rows).sum(axis=-1)
  quadruples = x_rows.sum(axis=-1) * y_rows.sum(axis=-1)
  unlike = quadruples / ((n - 1) * (n - 2)) - 2 * triples / (n - 2)
  return (pairs + unlike) / (n * (n - 3))


def cka(
  x: jt.Float[jax.Array, '*batches n d_x'],
  y: jt.Float[jax.Array, '*batches n d_y'],
  *,
  hsic: Hsic = unbiased_hsic,
) -> jax.Array:
  """Returns a scalar: how alike the features of the same examples are.

  Of batches [*batches, n, d] the HSICs are added up before they are divided
  (Nguyen et al., Do Wide and Deep Networks Learn the Same Things?, 2021), so
  that a split need not be in memory at once. NaN if a side does not vary.
  """
  x, y = gram(x), gram(y)
  xy, xx, yy = (hsic(*pair).sum() for pair in ((x, y), (x, x), (y, y)))
  return xy / jnp.sqrt(xx * yy)


def per_class(
  student: jt.Float[np.ndarray, 'n d_student'],
  teacher: jt.Float[np.ndarray, 'n d_teacher'],
  labels: jt.Int[np.ndarray, ' n'],
  *,
  classes: int,
  examples: int = 20,
  hsic: Hsic = unbiased_hsic,
) -> Matrix:
  """CKA of every class to the student with every class to the teacher.

  Row i and column j compare the student's features of class i with the
  teacher's of class j. On the diagonal they are of the same examples; off it
  they are paired in the order given, so that it tells what chance is.

  Args:
    student: features of a state or of messages, without an axis of tokens.
    teacher: features of the same examples.
    labels: 0 ... classes - 1.
    classes: how many there are.
    examples: how many of each class to take, the first ones (section 4.4: 20).
    hsic: the estimator.

  Raises:
    errors.DataError: a class has fewer examples, or does not vary; or there
      are other labels.
  """
  if examples < 4:
    raise errors.DataError(f'CKA takes 4 examples or more, not {examples}.')
  if labels.min() < 0 or labels.max() >= classes:
    raise errors.DataError(
      f'labels are {labels.min()} ... {labels.max()}, but the {classes} classes'
      f' are 0 ... {classes - 1}.'
    )
  counts = np.bincount(labels, minlength=classes)
  if counts.min() < examples:
    raise errors.DataError(
      f'class {counts.argmin()} has {counts.min()} examples, but CKA was to take'
      f' {examples} of each class: give it a larger split or take fewer.'
    )
  rows = np.argsort(labels, kind='stable')
  starts = np.cumsum(counts) - counts  # [classes]
  rows = rows[starts[:, None] + np.arange(examples)]  # [classes, examples]
  student, teacher = student[rows], teacher[rows]  # [classes, examples, d]
  for side, given in (('student', student), ('teacher', teacher)):
    same = (given == given[:, :1]).all(axis=(1, 2))
    if same.any():
      raise errors.DataError(
        f'the {side} gives all examples of class {same.argmax()} the same'
        ' features, so their CKA is undefined.'
      )
  xy, xx, yy = jax.device_get(_cross(student, teacher, hsic=hsic))
  return xy / np.sqrt(np.outer(xx, yy))


@functools.partial(jax.jit, static_argnames='hsic')
def _cross(student, teacher, *, hsic):
  """HSICs [c, c] of all pairs of classes, and [c] of each side with itself."""
  x, y = gram(student), gram(teacher)  # [c, examples, examples]
  # Row by row: all pairs at once would take gigabytes for 1000 classes.
  xy = lax.map(lambda one: hsic(jnp.broadcast_to(one, y.shape), y), x)
  return xy, hsic(x, x), hsic(y, y)


def summary(panels: Mapping[str, Matrix]) -> dict[str, Any]:
  """What JSON keeps: {name: the matrix, and its means on and off diagonal}.

  Of a single class there is nothing off the diagonal: None.
  """
  found = {}
  for name, matrix in panels.items():
    same = np.eye(len(matrix), dtype=bool)
    found[name] = {
      'diagonal': float(matrix[same].mean()),
      'off_diagonal': float(matrix[~same].mean()) if len(same) > 1 else None,
      'cka': matrix.tolist(),
    }
  return found


def render(panels: Mapping[str, Matrix], file: pathlib.Path) -> None:
  """Writes a PNG with the panels side by side; lighter is more alike.

  Args:
    panels: {name: what `per_class` returns}, such as low, high and message.
    file: where it goes.

  Raises:
    errors.ConfigError: matplotlib is not installed.
    errors.IOFailedError: it cannot be written.
  """
  picture = figures.figure(3.2 * len(panels) + 1, 3.6)
  row = picture.subplots(1, len(panels), squeeze=False)[0]
  means = summary(panels)
  for axes, (name, matrix) in zip(row, panels.items(), strict=True):
    # The same colours in every panel, so that figures can be compared.
    image = axes.imshow(matrix, vmin=0, vmax=1)
    axes.set_title(f'{name}: {means[name]["diagonal"]:.2f}')
    axes.set_xlabel('class to the teacher')
    axes.set_ylabel('class to the student')
    picture.colorbar(image, ax=axes, shrink=0.8)
  try:
    picture.savefig(file, format='png', dpi=150)
  except OSError as e:
    raise errors.IOFailedError(f'{file} cannot be written: {e}.') from e
