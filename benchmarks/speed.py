"""Measures milliseconds per training step, beside a PyTorch version of it.

  python benchmarks/speed.py --out=results/speed_movielens.json \
      --peer=PATH/torch_td.py --peer_python=VENV/bin/python
  python benchmarks/speed.py --task=images --out=results/speed_images.json ...
  python benchmarks/speed.py --trace='scratch,td k=1' \
      --out=results/profile_movielens.md

td_jax and the peer take turns, burst by burst, so that both see the same
machine. Each figure is the median of the bursts' medians. Both sides have the
same widths, batch size, dropout and number of seeds. td_jax gathers and
prepares real ratings and real images (CIFAR-10, with crops and flips); the peer
cycles through synthetic ones. Teachers of images have random weights. Without
--peer only td_jax is measured.

`--settings` measures some of the settings and leaves the others in --out as
they are, for a machine that is free for a minute at a time. If --out is in
results/, its table is also written to docs/speed.md; `--render` does only that.
`--trace` shows where the time of some settings goes.
"""

import collections
from collections.abc import Iterator
import glob
import gzip
import json
import os
import pathlib
import re
import subprocess
import tempfile
import time
from typing import Any
from typing import NamedTuple

from absl import app
from absl import flags
import jax
import numpy as np

from td_jax import data
from td_jax import errors
from td_jax import models
from td_jax import types
from td_jax.configs import movielens
from td_jax.configs import vit_cifar10
from td_jax.devices import parallel
from td_jax.paper import markdown
from td_jax.run import command
from td_jax.run import environment
from td_jax.run import experiment
from td_jax.run import pipeline
from td_jax.run import preemption
from td_jax.run import teachers
from td_jax.tpu_cost import flops

_OUT = flags.DEFINE_string(
  'out', '', 'JSON of the rows, or Markdown of a profile.'
)
_PEER = flags.DEFINE_string('peer', '', 'Path of torch_td.py.')
_PEER_PYTHON = flags.DEFINE_string('peer_python', '', 'Python with PyTorch.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Bursts of each setting.')
_SECONDS = flags.DEFINE_float('seconds', 1.5, 'Length of a burst.')
_TASK = flags.DEFINE_enum(
  'task', 'movielens', ['movielens', 'images'], 'Dataset and networks.'
)
_CHOSEN = flags.DEFINE_list('settings', [], 'What to measure; by default all.')
_RENDER = flags.DEFINE_bool('render', False, 'Only write the table of --out.')
_PROFILE = flags.DEFINE_list('trace', [], 'Settings to profile.')

_PAGE = pathlib.Path('docs', 'speed.md')  # Relative to the checkout.
_PROFILED_BURSTS = 4
# Sizes of the matrix products whose best rate is the ceiling; those of the
# peer's README.
_CEILING_SIZES = ((256, 768, 256), (4096, 512, 512), (2048, 2048, 2048))
_CEILING_TRIES = 20


class Setting(NamedTuple):
  """One row of the benchmark."""

  method: str
  k: int
  batch: int
  seeds: int
  cached: bool  # Whether the teacher's states on x are precomputed.
  peer: str  # The peer's name for the method; '' if it is not measured.
  patch: int = 0  # For images: 14 is a ViT-S at 56 px, 32 a ViT-B at 224 px.


SETTINGS = {
  'movielens': {
    'scratch': Setting('scratch', 0, 256, 1, True, 'scratch'),
    'ld': Setting('ld', 0, 256, 1, True, 'LD'),
    'fitnet': Setting('fitnet', 0, 256, 1, True, 'FitNet'),
    'td k=0': Setting('td', 0, 256, 1, True, 'TD'),
    'td k=1': Setting('td', 1, 256, 1, True, 'TD'),
    'td k=2': Setting('td', 2, 256, 1, True, 'TD'),
    'td k=3': Setting('td', 3, 256, 1, True, 'TD'),
    'td k=1 batch 4096': Setting('td', 1, 4096, 1, True, 'TD'),
    'ld uncached': Setting('ld', 0, 256, 1, False, ''),
    'td k=1 uncached': Setting('td', 1, 256, 1, False, ''),
    'scratch 5 seeds': Setting('scratch', 0, 256, 5, True, ''),
    'td k=1 5 seeds': Setting('td', 1, 256, 5, True, ''),
  },
  'images': {
    'ViT-S scratch': Setting('scratch', 0, 32, 1, False, 'scratch', 14),
    'ViT-S ld': Setting('ld', 0, 32, 1, False, 'LD', 14),
    'ViT-S td k=0': Setting('td', 0, 32, 1, False, 'TD', 14),
    'ViT-S td k=1': Setting('td', 1, 32, 1, False, 'TD', 14),
    'ViT-S td k=2': Setting('td', 2, 32, 1, False, 'TD', 14),
    'ViT-S td k=0 cached': Setting('td', 0, 32, 1, True, 'TD', 14),
    'ViT-S td k=1 cached': Setting('td', 1, 32, 1, True, 'TD', 14),
    'ViT-S td k=2 cached': Setting('td', 2, 32, 1, True, 'TD', 14),
    'ViT-B/32 scratch': Setting('scratch', 0, 8, 1, False, 'scratch', 32),
    'ViT-B/32 td k=1': Setting('td', 1, 8, 1, False, 'TD', 32),
    'ViT-B/32 td k=1 cached': Setting('td', 1, 8, 1, True, 'TD', 32),
  },
}
_STEPS_PER_DISPATCH = {'movielens': 50, 'images': 1}


