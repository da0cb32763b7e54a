"""What a compiled program, as text, moves: between chips and to their memory.

The text is `compiled.as_text()`: the program of one device after partitioning.
Loops count as often as they run where that can be seen in the text.
"""

from collections.abc import Iterator
import dataclasses
import math
import re

KINDS = (
  'all-reduce',
  'all-gather',
  'reduce-scatter',
  'collective-permute',
  'all-to-all',
  'ragged-all-to-all',
  'collective-broadcast',
)


@dataclasses.dataclass(frozen=True)
class Collective:
  kind: str  # One of KINDS.
  bytes: int  # What is reduced, gathered or sent: the whole, once.
  group: int  # Devices that take part together.
  times: int  # How often it runs; 1 for each unknown loop.
  known: bool  # Whether `times` is exact.
  in_loop: bool

  @property
  def sent(self) -> float:
    """The fewest bytes that a device must send for one run.

    A ring reaches it: each chip passes on all but its own part of a gathered or
    scattered array, and an all-reduce is a scatter and a gather.
    """
    if self.kind == 'all-reduce':
      return 2 * self.bytes * (self.group - 1) / self.group
    if self.kind == 'collective-permute':
      return float(self.bytes)
    return self.bytes * (self.group - 1) / self.group


@dataclasses.dataclass(frozen=True)
class Traffic:
  bytes: float  # To and from the main memory of a chip, in one run.
  loops: int  # While loops left in the program.
  unknown: int  # Those of unknown length, whose body was counted once.


def collectives(text: str) -> list[Collective]:
  """Every collective that a compiled program runs, loops included.

  The asynchronous halves `-start` and `-done` are one, and so are the pieces of
  a chain: TPUs spread a collective over the fusions that run meanwhile. What
  they do as a fusion named all-reduce-scatter is a reduce-scatter.
  """
  module = _parse(text)
  found = []
  for body, run in _runs(module):
    for where, one in _collectives(module, body):
      kind = one.op.removesuffix('-start')
      names = module.computations[where]
      size = sum(names[name].bytes for name in one.operands)
      group = _group(one, module.devices)
      if kind == 'all-reduce' and where.startswith('all-reduce-scatter'):
        kind = 'reduce-scatter'
      if kind == 'all-gather':
        size *= group
      found.append(
        Collective(kind, size, group, run.times, run.known, run.in_loop)
      )
  return found


def traffic(text: str) -> Traffic:
  """The fewest bytes that a program reads from and writes to main memory.

  Each instruction reads its operands and writes its results once; inside a
  fusion nothing is written down, of a slice only the slice is touched, and what
  the compiler put into memory on the chip itself (spaces other than 0) is left
  out. Tiles that a product reads more than once are not seen.
  """
  module = _parse(text)
  total, loops, unknown = 0.0, 0, 0
  for body, run in _runs(module):
    for instruction in module.computations[body].values():
      total += run.times * _moved(module, body, instruction)
      if instruction.op == 'while':
        loops += 1
        unknown += _trips(module, instruction) is None
    for where, one in _collectives(module, body):
      if one.chain:  # Its pieces moved nothing, above.
        source = module.computations[where][one.operands[0]]
        total += run.times * (source.stored + one.stored)
  return Traffic(total, loops, unknown)


# ---- The text.

_ARRAY = re.compile(r'([a-z]\w*)\[([^\]]*)\](\{[^}]*\})?')
_NAME = re.compile(r'%([\w.\-]+)')
_LINE = re.compile(r'\s+(ROOT )?%([\w.\-]+) = (.*)')
_HEAD = re.compile(r'(ENTRY )?%([\w.\-]+) \(.*\{$')


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  shape: str
  op: str
  inside: str  # Between the parentheses after the opcode.
  rest: str  # Attributes.
  root: bool

  @property
  def operands(self) -> list[str]:
    return _NAME.findall(self.inside)

  @property
  def bytes(self) -> int:
    """Of the result, wherever it is."""
    return sum(size for size, _ in _leaves(self.shape))

  @property
  def stored(self) -> int:
    """Bytes of the result in main memory."""
    return sum(size for size, space in _leaves(self.shape) if space == 0)

  @property
  def chain(self) -> str:
    """What the pieces of one collective have in common, or ''."""
    found = re.search(r'chain_id="(\w+)"', self.rest)
    return found[1] if found and self.op in KINDS else ''

  def called(self, how: str) -> str:
    """The computation given as attribute `how`, or ''."""
    found = re.search(rf'\b{how}=%?([\w.\-]+)', self.rest)
    return found[1] if found else ''


