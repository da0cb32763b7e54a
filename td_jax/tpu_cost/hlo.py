"""Parses the text of a compiled program, and says how often its parts run.

The text is `compiled.as_text()`: the program of one device after partitioning.
Loops count as often as they run, where the text tells.
"""

from collections.abc import Iterator
import dataclasses
import math
import re

COLLECTIVES = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'collective-permute',
  'all-to-all',
  'ragged-all-to-all',
  'collective-broadcast',
)

_ARRAY = re.compile(r'([a-z]\w*)\[([^\]]*)\](\{[^}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')
_INSTRUCTION = re.compile(r'\s+(ROOT )?%([\w.\-]+) = (.*)')
_COMPUTATION = re.compile(r'(ENTRY )?%([\w.\-]+) \(.*\{$')


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a shape; a tuple has several."""

  bytes: int
  space: int  # The memory space; 0 is main memory.


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation: `%name = shape op(arguments), attributes`."""

  name: str
  shape: str
  op: str
  arguments: str  # With their parentheses.
  attributes: str
  is_root: bool

  @property
  def operands(self) -> list[str]:
    """The names of the instructions whose results it takes."""
    return _NAME.findall(self.arguments)

  @property
  def arrays(self) -> list[Array]:
    """The arrays of the result."""
    return _arrays(self.shape)

  @property
  def bytes(self) -> int:
    """Bytes of the result, in whatever memory."""
    return sum(array.bytes for array in self.arrays)

  @property
  def main_bytes(self) -> int:
    """Bytes of the result in main memory."""
    return sum(array.bytes for array in self.arrays if array.space == 0)

  @property
  def chain(self) -> str:
    """The id that all pieces of one spread-out collective share, or ''."""
    match = re.search(r'chain_id="(\w+)"', self.attributes)
    return match[1] if match and self.op in COLLECTIVES else ''

  def called(self, attribute: str) -> str:
    """The name of the computation that `attribute` refers to, or ''."""
    match = re.search(rf'\b{attribute}=%?([\w.\-]+)', self.attributes)
    return match[1] if match else ''


Computation = dict[str, Instruction]  # By name, in the order of the text.


@dataclasses.dataclass(frozen=True)
class Module:
  """A parsed program."""

  computations: dict[str, Computation]
  entry: str
  devices: int


@dataclasses.dataclass(frozen=True)
class Execution:
  """How often a computation runs, for one way to reach it."""

  times: int = 1
  known: bool = True  # Whether `times` is exact.
  in_loop: bool = False


def parse(text: str) -> Module:
  """Parses the text of a program."""
  computations: dict[str, Computation] = {}
  entry, current = '', {}
  for line in text.splitlines():
    if head := _COMPUTATION.match(line):
      current = computations.setdefault(head[2], {})
      entry = head[2] if head[1] else entry
    elif match := _INSTRUCTION.match(line):
      # Operands may be defined further down, so they stay names.
      shape, rest = _split_group(match[3])
      op, _, rest = rest.partition('(')
      arguments, attributes = _split_group('(' + rest)
      current[match[2]] = Instruction(
        name=match[2],
        shape=shape,
        op=op.strip(),
        arguments=arguments,
        attributes=attributes,
        is_root=bool(match[1]),
      )
  # Only the header: metadata further down could hold the same words.
  header = text.partition('\n')[0]
  counts = re.findall(r'(?:num_partitions|replica_count)=(\d+)', header)
  return Module(computations, entry, math.prod(map(int, counts)))


def _split_group(text: str) -> tuple[str, str]:
  """Splits a leading word, or a group in parentheses, from what follows."""
  if not text.startswith('('):
    head, _, tail = text.partition(' ')
    return head, tail
  # Tuple shapes nest, and layouts such as {0:T(8,128)} have parentheses too.
  depth = 0
  for i, character in enumerate(text):
    depth += (character == '(') - (character == ')')
    if depth == 0:
      return text[: i + 1], text[i + 1 :].lstrip()
  return text, ''


