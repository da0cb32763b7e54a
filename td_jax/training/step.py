"""One training step and one evaluation step: pure, and unaware of devices.

The differentiated tree is {'student': ..., 'method': ...}. The teacher's
parameters are not in it, so they are frozen by construction.
"""

from collections.abc import Callable
from typing import NamedTuple

from flax import linen as nn
import jax
from jax import lax
from jax import numpy as jnp
import optax

from td_jax import types
from td_jax.methods import base
from td_jax.models import layers
from td_jax.models import split

Sides = Callable[[types.PyTree, types.Batch], split.Side | None]
# (student's variables, teacher's) -> the student's at step 0.
Start = Callable[[types.PyTree, types.PyTree], types.PyTree]


class Best(NamedTuple):
  """The student of the best validation so far."""

  loss: types.Array  # float32 []: lower is better; inf before the first.
  step: types.Array  # int32 []
  student: types.PyTree


# Of the keys folded out of a step's own: above any device's or dropout's.
_INPUT = 2**20


class TrainState(NamedTuple):
  step: types.Array  # int32 []: updates made.
  rng: types.Array  # uint32 [2]: key data; never changes.
  params: types.PyTree  # {'student': ..., 'method': ...}
  opt_state: types.PyTree
  best: Best


def init(
  seed: types.Array,
  batch: types.Batch,
  teacher: types.PyTree,
  *,
  model: nn.Module,
  method: base.Method,
  optimizer: optax.GradientTransformation,
  teacher_side: Sides,
  start: Start = lambda student, teacher: student,
) -> TrainState:
  """A student and a method at step 0; `seed` is an int32 []."""
  rng = jax.random.key(seed)
  # fold_in with the step follows; these two are out of its reach.
  student_key, method_key, train_key = jax.random.split(rng, 3)
  student = start(model.init(student_key, batch.x, train=False), teacher)
  lesson = base.Lesson(
    student=split.side(model, student, batch.x),
    teacher=teacher_side(teacher, batch),
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
  """The key of this step's augmentation: the same on every device."""
  rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
  return jax.random.fold_in(rng, _INPUT)


def train_step(
  state: TrainState,
  batch: types.Batch,
  teacher: types.PyTree,
  *,
  model: nn.Module,
  method: base.Method,
  optimizer: optax.GradientTransformation,
  teacher_side: Sides,
  axis_name: str | None = None,
) -> tuple[TrainState, types.Metrics]:
  """One update.

  Args:
    state: Before.
    batch: Leaves [b, ...]; under a named axis, this device's share.
    teacher: The frozen teacher's variables, or None.
    model: The student.
    method: Gives the cost of each example.
    optimizer: Updates student and method; is told the loss.
    teacher_side: (teacher, batch) -> what the method sees of the teacher.
    axis_name: The mapped axis to add over, if the batch is shared out by one.

  Returns:
    The state after, and means over the whole batch: `loss`, `grad_norm` and
    one a term. If the optimizer skips steps, `skipped` is 1 for such a step.
  """
  rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
  if axis_name:
    # Else every device would draw the same noise.
    rng = jax.random.fold_in(rng, lax.axis_index(axis_name))
  student_key, method_key = jax.random.split(rng)
  count = _total(batch.mask, axis_name)

  def loss_fn(params):
    lesson = base.Lesson(
      student=split.side(model, params['student'], batch.x, key=student_key),
      teacher=teacher_side(teacher, batch),
      batch=batch,
      step=state.step,
      rng=method_key,
    )
    cost, terms = method.loss(params['method'], lesson)
    sums = {
      name: jnp.sum(value * batch.mask)
      for name, value in (terms | {'loss': cost}).items()
    }
    return sums['loss'] / count, sums

  # Each device's part of the global mean, so that the parts add up to it.
  grads, sums = jax.grad(loss_fn, has_aux=True)(state.params)
  if axis_name:
    grads, sums = lax.psum((grads, sums), axis_name)
  with jax.named_scope('optimizer'):
    updates, opt_state = optax.with_extra_args_support(optimizer).update(
      grads, state.opt_state, state.params, value=sums['loss'] / count
    )
    params = optax.apply_updates(state.params, updates)
  metrics = {name: value / count for name, value in sums.items()}
  metrics['grad_norm'] = _norm(grads)
  if (skipped := _skipped(opt_state)) is not None:
    metrics['skipped'] = jnp.float32(skipped - _skipped(state.opt_state))
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
  """`measure(output, batch)`: sums that add up over batches and devices."""
  output = layers.apply(model, student, batch.x)[-1]
  return measure(output, batch)


def keep_best(state: TrainState, loss: types.Array) -> TrainState:
  """Takes the present student as the best if `loss` [] is the lowest yet."""
  better = loss < state.best.loss
  now = Best(loss, state.step, state.params['student'])
  best = jax.tree.map(
    lambda new, old: jnp.where(better, new, old), now, state.best
  )
  return state._replace(best=best)


def _skipped(opt_state):
  """How many steps the optimizer has skipped; None if it skips none."""
  return optax.tree_utils.tree_get(opt_state, 'skipped')


def _norm(tree):
  """Global L2 norm; as products, which a CPU sums faster than squares."""
  with jax.named_scope('norm'):
    flat = [leaf.ravel() for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(jnp.vdot(leaf, leaf) for leaf in flat))


def _total(mask, axis_name):
  total = jnp.sum(mask)
  return lax.psum(total, axis_name) if axis_name else total
