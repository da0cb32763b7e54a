"""The collectives of a compiled program: kind, size, group and count."""

import dataclasses
import math
import re

from td_jax.tpu_cost import hlo


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction, for one way to reach it."""

  kind: str  # One of hlo.COLLECTIVES.
  bytes: int  # The whole array that is reduced, gathered or sent, once.
  group: int  # Devices that take part together.
  times: int  # How often it runs; a loop of unknown length counts once.
  known: bool  # Whether `times` is exact.
  in_loop: bool

  @property
  def sent(self) -> float:
    """The least number of bytes that a device must send, for one execution.

    A ring reaches it: each device passes on all but its own part of a gathered
    or scattered array, and an all-reduce is a scatter followed by a gather.
    """
    if self.kind == 'all-reduce':
      return 2 * self.bytes * (self.group - 1) / self.group
    if self.kind == 'collective-permute':
      return float(self.bytes)
    return self.bytes * (self.group - 1) / self.group


def read(module: hlo.Module) -> list[Collective]:
  """Every collective of a program, with loops counted as often as they run.

  The asynchronous halves `-start` and `-done` are one collective. What TPUs
  execute as a fusion named all-reduce-scatter is a reduce-scatter.
  """
  result = []
  for computation, execution in hlo.executions(module):
    for owner, instruction in hlo.collectives(module, computation):
      kind = instruction.op.removesuffix('-start')
      # A collective inside a fusion takes its operands from the fusion's body.
      values = module.computations[owner]
      size = sum(values[name].bytes for name in instruction.operands)
      group = _group(instruction, module.devices)
      if kind == 'all-reduce' and owner.startswith('all-reduce-scatter'):
        kind = 'reduce-scatter'
      if kind == 'all-gather':
        size *= group  # The operand is the share of one device.
      result.append(
        Collective(
          kind,
          size,
          group,
          execution.times,
          execution.known,
          execution.in_loop,
        )
      )
  return result


def _group(instruction: hlo.Instruction, devices: int) -> int:
  """How many devices take part in a collective together.

  XLA writes `replica_groups` in four ways:
    {{0,1},{2,3}}              the groups themselves
    [2,4]<=[8]                 2 groups of 4
    mesh['a'=2,'b'=4] {'b'}    along axes of a mesh
    {}                         all devices
  """
  match = re.search(
    r'replica_groups=(mesh\[[^\]]*\].*?\{[^}]*\}|\[[^\]]*\]|\{\{[^}]*\}|\{\})',
    instruction.attributes,
  )
  if not match or match[1] == '{}':
    return devices
  groups = match[1]
  if groups.startswith('mesh'):
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups))
    # An axis may be split: 'a':(2)4 is the part of size 4 of axis a.
    axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", groups.rpartition('{')[2])
    return math.prod(int(part or sizes[axis]) for axis, part in axes)
  if groups.startswith('['):
    return int(groups.strip('[]').split(',')[-1])
  return groups.count(',') + 1
