"""Chooses the axis of each parameter that is sharded over devices (FSDP)."""

import math
from typing import Any

import jax

from td_jax import types

# Elements. Gathering a smaller leaf costs more time than its shards save memory.
MIN_SIZE = 2**16


def shard_largest_axis(
  shapes: types.PyTree,
  mesh: jax.sharding.Mesh,
  *,
  axis: str = 'fsdp',
  min_size: int = MIN_SIZE,
) -> types.PyTree:
  """PartitionSpecs that shard the largest axis of each large leaf.

  Args:
    shapes: A tree of leaves that have a `shape`.
    mesh: A mesh with an axis called `axis`.
    axis: The mesh axis to shard over.
    min_size: Leaves of fewer elements are replicated.

  Returns:
    A tree of the same structure. Leaves none of whose axes can be divided
    evenly are replicated. Of equally long axes the first is sharded.
  """
  shards = mesh.shape[axis]

  def spec(leaf: Any) -> jax.sharding.PartitionSpec:
    shape = leaf.shape
    divisible = [i for i, length in enumerate(shape) if length % shards == 0]
    if shards == 1 or not divisible or math.prod(shape) < min_size:
      return jax.sharding.PartitionSpec()
    largest = max(divisible, key=lambda i: shape[i])
    return jax.sharding.PartitionSpec(*[None] * largest, axis)

  return jax.tree.map(spec, shapes)
