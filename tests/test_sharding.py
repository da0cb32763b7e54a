"""The axis of a parameter that is sharded."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax.devices import sharding

P = jax.sharding.PartitionSpec


def _mesh(fsdp):
  return jax.sharding.Mesh(
    np.asarray(jax.devices()).reshape(-1, fsdp), ('data', 'fsdp')
  )


def _spec(shape, *, fsdp=4, min_size=1):
  leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
  return sharding.shard_largest_axis([leaf], _mesh(fsdp), min_size=min_size)[0]


@pytest.mark.parametrize(
  ('shape', 'expected'),
  [
    ((8, 16), P(None, 'fsdp')),
    ((16, 8), P('fsdp')),
    ((16, 16), P('fsdp')),
    ((4, 30, 8), P(None, None, 'fsdp')),  # 30 is larger, but not divisible.
    ((12, 768, 3072), P(None, None, 'fsdp')),
    ((7, 9), P()),
    ((), P()),
  ],
)
def test_the_largest_divisible_axis_is_sharded(shape, expected):
  assert _spec(shape) == expected


def test_small_leaves_and_one_shard_are_replicated():
  assert _spec((8, 16), min_size=128) == P(None, 'fsdp')
  assert _spec((8, 16), min_size=129) == P()
  assert _spec((8, 16), fsdp=1) == P()
  assert _spec((255, 256), min_size=sharding.MIN_SIZE) == P()
  assert _spec((256, 256), min_size=sharding.MIN_SIZE) == P('fsdp')


def test_the_specs_of_a_tree_can_place_it():
  tree = {'a': jnp.ones((4, 6)), 'b': [jnp.ones(3), jnp.ones((2, 8))]}
  mesh = _mesh(2)
  specs = sharding.shard_largest_axis(tree, mesh, min_size=1)
  assert specs == {'a': P(None, 'fsdp'), 'b': [P(), P(None, 'fsdp')]}
  placed = jax.tree.map(
    lambda leaf, spec: jax.device_put(
      leaf, jax.sharding.NamedSharding(mesh, spec)
    ),
    tree,
    specs,
  )
  assert placed['a'].addressable_shards[0].data.shape == (4, 3)


def test_another_mesh_axis():
  leaf = jax.ShapeDtypeStruct((8, 16), jnp.float32)
  (spec,) = sharding.shard_largest_axis(
    [leaf], _mesh(2), axis='data', min_size=1
  )
  assert spec == P(None, 'data')