class Program:
  """The compiled training program of one setting, ready to be timed."""

  def __init__(self, setting: Setting, teacher_dir: str):
    self._steps = _STEPS_PER_DISPATCH[_task()]
    start = time.perf_counter()
    if _task() == 'movielens':
      config, built = _movielens(setting, teacher_dir)
    else:
      config, built = _images(setting)
    self.steps = config.steps
    self._fixed, self._state, self._rows = built.fixed, built.state, built.rows
    # Compiled ahead of time, so that a profile can read the optimised program.
    traced = jax.jit(built.train, donate_argnums=0).trace(
      self._state, self._fixed, self._rows(0, self._steps)
    )
    self.gflop = flops.count(traced.jaxpr).hardware / self._steps / 1e9
    self._train = traced.lower().compile()
    self.seconds_to_start = time.perf_counter() - start
    # The first dispatch is slower, because it touches new memory.
    self.burst(0.0)

  def burst(self, seconds: float) -> float:
    """Median milliseconds per step, over dispatches of `seconds` in total."""
    durations, end = [], time.perf_counter() + seconds
    while not durations or time.perf_counter() < end:
      rows = self._rows(0, self._steps)
      start = time.perf_counter()
      self._state, _ = self._train(self._state, self._fixed, rows)
      jax.block_until_ready(self._state)
      durations.append(1e3 * (time.perf_counter() - start) / self._steps)
    return float(np.median(durations))

  def hlo(self) -> str:
    """The optimised program as text."""
    return self._train.as_text() or ''


def _task() -> str:
  return str(_TASK.value)


def _movielens(
  setting: Setting, teacher_dir: str
) -> tuple[types.Config, experiment.Experiment]:
  config = movielens.get_config(f'method={setting.method}')
  config.k, config.batch_size = setting.k, setting.batch
  config.seeds = setting.seeds
  config.model.dropout = 0.2  # As in the peer.
  config.teacher.cache = setting.cached
  config.teacher.checkpoint = teacher_dir
  return config, pipeline.prepare(config)


def _images(setting: Setting) -> tuple[types.Config, experiment.Experiment]:
  config = vit_cifar10.get_config(f'laptop,method={setting.method}')
  config.k, config.batch_size = setting.k, setting.batch
  config.distill.hidden = config.distill.message = 512  # As in the peer.
  # The student and the optimizer of the peer.
  config.model.update({'depth': 4, 'split': (2, 4), 'pooling': 'token'})
  config.optim.name = 'sgd'
  config.data.limit, config.data.test = 100, 'test[:100]'
  if setting.patch == 32:
    for part in (config, config.teacher):
      part.model.update(
        {'width': 768, 'heads': 12, 'mlp_width': 3072, 'patch': 32}
      )
    config.data.size = 224
  # Cached states belong to a fixed crop; without a cache every crop is new.
  config.teacher.cache = setting.cached
  config.data.augment = 'inception'
  config.data.fixed_crops = int(setting.cached)
  config.student_init, config.student_head = 'random', 'zeros'
  task = data.load(config, log=print)
  model = models.build(config.teacher.model, task.model_args)
  shape = (1, config.data.size, config.data.size, 3)
  variables = model.init(jax.random.key(1), np.zeros(shape), train=False)
  built = experiment.build(
    config,
    parallel.Parallel('single', 1),
    task,
    {types.TEACHER: teachers.Teacher(model, variables, '')},
  )
  return config, built


def _peer_ms(setting: Setting) -> float:
  """The peer's milliseconds per step, in its own process."""
  options = {
    'method': setting.peer,
    'k': setting.k,
    'batch': setting.batch,
    'seconds': _SECONDS.value,
    'warmup': 20 if setting.batch < 1000 else 3,
  }
  if _task() == 'images':
    small = setting.patch == 14
    options |= {
      'task': 'vit',
      'warmup': 1,
      'dim': 384 if small else 768,
      'heads': 6 if small else 12,
      'patch': setting.patch,
      'image': 56 if small else 224,
      'classes': 10,
    }
  output = subprocess.run(
    [
      _PEER_PYTHON.value,
      _PEER.value,
      *(f'--{option}={value}' for option, value in options.items()),
    ],
    check=True,
    capture_output=True,
    text=True,
  ).stdout
  return json.loads(output.splitlines()[-1])['median_ms_per_step']


