"""Milliseconds a training step, beside the PyTorch peer in one run.

  python benchmarks/speed.py --out=results/speed_movielens.json \
      --peer=PATH/torch_td.py --peer_python=VENV/bin/python
  python benchmarks/speed.py --task=images --out=results/speed_images.json ...
  python benchmarks/speed.py --profile='scratch,td k=1' \
      --out=results/profile_movielens.md

The peer's settings and ours take turns, burst by burst, so that both see the
same machine; each figure is the median of its bursts' medians. Same widths,
batch and dropout on both sides, one seed; ours gathers and prepares real
ratings and real images (CIFAR-10, its crops and flips included), the peer
cycles through made-up ones. Teachers of images have random weights. Without
--peer only ours is measured.

`--settings` measures some; the others of --out stay as they are, so that a
shared machine can be taken for a minute at a time. README.md takes its tables
from --out where it is in results/; `--render` measures nothing. `--profile`
shows where the time of settings goes.
"""

import collections
import glob
import gzip
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from absl import app
from absl import flags
from absl import logging
import jax
import numpy as np

from td_jax import data
from td_jax import errors
from td_jax import models
from td_jax.configs import movielens
from td_jax.configs import vit_cifar10
from td_jax.devices import parallel
from td_jax.paper import markdown
from td_jax.run import environment
from td_jax.run import experiment
from td_jax.run import pipeline
from td_jax.run import preemption
from td_jax.run import teachers
from td_jax.tpu_cost import flops

_OUT = flags.DEFINE_string('out', '', 'JSON, or a profile; "" prints only.')
_PEER = flags.DEFINE_string('peer', '', 'torch_td.py.')
_PEER_PYTHON = flags.DEFINE_string('peer_python', '', 'Python with torch.')
_ROUNDS = flags.DEFINE_integer('rounds', 5, 'Bursts of each setting.')
_SECONDS = flags.DEFINE_float('seconds', 1.5, 'Length of a burst.')
_TASK = flags.DEFINE_enum('task', 'movielens', ['movielens', 'images'], 'Of.')
_CHOSEN = flags.DEFINE_list('settings', [], 'Some only, such as "td k=1".')
_RENDER = flags.DEFINE_bool('render', False, 'Measure nothing.')
_PROFILE = flags.DEFINE_list('profile', [], 'Settings to be profiled.')


class Setting(NamedTuple):
  """One bar of the benchmark."""

  method: str
  k: int
  batch: int
  seeds: int
  cached: bool  # Whether the teacher's states on x are computed before.
  peer: str  # Its name of the method; '': it is not measured.
  patch: int = 0  # Of images: 14 is a ViT-S at 56 px, 32 a ViT-B at 224 px.


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
_STEPS = {'movielens': 50, 'images': 1}  # Of a dispatch.


class Ours:
  """One compiled setting, ready to be timed."""

  def __init__(self, name, teacher_folder):
    self._steps = _STEPS[str(_TASK.value)]
    start = time.perf_counter()
    if _TASK.value == 'movielens':
      config, made = _movielens(_setting(name), teacher_folder)
    else:
      config, made = _images(_setting(name))
    self.steps = config.steps
    self._fixed, self._state, self._rows = made.fixed, made.state, made.rows
    # Compiled by hand, so that a profile can read what XLA made of it.
    traced = jax.jit(made.train, donate_argnums=0).trace(
      self._state, self._fixed, self._rows(0, self._steps)
    )
    self.gflop = flops.count(traced.jaxpr).hardware / self._steps / 1e9
    self._train = traced.lower().compile()
    self.seconds_to_start = time.perf_counter() - start
    self.burst(0.0)  # The first touches memory for the first time.

  def burst(self, seconds):
    """Median milliseconds a step over dispatches of `seconds` in all."""
    taken, end = [], time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
      rows = self._rows(0, self._steps)
      start = time.perf_counter()
      self._state, _ = self._train(self._state, self._fixed, rows)
      jax.block_until_ready(self._state)
      taken.append(1e3 * (time.perf_counter() - start) / self._steps)
    return float(np.median(taken))

  def hlo(self):
    """The optimized program as text."""
    return self._train.as_text()


def _setting(name):
  return SETTINGS[str(_TASK.value)][name]


def _movielens(setting, teacher_folder):
  config = movielens.get_config(f'method={setting.method}')
  config.k, config.batch_size = setting.k, setting.batch
  config.seeds = setting.seeds
  config.model.dropout = 0.2  # The peer's.
  config.teacher.cache = setting.cached
  config.teacher.checkpoint = teacher_folder
  return config, pipeline.prepare(config)


