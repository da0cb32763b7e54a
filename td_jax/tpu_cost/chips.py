"""Published figures of TPU chips: speed, memory, links and list price.

Peak, memory, memory bandwidth and pod size are from docs.cloud.google.com/tpu
(the pages v4, v5e, v5p and v6e, read on 2026-11-25). Those pages write GB where
JAX's own table (`pallas.tpu.get_tpu_info_for_chip`) has GiB, as here. Link
bandwidths are from jax-ml.github.io/scaling-book/tpus and agree with 1/4 or 1/6
of the total that Google's pages give for a chip.

Prices are list prices without commitment. They were read in public notes that
quote the sources named, not on Google's pages; check them before you spend.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one chip can do, and what an hour of it costs."""

  name: str
  peak_flops: float  # FLOP/s of bf16 matrix products.
  hbm_bytes: int
  hbm_bandwidth: float  # Bytes/s.
  link_bandwidth: float  # Bytes/s of one inter-chip link, in one direction.
  pod: int  # The largest number of chips that are linked with each other.
  price: float  # List price in US dollars for a chip-hour.
  price_source: str
  shapes: tuple[str, ...]  # Some of the shapes on offer; libtpu knows more.
  options: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def axes(self) -> int:
    """The number of axes of the torus that the links span."""
    return self.shapes[0].count('x') + 1


_PAGE = 'cloud.google.com/tpu/pricing, on demand in the US, seen 2026-09-17'
_POST = 'Google Cloud post on v5p, 2023-12, on demand in us-central2'
_SHAPES_2D = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_SHAPES_3D = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '8x8x8')
# Makes each chip one device. Without it each of its two cores is a device.
_MEGACORE = {'chip_config_name': 'megacore'}

CHIPS = {
  chip.name: chip
  for chip in (
    Chip(
      name='v4',
      peak_flops=275e12,
      hbm_bytes=32 * GIB,
      hbm_bandwidth=1200e9,
      link_bandwidth=45e9,
      pod=4096,
      price=3.22,
      price_source=_POST,
      shapes=_SHAPES_3D,
      options=_MEGACORE,
    ),
    Chip(
      name='v5e',
      peak_flops=197e12,
      hbm_bytes=16 * GIB,
      hbm_bandwidth=819e9,
      link_bandwidth=50e9,
      pod=256,
      price=1.20,
      price_source=_PAGE,
      shapes=_SHAPES_2D,
    ),
    Chip(
      name='v5p',
      peak_flops=459e12,
      hbm_bytes=95 * GIB,
      hbm_bandwidth=2765e9,
      link_bandwidth=100e9,
      pod=8960,
      price=4.20,
      price_source=_PAGE,
      shapes=_SHAPES_3D,
      options=_MEGACORE,
    ),
    Chip(
      name='v6e',
      peak_flops=918e12,
      hbm_bytes=32 * GIB,
      hbm_bandwidth=1638e9,
      link_bandwidth=100e9,
      pod=256,
      price=2.70,
      price_source=_PAGE,
      shapes=_SHAPES_2D,
    ),
  )
}
