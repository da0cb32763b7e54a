"""Our layers against Flax's and JAX's own."""

from flax import linen as nn
import jax
from jax import numpy as jnp
from jax.extend import random as jax_random
import numpy as np
import pytest

from td_jax.models import layers

KEY = jax.random.key(7)


@pytest.mark.parametrize('blocks', [1, 5, 64])
def test_threefry_is_that_of_jax(blocks):
  ours = layers.threefry(KEY, blocks)
  theirs = jax_random.threefry_2x32(
    jax.random.key_data(KEY), jnp.arange(2 * blocks, dtype=jnp.uint32)
  )
  np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_chance_is_as_frequent_as_asked(rate):
  hits = layers.chance(KEY, rate, (301, 997))
  assert hits.shape == (301, 997) and hits.dtype == bool
  # Four standard deviations of that many draws.
  off = 4 * np.sqrt(rate * (1 - rate) / hits.size)
  assert abs(float(hits.mean()) - rate) < off
  for axis in (0, 1):  # No row and no column is special.
    off = 5 * np.sqrt(rate * (1 - rate) / hits.shape[axis])
    assert np.abs(np.asarray(hits).mean(axis=axis) - rate).max() < off


def test_chance_does_not_repeat():
  hits = np.asarray(layers.chance(KEY, 0.5, (8, 4096)))
  other = np.asarray(layers.chance(jax.random.key(8), 0.5, (8, 4096)))
  rows = np.concatenate([hits, other]) * 2.0 - 1
  together = rows @ rows.T / 4096
  assert np.abs(together - np.eye(16)).max() < 5 / np.sqrt(4096)


def test_each_seed_of_many_draws_as_alone():
  keys = jax.random.split(KEY, 3)
  many = jax.vmap(lambda key: layers.chance(key, 0.3, (4, 5)))(keys)
  for key, hits in zip(keys, many, strict=True):
    np.testing.assert_array_equal(hits, layers.chance(key, 0.3, (4, 5)))


def test_dropout_silences_or_scales():
  values = jnp.arange(1.0, 1 + 6 * 50).reshape(6, 50)
  layer = layers.Dropout(0.25)
  out = layer.apply({}, values, deterministic=False, rngs={'dropout': KEY})
  kept = np.asarray(out) != 0
  assert 0.6 < kept.mean() < 0.9
  np.testing.assert_allclose(
    np.asarray(out)[kept], np.asarray(values)[kept] / 0.75, rtol=1e-6
  )
  np.testing.assert_array_equal(
    layer.apply({}, values, deterministic=True), values
  )


@pytest.mark.parametrize('shape', [(9, 4), (3, 5, 4)])
def test_dense_and_its_gradients_are_those_of_flax(shape):
  x = jax.random.normal(KEY, shape)
  ours, theirs = layers.Dense(6), nn.Dense(6)
  params = theirs.init(KEY, x)

  def loss(layer, params, x):
    return jnp.sum(jnp.sin(layer.apply(params, x)))

  for got, want in zip(
    jax.tree.leaves(jax.value_and_grad(loss, (1, 2))(ours, params, x)),
    jax.tree.leaves(jax.value_and_grad(loss, (1, 2))(theirs, params, x)),
    strict=True,
  ):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
