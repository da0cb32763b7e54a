"""How alike two representations are: linear CKA, and Figure 3 of the paper.

CKA is HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)) with the linear kernel
(Kornblith et al., Similarity of Neural Network Representations Revisited,
2019). It is 1 for features that differ by a rotation and a scale. The estimator
of HSIC is an argument, a function of two Gram matrices about the mean:

  biased_hsic    Kornblith et al. For few examples it is far from 0 even if the
                 features are unrelated (0.7 with 20 examples).
  unbiased_hsic  Song et al., Feature Selection via Dependence Maximization,
                 2012, equation 4. It is about 0 then, and sometimes below it.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import pathlib
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp
import jaxtyping as jt
import numpy as np

from td_jax import errors
from td_jax.paper import figures

Gram = jt.Float[jax.Array, '*batches n n']
Hsic = Callable[[Gram, Gram], jax.Array]
Matrix = jt.Float[np.ndarray, 'classes classes']

_PANELS = {'low': 'low states', 'high': 'high states', 'message': 'messages'}
_MOST_LABELS = 30  # Classes whose names fit beside a panel.


def gram(features: jt.Float[jax.Array, '*batches n d']) -> Gram:
  """Inner products of all pairs of examples, about the mean example."""
  # HSIC is the same about any point, but float32 loses digits far from it.
  centred = features - features.mean(axis=-2, keepdims=True)
  return jnp.einsum('...nd,...md->...nm', centred, centred, precision='highest')


def biased_hsic(x: Gram, y: Gram) -> jax.Array:
  """Returns tr(XY) / (n - 1)^2, [*batches], of n >= 2 examples."""
  return (x * y).sum(axis=(-2, -1)) / (x.shape[-1] - 1) ** 2


def unbiased_hsic(x: Gram, y: Gram) -> jax.Array:
  """Returns [*batches], unbiased over draws of n >= 4 examples."""
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
  """Returns a scalar: how alike two features of the same examples are.

  The HSICs of batches [*batches, n, d] are added up before they are divided
  (Nguyen et al., Do Wide and Deep Networks Learn the Same Things?, 2021), so
  that a split need not be in memory at once. The result is NaN if a side does
  not vary.
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
  """CKA of the student on every class with the teacher on every class.

  Row i and column j compare the student's features of class i with the
  teacher's of class j. On the diagonal both see the same examples. Off it the
  examples are paired in the order given, which shows what chance alone gives.

  Args:
    student: features of a state or of messages, without an axis of tokens.
    teacher: features of the same examples.
    labels: 0 ... classes - 1.
    classes: the number of classes.
    examples: how many examples of each class to use, the first ones (section
      4.4: 20).
    hsic: the estimator.

  Raises:
    errors.DataError: a class has fewer examples, or its features do not vary,
      or a label is out of range.
  """
  if examples < 4:
    raise errors.DataError(
      f'CKA needs 4 or more examples of each class, not {examples}.'
    )
  if labels.min() < 0 or labels.max() >= classes:
    raise errors.DataError(
      f'labels range over {labels.min()} ... {labels.max()}, but the {classes} '
      f'classes are 0 ... {classes - 1}.'
    )
  counts = np.bincount(labels, minlength=classes)
  if counts.min() < examples:
    raise errors.DataError(
      f'class {counts.argmin()} has {counts.min()} examples, but CKA needs '
      f'{examples} of each class; use a larger split or fewer examples.'
    )
  # A stable sort, so that the first examples of a class stay the first.
  rows = np.argsort(labels, kind='stable')
  starts = np.cumsum(counts) - counts  # [classes]
  rows = rows[starts[:, None] + np.arange(examples)]  # [classes, examples]
  student, teacher = student[rows], teacher[rows]  # [classes, examples, d]
  # A constant side has an HSIC of 0, and would only show as NaN in the figure.
  for side, features in (('student', student), ('teacher', teacher)):
    same = (features == features[:, :1]).all(axis=(1, 2))
    if same.any():
      raise errors.DataError(
        f'the {side} gives all examples of class {same.argmax()} the same '
        'features, so that their CKA is undefined.'
      )
  xy, xx, yy = jax.device_get(_cross(student, teacher, hsic=hsic))
  return xy / np.sqrt(np.outer(xx, yy))