def _ceiling() -> float:
  """The best GFLOP/s of a single float32 matrix product."""
  best = 0.0
  for m, k, n in _CEILING_SIZES:
    a = jax.device_put(np.ones((m, k), np.float32))
    b = jax.device_put(np.ones((k, n), np.float32))
    multiply = jax.jit(lambda a, b: a @ b)
    multiply(a, b).block_until_ready()
    for _ in range(_CEILING_TRIES):
      start = time.perf_counter()
      multiply(a, b).block_until_ready()
      best = max(best, 2e-9 * m * k * n / (time.perf_counter() - start))
  return best


# (pattern, kind): an operation is of the first kind whose pattern occurs in its
# opcodes or in the name of its source. The order matters, because a fusion has
# several opcodes.
_KINDS = (
  (r'\bdot\b', 'matrix products'),
  (r'\bscatter\b', 'gradients of embedding tables'),
  (r'/optimizer/', 'optimizer'),
  (r'/norm/', 'gradient norm, for the metrics'),
  (r'/take/', 'gathering the batch'),
  (r'/drop/|/random|threefry|\bxor\b', 'dropout and its random bits'),
  (r'LayerNorm', 'LayerNorm'),
  (r'_embed', 'embeddings'),
  (r'\bcopy\b|\bconcatenate\b|\btranspose\b', 'copies'),
  (r'', 'other sums and elementwise work'),
)


def _kinds(hlo: str) -> dict[str, str]:
  """{operation: kind} for the operations of a compiled program."""
  opcodes, operations = collections.defaultdict(list), {}
  computation = ''
  for line in hlo.splitlines():
    if line.endswith('{') and not line.startswith(' '):
      computation = line.removeprefix('ENTRY ').split(' ')[0].lstrip('%')
    match = re.match(r'\s+(?:ROOT )?%?([\w.-]+) = .*? ([\w-]+)\(', line)
    if not match:
      continue
    name, opcode = match.groups()
    opcodes[computation].append(opcode)
    source = re.search(r'op_name="([^"]*)"', line)
    called = re.search(r'calls=%?([\w.-]+)', line)
    operations[name] = (
      opcode,
      source[1] if source else '',
      called[1] if called else '',
    )
  return {
    name: next(
      kind
      for pattern, kind in _KINDS
      if re.search(pattern, ' '.join([opcode, source, *opcodes[called]]))
    )
    for name, (opcode, source, called) in operations.items()
    if opcode not in ('while', 'call')  # The trace has their parts as well.
  }


def _profile(program: Program, name: str) -> Iterator[str]:
  """Lines of Markdown: where the time of one setting goes, by kind."""
  kinds, thread_ms = _kinds(program.hlo()), collections.Counter()
  traced = 0.0
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(_PROFILED_BURSTS):
        traced = program.burst(0.0)  # A single dispatch.
    trace = glob.glob(f'{folder}/**/*.trace.json.gz', recursive=True)[0]
    with gzip.open(trace) as f:
      events = json.load(f)['traceEvents']
  steps = _PROFILED_BURSTS * _STEPS_PER_DISPATCH[_task()]
  for event in events:
    if 'hlo_op' in event.get('args', {}) and event['name'] in kinds:
      thread_ms[kinds[event['name']]] += event['dur'] / 1e3 / steps
  total = sum(thread_ms.values())
  yield f'## {name}'
  yield ''
  yield (
    f'A step takes {program.burst(_SECONDS.value):.2f} ms, and {traced:.2f} ms '
    f'under the profiler. Its threads are busy for {total:.2f} ms in total:'
  )
  yield ''
  yield '| kind of operation | ms, all threads | % |'
  yield '|---|---|---|'
  for kind, ms in thread_ms.most_common():
    yield f'| {kind} | {ms:.3f} | {ms / total:.0%} |'
  yield ''


