"""Our layers compute what those of Flax and JAX compute."""

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.extend import random as jax_random
import numpy as np
import pytest

from td_jax.models import layers

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

KEY = jax.random.key(7)


@pytest.mark.parametrize('blocks', [1, 5, 64])
def test_threefry_equals_that_of_jax(blocks):
  ours = layers.threefry(KEY, blocks)
  theirs = jax_random.threefry_2x32(
    jax.random.key_data(KEY), jnp.arange(2 * blocks, dtype=jnp.uint32)
  )
  np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_chance_has_the_requested_rate(rate):
  hits = layers.chance(KEY, rate, (301, 997))
  assert hits.shape == (301, 997) and hits.dtype == bool
  # Four standard deviations of the mean of as many draws.
  tolerance = 4 * np.sqrt(rate * (1 - rate) / hits.size)
  assert abs(float(hits.mean()) - rate) < tolerance
  for axis in (0, 1):  # No row and no column is special.
    tolerance = 5 * np.sqrt(rate * (1 - rate) / hits.shape[axis])
    assert np.abs(np.asarray(hits).mean(axis=axis) - rate).max() < tolerance


def test_chance_does_not_repeat():
  hits = np.asarray(layers.chance(KEY, 0.5, (8, 4096)))
  other = np.asarray(layers.chance(jax.random.key(8), 0.5, (8, 4096)))
  rows = np.concatenate([hits, other]) * 2.0 - 1
  correlation = rows @ rows.T / 4096
  assert np.abs(correlation - np.eye(16)).max() < 5 / np.sqrt(4096)


def test_a_seed_draws_the_same_bits_alone_and_under_vmap():
  keys = jax.random.split(KEY, 3)
  many = jax.vmap(lambda key: layers.chance(key, 0.3, (4, 5)))(keys)
  for key, hits in zip(keys, many, strict=True):
    np.testing.assert_array_equal(hits, layers.chance(key, 0.3, (4, 5)))


def test_dropout_zeroes_or_scales_each_value():
  values = jnp.arange(1.0, 1 + 6 * 50).reshape(6, 50)
  layer = layers.Dropout(0.25)
  out = layer.apply({}, values, deterministic=False, rngs={'dropout': KEY})
  passed = np.asarray(out) != 0
  assert 0.6 < passed.mean() < 0.9
  np.testing.assert_allclose(
    np.asarray(out)[passed], np.asarray(values)[passed] / 0.75, rtol=1e-6
  )
  np.testing.assert_array_equal(
    layer.apply({}, values, deterministic=True), values
  )


@pytest.mark.parametrize('shape', [(9, 4), (3, 5, 4)])
def test_dense_and_its_gradients_equal_those_of_flax(shape):
  x = jax.random.normal(KEY, shape)
  ours, theirs = layers.Dense(6), nn.Dense(6)
  params = theirs.init(KEY, x)

  def loss(layer, params, x):
    return jnp.sum(jnp.sin(layer.apply(params, x)))

  for ours_value, theirs_value in zip(
    jax.tree.leaves(jax.value_and_grad(loss, (1, 2))(ours, params, x)),
    jax.tree.leaves(jax.value_and_grad(loss, (1, 2))(theirs, params, x)),
    strict=True,
  ):
    np.testing.assert_allclose(ours_value, theirs_value, rtol=1e-5, atol=1e-6)