@dataclasses.dataclass(frozen=True)
class _Module:
  computations: dict[str, dict[str, _Instruction]]
  entry: str
  devices: int


def _parse(text):
  computations, entry, current = {}, '', {}
  for line in text.splitlines():
    if head := _HEAD.match(line):
      current = computations.setdefault(head[2], {})
      entry = head[2] if head[1] else entry
    elif found := _LINE.match(line):
      shape, after = _split(found[3])
      op, _, tail = after.partition('(')
      inside, rest = _split('(' + tail)
      current[found[2]] = _Instruction(
        found[2], shape, op.strip(), inside, rest, bool(found[1])
      )
  counts = re.findall(r'(?:num_partitions|replica_count)=(\d+)', text[:5000])
  return _Module(computations, entry, math.prod(map(int, counts)))


def _split(text):
  """A leading shape or parenthesis, and what follows it."""
  if not text.startswith('('):
    head, _, tail = text.partition(' ')
    return head, tail
  depth = 0
  for place, letter in enumerate(text):
    depth += (letter == '(') - (letter == ')')
    if depth == 0:
      return text[: place + 1], text[place + 1 :].lstrip()
  return text, ''


def _leaves(shape):
  """(bytes, memory space) of each array of a shape; 0 is main memory."""
  leaves = []
  for kind, sizes, layout in _ARRAY.findall(shape):
    bits = re.search(r'\d+', kind)
    width = int(bits[0]) if bits else 8 * (kind == 'pred')
    count = math.prod(
      int(size.strip('<= ')) for size in sizes.split(',') if size
    )
    space = re.search(r'S\((\d+)\)', layout)
    leaves.append((math.ceil(count * width / 8), int(space[1]) if space else 0))
  return leaves


# ---- What runs how often.


@dataclasses.dataclass(frozen=True)
class _Run:
  times: int = 1
  known: bool = True
  in_loop: bool = False


def _runs(module: _Module) -> Iterator[tuple[str, _Run]]:
  """The computations that are reached by control flow, each call of them."""
  todo = [(module.entry, _Run())]
  while todo:
    name, run = todo.pop()
    yield name, run
    for one in module.computations[name].values():
      if one.op == 'while':
        trips = _trips(module, one)
        again = _Run(
          run.times * (trips or 1), run.known and trips is not None, True
        )
        todo += [(one.called(part), again) for part in ('body', 'condition')]
      elif one.op == 'conditional':
        branches = re.search(r'branch_computations=\{([^}]*)\}', one.rest)
        names = (
          _NAME.findall(branches[1])
          if branches
          else [one.called('true_computation'), one.called('false_computation')]
        )
        todo += [(branch, run) for branch in names]
      elif one.op == 'call':
        todo.append((one.called('to_apply'), run))


def _trips(module, loop):
  """How often a loop runs; None if the text does not say.

  TPU programs lack `known_trip_count`: there it is the one constant that the
  condition compares with, as JAX's scans count up from 0.
  """
  if known := re.search(r'known_trip_count\W+n\W+(\d+)', loop.rest):
    return int(known[1])
  condition = module.computations[loop.called('condition')]
  inside = list(condition.values())
  for one in condition.values():
    if one.op in ('fusion', 'call'):
      name = one.called('calls') or one.called('to_apply')
      inside += module.computations[name].values()
  compared = [one.rest for one in inside if one.op == 'compare']
  limits = [
    int(one.inside.strip('()'))
    for one in inside
    if one.op == 'constant' and re.match(r'[su]\d+\[\]', one.shape)
  ]
  if len(compared) == len(limits) == 1 and 'direction=LT' in compared[0]:
    return limits[0]
  return None