def _measure(programs: dict[str, Program]) -> Iterator[dict[str, Any]]:
  """Rows of figures; the settings, by name, take turns burst by burst."""
  settings = SETTINGS[_task()]
  bursts = {name: {'ours': [], 'peer': []} for name in programs}
  ceilings = []
  for _ in range(_ROUNDS.value):
    ceilings.append(_ceiling())
    for name, program in programs.items():
      bursts[name]['ours'].append(program.burst(_SECONDS.value))
      if _PEER.value and settings[name].peer:
        bursts[name]['peer'].append(_peer_ms(settings[name]))
  ceiling = float(np.median(ceilings))
  for name, program in programs.items():
    ms = float(np.median(bursts[name]['ours']))
    row = {
      'setting': name,
      'ms': ms,
      'gflop': program.gflop,
      'ceiling_gflop_per_s': ceiling,
      'of_ceiling': program.gflop / ms * 1e3 / ceiling,
      'seconds_to_start': program.seconds_to_start,
      'seconds_of_a_run': program.seconds_to_start + program.steps * ms / 1e3,
      'bursts': bursts[name],
    }
    if bursts[name]['peer']:
      row['peer_ms'] = float(np.median(bursts[name]['peer']))
      row['ratio'] = row['peer_ms'] / ms
    yield row | environment.environment()


def _line(row: dict[str, Any]) -> str:
  """A row as it is printed."""
  line = (
    f'{row["setting"]:28} {row["ms"]:8.2f} ms, a run '
    f'{row["seconds_of_a_run"]:5.1f} s, {row["of_ceiling"]:.0%} of '
    f'{row["ceiling_gflop_per_s"]:.0f} GFLOP/s'
  )
  if 'ratio' in row:
    line += f'  peer {row["peer_ms"]:8.2f} ms  x{row["ratio"]:.2f}'
  return line


def table(rows: list[dict[str, Any]]) -> str:
  """The rows of --out as a table in Markdown."""
  lines = [
    '| | td_jax, ms a step | PyTorch, eager | ratio | GFLOP | of the best matmul |',
    '|---|---|---|---|---|---|',
  ]
  for row in rows:
    peer = ('', '')
    if 'ratio' in row:
      peer = (f'{row["peer_ms"]:.4g}', f'{row["ratio"]:.2f}')
    texts = [
      row['setting'],
      f'{row["ms"]:.4g}',
      *peer,
      f'{row["gflop"]:.3g}',
      f'{row["of_ceiling"]:.0%} of {row["ceiling_gflop_per_s"]:.0f} GFLOP/s',
    ]
    lines.append('| ' + ' | '.join(texts) + ' |')
  return '\n'.join([*lines, ''])


def _write_page(out: pathlib.Path) -> None:
  """Inserts the table of CHECKOUT/results/NAME.json at the marks of NAME."""
  rows = json.loads(out.read_text())['rows']
  checkout = out.resolve().parent.parent
  markdown.insert(checkout / _PAGE, out.stem, table(rows))


def _write_profile(
  programs: dict[str, Program], out: pathlib.Path | None
) -> None:
  options = f"--task={_task()} --trace='{','.join(programs)}'"
  lines = [
    '# Where the time of a training step goes',
    '',
    f'Written by `benchmarks/speed.py {options}` on {jax.device_count()} CPU '
    f'device with {os.cpu_count()} cores, JAX {jax.__version__}.',
    '',
  ]
  for name, program in programs.items():
    lines += _profile(program, name)
  print('\n'.join(lines))
  if out:
    out.write_text('\n'.join(lines[:-1]) + '\n')


def _write_rows(measured: list[dict[str, Any]], out: pathlib.Path) -> None:
  """Adds rows to the file, in the order of the settings."""
  # A row comes from one run as a whole; runs may differ between rows.
  before = json.loads(out.read_text())['rows'] if out.exists() else []
  rows = {row['setting']: row for row in [*before, *measured]}
  ordered = [rows[name] for name in SETTINGS[_task()] if name in rows]
  out.write_text(json.dumps({'rows': ordered}, indent=1) + '\n')
  _write_page(out)


def _train_teacher(folder: str) -> None:
  """Any teacher of the right size serves, so this one trains for seconds."""
  pipeline.run(
    movielens.get_config('runlocal,method=teacher'),
    pathlib.Path(folder),
    watch=preemption.Watch(),
    log=types.no_log,
  )


def main() -> None:
  """Measures, profiles or renders, as the flags ask."""
  settings = SETTINGS[_task()]
  names = _PROFILE.value or _CHOSEN.value or list(settings)
  for name in names:
    errors.choose('a setting', name, settings)
  out = pathlib.Path(_OUT.value) if _OUT.value else None
  if _RENDER.value:
    if out is None:
      raise errors.ConfigError('--render needs --out, the file to render.')
    _write_page(out)
    return
  with tempfile.TemporaryDirectory() as folder:
    if _task() == 'movielens':
      _train_teacher(folder)
    programs = {name: Program(settings[name], folder) for name in names}
  if _PROFILE.value:
    _write_profile(programs, out)
    return
  rows = list(_measure(programs))
  for row in rows:
    print(_line(row))
  if out:
    _write_rows(rows, out)


if __name__ == '__main__':
  app.run(lambda argv: command.run(main))
