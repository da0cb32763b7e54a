"""One device or many: the only file that names pmap, a mesh or a sharding.

A program is `fn(state, fixed, rows, axis_name=...)`. `state` and `fixed` mean
the same on every device; the leaves of `rows` have an axis of examples, which
is shared out. What comes back means the same on every device.

`mesh` works over several processes too, each with its own part of every batch,
and with `fsdp` > 1 it cuts state and teacher into that many pieces, so that a
network fits that is too large for one chip.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
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
_AXES = (_DATA, _FSDP)  # Examples are shared out over both.


class Parallel:
  """The devices of a run, and how programs are spread over them."""

  def __init__(
    self,
    kind: str,
    devices: int,
    *,
    batch_size: int,
    fsdp: int = 1,
    found: Sequence[Any] | None = None,
  ):
    """Takes `devices` of the devices found, or all if that is 0.

    Args:
      kind: Of `KINDS`.
      devices: How many.
      batch_size: Of the whole batch, over all processes.
      fsdp: How many pieces a state is cut into.
      found: The devices there are; by default those of all processes.

    Raises:
      errors.ConfigError: that many are not there, or the batch cannot be
        shared out evenly.
    """
    found = jax.devices() if found is None else found
    count = devices or len(found)
    if not 1 <= count <= len(found):
      raise errors.ConfigError(
        f'config.parallel.devices is {devices}; there are {len(found)} '
        f'{found[0].platform} devices (0 takes all).'
      )
    errors.choose('config.parallel.kind', kind, KINDS)
    self.processes = len({device.process_index for device in found})
    if kind == 'auto':
      if self.processes > 1 or fsdp > 1:
        kind = 'mesh'
      else:
        kind = 'single' if count == 1 else 'pmap'
    if kind != 'mesh' and self.processes > 1:
      raise errors.ConfigError(
        f'config.parallel.kind is {kind!r}, which knows one process, and '
        f"there are {self.processes}; take 'mesh'."
      )
    if self.processes > 1 and count != len(found):
      raise errors.ConfigError(
        f'config.parallel.devices is {count}; {self.processes} processes use '
        f'all of their {len(found)} devices (0).'
      )
    if kind == 'single':
      count = 1
    if fsdp > 1 and (kind != 'mesh' or count % fsdp):
      raise errors.ConfigError(
        f'config.parallel.fsdp is {fsdp}; it takes '
        "config.parallel.kind='mesh' and divides the number of devices "
        f'({kind!r} on {count} here).'
      )
    if batch_size % count:
      raise errors.ConfigError(
        f'config.batch_size is {batch_size}, which {count} devices cannot '
        f'share evenly; take a multiple of {count}.'
      )
    self.kind, self.count = kind, count
    self.platform = found[0].platform
    devices_used = np.asarray(found[:count])
    # What pmap gives back has an axis of this name alone.
    self._mesh = jax.sharding.Mesh(devices_used, (_DATA,))
    if kind == 'mesh':
      self._mesh = jax.sharding.Mesh(devices_used.reshape(-1, fsdp), _AXES)
    self._in_pieces = fsdp > 1

  @property
  def is_main(self) -> bool:
    """Whether this process is the one that writes files."""
    return self.processes == 1 or jax.process_index() == 0

  def part(self, batch_size: int) -> slice:
    """The places of a batch whose examples this process brings."""
    if self.processes == 1:
      return slice(0, batch_size)
    own = batch_size // self.processes
    return slice(jax.process_index() * own, (jax.process_index() + 1) * own)

  def agree(self, said: bool) -> bool:
    """Whether any process says so; all of them must ask."""
    if self.processes == 1:
      return said
    return bool(multihost_utils.process_allgather(np.array(said)).any())

  def shardings(self, tree: types.PyTree) -> types.PyTree:
    """Where each leaf of a state, or of a network's variables, lives."""
    if self.kind != 'mesh':
      return jax.tree.map(lambda _: self._named(), tree)
    return jax.tree.map(
      lambda spec: jax.sharding.NamedSharding(self._mesh, spec),
      sharding.shard_largest_axis(tree, self._mesh, axis=_FSDP),
    )

  def place(self, tree: types.PyTree) -> types.PyTree:
    """Copies `tree` to the devices, once; with fsdp each leaf in pieces."""
    return jax.tree.map(self._put, tree, self.shardings(tree))

  def replicate(self, tree: types.PyTree) -> types.PyTree:
    """Copies `tree` to every device, once."""
    return jax.tree.map(lambda leaf: self._put(leaf, self._named()), tree)

  def gather(self, tree: types.PyTree) -> types.PyTree:
    """`tree` as numpy arrays, whole on every process."""
    if all(
      leaf.is_fully_addressable or leaf.is_fully_replicated
      for leaf in jax.tree.leaves(tree)
    ):
      return jax.device_get(tree)
    whole = jax.jit(lambda tree: tree, out_shardings=self._named())
    return jax.device_get(whole(tree))

  def compile(
    self, fn: Callable[..., Any], *, axis: int, updates: bool = False
  ) -> Callable[..., Any]:
    """The compiled `fn`.

    Args:
      fn: A program.
      axis: Of the leaves of `rows`: the one that counts examples. On several
        processes `rows` holds this one's `part`.
      updates: Whether `fn` returns (the state after, ...); then it takes over
        the state that it is given.
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

      def run_mapped(state, fixed, rows):
        share = functools.partial(self._rows_of_each_device, axis=axis)
        return mapped(state, fixed, jax.tree.map(share, rows))

      return run_mapped

    jitted = None

    def run(state, fixed, rows):
      nonlocal jitted
      if jitted is None:
        jitted = self._jit(fn, state, updates=updates)
      share = functools.partial(self._sharded, axis=axis)
      return jitted(state, fixed, jax.tree.map(share, rows))

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
    """`fn`, an update, jitted, and arguments of these shapes to lower it for.

    Of `fixed` only the first part, the teacher, is cut into pieces.
    """

    def described(tree, wheres):
      return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(
          leaf.shape, leaf.dtype, sharding=where
        ),
        tree,
        wheres,
      )

    def everywhere(tree, where):
      return described(tree, jax.tree.map(lambda _: where, tree))

    teacher, columns = fixed
    return self._jit(fn, state, updates=True), (
      described(state, self.shardings(state)),
      (
        described(teacher, self.shardings(teacher)),
        everywhere(columns, self._named()),
      ),
      everywhere(rows, self._named(*[None] * axis, _AXES)),
    )

  def _jit(self, fn, state, *, updates):
    program = functools.partial(fn, axis_name=None)
    return jax.jit(
      self._gathering(program) if self._in_pieces else program,
      donate_argnums=(0,) if updates else (),
      out_shardings=(
        (self.shardings(state), self._named()) if updates else self._named()
      ),
    )

  def _gathering(self, program):
    """`program`, each of whose kernels is made whole where it is used."""

    def gather(param):
      return jax.lax.with_sharding_constraint(param, self._named())

    def gathering_program(*args):
      with gathering.gathered_params(gather):
        return program(*args)

    return gathering_program

  def _named(self, *axes):
    return jax.sharding.NamedSharding(
      self._mesh, jax.sharding.PartitionSpec(*axes)
    )

  def _put(self, leaf, where):
    if self.processes == 1:
      return jax.device_put(leaf, where)
    leaf = np.asarray(leaf)  # The same on every process.
    return jax.make_array_from_callback(
      leaf.shape, where, lambda index: leaf[index]
    )

  def _sharded(self, leaf, *, axis):
    where = self._named(*[None] * axis, self._mesh.axis_names)
    if self.processes == 1:
      return jax.device_put(leaf, where)
    return jax.make_array_from_process_local_data(where, leaf)

  def _rows_of_each_device(self, leaf, *, axis):
    """[..., b, ...] -> [devices, ..., b / devices, ...]."""
    shape = leaf.shape
    parts = leaf.reshape(
      *shape[:axis], self.count, shape[axis] // self.count, *shape[axis + 1 :]
    )
    return np.moveaxis(parts, axis, 0)
