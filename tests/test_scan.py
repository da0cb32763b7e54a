"""Many seeds in one program: each is what it would be alone."""

import functools

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax import types
from td_jax.data import feed
from td_jax.training import scan
from td_jax.training import step as step_lib

N, STEPS, B = 11, 4, 3


def _step(state, batch, teacher, *, axis_name):
  """Something in which steps, seeds, rows and the teacher all count."""
  assert axis_name is None
  moved = state.params * 0.9 + batch.x.T @ batch.y * teacher
  return state._replace(params=moved), {'size': jnp.sum(moved)}


def _fixed():
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(N, 2)), jnp.float32)
  y = jnp.asarray(rng.normal(size=N), jnp.float32)
  return jnp.float32(0.5), types.Batch(x=x, y=y, mask=jnp.ones(N))


def _state(seeds):
  rng = np.random.default_rng(1)
  w = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)[jnp.asarray(seeds)]
  number = jnp.asarray(seeds)
  return step_lib.TrainState(
    step=number,
    rng=jnp.zeros((len(seeds), 2), jnp.uint32),
    params=w,
    opt_state=(),
    best=step_lib.Best(jnp.float32(number), number, w),
  )


def _ids(seeds):
  rng = np.random.default_rng(2)
  return jnp.asarray(rng.integers(0, N, (STEPS, 5, B))[:, seeds])


def _train(seeds, unroll_seeds=True):
  train = jax.jit(
    functools.partial(
      scan.train,
      step=_step,
      make_batch=feed.take,
      unroll_seeds=unroll_seeds,
      axis_name=None,
    )
  )
  return jax.device_get(train(_state(seeds), _fixed(), _ids(seeds)))


@pytest.mark.parametrize('unroll_seeds', [True, False])
def test_each_seed_of_many_is_the_seed_alone(unroll_seeds):
  state, metrics = _train([0, 1, 4], unroll_seeds)
  assert state.params.shape == (3, 2) and metrics['size'].shape == (STEPS, 3)
  for place, seed in enumerate([0, 1, 4]):
    own, measured = _train([seed], unroll_seeds)
    assert state.step[place] == seed
    np.testing.assert_allclose(state.params[place], own.params[0], rtol=1e-6)
    np.testing.assert_allclose(
      metrics['size'][:, place], measured['size'][:, 0], rtol=1e-5
    )


def test_steps_by_hand():
  teacher, examples = _fixed()
  state, metrics = _train([2])
  w = np.asarray(_state([2]).params[0])
  for ids, size in zip(_ids([2])[:, 0], metrics['size'][:, 0], strict=True):
    x, y = np.asarray(examples.x)[ids], np.asarray(examples.y)[ids]
    w = w * 0.9 + x.T @ y * float(teacher)
    np.testing.assert_allclose(size, w.sum(), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(state.params[0], w, rtol=1e-5)