def _images(setting):
  config = vit_cifar10.get_config(f'laptop,method={setting.method}')
  config.k, config.batch_size = setting.k, setting.batch
  config.distill.hidden = config.distill.message = 512  # The peer's.
  config.data.limit, config.data.test = 100, 'test[:100]'
  if setting.patch == 32:
    for part in (config, config.teacher):
      part.model.update(
        {'width': 768, 'heads': 12, 'mlp_width': 3072, 'patch': 32}
      )
    config.data.size = 224
  # Where the teacher has looked before, at the one crop of each image.
  config.teacher.cache = setting.cached
  config.data.augment, config.data.fixed_crops = (
    'inception',
    int(setting.cached),
  )
  config.student_init = 'random'
  task = data.load(config, log=print)
  model = models.build(config.teacher.model, task.model_args)
  shape = (1, config.data.size, config.data.size, 3)
  variables = model.init(jax.random.key(1), np.zeros(shape), train=False)
  made = experiment.build(
    config,
    parallel.Parallel('single', 1),
    task,
    teachers.Teacher(model, variables, ''),
  )
  return config, made


def _peer(name):
  """The peer's milliseconds a step, in a process of its own."""
  setting = _setting(name)
  options = {
    'method': setting.peer,
    'k': setting.k,
    'batch': setting.batch,
    'seconds': _SECONDS.value,
    'warmup': 20 if setting.batch < 1000 else 3,
  }
  if _TASK.value == 'images':
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
  said = subprocess.run(
    [
      _PEER_PYTHON.value,
      _PEER.value,
      *(f'--{option}={value}' for option, value in options.items()),
    ],
    check=True,
    capture_output=True,
    text=True,
  ).stdout.splitlines()
  return json.loads(said[-1])['median_ms_per_step']


def _ceiling():
  """Best GFLOP/s of one float32 matmul, of the sizes the peer's README has."""
  best = 0.0
  for m, k, n in ((256, 768, 256), (4096, 512, 512), (2048, 2048, 2048)):
    a, b = np.ones((m, k), np.float32), np.ones((k, n), np.float32)
    a, b = jax.device_put(a), jax.device_put(b)
    multiply = jax.jit(lambda a, b: a @ b)
    multiply(a, b).block_until_ready()
    for _ in range(20):
      start = time.perf_counter()
      multiply(a, b).block_until_ready()
      best = max(best, 2e-9 * m * k * n / (time.perf_counter() - start))
  return best


# (what is sought in an operation's opcodes, or in its source; its kind)
_KINDS = (
  (r'\bdot\b', 'matrix products'),
  (r'\bscatter\b', "gradients of tables' rows"),
  (r'/optimizer/', 'optimizer'),
  (r'/norm/', "the gradient's norm, to report it"),
  (r'/take/', 'gathering the batch'),
  (r'/drop/|/random|threefry|\bxor\b', 'dropout and its random bits'),
  (r'LayerNorm', 'LayerNorm'),
  (r'_embed', 'embeddings'),
  (r'\bcopy\b|\bconcatenate\b|\btranspose\b', 'copies'),
  (r'', 'other sums and element-wise work'),
)


def _kinds(hlo):
  """Name of an operation in `hlo` -> its kind, of `_KINDS`."""
  inside, found = collections.defaultdict(list), {}
  computation = ''
  for line in hlo.splitlines():
    if line.endswith('{') and not line.startswith(' '):
      computation = line.removeprefix('ENTRY ').split(' ')[0].lstrip('%')
    match = re.match(r'\s+(?:ROOT )?%?([\w.-]+) = .*? ([\w-]+)\(', line)
    if not match:
      continue
    name, opcode = match.groups()
    inside[computation].append(opcode)
    source = re.search(r'op_name="([^"]*)"', line)
    called = re.search(r'calls=%?([\w.-]+)', line)
    found[name] = (
      opcode,
      source[1] if source else '',
      called[1] if called else '',
    )
  return {
    name: next(
      kind
      for sought, kind in _KINDS
      if re.search(sought, ' '.join([opcode, source, *inside[called]]))
    )
    for name, (opcode, source, called) in found.items()
    if opcode not in ('while', 'call')  # Their parts are traced as well.
  }


