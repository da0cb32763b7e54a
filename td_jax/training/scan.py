"""The compiled programs: many steps, for many seeds side by side.

A program makes its batches inside the compiled loop: it gathers examples by id
from columns that stay on the device, or unpacks what a stream delivered.
`lax.scan` runs several steps in one dispatch.
"""

from collections.abc import Callable
from collections.abc import Sequence
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
    fixed: ({name: teacher's variables}, the columns on the device).
    rows: Leaves [steps, seeds, b, ...], from `feed.Feed.train_rows`.
    step: `step.train_step` with everything but its arrays bound.
    make_batch: Turns a row into a batch, see `feed.Feed`.
    unroll_seeds: Compiles separate matrix products for each seed instead of
      one product with an axis of seeds. XLA's CPU code is slow at the latter,
      and overlaps the former: while one seed waits, another computes.
    axis_name: The mapped axis over devices, if there is one.

  Returns:
    The state after, and metrics [steps, seeds].
  """
  teachers, columns = fixed
  one_step = functools.partial(step, axis_name=axis_name)

  @jax.jit  # So that it is traced once rather than once per seed.
  def seed_step(
    state: types.PyTree, row: types.PyTree
  ) -> tuple[types.PyTree, types.PyTree]:
    with jax.named_scope('take'):
      batch = make_batch(columns, row, step_lib.input_key(state))
    return one_step(state, batch, teachers)

  if not unroll_seeds:
    return lax.scan(jax.vmap(seed_step), state, rows)

  def each_seed(
    states: list[types.PyTree], row: types.PyTree
  ) -> tuple[list[types.PyTree], types.PyTree]:
    seeds = range(len(states))
    pairs = [seed_step(states[i], _at(row, i)) for i in seeds]
    return [state for state, _ in pairs], _stack([m for _, m in pairs])

  seeds = range(state.step.shape[0])
  states, metrics = lax.scan(each_seed, [_at(state, i) for i in seeds], rows)
  return _stack(states), metrics


def _at(tree: types.PyTree, i: int) -> types.PyTree:
  """Element `i` of the leading axis of each leaf."""
  return jax.tree.map(lambda leaf: leaf[i], tree)


def _stack(trees: Sequence[types.PyTree]) -> types.PyTree:
  """Stacks trees of equal structure along a new leading axis."""
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
  """Measures the students [seeds, ...] of all seeds on a split or a part of it.

  `rows_and_mask` are [batches, b, ...]; the result is the sum over them of what
  `step` measures.
  """

  def body(
    _: None, row_and_mask: tuple[types.PyTree, types.Array]
  ) -> tuple[None, types.PyTree]:
    row, mask = row_and_mask
    batch = make_batch(columns, row, None)
    batch = batch._replace(mask=batch.mask * mask)
    return None, jax.vmap(lambda student: step(student, batch))(students)

  _, sums = lax.scan(body, None, rows_and_mask)  # Leaves [batches, seeds].
  sums = jax.tree.map(lambda leaf: leaf.sum(axis=0), sums)
  return lax.psum(sums, axis_name) if axis_name else sums