def _fused(module, name):
  """(computation, instruction) of all that is fused in computation `name`."""
  for one in module.computations[name].values():
    if one.op == 'fusion':
      yield from _fused(module, one.called('calls'))
    else:
      yield name, one


def _collectives(module, body):
  """(computation, instruction) of each collective that a computation runs."""
  chains = set()
  for instruction in module.computations[body].values():
    inner = [(body, instruction)]
    if instruction.op == 'fusion':
      inner = _fused(module, instruction.called('calls'))
    for where, one in inner:
      if one.op.removesuffix('-start') in KINDS and one.chain not in chains:
        yield where, one
        chains |= {one.chain} - {''}


def _group(instruction, devices):
  """How many devices take part in a collective together."""
  said = re.search(
    r'replica_groups=(mesh\[[^\]]*\].*?\{[^}]*\}|\[[^\]]*\]|\{\{[^}]*\}|\{\})',
    instruction.rest,
  )
  if not said or said[1] == '{}':
    return devices
  if said[1].startswith('mesh'):  # mesh['a'=2,'b'=4] {'b'}
    sizes = dict(re.findall(r"'(\w+)'=(\d+)", said[1]))
    named = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", said[1].rpartition('{')[2])
    return math.prod(int(part or sizes[axis]) for axis, part in named)
  if said[1].startswith('['):  # [groups, devices of each]<=[...]
    return int(said[1].strip('[]').split(',')[-1])
  return said[1].count(',') + 1  # {{0,1},{2,3}}


# ---- Main memory.

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
_NO_COPY = ('AllocateBuffer', 'ConcatBitcast')  # Custom calls of TPUs.


def _moved(module, body, one):
  """Bytes of main memory that one instruction reads and writes."""
  if one.op in _FREE or any(f'"{name}"' in one.rest for name in _NO_COPY):
    return 0
  names = module.computations[body]
  if one.op.endswith('-done'):
    return one.stored  # What its start began to read arrives.
  read = 0
  for place, name in enumerate(one.operands):
    source = names[name]
    if source.stored:
      touched = _touched(module, one, place)
      read += source.stored if touched is None else min(touched, source.stored)
  if one.op.endswith('-start'):
    return read
  return read + _written(module, names, one)


def _touched(module, one, place):
  """Bytes that an instruction reads of one operand; None for all of it."""
  if one.op in _SLICES and place == 0:
    # A start's result is (source, destination, ...).
    sizes = [size for size, _ in _leaves(one.shape)]
    return sizes[1] if one.op.endswith('-start') else sizes[0]
  if one.chain:
    return 0  # See `traffic`.
  if one.op in ('dynamic-update-slice', 'scatter') and place == 0:
    return 0  # Updated in place.
  if one.op in ('fusion', 'async-start'):
    inside = module.computations[one.called('calls')]
    for inner in inside.values():
      if inner.op == 'parameter' and inner.inside == f'({place})':
        return _used(module, inside, inner.name)
  return None


def _used(module, inside, name):
  """Bytes that a fused computation reads of its value `name`; None for all."""
  total = 0
  for user in inside.values():
    for place, operand in enumerate(user.operands):
      if operand != name:
        continue
      if user.op == 'bitcast':
        touched = _used(module, inside, user.name)
      else:
        touched = _touched(module, user, place)
      if touched is None:
        return None
      total += touched
  return total


def _written(module, names, one):
  """Bytes of main memory that an instruction writes."""
  return sum(
    size if part is None else min(size, part)
    for (size, space), part in zip(
      _leaves(one.shape), _parts(module, names, one), strict=True
    )
    if space == 0
  )


def _parts(module, names, one):
  """Of each array of a result how many bytes are new; None for all."""
  if one.chain:
    return [0]
  if one.op in ('dynamic-update-slice', 'scatter'):
    update = one.operands[1 if one.op == 'dynamic-update-slice' else -1]
    return [names[update].bytes]
  if one.op == 'fusion':
    inside = module.computations[one.called('calls')]
    root = next(inner for inner in inside.values() if inner.root)
    return _parts(module, inside, root)
  if one.op in ('tuple', 'bitcast'):
    parts = [_parts(module, names, names[name]) for name in one.operands]
    return [part for each in parts for part in each]
  return [None] * len(_leaves(one.shape))
