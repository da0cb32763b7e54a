"""The bytes that a compiled program moves to and from main memory (HBM)."""

from collections.abc import Mapping
import dataclasses

from td_jax.tpu_cost import hlo

# Operations that only name or pass on values, or whose bodies are counted.
_FREE = (
  'parameter',
  'constant',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'while',
  'conditional',
  'call',
  'after-all',
  'partition-id',
  'replica-id',
  'add-dependency',
  'opt-barrier',
  'domain',
  'async-update',
)
_SLICES = ('slice', 'dynamic-slice', 'gather', 'slice-start')
_UPDATES = ('dynamic-update-slice', 'scatter')
# Custom calls of TPUs that move nothing.
_FREE_CALLS = ('"AllocateBuffer"', '"ConcatBitcast"')


@dataclasses.dataclass(frozen=True)
class Traffic:
  """The memory traffic of one chip, in one execution of a program."""

  bytes: float
  loops: int  # While loops in the program.
  unknown: int  # Loops of unknown length, whose body is counted once.


def read(module: hlo.Module) -> Traffic:
  """The least number of bytes that a program reads and writes.

  Each instruction reads its operands and writes its results once. Inside a
  fusion nothing is written, of a sliced operand only the slice counts, and
  arrays that the compiler placed in on-chip memory (spaces other than 0) do
  not count. Tiles that a product reads more than once are not seen.
  """
  total, loops, unknown = 0.0, 0, 0
  for computation, execution in hlo.executions(module):
    values = module.computations[computation]
    for instruction in values.values():
      total += execution.times * _bytes_moved(module, values, instruction)
      if instruction.op == 'while':
        loops += 1
        unknown += hlo.trip_count(module, instruction) is None
    for owner, piece in hlo.collectives(module, computation):
      if piece.chain:
        # The pieces of a chain share one buffer. They count as nothing above,
        # and the chain counts here, once.
        source = module.computations[owner][piece.operands[0]]
        total += execution.times * (source.main_bytes + piece.main_bytes)
  return Traffic(total, loops, unknown)


def _bytes_moved(
  module: hlo.Module,
  values: Mapping[str, hlo.Instruction],
  instruction: hlo.Instruction,
) -> int:
  """Bytes of main memory that one instruction reads and writes."""
  if instruction.op in _FREE or any(
    name in instruction.attributes for name in _FREE_CALLS
  ):
    return 0
  if instruction.op.endswith('-done'):
    return instruction.main_bytes  # Its -start has counted the reads.
  read_bytes = 0
  for i, name in enumerate(instruction.operands):
    stored = values[name].main_bytes
    if stored:
      part = _operand_part(module, instruction, i)
      read_bytes += stored if part is None else min(part, stored)
  if instruction.op.endswith('-start'):
    return read_bytes
  return read_bytes + _bytes_written(module, values, instruction)


def _operand_part(
  module: hlo.Module, instruction: hlo.Instruction, i: int
) -> int | None:
  """Bytes that an instruction reads of operand `i`; None for all of it."""
  if instruction.op in _SLICES and i == 0:
    # The result of a -start is (source, destination, ...).
    is_start = instruction.op.endswith('-start')
    return instruction.arrays[1 if is_start else 0].bytes
  if instruction.chain:
    return 0  # See `read`.
  if instruction.op in _UPDATES and i == 0:
    return 0  # Updated in place.
  if instruction.op in ('fusion', 'async-start'):
    body = module.computations[instruction.called('calls')]
    for inner in body.values():
      if inner.op == 'parameter' and inner.arguments == f'({i})':
        return _value_part(module, body, inner.name)
  return None


def _value_part(
  module: hlo.Module, body: Mapping[str, hlo.Instruction], name: str
) -> int | None:
  """Bytes that a fused computation reads of its value `name`; None for all."""
  total = 0
  for user in body.values():
    for i, operand in enumerate(user.operands):
      if operand != name:
        continue
      if user.op == 'bitcast':
        part = _value_part(module, body, user.name)
      else:
        part = _operand_part(module, user, i)
      if part is None:
        return None
      total += part
  return total


def _bytes_written(
  module: hlo.Module,
  values: Mapping[str, hlo.Instruction],
  instruction: hlo.Instruction,
) -> int:
  """Bytes of main memory that an instruction writes."""
  parts = _result_parts(module, values, instruction)
  return sum(
    array.bytes if part is None else min(array.bytes, part)
    for array, part in zip(instruction.arrays, parts, strict=True)
    if array.space == 0
  )


def _result_parts(
  module: hlo.Module,
  values: Mapping[str, hlo.Instruction],
  instruction: hlo.Instruction,
) -> list[int | None]:
  """For each array of a result the bytes that are new; None for all."""
  if instruction.chain:
    return [0]
  if instruction.op in _UPDATES:
    is_slice = instruction.op == 'dynamic-update-slice'
    update = instruction.operands[1 if is_slice else -1]
    return [values[update].bytes]
  if instruction.op == 'fusion':
    # A fusion writes what its root returns, which may be an update in place.
    body = module.computations[instruction.called('calls')]
    root = next(inner for inner in body.values() if inner.is_root)
    return _result_parts(module, body, root)
  if instruction.op in ('tuple', 'bitcast'):
    return [
      part
      for name in instruction.operands
      for part in _result_parts(module, values, values[name])
    ]
  return [None] * len(instruction.arrays)
