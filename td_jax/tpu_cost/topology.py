"""Named TPU topologies, such as v4:2x2x1, on a machine that has no TPU.

libtpu (`pip install libtpu`) describes the devices of a topology and compiles
for them; nothing can be run on them.
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


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip: what it can do, and what an hour of it costs."""

  name: str
  peak_flops: float  # FLOP/s of bf16 products.
  hbm_bytes: int
  hbm_bandwidth: float  # bytes/s
  link_bandwidth: float  # bytes/s of one inter-chip link, in one direction.
  pod: int  # The most chips that are linked with each other.
  price: float  # List price, US dollars a chip-hour.
  price_source: str
  shapes: tuple[str, ...]  # Some that are offered; libtpu knows more.
  options: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def axes(self) -> int:
    """Of the torus that its links span."""
    return self.shapes[0].count('x') + 1


_GIB = 2**30
_PAGE = 'cloud.google.com/tpu/pricing, on demand in the US, seen 2026-09-17'
_POST = 'Google Cloud post on v5p, 2023-12, on demand in us-central2'
_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_DEEP = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '8x8x8')
# One device a chip; else the two cores of a chip are a device each.
_MEGACORE = {'chip_config_name': 'megacore'}

CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      name='v4',
      peak_flops=275e12,
      hbm_bytes=32 * _GIB,
      hbm_bandwidth=1200e9,
      link_bandwidth=45e9,
      pod=4096,
      price=3.22,
      price_source=_POST,
      shapes=_DEEP,
      options=_MEGACORE,
    ),
    Chip(
      name='v5e',
      peak_flops=197e12,
      hbm_bytes=16 * _GIB,
      hbm_bandwidth=819e9,
      link_bandwidth=50e9,
      pod=256,
      price=1.20,
      price_source=_PAGE,
      shapes=_FLAT,
    ),
    Chip(
      name='v5p',
      peak_flops=459e12,
      hbm_bytes=95 * _GIB,
      hbm_bandwidth=2765e9,
      link_bandwidth=100e9,
      pod=8960,
      price=4.20,
      price_source=_PAGE,
      shapes=_DEEP,
      options=_MEGACORE,
    ),
    Chip(
      name='v6e',
      peak_flops=918e12,
      hbm_bytes=32 * _GIB,
      hbm_bandwidth=1638e9,
      link_bandwidth=100e9,
      pod=256,
      price=2.70,
      price_source=_PAGE,
      shapes=_FLAT,
    ),
  )
}
"""Facts of each chip, by name.

Peak, memory, its bandwidth and the pod: docs.cloud.google.com/tpu/docs/ v4, v5e,
v5p and v6e, as stored copies had them on 2026-11-25. They write GB where JAX's
own table (`pallas.tpu.get_tpu_info_for_chip`) has GiB, as here. Bandwidth of a
link: the table of jax-ml.github.io/scaling-book/tpus, which agrees with 1/4 or
1/6 of what the same pages give for a whole chip.

Prices were read in public notes that quote the two sources named, not on
Google's pages: list prices without commitment; check them before you spend.
"""


@dataclasses.dataclass(frozen=True)
class Topology:
  """Chips that are linked with each other; each is one device."""

  name: str
  chip: Chip
  shape: tuple[int, ...]
  devices: Sequence[Any]  # jax.Device each.

  @property
  def links(self) -> int:
    """How many links the chip with the fewest has, wrap-around included.

    Long axes are closed to rings: of v5e and v6e those of 16, of v4 and v5p all
    axes of slices made of whole 4x4x4 cubes.
    """
    if self.chip.axes == 2:
      closed = [size == 16 for size in self.shape]
    else:
      closed = [all(size % 4 == 0 for size in self.shape)] * 3
    return sum(
      1 + ring
      for size, ring in zip(self.shape, closed, strict=True)
      if size > 1
    )


def describe(name: str) -> Topology:
  """The topology `name`, as CHIP:AxB or CHIP:AxBxC, with a device a chip.

  Raises:
    errors.ConfigError: there is no such topology, or libtpu is not installed.
  """
  kind, colon, sizes = name.partition(':')
  chip = CHIPS[errors.choose(f'the chip of --topology={name}', kind, CHIPS)]
  shape = tuple(int(size) for size in re.findall(r'\d+', sizes))
  offered = ', '.join(f'{kind}:{shape}' for shape in chip.shapes)
  if not (
    colon
    and re.fullmatch(r'[1-9]\d*(x[1-9]\d*)*', sizes)
    and len(shape) == chip.axes
  ):
    raise errors.ConfigError(
      f'--topology is {name!r}, but {kind} takes {chip.axes} sizes, as in: '
      f'{offered}.'
    )
  if math.prod(shape) > chip.pod:
    raise errors.ConfigError(
      f'--topology is {name!r}, of {math.prod(shape)} chips; a pod of {kind} has '
      f'{chip.pod}.'
    )
  _prepare()
  try:
    devices = topologies.get_topology_desc(
      platform='tpu', topology_name=name, **chip.options
    ).devices
  except jax.errors.JaxRuntimeError as e:
    said = str(e).splitlines()[0]
    raise errors.ConfigError(
      f'--topology={name} is refused by libtpu ({said}); choose such as: '
      f'{offered}.'
    ) from e
  if len(devices) != math.prod(shape):
    raise errors.ConfigError(
      f'--topology={name} has {math.prod(shape)} chips, but this libtpu makes '
      f'{len(devices)} devices of it; take another version of libtpu.'
    )
  return Topology(name, chip, shape, devices)


def _prepare():
  """Sees to libtpu, and to what it reads from the environment."""
  if importlib.util.find_spec('libtpu') is None:
    raise errors.ConfigError(
      '--topology needs libtpu, which is not installed: pip install libtpu '
      "(137 MB), or pip install -e '.[tpu_compile]'."
    )
  for name, value in {
    # Else it asks the metadata server of a cloud machine, again and again.
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v4-8',
    # Else a second process that compiles is turned away: it uses no TPU.
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
    'TPU_LOG_DIR': 'disabled',  # Else it leaves files in /tmp/tpu_logs.
  }.items():
    os.environ.setdefault(name, value)
