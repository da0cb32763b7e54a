"""Named TPU topologies, such as v4:2x2x1, on a machine that has no TPU.

libtpu (`pip install libtpu`) describes the devices of a topology and compiles
for them. Nothing can be run on these devices.
"""

from collections.abc import Sequence
import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from td_jax import errors
from td_jax.tpu_cost import chips

_RING_2D = 16  # An axis of v5e or v6e is closed to a ring at this length.
_CUBE_3D = 4  # Slices of v4 and v5p made of whole cubes of this size wrap.


@dataclasses.dataclass(frozen=True)
class Topology:
  """A slice of linked chips; each chip is one device."""

  name: str
  chip: chips.Chip
  shape: tuple[int, ...]
  devices: Sequence[Any]  # jax.Device, on hosts that do not exist here.

  @property
  def links(self) -> int:
    """The links of the chip that has the fewest, with wrap-around links.

    Long axes are rings: those of length 16 in v5e and v6e, and all axes in
    slices of v4 and v5p that consist of whole 4x4x4 cubes.
    """
    if self.chip.axes == 2:
      rings = [length == _RING_2D for length in self.shape]
    else:
      rings = [all(length % _CUBE_3D == 0 for length in self.shape)] * 3
    # A chip at the end of a line has one neighbour there, in a ring two.
    return sum(
      1 + ring
      for length, ring in zip(self.shape, rings, strict=True)
      if length > 1
    )


def describe(name: str) -> Topology:
  """The topology called `name`: CHIP:AxB or CHIP:AxBxC.

  Raises:
    errors.ConfigError: There is no such topology, or libtpu is not installed.
  """
  chip, shape = _parse(name)
  _prepare_libtpu()
  try:
    devices = topologies.get_topology_desc(
      platform='tpu', topology_name=name, **chip.options
    ).devices
  except jax.errors.JaxRuntimeError as e:
    reason = str(e).splitlines()[0]
    raise errors.ConfigError(
      f'--topology={name} is refused by libtpu ({reason}); choose one such as: '
      f'{_examples(chip)}.'
    ) from e
  # Another version of libtpu may make a device of each core again, and all
  # figures per chip would be wrong by a factor of two.
  if len(devices) != math.prod(shape):
    raise errors.ConfigError(
      f'--topology={name} has {math.prod(shape)} chips, but the installed '
      f'libtpu makes {len(devices)} devices of it; install another version of '
      'libtpu.'
    )
  return Topology(name, chip, shape, devices)


def _parse(name: str) -> tuple[chips.Chip, tuple[int, ...]]:
  """Chip and shape of a topology's name."""
  kind, colon, lengths = name.partition(':')
  errors.choose(f'the chip of --topology={name}', kind, chips.CHIPS)
  chip = chips.CHIPS[kind]
  shape = tuple(int(length) for length in re.findall(r'\d+', lengths))
  if not (
    colon
    and re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', lengths)
    and len(shape) == chip.axes
  ):
    raise errors.ConfigError(
      f'--topology is {name!r}, but {kind} takes {chip.axes} sizes, as in: '
      f'{_examples(chip)}.'
    )
  if math.prod(shape) > chip.pod:
    raise errors.ConfigError(
      f'--topology is {name!r}, which has {math.prod(shape)} chips, but a pod '
      f'of {kind} has {chip.pod}; choose a smaller one.'
    )
  return chip, shape


def _examples(chip: chips.Chip) -> str:
  return ', '.join(f'{chip.name}:{shape}' for shape in chip.shapes)


def _prepare_libtpu() -> None:
  """Checks that libtpu is installed, and sets the variables that it reads."""
  if importlib.util.find_spec('libtpu') is None:
    raise errors.ConfigError(
      '--topology needs libtpu, which is not installed: pip install libtpu '
      "(137 MB), or pip install -e '.[tpu_compile]'."
    )
  for name, value in {
    # On a cloud machine libtpu would otherwise query the metadata server, with
    # retries that take minutes.
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v4-8',
    # Lifts the lock that keeps two processes from one TPU: we use none.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_LOG_DIR': 'disabled',  # Otherwise logs pile up in /tmp/tpu_logs.
  }.items():
    os.environ.setdefault(name, value)
