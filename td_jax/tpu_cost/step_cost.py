"""What a training step would cost on TPUs that are not there.

The step is compiled for the devices of a `topology.Topology`. Memory is the
compiler's own account; products are counted in the jaxpr (`flops`), bytes and
collectives in the compiled text (`hlo`); times follow from the published speed
of the chips, so they are bounds and not measurements.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import importlib.metadata
import json
import math
import time
from typing import Any

import jax

from td_jax import errors
from td_jax import types
from td_jax.tpu_cost import flops
from td_jax.tpu_cost import hlo
from td_jax.tpu_cost import topology as topology_lib

PAPER_HOURS = 12.0  # For any method on a 4-chip TPU (appendix of the paper).
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one chip's HBM."""

  arguments: int
  temporaries: int
  outputs: int
  aliased: int  # Outputs that take over the memory of donated arguments.
  program: int
  size: int

  @property
  def used(self) -> int:
    return (
      self.arguments
      + self.temporaries
      + self.outputs
      - self.aliased
      + self.program
    )


@dataclasses.dataclass(frozen=True)
class Work:
  """What one chip does in a step."""

  model_flops: float  # Products that the algorithm asks for.
  hardware_flops: float  # With what rematerialisation computes again.
  compiler_flops: float  # cost_analysis: loop bodies once, elementwise too.
  hbm_bytes: float
  compiler_bytes: float  # cost_analysis: loop bodies once, on-chip memory too.
  sent_bytes: float  # Over the links between chips, at the least.


@dataclasses.dataclass(frozen=True)
class Collective:
  """All collectives of a kind that one chip takes part in, in a step."""

  kind: str
  count: int
  bytes: int
  sent_bytes: float
  in_loops: int  # Of `count`.
  exact: bool  # False: some are in loops of unknown length, counted once.


@dataclasses.dataclass(frozen=True)
class Times:
  """Seconds that a step cannot be faster than."""

  products: float  # hardware_flops at the peak.
  memory: float  # hbm_bytes at full bandwidth.
  links: float  # sent_bytes over all links of a chip at once.

  @property
  def bound(self) -> str:
    parts = dataclasses.asdict(self)
    return max(parts, key=lambda name: parts[name])

  @property
  def roofline(self) -> float:
    return max(dataclasses.asdict(self).values())


@dataclasses.dataclass(frozen=True)
class Plan:
  """A whole run. MFU is model_flops over time and peak."""

  steps: int
  hours_allowed: float
  mfu_needed: float  # To finish in them.
  mfu_possible: float  # At the roofline.
  mfu_stated: float  # By whoever asked: nobody measured it.
  hours: float  # At the stated MFU.
  price: float  # US dollars a chip-hour.
  price_source: str
  dollars: float


