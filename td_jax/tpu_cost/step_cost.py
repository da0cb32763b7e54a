"""The cost of a training step on TPUs that are not there.

The step is compiled for the devices of a `topology.Topology`. The figures for
memory are the compiler's own. Matrix products are counted in the jaxpr (see
`flops`), bytes and collectives in the compiled text (`traffic`, `collectives`).
Times follow from published speeds of the chips: they are bounds, and not
measurements.
"""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Sequence
import dataclasses
import math
import time
from typing import Any
from typing import NamedTuple

import jax

from td_jax import errors
from td_jax import types
from td_jax.run import environment
from td_jax.tpu_cost import chips
from td_jax.tpu_cost import collectives as collectives_lib
from td_jax.tpu_cost import flops as flops_lib
from td_jax.tpu_cost import hlo
from td_jax.tpu_cost import topology as topology_lib
from td_jax.tpu_cost import traffic as traffic_lib
from td_jax.tpu_cost import units

PAPER_HOURS = 12.0  # For any method, on a 4-chip TPU (the paper's appendix).
_PACKAGES = ('jax', 'jaxlib', 'libtpu')
_SECONDS_PER_HOUR = 3600
# The compiler also counts elementwise operations. They are a few percent of a
# network; above this factor the work is not spread evenly over the chips.
_ELEMENTWISE_MARGIN = 1.2


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes in the HBM of one chip."""

  arguments: int
  temporaries: int
  outputs: int
  aliased: int  # Outputs that reuse the memory of donated arguments.
  program: int
  size: int  # All of the HBM.

  @property
  def used(self) -> int:
    """Bytes that the step occupies."""
    return (
      self.arguments
      + self.temporaries
      + self.outputs
      - self.aliased
      + self.program
    )


@dataclasses.dataclass(frozen=True)
class Work:
  """The work of one chip in a step."""

  model_flops: float  # Matrix products that the algorithm asks for.
  hardware_flops: float  # And those that rematerialisation computes again.
  compiler_flops: float  # cost_analysis: loop bodies once, elementwise too.
  hbm_bytes: float
  compiler_bytes: float  # cost_analysis: loop bodies once, on-chip memory too.
  sent_bytes: float  # Over the links between chips; a lower bound.


@dataclasses.dataclass(frozen=True)
class CollectiveTotal:
  """All collectives of one kind that a chip takes part in, in a step."""

  kind: str
  count: int
  bytes: int
  sent_bytes: float
  in_loops: int  # How many of `count` are inside loops.
  exact: bool  # False if some are in loops of unknown length, counted once.


@dataclasses.dataclass(frozen=True)
class Times:
  """Lower bounds of the seconds that a step takes."""

  products: float  # hardware_flops at the peak rate.
  memory: float  # hbm_bytes at the full bandwidth.
  links: float  # sent_bytes over all links of a chip at once.

  @property
  def bound(self) -> str:
    """The resource that limits the step: the name of the longest time."""
    seconds = dataclasses.asdict(self)
    return max(seconds, key=lambda name: seconds[name])

  @property
  def roofline(self) -> float:
    """The longest of the three, as all could overlap."""
    return max(dataclasses.asdict(self).values())


@dataclasses.dataclass(frozen=True)
class RunEstimate:
  """Time and price of a whole run. MFU is model_flops over time and peak."""

  steps: int
  hours_allowed: float
  mfu_needed: float  # To finish within the allowed hours.
  mfu_possible: float  # At the roofline.
  mfu_stated: float  # An assumption of the caller, not a measurement.
  hours: float  # At the stated MFU.
  price: float  # US dollars for a chip-hour.
  price_source: str
  dollars: float  # For all chips, at the stated MFU.


@dataclasses.dataclass(frozen=True)
class Report:
  """All figures; `cost_table` writes them down."""

  topology: str
  chip: chips.Chip
  chips: int
  versions: dict[str, str]
  trace_seconds: float
  compile_seconds: float
  parameters: int
  parameters_per_chip: int
  memory: Memory
  work: Work
  collectives: list[CollectiveTotal]
  times: Times
  estimate: RunEstimate
  notes: list[str]  # Reasons why a figure above is too low or too high.


class _Compiled(NamedTuple):
  """A step compiled for a topology."""

  executable: Any  # jax.stages.Compiled.
  flops: flops_lib.Flops  # For all chips together.
  trace_seconds: float
  compile_seconds: float


def report(
  step: Callable[..., Any],
  arguments: Sequence[types.PyTree],
  *,
  topology: topology_lib.Topology,
  parameters: types.PyTree,
  steps: int,
  mfu: float,
  hours: float = PAPER_HOURS,
  price: float | None = None,
  log: types.Log = types.no_log,
) -> Report:
  """Compiles a step and reports what it costs.

  Args:
    step: One training step; under `jax.jit` if it donates arguments.
    arguments: Its arguments as `jax.ShapeDtypeStruct`s, with shardings on a
      mesh of `topology.devices`.
    topology: The chips to compile for.
    parameters: The part of the arguments that counts as parameters.
    steps: The number of steps of the whole run.
    mfu: The share of the peak FLOP/s to assume, in (0, 1].
    hours: The time that the run may take.
    price: US dollars for a chip-hour; None takes the list price.
    log: Receives a line before the compiler starts, which may take minutes.

  Raises:
    errors.ConfigError: The step does not fit into the memory of a chip, or a
      number above makes no sense.
  """
  _check(steps=steps, mfu=mfu, hours=hours, price=price)
  compiled = _compile(step, arguments, topology, log)
  # Parsed once: the text of a large step has many megabytes.
  module = hlo.parse(compiled.executable.as_text())
  traffic = traffic_lib.read(module)
  totals = _by_kind(collectives_lib.read(module))
  work = _work(compiled, traffic, totals, count=len(topology.devices))
  times = _times(work, topology)
  estimate = _estimate(
    work, times, topology, steps=steps, mfu=mfu, hours=hours, price=price
  )
  return Report(
    topology=topology.name,
    chip=topology.chip,
    chips=len(topology.devices),
    versions=environment.versions(_PACKAGES),
    trace_seconds=compiled.trace_seconds,
    compile_seconds=compiled.compile_seconds,
    parameters=_size(parameters, lambda leaf: leaf.shape),
    parameters_per_chip=_size(parameters, _shard_shape),
    memory=_memory(compiled.executable, topology.chip),
    work=work,
    collectives=totals,
    times=times,
    estimate=estimate,
    notes=_notes(compiled.flops, traffic, work, estimate),
  )


def _check(
  *, steps: int, mfu: float, hours: float, price: float | None
) -> None:
  # Before the compiler starts: a wrong number should not cost minutes.
  if not 0 < mfu <= 1:
    raise errors.ConfigError(
      f'the stated MFU is {mfu}; it must be above 0 and at most 1.'
    )
  if not (steps > 0 and hours > 0 and (price is None or price >= 0)):
    raise errors.ConfigError(
      f'the cost of {steps} steps in {hours} hours at {price} dollars a '
      'chip-hour cannot be estimated; steps and hours must be above 0, and the '
      'price at least 0.'
    )


def _compile(
  step: Callable[..., Any],
  arguments: Sequence[types.PyTree],
  topology: topology_lib.Topology,
  log: types.Log,
) -> _Compiled:
  started = time.monotonic()
  # A step that is jitted already may donate arguments; another jit would hide
  # that, and count the memory of the old and the new state.
  jitted: Any = step if hasattr(step, 'trace') else jax.jit(step)
  traced = jitted.trace(*arguments)
  lowered = traced.lower()
  traced_at = time.monotonic()
  flops = flops_lib.count(traced.jaxpr)
  log(
    f'compiling {units.si(flops.hardware)}FLOPs for {topology.name}; a large '
    'step takes minutes'
  )
  try:
    executable = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    # The first line has the sizes; a listing of all buffers follows.
    raise errors.ConfigError(
      f'the step does not fit on {topology.name}: {str(e).splitlines()[0]} '
      'Choose a smaller batch_size, rematerialisation, or more chips.'
    ) from e
  return _Compiled(
    executable, flops, traced_at - started, time.monotonic() - traced_at
  )


def _by_kind(
  collectives: Sequence[collectives_lib.Collective],
) -> list[CollectiveTotal]:
  """One row for each kind of collective."""
  totals = []
  # In a fixed order, so that two reports can be compared line by line.
  for kind in hlo.COLLECTIVES:
    same = [each for each in collectives if each.kind == kind]
    if same:
      totals.append(
        CollectiveTotal(
          kind=kind,
          count=sum(each.times for each in same),
          bytes=sum(each.times * each.bytes for each in same),
          sent_bytes=sum(each.times * each.sent for each in same),
          in_loops=sum(each.times for each in same if each.in_loop),
          exact=all(each.known for each in same),
        )
      )
  return totals


def _work(
  compiled: _Compiled,
  traffic: traffic_lib.Traffic,
  totals: Iterable[CollectiveTotal],
  *,
  count: int,
) -> Work:
  """The work of each of `count` chips."""
  costs = compiled.executable.cost_analysis()
  return Work(
    # The jaxpr is the whole program, the compiled text that of one chip.
    model_flops=compiled.flops.model / count,
    hardware_flops=compiled.flops.hardware / count,
    compiler_flops=costs.get('flops', 0.0),
    hbm_bytes=traffic.bytes,
    compiler_bytes=costs.get('bytes accessed', 0.0),
    sent_bytes=sum((total.sent_bytes for total in totals), 0.0),
  )


def _times(work: Work, topology: topology_lib.Topology) -> Times:
  chip = topology.chip
  return Times(
    products=work.hardware_flops / chip.peak_flops,
    memory=work.hbm_bytes / chip.hbm_bandwidth,
    # A single chip has no links, and sends nothing.
    links=work.sent_bytes / (max(1, topology.links) * chip.link_bandwidth),
  )


def _estimate(
  work: Work,
  times: Times,
  topology: topology_lib.Topology,
  *,
  steps: int,
  mfu: float,
  hours: float,
  price: float | None,
) -> RunEstimate:
  chip = topology.chip
  # Seconds that a step would take if every chip ran at its peak.
  ideal = work.model_flops / chip.peak_flops
  estimated_hours = steps * ideal / mfu / _SECONDS_PER_HOUR
  source = 'as given'
  if price is None:
    price, source = chip.price, f'list price: {chip.price_source}'
  return RunEstimate(
    steps=steps,
    hours_allowed=hours,
    mfu_needed=steps * ideal / (hours * _SECONDS_PER_HOUR),
    mfu_possible=ideal / times.roofline if times.roofline else 0.0,
    mfu_stated=mfu,
    hours=estimated_hours,
    price=price,
    price_source=source,
    dollars=estimated_hours * len(topology.devices) * price,
  )


def _memory(executable: Any, chip: chips.Chip) -> Memory:
  analysis = executable.memory_analysis()
  return Memory(
    arguments=analysis.argument_size_in_bytes,
    temporaries=analysis.temp_size_in_bytes,
    outputs=analysis.output_size_in_bytes,
    aliased=analysis.alias_size_in_bytes,
    program=analysis.generated_code_size_in_bytes,
    size=chip.hbm_bytes,
  )


def _notes(
  flops: flops_lib.Flops,
  traffic: traffic_lib.Traffic,
  work: Work,
  estimate: RunEstimate,
) -> list[str]:
  notes = []
  if flops.unbounded:
    notes.append(
      f'{flops.unbounded} loops of unknown length contain matrix products: '
      'FLOPs and times are too low.'
    )
  if traffic.unknown:
    notes.append(
      f'{traffic.unknown} of {traffic.loops} compiled loops are of unknown '
      'length: HBM traffic and collectives are too low.'
    )
  if work.compiler_flops > _ELEMENTWISE_MARGIN * work.hardware_flops:
    notes.append(
      'cost_analysis has many more FLOPs than an even share of the matrix '
      'products: either most of them are elementwise, or chips repeat the work '
      'of others.'
    )
  if estimate.mfu_stated > estimate.mfu_possible:
    notes.append(
      f'an MFU of {units.percent(estimate.mfu_stated)} is more than the '
      'roofline allows: the estimate is too low.'
    )
  return notes


def _size(
  tree: types.PyTree, shape_of: Callable[[Any], tuple[int, ...]]
) -> int:
  """The number of elements of all leaves."""
  return sum(math.prod(shape_of(leaf)) for leaf in jax.tree.leaves(tree))


def _shard_shape(leaf: Any) -> tuple[int, ...]:
  """The shape of a leaf's part on one chip."""
  # Without a sharding every chip has the whole leaf.
  sharding = getattr(leaf, 'sharding', None)
  return sharding.shard_shape(leaf.shape) if sharding else leaf.shape
