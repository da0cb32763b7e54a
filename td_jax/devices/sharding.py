"""Which axis of each parameter is shared out over devices (FSDP)."""

import math

import jax

from td_jax import types

LEAST = 2**16  # Elements; smaller leaves cost more to gather than to keep.


def shard_largest_axis(
  shapes: types.PyTree,
  mesh: jax.sharding.Mesh,
  *,
  axis: str = 'fsdp',
  least: int = LEAST,
) -> types.PyTree:
  """PartitionSpecs that share the largest axis of each big leaf over `axis`.

  Args:
    shapes: A tree of whatever has a `shape`.
    mesh: Has an axis of that name.
    axis: The mesh axis to share over.
    least: A leaf of fewer elements stays whole on every device.

  Returns:
    The same tree of PartitionSpecs; a leaf with no axis that `axis` divides
    stays whole. Of equal axes the first is shared.
  """
  size = mesh.shape[axis]

  def spec(leaf):
    shape = leaf.shape
    fit = [place for place, length in enumerate(shape) if length % size == 0]
    if size == 1 or not fit or math.prod(shape) < least:
      return jax.sharding.PartitionSpec()
    place = max(fit, key=shape.__getitem__)
    return jax.sharding.PartitionSpec(*[None] * place, axis)

  return jax.tree.map(spec, shapes)