@dataclasses.dataclass(frozen=True)
class Report:
  topology: str
  chip: topology_lib.Chip
  chips: int
  versions: dict[str, str]
  trace_seconds: float
  compile_seconds: float
  parameters: int
  parameters_per_chip: int
  memory: Memory
  work: Work
  collectives: list[Collective]
  times: Times
  plan: Plan
  notes: list[str]  # What makes a number above too low or too high.


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
  log: Callable[[str], None] = lambda line: None,
) -> Report:
  """Compiles a step and says what it costs.

  Args:
    step: One training step, best as `jax.jit` with what it donates.
    arguments: Its arguments as `jax.ShapeDtypeStruct`s, with shardings on a
      mesh of `topology.devices`.
    topology: What to compile for.
    parameters: The part of the arguments that counts as parameters.
    steps: Of the whole run.
    mfu: In (0, 1]: the share of the peak that is assumed for an estimate.
    hours: That the run may take.
    price: US dollars a chip-hour; the list price if None.
    log: Told before the compiler starts, which takes minutes for a big step.

  Raises:
    errors.ConfigError: the step does not fit into the memory of a chip, or a
      number above makes no sense.
  """
  if not 0 < mfu <= 1:
    raise errors.ConfigError(f'the stated MFU is {mfu}; it lies in (0, 1].')
  if not (steps > 0 and hours > 0 and (price is None or price >= 0)):
    raise errors.ConfigError(
      f'a run of {steps} steps in {hours} hours at {price} dollars a chip-hour '
      'cannot be planned; steps and hours are above 0, the price at least 0.'
    )
  chip, chips = topology.chip, len(topology.devices)
  began = time.monotonic()
  jitted: Any = step if hasattr(step, 'trace') else jax.jit(step)
  traced = jitted.trace(*arguments)
  lowered = traced.lower()
  traced_at = time.monotonic()
  counted = flops.count(traced.jaxpr)
  log(
    f'compiling {_si(counted.hardware)}FLOPs for {topology.name}; a big step '
    'takes minutes'
  )
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    raise errors.ConfigError(
      f'the step does not fit on {topology.name}: {str(e).splitlines()[0]} '
      'Take a smaller batch_size, rematerialise, or take more chips.'
    ) from e
  compiled_at = time.monotonic()

  text = compiled.as_text()
  traffic = hlo.traffic(text)
  collectives = _by_kind(hlo.collectives(text))
  costs = compiled.cost_analysis()
  work = Work(
    model_flops=counted.model / chips,
    hardware_flops=counted.hardware / chips,
    compiler_flops=costs.get('flops', 0.0),
    hbm_bytes=traffic.bytes,
    compiler_bytes=costs.get('bytes accessed', 0.0),
    sent_bytes=sum((row.sent_bytes for row in collectives), 0.0),
  )
  times = Times(
    products=work.hardware_flops / chip.peak_flops,
    memory=work.hbm_bytes / chip.hbm_bandwidth,
    links=work.sent_bytes / (max(1, topology.links) * chip.link_bandwidth),
  )
  plan = _plan(
    work,
    times,
    topology,
    steps=steps,
    mfu=mfu,
    hours=hours,
    price=price,
  )
  return Report(
    topology=topology.name,
    chip=chip,
    chips=chips,
    versions=_versions(),
    trace_seconds=traced_at - began,
    compile_seconds=compiled_at - traced_at,
    parameters=_count(parameters, lambda leaf: leaf.shape),
    parameters_per_chip=_count(parameters, _share),
    memory=_memory(compiled.memory_analysis(), chip),
    work=work,
    collectives=collectives,
    times=times,
    plan=plan,
    notes=_notes(counted, traffic, work, plan),
  )


def as_json(report: Report) -> str:
  """The report for a machine: bytes, seconds, FLOPs, and what follows."""
  values = dataclasses.asdict(report)
  values['memory']['used'] = report.memory.used
  values['times']['bound'] = report.times.bound
  values['times']['roofline'] = report.times.roofline
  return json.dumps(values, indent=2, allow_nan=False)


def table(report: Report) -> str:
  """The report for a person."""
  memory, work = report.memory, report.work
  times, plan = report.times, report.plan
  rows = [
    (
      'parameters',
      f'{report.parameters_per_chip:,} of {report.parameters:,}',
    ),
    (
      'HBM',
      f'{memory.used / _GIB:.3g} of {memory.size / _GIB:.0f} GiB '
      f'({_percent(memory.used / memory.size)}): '
      + ', '.join(
        f'{name} {getattr(memory, name) / _GIB:.3g}'
        for name in (
          'arguments',
          'temporaries',
          'outputs',
          'aliased',
          'program',
        )
      ),
    ),
    (
      'FLOPs a step',
      f'{_si(work.model_flops)} model, {_si(work.hardware_flops)} with '
      f'recomputation ({_si(work.compiler_flops)} in cost_analysis)',
    ),
    (
      'HBM traffic a step',
      f'{_si(work.hbm_bytes)}B ({_si(work.compiler_bytes)}B in cost_analysis)',
    ),
  ]
  for row in report.collectives:
    loops = f', {row.in_loops} of them in loops' if row.in_loops else ''
    least = '' if row.exact else ', at the least'
    rows.append(
      (
        f'{row.kind} a step',
        f'{row.count}{loops}{least}: {_si(row.bytes)}B, '
        f'{_si(row.sent_bytes)}B sent',
      )
    )
  if not report.collectives:
    rows.append(('collectives a step', 'none'))
  rows += [
    (
      'a step takes',
      f'{_ms(times.roofline)} or more, bound by its {times.bound} (products '
      f'{_ms(times.products)}, memory {_ms(times.memory)}, links '
      f'{_ms(times.links)})',
    ),
    (
      f'MFU for {plan.hours_allowed:g} h',
      f'{_percent(plan.mfu_needed)} needed for {plan.steps:,} steps; '
      f'{_percent(plan.mfu_possible)} possible at the roofline',
    ),
    (
      'estimate',
      f'{plan.hours:.3g} h at an MFU of {_percent(plan.mfu_stated)} (stated, not '
      f'measured), ${plan.dollars:,.2f} for all chips at ${plan.price:g} a '
      f'chip-hour ({plan.price_source})',
    ),
    *(('note', note) for note in report.notes),
  ]
  versions = ', '.join(
    f'{name} {version}' for name, version in report.versions.items()
  )
  width = max(len(name) for name, _ in rows)
  return '\n'.join(
    [
      f'{report.topology}: compiled for {report.chips} chips in '
      f'{report.compile_seconds:.0f} s ({versions})',
      f'per chip of {_si(report.chip.peak_flops)}FLOP/s in bf16, '
      f'{_si(report.chip.hbm_bandwidth)}B/s to HBM:',
      *(f'  {name.ljust(width)}  {said}' for name, said in rows),
    ]
  )


