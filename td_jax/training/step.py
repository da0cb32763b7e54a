"""One training step and one evaluation step: pure, and unaware of devices.

The differentiated tree is {'student': ..., 'method': ...}. The parameters of
teachers are not in it, so they are frozen by construction.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import NamedTuple

import chex
from flax import linen as nn
import jax
from jax import lax
from jax import numpy as jnp
import optax

from td_jax import types
from td_jax.methods import base
from td_jax.models import layers
from td_jax.models import split

# ({name: teacher's variables}, batch) -> {name: the teacher on the batch}.
TeacherSides = Callable[
  [Mapping[str, types.PyTree], types.Batch], Mapping[str, split.Side]
]
# (student's variables, {name: teacher's}) -> the student's at step 0.
Start = Callable[[types.PyTree, Mapping[str, types.PyTree]], types.PyTree]


class Best(NamedTuple):
  """The student with the best validation score so far."""

  loss: types.Array  # float32 []: lower is better; inf before any score.
  step: types.Array  # int32 []
  student: types.PyTree


# The fold_in tag for input augmentation; larger than any device's index, so
# that the two never fold the same number into a step's key.
_INPUT = 2**20


class TrainState(NamedTuple):
  step: types.Array  # int32 []: updates so far.
  rng: types.Array  # uint32 [2]: key data; constant during a run.
  params: types.PyTree  # {'student': ..., 'method': ...}
  opt_state: types.PyTree
  best: Best


def init(
  seed: types.Array,
  batch: types.Batch,
  teachers: Mapping[str, types.PyTree],
  *,
  model: nn.Module,
  method: base.Method,
  optimizer: optax.GradientTransformation,
  teacher_sides: TeacherSides,
  start: Start = lambda student, teachers: student,
) -> TrainState:
  """Initialises a student and a method; `seed` is an int32 []."""
  rng = jax.random.key(seed)
  # Steps fold their number into `train_key`, so they never meet the other two.
  student_key, method_key, train_key = jax.random.split(rng, 3)
  student = start(model.init(student_key, batch.x, train=False), teachers)
  lesson = base.Lesson(
    student=split.side(model, student, batch.x),
    teachers=teacher_sides(teachers, batch),
    batch=batch,
    step=jnp.int32(0),
    rng=train_key,
  )
  params = {'student': student, 'method': method.init(method_key, lesson)}
  return TrainState(
    step=jnp.int32(0),
    rng=jax.random.key_data(train_key),
    params=params,
    opt_state=optimizer.init(params),
    best=Best(jnp.float32(jnp.inf), jnp.int32(0), student),
  )


def input_key(state: TrainState) -> types.Key:
  """The key of this step's augmentation; it is the same on every device."""
  rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
  return jax.random.fold_in(rng, _INPUT)


def train_step(
  state: TrainState,
  batch: types.Batch,
  teachers: Mapping[str, types.PyTree],
  *,
  model: nn.Module,
  method: base.Method,
  optimizer: optax.GradientTransformation,
  teacher_sides: TeacherSides,
  axis_name: str | None = None,
) -> tuple[TrainState, types.Metrics]:
  """Makes one update.

  Args:
    state: The state before.
    batch: Leaves [b, ...]; under a named axis, the share of this device.
    teachers: The frozen variables of each teacher, by name.
    model: The student.
    method: Returns the cost of each example.
    optimizer: Updates student and method; it also receives the loss.
    teacher_sides: Returns what the method sees of the teachers.
    axis_name: The mapped axis to sum over, if the batch is shared along one.

  Returns:
    The state after, and means over the whole batch: `loss`, `grad_norm` and
    one for each term; that of a term which needs labels is over the labelled
    examples. If the optimizer can skip steps, `skipped` is 1 for a step that
    it skipped and 0 otherwise.
  """
  rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
  if axis_name:
    # Otherwise every device would draw the same noise.
    rng = jax.random.fold_in(rng, lax.axis_index(axis_name))
  student_key, method_key = jax.random.split(rng)
  count = _total(batch.mask, axis_name)
  label_weight = _label_weight(batch, count, axis_name)

  def loss_fn(
    params: types.PyTree,
  ) -> tuple[types.Array, dict[str, types.Array]]:
    lesson = base.Lesson(
      student=split.side(model, params['student'], batch.x, key=student_key),
      teachers=teacher_sides(teachers, batch),
      batch=batch,
      step=state.step,
      rng=method_key,
      label_weight=label_weight,
      axis_name=axis_name,
    )
    cost, terms = method.loss(params['method'], lesson)
    sums = {
      name: jnp.sum(value * batch.mask)
      for name, value in (terms | {'loss': cost}).items()
    }
    return sums['loss'] / count, sums

  # Costs are divided by the global count before differentiation, so that the
  # sum over devices is the gradient of the global mean even when devices hold
  # different numbers of masked examples.
  grads, sums = jax.grad(loss_fn, has_aux=True)(state.params)
  if axis_name:
    grads, sums = lax.psum((grads, sums), axis_name)
  with jax.named_scope('optimizer'):
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
      grads, state.opt_state, state.params, value=sums['loss'] / count
    )
    params = optax.apply_updates(state.params, updates)
    # Otherwise the next step would be compiled again, or fail in a checkpoint.
    chex.assert_trees_all_equal_shapes_and_dtypes(params, state.params)
  metrics = {name: value / count for name, value in sums.items()}
  metrics['grad_norm'] = _norm(grads)
  before, after = _skipped(state.opt_state), _skipped(opt_state)
  if before is not None and after is not None:
    metrics['skipped'] = jnp.float32(after - before)
  return state._replace(
    step=state.step + 1, params=params, opt_state=opt_state
  ), metrics


def eval_step(
  student: types.PyTree,
  batch: types.Batch,
  *,
  model: nn.Module,
  measure: Callable[[types.Array, types.Batch], types.PyTree],
) -> types.PyTree:
  """Returns `measure(output, batch)`: sums over the examples of the batch."""
  output = layers.apply(model, student, batch.x)[-1]
  return measure(output, batch)


def keep_best(state: TrainState, loss: types.Array) -> TrainState:
  """Records the current student as the best if `loss` [] is the lowest."""
  better = loss < state.best.loss
  current = Best(loss, state.step, state.params['student'])
  best = jax.tree.map(
    lambda new, old: jnp.where(better, new, old), current, state.best
  )
  return state._replace(best=best)


def _skipped(opt_state: types.PyTree) -> types.Array | None:
  """The number of steps skipped so far; None if the optimizer never skips."""
  return optax.tree_utils.tree_get(opt_state, 'skipped')


def _norm(tree: types.PyTree) -> types.Array:
  """The global L2 norm, from inner products: they are fast on a CPU."""
  with jax.named_scope('norm'):
    flat = [leaf.ravel() for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in flat))


def _label_weight(
  batch: types.Batch, count: types.Array, axis_name: str | None
) -> types.Array | None:
  """See `base.Lesson.label_weight`; `count` is that of the whole batch."""
  if batch.labelled is None:
    return None
  labels = _total(batch.labelled * batch.mask, axis_name)
  # A batch without any label has no loss of the task, rather than NaN.
  return batch.labelled * (count / jnp.maximum(labels, 1))


def _total(mask: types.Array, axis_name: str | None) -> types.Array:
  """The number of real examples in the whole batch."""
  total = jnp.sum(mask)
  return lax.psum(total, axis_name) if axis_name else total
