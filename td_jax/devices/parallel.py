"""One device or many: the only file that names pmap, meshes or shardings.

A program is `fn(state, fixed, rows, axis_name=...)`. `state` and `fixed` are
the same on every device; the leaves of `rows` have an axis of examples, which
is divided among devices. The result is the same on every device.

`mesh` also works over several processes, each of which supplies its own part of
every batch. With `fsdp` > 1 it shards state and teachers over that many
devices, so that a network fits that is too large for one chip.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
import os
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.devices import gathering
from td_jax.devices import sharding

KINDS = ('auto', 'single', 'pmap', 'mesh')
_DATA, _FSDP = 'data', 'fsdp'
_AXES = (_DATA, _FSDP)  # Examples are divided over both.


class Parallel:
  """The devices of a run, and how programs are spread over them."""

  def __init__(
    self,
    kind: str,
    devices: int,
    *,
    fsdp: int = 1,
    devices_available: Sequence[Any] | None = None,
  ):
    """Takes `devices` of the available devices, or all of them if it is 0.

    Args:
      kind: One of `KINDS`.
      devices: The number of devices.
      fsdp: The number of shards of a state.
      devices_available: By default those of all processes. They may be of
        another machine, to compile for it.

    Raises:
      errors.ConfigError: There are not as many devices, or `kind` cannot use
        them.
    """
    available = (
      jax.devices() if devices_available is None else devices_available
    )
    self.processes = len({device.process_index for device in available})
    self.platform = available[0].platform
    count = _count(devices, available, self.processes)
    self.kind = _kind(kind, count, fsdp, self.processes)
    self.count = 1 if self.kind == 'single' else count
    if fsdp > 1 and (self.kind != 'mesh' or self.count % fsdp):
      raise errors.ConfigError(
        f'config.parallel.fsdp is {fsdp}; it needs '
        "config.parallel.kind='mesh' and must divide the number of devices "
        f'({self.kind!r} on {self.count} here).'
      )
    used = np.asarray(available[: self.count])
    # The results of pmap are sharded over a single axis of this name.
    self._mesh = jax.sharding.Mesh(used, (_DATA,))
    if self.kind == 'mesh':
      self._mesh = jax.sharding.Mesh(used.reshape(-1, fsdp), _AXES)
    self._sharded_params = fsdp > 1

  def check_batch_size(
    self, batch_size: int, field: str = 'config.batch_size'
  ) -> None:
    """Raises a ConfigError unless the devices divide the global batch."""
    if batch_size % self.count:
      raise errors.ConfigError(
        f'{field} is {batch_size}, which {self.count} devices cannot '
        f'share evenly; choose a multiple of {self.count}.'
      )

  @property
  def shares(self) -> int:
    """Into how many parts a batch is divided, each with a `memory` of its own."""
    return self.processes if self.platform == 'cpu' else self.count

  def memory(self) -> tuple[str, int]:
    """(what has it, the bytes of memory of a device, or of a host of CPUs)."""
    stats = None
    if self.platform != 'cpu':
      stats = self._mesh.local_devices[0].memory_stats()
    if stats and 'bytes_limit' in stats:
      return f'a {self.platform} device', stats['bytes_limit']
    pages, page = (
      os.sysconf(f'SC_{name}') for name in ('PHYS_PAGES', 'PAGESIZE')
    )
    return 'this machine', pages * page

  @property
  def is_main(self) -> bool:
    """Whether this is the process that writes files."""
    return self.processes == 1 or jax.process_index() == 0

  def host_slice(self, batch_size: int) -> slice:
    """The part of a global batch that this process supplies."""
    if self.processes == 1:
      return slice(0, batch_size)
    # All processes have equally many devices.
    own = batch_size // self.processes
    return slice(jax.process_index() * own, (jax.process_index() + 1) * own)

  def any_process(self, flag: bool) -> bool:
    """Whether `flag` is set on any process; all processes must call this."""
    if self.processes == 1:
      return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).any())

  def shardings(self, tree: types.PyTree) -> types.PyTree:
    """The sharding of each leaf of a state or of a network's variables."""
    if self.kind != 'mesh':
      return jax.tree.map(lambda _: self._named(), tree)
    return jax.tree.map(
      lambda spec: jax.sharding.NamedSharding(self._mesh, spec),
      sharding.shard_largest_axis(tree, self._mesh, axis=_FSDP),
    )

  def place(self, tree: types.PyTree) -> types.PyTree:
    """Copies `tree` to the devices; with fsdp its large leaves are sharded."""
    return self._put(tree, self.shardings(tree))

  def replicate(self, tree: types.PyTree) -> types.PyTree:
    """Copies all of `tree` to every device."""
    return self._put(tree, jax.tree.map(lambda _: self._named(), tree))

  def gather(self, tree: types.PyTree) -> types.PyTree:
    """`tree` as numpy arrays, complete on every process."""
    if all(
      leaf.is_fully_addressable or leaf.is_fully_replicated
      for leaf in jax.tree.leaves(tree)
    ):
      return jax.device_get(tree)
    # A process cannot read the shards of others: all-gather them first.
    whole = jax.jit(lambda tree: tree, out_shardings=self._named())
    return jax.device_get(whole(tree))

  def compile(
    self, fn: Callable[..., Any], *, axis: int, updates: bool = False
  ) -> Callable[..., Any]:
    """Compiles `fn`, at its first call.

    Args:
      fn: A program.
      axis: The axis of examples in the leaves of `rows`. With several
        processes, `rows` holds the `host_slice` of this process.
      updates: Whether `fn` returns (new state, ...); then the state that is
        passed in is donated.
    """
    if self.kind == 'pmap':
      mapped = jax.pmap(
        functools.partial(fn, axis_name=_DATA),
        axis_name=_DATA,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=self._mesh.devices.ravel().tolist(),
        donate_argnums=(0,) if updates else (),
      )

      def run_mapped(
        state: types.PyTree, fixed: types.PyTree, rows: types.PyTree
      ) -> Any:
        split = functools.partial(self._by_device, axis=axis)
        return mapped(state, fixed, jax.tree.map(split, rows))

      return run_mapped

    jitted = None

    def run(
      state: types.PyTree, fixed: types.PyTree, rows: types.PyTree
    ) -> Any:
      nonlocal jitted
      if jitted is None:
        # The shardings of the result follow from the shapes of the state.
        jitted = self._jit(fn, state, updates=updates)
      return jitted(state, fixed, self._shard_rows(rows, axis=axis))

    return run

  def abstract(
    self,
    fn: Callable[..., Any],
    state: types.PyTree,
    fixed: types.PyTree,
    rows: types.PyTree,
    *,
    axis: int,
  ) -> tuple[Any, tuple[types.PyTree, types.PyTree, types.PyTree]]:
    """(the jitted update `fn`, abstract arguments to lower it for).

    `fixed` is (teachers, columns), of which only the teachers are sharded.
    """

    def struct(leaf: Any, leaf_sharding: Any) -> jax.ShapeDtypeStruct:
      return jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=leaf_sharding
      )

    def sharded(tree: types.PyTree) -> types.PyTree:
      return jax.tree.map(struct, tree, self.shardings(tree))

    def alike(tree: types.PyTree, leaf_sharding: Any) -> types.PyTree:
      return jax.tree.map(lambda leaf: struct(leaf, leaf_sharding), tree)

    # Columns are gathered by id on every device, so each needs all of them.
    teachers, columns = fixed
    return self._jit(fn, state, updates=True), (
      sharded(state),
      (sharded(teachers), alike(columns, self._named())),
      alike(rows, self._named(*[None] * axis, _AXES)),
    )

  def _jit(
    self, fn: Callable[..., Any], state: types.PyTree, *, updates: bool
  ) -> Any:
    program = functools.partial(fn, axis_name=None)
    return jax.jit(
      self._with_gathering(program) if self._sharded_params else program,
      donate_argnums=(0,) if updates else (),
      out_shardings=(
        (self.shardings(state), self._named()) if updates else self._named()
      ),
    )

  def _with_gathering(self, program: Callable[..., Any]) -> Callable[..., Any]:
    """`program`, with each sharded kernel all-gathered where it is used."""

    def gather(param: types.Array) -> types.Array:
      return jax.lax.with_sharding_constraint(param, self._named())

    def with_gathering(*args: Any) -> Any:
      with gathering.gathered_params(gather):
        return program(*args)

    return with_gathering

  def _named(self, *axes: Any) -> jax.sharding.NamedSharding:
    """A sharding of the leading axes of an array over mesh axes."""
    return jax.sharding.NamedSharding(
      self._mesh, jax.sharding.PartitionSpec(*axes)
    )

  def _put(self, tree: types.PyTree, shardings: types.PyTree) -> types.PyTree:
    if self.processes == 1:
      # One call for all leaves: each call costs as much as a small copy.
      return jax.device_put(tree, shardings)

    def put(leaf: Any, leaf_sharding: Any) -> types.Array:
      # Every process has the whole leaf and supplies the shards of its devices.
      leaf = np.asarray(leaf)
      return jax.make_array_from_callback(
        leaf.shape, leaf_sharding, lambda index: leaf[index]
      )

    return jax.tree.map(put, tree, shardings)

  def _shard_rows(self, rows: types.PyTree, *, axis: int) -> types.PyTree:
    rows_sharding = self._named(*[None] * axis, self._mesh.axis_names)
    if self.processes == 1:
      return jax.device_put(rows, rows_sharding)
    return jax.tree.map(
      lambda leaf: jax.make_array_from_process_local_data(rows_sharding, leaf),
      rows,
    )

  def _by_device(self, leaf: Any, *, axis: int) -> np.ndarray:
    """[..., b, ...] -> [devices, ..., b / devices, ...]."""
    shape = leaf.shape
    # pmap maps over the leading axis.
    parts = leaf.reshape(
      *shape[:axis], self.count, shape[axis] // self.count, *shape[axis + 1 :]
    )
    return np.moveaxis(parts, axis, 0)


def _count(devices: int, available: Sequence[Any], processes: int) -> int:
  """The number of devices to use."""
  count = devices or len(available)
  if not 1 <= count <= len(available):
    raise errors.ConfigError(
      f'config.parallel.devices is {devices}; there are {len(available)} '
      f'{available[0].platform} devices (0 takes all).'
    )
  # A process whose devices are all left out could not take part in the mesh.
  if processes > 1 and count != len(available):
    raise errors.ConfigError(
      f'config.parallel.devices is {count}; {processes} processes use all of '
      f'their {len(available)} devices (0).'
    )
  return count


def _kind(kind: str, count: int, fsdp: int, processes: int) -> str:
  """The kind of parallelism, with 'auto' resolved."""
  errors.choose('config.parallel.kind', kind, KINDS)
  if kind == 'auto':
    if processes > 1 or fsdp > 1:
      return 'mesh'
    return 'single' if count == 1 else 'pmap'
  if kind != 'mesh' and processes > 1:
    raise errors.ConfigError(
      f'config.parallel.kind is {kind!r}, which supports one process, but '
      f"there are {processes}; choose 'mesh'."
    )
  return kind