@functools.partial(jax.jit, static_argnames='hsic')
def _cross(
  student: jax.Array, teacher: jax.Array, *, hsic: Hsic
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """HSICs [c, c] of all pairs of classes, and [c] of each side with itself."""
  x, y = gram(student), gram(teacher)  # [c, examples, examples]
  # Row by row: all pairs at once would take gigabytes for 1000 classes.
  xy = lax.map(lambda row: hsic(jnp.broadcast_to(row, y.shape), y), x)
  return xy, hsic(x, x), hsic(y, y)


def summary(panels: Mapping[str, Matrix]) -> dict[str, Any]:
  """{name: the matrix, and its means on and off the diagonal}, for JSON.

  The mean off the diagonal is None for a single class.
  """
  summaries = {}
  for name, matrix in panels.items():
    same = np.eye(len(matrix), dtype=bool)
    summaries[name] = {
      'diagonal': float(matrix[same].mean()),
      'off_diagonal': float(matrix[~same].mean()) if len(same) > 1 else None,
      'cka': matrix.tolist(),
    }
  return summaries


def render(
  teachers: Mapping[str, Mapping[str, Matrix]],
  file: pathlib.Path,
  *,
  class_names: Sequence[str] | None = None,
) -> None:
  """Writes a PNG with a row of panels per teacher; lighter is more alike.

  Args:
    teachers: {teacher: {panel: what `per_class` returns}}, with panels such as
      low, high and message, the same ones for every teacher.
    file: The PNG.
    class_names: Names of the classes; None: their numbers.

  Raises:
    errors.ConfigError: matplotlib is not installed.
    errors.IOFailedError: the file cannot be written.
  """
  first = next(iter(teachers.values()))
  classes = len(next(iter(first.values())))
  # About square panels, with room for the names of the classes.
  figure = figures.new(
    4.1 * len(first) + 1.2, 4.2 * len(teachers) + 0.6 + 0.3 * len(teachers)
  )
  grid = figure.subplots(
    len(teachers), len(first), squeeze=False, sharex=True, sharey=True
  )
  image = None
  for axes_row, (teacher, panels) in zip(grid, teachers.items(), strict=True):
    means = summary(panels)
    for axes, (name, matrix) in zip(axes_row, panels.items(), strict=True):
      # All panels have the same colours, so that figures can be compared.
      image = axes.imshow(matrix, vmin=0, vmax=1, cmap='viridis')
      axes.set_title(
        f'{_PANELS.get(name, name)}\n{_means(means[name])}', fontsize='medium'
      )
      _label_classes(axes, classes, class_names)
    whose = 'teacher' if len(teachers) == 1 else teacher
    for axes in axes_row:
      axes.set_xlabel(f"class of the {whose}'s features")
    axes_row[0].set_ylabel("class of the student's features")
  bar = figure.colorbar(image, ax=grid, shrink=0.8, pad=0.01)
  bar.set_label('linear CKA, debiased (values below 0 shown as 0)')
  figure.suptitle(_finding(teachers), fontsize='large')
  figures.save(figure, file)


def _finding(teachers: Mapping[str, Mapping[str, Matrix]]) -> str:
  """The title: where the student is most like a teacher."""
  # Computed, so that the title cannot contradict the panels.
  score, panel, teacher = max(
    (summary(panels)[name]['diagonal'], name, teacher)
    for teacher, panels in teachers.items()
    for name in panels
  )
  whom = 'the teacher' if len(teachers) == 1 else f'the teacher {teacher}'
  return (
    f'The student is most like {whom} in its {_PANELS.get(panel, panel)} '
    f'(mean CKA on the same class: {score:.2f})'
  )


def _means(panel: Mapping[str, Any]) -> str:
  """A panel's means, for its title."""
  text = f'same class: {panel["diagonal"]:.2f}'
  if panel['off_diagonal'] is None:
    return text
  other = f'{panel["off_diagonal"]:.2f}'.replace('-', '\N{MINUS SIGN}')
  return f'{text}, other classes: {other}'


def _label_classes(
  axes: Any, classes: int, class_names: Sequence[str] | None
) -> None:
  # A thousand labels would be a black bar; matplotlib then numbers a few.
  if classes > _MOST_LABELS:
    return
  names = class_names or [str(number) for number in range(classes)]
  axes.set_xticks(range(classes), names, rotation=90)
  axes.set_yticks(range(classes), names)
  # A shared axis hides the labels of all panels but the outer ones; these
  # matrices are read one by one.
  axes.tick_params(labelleft=True, labelbottom=True)