def _arrays(shape: str) -> list[Array]:
  arrays = []
  for dtype, sizes, layout in _ARRAY.findall(shape):
    bits = re.search(r'\d+', dtype)
    # A pred has a byte an element; token and opaque have no data.
    width = int(bits[0]) if bits else 8 * (dtype == 'pred')
    # Dynamic sizes are written as upper bounds: f32[<=8].
    count = math.prod(
      int(size.strip('<= ')) for size in sizes.split(',') if size
    )
    space = re.search(r'S\((\d+)\)', layout)
    arrays.append(
      Array(math.ceil(count * width / 8), int(space[1]) if space else 0)
    )
  return arrays


def executions(module: Module) -> Iterator[tuple[str, Execution]]:
  """(computation, execution) of all that control flow reaches from the entry.

  A computation that is called in two places comes twice. Fusions are not
  followed: they are part of the computation that holds them.
  """
  pending = [(module.entry, Execution())]
  while pending:
    name, execution = pending.pop()
    yield name, execution
    for instruction in module.computations[name].values():
      if instruction.op == 'while':
        trips = trip_count(module, instruction)
        inner = Execution(
          times=execution.times * (trips or 1),
          known=execution.known and trips is not None,
          in_loop=True,
        )
        pending += [
          (instruction.called(part), inner) for part in ('body', 'condition')
        ]
      elif instruction.op == 'conditional':
        # Which branch runs is not known; all are counted.
        pending += [(branch, execution) for branch in _branches(instruction)]
      elif instruction.op == 'call':
        pending.append((instruction.called('to_apply'), execution))


def _branches(conditional: Instruction) -> list[str]:
  match = re.search(r'branch_computations=\{([^}]*)\}', conditional.attributes)
  if match:
    return _NAME.findall(match[1])
  return [
    conditional.called('true_computation'),
    conditional.called('false_computation'),
  ]


def trip_count(module: Module, loop: Instruction) -> int | None:
  """How often a loop runs; None if the text does not tell.

  TPU programs lack `known_trip_count`. JAX's scans count up from 0, so there
  the number is the only constant that the loop's condition compares with.
  """
  if known := re.search(r'known_trip_count\W+n\W+(\d+)', loop.attributes):
    return int(known[1])
  condition = module.computations[loop.called('condition')]
  instructions = list(condition.values())
  for instruction in condition.values():
    if instruction.op in ('fusion', 'call'):
      name = instruction.called('calls') or instruction.called('to_apply')
      instructions += module.computations[name].values()
  comparisons = [i.attributes for i in instructions if i.op == 'compare']
  limits = [
    int(i.arguments.strip('()'))
    for i in instructions
    if i.op == 'constant' and re.match(r'[su]\d+\[\]', i.shape)
  ]
  # With anything more in the condition the constant might mean something else.
  if len(comparisons) == len(limits) == 1 and 'direction=LT' in comparisons[0]:
    return limits[0]
  return None


def fused(module: Module, name: str) -> Iterator[tuple[str, Instruction]]:
  """(computation, instruction) of all that is fused in computation `name`."""
  for instruction in module.computations[name].values():
    if instruction.op == 'fusion':
      yield from fused(module, instruction.called('calls'))
    else:
      yield name, instruction


def collectives(module: Module, name: str) -> Iterator[tuple[str, Instruction]]:
  """(computation, instruction) of each collective that `name` executes.

  TPUs spread a collective over the fusions that run meanwhile. Such a chain
  of pieces comes once, as its first piece.
  """
  seen = set()
  for instruction in module.computations[name].values():
    inner = [(name, instruction)]
    if instruction.op == 'fusion':
      inner = fused(module, instruction.called('calls'))
    for owner, piece in inner:
      is_collective = piece.op.removesuffix('-start') in COLLECTIVES
      if is_collective and piece.chain not in seen:
        yield owner, piece
        seen |= {piece.chain} - {''}
