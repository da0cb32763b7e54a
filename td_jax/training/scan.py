"""Many steps, many seeds: the programs that are compiled.

A program picks its batches inside the compiled loop, by example id from splits
that stay on the device, or out of what a stream brings; several steps go to a
dispatch by `lax.scan` and several seeds side by side by `vmap`.
"""

from collections.abc import Callable
import functools

import jax
from jax import lax
from jax import numpy as jnp

from td_jax import types
from td_jax.data import feed
from td_jax.training import step as step_lib


def train(
  state: step_lib.TrainState,
  fixed: types.PyTree,
  rows: types.PyTree,
  *,
  step: Callable[..., tuple[step_lib.TrainState, types.Metrics]],
  make_batch: feed.MakeBatch,
  unroll_seeds: bool = True,
  axis_name: str | None,
) -> tuple[step_lib.TrainState, types.Metrics]:
  """Trains all seeds for some steps.

  Args:
    state: Leaves [seeds, ...].
    fixed: (teacher's variables, what of the split stays on the device).
    rows: Leaves [steps, seeds, b, ...], of `feed.Feed.rows`.
    step: `step.train_step` with all but its arrays given.
    make_batch: Turns a row into a batch, see `feed.Feed`.
    unroll_seeds: Whether each seed has its own matmuls, in place of one with an axis
      of seeds. XLA's CPU code is slow at those, and quick at several without:
      while one seed waits another computes.
    axis_name: Of the mapped axis over devices, if there is one.

  Returns:
    The state after, and metrics [steps, seeds].
  """
  teacher, columns = fixed
  one = functools.partial(step, axis_name=axis_name)

  @jax.jit  # Traced once, for all seeds.
  def seed_step(state, row):
    with jax.named_scope('take'):
      batch = make_batch(columns, row, step_lib.input_key(state))
    return one(state, batch, teacher)

  if not unroll_seeds:
    return lax.scan(jax.vmap(seed_step), state, rows)

  def each_seed(states, row):
    seeds = range(len(states))
    pairs = [seed_step(states[i], _at(row, i)) for i in seeds]
    return [state for state, _ in pairs], _stack([m for _, m in pairs])

  seeds = range(state.step.shape[0])
  states, metrics = lax.scan(each_seed, [_at(state, i) for i in seeds], rows)
  return _stack(states), metrics


def _at(tree, i):
  return jax.tree.map(lambda leaf: leaf[i], tree)


def _stack(trees):
  """Trees of one structure -> one tree, with a leading axis for them."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def evaluate(
  students: types.PyTree,
  columns: types.PyTree,
  rows_and_mask: tuple[types.PyTree, types.Array],
  *,
  step: Callable[[types.PyTree, types.Batch], types.PyTree],
  make_batch: feed.MakeBatch,
  axis_name: str | None,
) -> types.PyTree:
  """Measures all seeds' students [seeds, ...] on a split, or on a part of it.

  `rows_and_mask` are [batches, b, ...]; the sums that `step` measures are
  added up.
  """

  def body(_, row_and_mask):
    row, mask = row_and_mask
    batch = make_batch(columns, row, None)
    batch = batch._replace(mask=batch.mask * mask)
    return None, jax.vmap(lambda student: step(student, batch))(students)

  _, sums = lax.scan(body, None, rows_and_mask)  # Leaves [batches, seeds].
  sums = jax.tree.map(lambda leaf: leaf.sum(axis=0), sums)
  return lax.psum(sums, axis_name) if axis_name else sums
