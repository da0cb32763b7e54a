"""Writes a cost report down, as a table for a person and as JSON."""

import dataclasses
import json

from td_jax.tpu_cost import chips
from td_jax.tpu_cost import step_cost
from td_jax.tpu_cost import units

_Row = tuple[str, str]
_MEMORY_PARTS = ('arguments', 'temporaries', 'outputs', 'aliased', 'program')


def as_json(report: step_cost.Report) -> str:
  """All figures in bytes, seconds and FLOPs, with those derived from them."""
  values = dataclasses.asdict(report)
  values['memory']['used'] = report.memory.used
  values['times']['bound'] = report.times.bound
  values['times']['roofline'] = report.times.roofline
  # The name that the estimate has in files since version 0.1.
  values['plan'] = values.pop('estimate')
  return json.dumps(values, indent=2, allow_nan=False)


def table(report: step_cost.Report) -> str:
  """The figures as aligned lines of text."""
  rows = [
    *_memory_rows(report),
    *_work_rows(report),
    *_collective_rows(report),
    *_time_rows(report),
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
      f'per chip of {units.si(report.chip.peak_flops)}FLOP/s in bf16, '
      f'{units.si(report.chip.hbm_bandwidth)}B/s to HBM:',
      *(f'  {name.ljust(width)}  {text}' for name, text in rows),
    ]
  )


def _memory_rows(report: step_cost.Report) -> list[_Row]:
  memory = report.memory
  parts = ', '.join(
    f'{name} {getattr(memory, name) / chips.GIB:.3g}' for name in _MEMORY_PARTS
  )
  return [
    (
      'parameters',
      f'{report.parameters_per_chip:,} of {report.parameters:,}',
    ),
    (
      'HBM',
      f'{memory.used / chips.GIB:.3g} of {memory.size / chips.GIB:.0f} GiB '
      f'({units.percent(memory.used / memory.size)}): {parts}',
    ),
  ]


def _work_rows(report: step_cost.Report) -> list[_Row]:
  work = report.work
  return [
    (
      'FLOPs a step',
      f'{units.si(work.model_flops)} model, {units.si(work.hardware_flops)} '
      f'with recomputation ({units.si(work.compiler_flops)} in cost_analysis)',
    ),
    (
      'HBM traffic a step',
      f'{units.si(work.hbm_bytes)}B ({units.si(work.compiler_bytes)}B in '
      'cost_analysis)',
    ),
  ]


def _collective_rows(report: step_cost.Report) -> list[_Row]:
  rows = []
  for total in report.collectives:
    loops = f', {total.in_loops} of them in loops' if total.in_loops else ''
    least = '' if total.exact else ', at least'
    rows.append(
      (
        f'{total.kind} a step',
        f'{total.count}{loops}{least}: {units.si(total.bytes)}B, '
        f'{units.si(total.sent_bytes)}B sent',
      )
    )
  return rows or [('collectives a step', 'none')]


def _time_rows(report: step_cost.Report) -> list[_Row]:
  times, estimate = report.times, report.estimate
  return [
    (
      'a step takes',
      f'{units.milliseconds(times.roofline)} or more, bound by its '
      f'{times.bound} (products {units.milliseconds(times.products)}, memory '
      f'{units.milliseconds(times.memory)}, links '
      f'{units.milliseconds(times.links)})',
    ),
    (
      f'MFU for {estimate.hours_allowed:g} h',
      f'{units.percent(estimate.mfu_needed)} needed for {estimate.steps:,} '
      f'steps; {units.percent(estimate.mfu_possible)} possible at the roofline',
    ),
    (
      'estimate',
      f'{estimate.hours:.3g} h at an MFU of '
      f'{units.percent(estimate.mfu_stated)} (stated, not measured), '
      f'${estimate.dollars:,.2f} for all chips at ${estimate.price:g} a '
      f'chip-hour ({estimate.price_source})',
    ),
  ]