def _profile(ours, name):
  """Lines of a table: where the time of one setting goes, by kind."""
  kinds, threads, steps = _kinds(ours.hlo()), collections.Counter(), 0
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(4):
        traced = ours.burst(0.0)
        steps += _STEPS[str(_TASK.value)]
    trace = glob.glob(f'{folder}/**/*.trace.json.gz', recursive=True)[0]
    with gzip.open(trace) as f:
      events = json.load(f)['traceEvents']
  for event in events:
    if 'hlo_op' in event.get('args', {}) and event['name'] in kinds:
      threads[kinds[event['name']]] += event['dur'] / 1e3 / steps
  total = sum(threads.values())
  yield f'## {name}'
  yield ''
  yield (
    f'{ours.burst(_SECONDS.value):.2f} ms a step; {traced:.2f} while traced, '
    f'in which the threads worked {total:.2f} ms together:'
  )
  yield ''
  yield '| kind of operation | ms of threads | % |'
  yield '|---|---|---|'
  for kind, spent in threads.most_common():
    yield f'| {kind} | {spent:.3f} | {spent / total:.0%} |'
  yield ''


def _measure(ours):
  """Rows of figures, of bursts by turns; `ours` is by name of setting."""
  times = {name: {'ours': [], 'peer': []} for name in ours}
  ceilings = []
  for _ in range(_ROUNDS.value):
    ceilings.append(_ceiling())
    for name in ours:
      times[name]['ours'].append(ours[name].burst(_SECONDS.value))
      if _PEER.value and _setting(name).peer:
        times[name]['peer'].append(_peer(name))
  for name, taken in times.items():
    ms = float(np.median(taken['ours']))
    ceiling = float(np.median(ceilings))
    row = {
      'setting': name,
      'ms': ms,
      'gflop': ours[name].gflop,
      'ceiling_gflop_per_s': ceiling,
      'of_ceiling': ours[name].gflop / ms * 1e3 / ceiling,
      'seconds_to_start': ours[name].seconds_to_start,
      'seconds_of_a_run': ours[name].seconds_to_start
      + ours[name].steps * ms / 1e3,
      'bursts': taken,
    }
    if taken['peer']:
      row['peer_ms'] = float(np.median(taken['peer']))
      row['ratio'] = row['peer_ms'] / ms
    yield row | environment.environment()


def _line(row):
  line = (
    f'{row["setting"]:28} {row["ms"]:8.2f} ms, a run '
    f'{row["seconds_of_a_run"]:5.1f} s, {row["of_ceiling"]:.0%} of '
    f'{row["ceiling_gflop_per_s"]:.0f} GFLOP/s'
  )
  if 'ratio' in row:
    line += f'  peer {row["peer_ms"]:8.2f} ms  x{row["ratio"]:.2f}'
  return line


def table(rows):
  """The table in Markdown of the rows of --out."""
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


def _to_readme(out):
  """Puts the table of results/NAME.json between the marks of NAME."""
  rows = json.loads(out.read_text())['rows']
  markdown.insert(out.parent.parent / 'README.md', out.stem, table(rows))


def main(argv):
  del argv  # Flags say it all.
  settings = SETTINGS[str(_TASK.value)]
  chosen = _PROFILE.value or _CHOSEN.value or list(settings)
  try:
    for name in chosen:
      errors.choose('a setting', name, settings)
  except errors.ConfigError as e:
    sys.exit(f'error: {e}')
  out = pathlib.Path(_OUT.value) if _OUT.value else None
  if out and _RENDER.value:
    _to_readme(out)
    return
  with tempfile.TemporaryDirectory() as folder:
    if _TASK.value == 'movielens':
      config = movielens.get_config('runlocal,method=teacher')
      pipeline.run(
        config,
        pathlib.Path(folder),
        watch=preemption.Watch(),
        log=lambda line: None,
      )
    ours = {name: Ours(name, folder) for name in chosen}
  if _PROFILE.value:
    command = f"--task={_TASK.value} --profile='{','.join(chosen)}'"
    lines = [
      '# Where the time of a training step goes',
      '',
      f'Written by `benchmarks/speed.py {command}` on '
      f'{jax.device_count()} CPU device of {os.cpu_count()} cores, JAX '
      f'{jax.__version__}.',
      '',
    ]
    for name in chosen:
      lines += _profile(ours[name], name)
    print('\n'.join(lines))
    if out:
      out.write_text('\n'.join(lines[:-1]) + '\n')
    return
  rows = {row['setting']: row for row in _measure(ours)}
  for row in rows.values():
    print(_line(row))
  if out:
    # A row is measured by one run, whole; runs may differ between rows.
    before = json.loads(out.read_text())['rows'] if out.exists() else []
    rows = {row['setting']: row for row in before if 'commit' in row} | rows
    kept = [rows[name] for name in settings if name in rows]
    out.write_text(json.dumps({'rows': kept}, indent=1) + '\n')
    _to_readme(out)


if __name__ == '__main__':
  logging.set_verbosity(logging.WARNING)
  app.run(main)