def _by_kind(found):
  """A row for each kind of collective."""
  rows = []
  for kind in hlo.KINDS:
    these = [one for one in found if one.kind == kind]
    if these:
      rows.append(
        Collective(
          kind=kind,
          count=sum(one.times for one in these),
          bytes=sum(one.times * one.bytes for one in these),
          sent_bytes=sum(one.times * one.sent for one in these),
          in_loops=sum(one.times for one in these if one.in_loop),
          exact=all(one.known for one in these),
        )
      )
  return rows


def _plan(work, times, topology, *, steps, mfu, hours, price):
  chip, chips = topology.chip, len(topology.devices)
  # Seconds that a step would take if every chip ran at its peak.
  ideal = work.model_flops / chip.peak_flops
  estimate = steps * ideal / mfu / 3600
  source = 'as given'
  if price is None:
    price, source = chip.price, f'list price: {chip.price_source}'
  return Plan(
    steps=steps,
    hours_allowed=hours,
    mfu_needed=steps * ideal / (hours * 3600),
    mfu_possible=ideal / times.roofline if times.roofline else 0.0,
    mfu_stated=mfu,
    hours=estimate,
    price=price,
    price_source=source,
    dollars=estimate * chips * price,
  )


def _memory(found, chip):
  return Memory(
    arguments=found.argument_size_in_bytes,
    temporaries=found.temp_size_in_bytes,
    outputs=found.output_size_in_bytes,
    aliased=found.alias_size_in_bytes,
    program=found.generated_code_size_in_bytes,
    size=chip.hbm_bytes,
  )


def _notes(counted, traffic, work, plan):
  notes = []
  if counted.unbounded:
    notes.append(
      f'{counted.unbounded} loops of unknown length have products: FLOPs and '
      'times are too low.'
    )
  if traffic.unknown:
    notes.append(
      f'{traffic.unknown} of {traffic.loops} compiled loops are of unknown '
      'length: HBM traffic and collectives are too low.'
    )
  if work.compiler_flops > 1.2 * work.hardware_flops:
    notes.append(
      'cost_analysis has many more FLOPs than an even share of the products: '
      'either elementwise work is most of it, or chips repeat each other.'
    )
  if plan.mfu_stated > plan.mfu_possible:
    notes.append(
      f'an MFU of {_percent(plan.mfu_stated)} is more than the roofline allows: the '
      'estimate is too low.'
    )
  return notes


def _count(tree, shape):
  return sum(math.prod(shape(leaf)) for leaf in jax.tree.leaves(tree))


def _share(leaf):
  """The shape of a leaf's part on one chip."""
  sharding = getattr(leaf, 'sharding', None)
  return sharding.shard_shape(leaf.shape) if sharding else leaf.shape


def _versions():
  versions = {}
  for name in ('jax', 'jaxlib', 'libtpu'):
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = 'none'
  return versions


def _si(value):
  """A value with three digits and the letter of its thousands."""
  for power, letter in ((15, 'P'), (12, 'T'), (9, 'G'), (6, 'M'), (3, 'k')):
    if value >= 10**power:
      return f'{value / 10**power:.3g} {letter}'
  return f'{value:.3g} '


def _percent(share):
  return f'{100 * share:.3g}%'


def _ms(seconds):
  return f'{seconds * 1e3:.3g} ms'
