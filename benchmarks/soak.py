"""Kills runs at random times, for hours, and compares how they end: results/soak.json.

  python benchmarks/soak.py --minutes=120 --out=results/soak.json

Each task first runs once to its end. Then it runs again and again, and every few
seconds the process gets a SIGKILL or a SIGTERM and the same command is launched anew,
until a launch ends by itself. Its networks, metrics and scores must then equal those of
the first run, bit for bit. A launch may end with 0 (done), 75 (stopped and saved) or by
the SIGKILL; everything else is a fault, and so is a SIGTERM that is answered late.

The tasks are TD on MovieLens, whose teacher is trained in the same run, and TD of a tiny
ViT on made-up images with random crops.
"""

import argparse
from collections.abc import Sequence
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from td_jax import errors
from td_jax.run import command
from td_jax.run import environment
from td_jax.storage import files
from td_jax.use import student as student_lib

_ROOT = pathlib.Path(__file__).parents[1]
_TINY = _ROOT / 'tests' / 'tiny_vision.py'  # A config, a teacher and images.
_WRITE = """
import pathlib, sys, tiny_vision
folder = pathlib.Path(sys.argv[1])
tiny_vision.teacher(folder / 'teacher')
tiny_vision.folder(folder / 'images')
"""
_VOLATILE = ('seconds', 'commit', 'workdir')  # Of results.json.
_TASKS = ('movielens', 'images')


class Launch(NamedTuple):
  """How one process ended."""

  signal: str  # The signal that it got; '' if it ended before.
  code: int
  seconds: float  # From the signal to the end, or from the start.


def commands(
  tasks: Sequence[str], folder: pathlib.Path
) -> dict[str, list[str]]:
  """{task: its command without --workdir}; writes the data that it needs."""
  made = {}
  if 'movielens' in tasks:
    made['movielens'] = [
      '--config=movielens:genre=War,method=td',
      '--config.seeds=1',
      '--config.teacher.steps=300',
      '--config.steps=2000',
    ]
  if 'images' in tasks:
    # Written by the tests' own code, which needs TensorFlow.
    subprocess.run(
      [sys.executable, '-c', _WRITE, str(folder)],
      env=_environment(),
      check=True,
    )
    made['images'] = [
      f'--config={_TINY}:method=td,teacher={folder / "teacher"}',
      f'--config.data.dir={folder / "images"}',
      '--config.steps=1500',
      '--config.eval_every=100',
      '--config.log_every=20',
    ]
  return made


def launch(
  arguments: Sequence[str],
  workdir: pathlib.Path,
  kill: tuple[str, float] | None,
) -> Launch:
  """Runs the command on `workdir`; `kill` is a signal and when to send it."""
  process = subprocess.Popen(
    [sys.executable, '-m', 'td_jax.main', *arguments, f'--workdir={workdir}'],
    cwd=_ROOT,
    env=_environment(),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  start, name = time.monotonic(), ''
  try:
    if kill:
      process.wait(timeout=kill[1])
    code = process.wait()
  except subprocess.TimeoutExpired:
    assert kill
    name, start = kill[0], time.monotonic()
    process.send_signal(getattr(signal, name))
    code = process.wait()
  return Launch(name, code, time.monotonic() - start)


def _environment() -> dict[str, str]:
  return os.environ | {'PYTHONPATH': f'{_ROOT}:{_TINY.parent}'}


def fault(ended: Launch, *, latest: float) -> str:
  """What is wrong with the end of a process; '' if nothing is.

  Args:
    ended: How it ended.
    latest: Seconds in which a SIGTERM has to be answered.
  """
  allowed = {
    '': (0,),
    # It may have been about to end.
    'SIGKILL': (-signal.SIGKILL, 0),
    'SIGTERM': (75, 0),
  }
  if ended.code not in allowed[ended.signal]:
    return f'exit code {ended.code} after {ended.signal or "no signal"}'
  if ended.signal == 'SIGTERM' and ended.seconds > latest:
    return f'SIGTERM was answered after {ended.seconds:.0f} s'
  return ''


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
  """Everything that two runs of one command must have in common."""
  results = json.loads((workdir / 'results.json').read_text())
  variables = student_lib.load(workdir).variables
  return {
    'metrics': (workdir / 'metrics.jsonl').read_text(),
    'results': {k: v for k, v in results.items() if k not in _VOLATILE},
    'parameters': [
      np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(variables)
    ],
  }


def soak(
  arguments: Sequence[str],
  folder: pathlib.Path,
  *,
  expected: dict[str, Any],
  rng: np.random.Generator,
  gaps: tuple[float, float],
  latest: float,
) -> tuple[list[Launch], list[str]]:
  """One run that is killed until it ends: (its launches, its faults)."""
  launches, faults = [], []
  while not launches or launches[-1].code != 0:
    name = 'SIGKILL' if rng.random() < 0.5 else 'SIGTERM'
    # Longer each time: on a busy machine a launch may not reach its first save.
    after = rng.uniform(*gaps) * 1.1 ** len(launches)
    launches.append(launch(arguments, folder, (name, after)))
    if found := fault(launches[-1], latest=latest):
      faults.append(found)
    if len(faults) > 3:
      return launches, [*faults, 'given up']
  found = outcome(folder)
  faults += [
    f'{part} differ' for part in found if found[part] != expected[part]
  ]
  return launches, faults


def main() -> None:
  """Soaks the tasks in turn until the time is over, and writes the counts."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--minutes', type=float, default=120.0)
  parser.add_argument('--tasks', default=','.join(_TASKS))
  parser.add_argument(
    '--gaps',
    default='5,60',
    help='least and most seconds before the first signal of a run; later ones come '
    'later',
  )
  parser.add_argument(
    '--latest',
    type=float,
    default=10.0,
    help='seconds in which a SIGTERM has to be answered',
  )
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--out', type=pathlib.Path, help='a file of JSON')
  args = parser.parse_args()
  least, most = map(float, args.gaps.split(','))
  rng = np.random.default_rng(args.seed)
  rows, faults = [], []
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    tasks = commands(args.tasks.split(','), folder)
    expected = {}
    for task, arguments in tasks.items():
      whole = launch(arguments, folder / task, None)
      if found := fault(whole, latest=args.latest):
        raise errors.DataError(f'the uninterrupted run of {task} has {found}.')
      expected[task] = outcome(folder / task)
      print(f'{task}: whole run, {whole.seconds:.0f} s', flush=True)
    until = time.monotonic() + 60 * args.minutes
    while time.monotonic() < until:
      for task, arguments in tasks.items():
        launches, found = soak(
          arguments,
          folder / 'soaked',
          expected=expected[task],
          rng=rng,
          gaps=(least, most),
          latest=args.latest,
        )
        shutil.rmtree(folder / 'soaked')
        faults += [f'{task}: {each}' for each in found]
        rows.append(_row(task, launches, found))
        print(rows[-1], flush=True)
  report = {
    'minutes': args.minutes,
    'gaps_s': [least, most],
    'seed': args.seed,
    'launches': sum(row['launches'] for row in rows),
    'SIGKILL': sum(row['SIGKILL'] for row in rows),
    'SIGTERM': sum(row['SIGTERM'] for row in rows),
    'slowest_answer_s': max(
      (row['slowest_answer_s'] for row in rows), default=0
    ),
    'faults': faults,
    'runs': rows,
    'environment': environment.environment(),
  }
  if args.out:
    files.write_atomically(args.out, json.dumps(report, indent=2) + '\n')
  if faults:
    raise errors.DataError(f'{len(faults)} faults: {"; ".join(faults)}.')


def _row(
  task: str, launches: Sequence[Launch], faults: Sequence[str]
) -> dict[str, Any]:
  answers = [each.seconds for each in launches if each.signal == 'SIGTERM']
  return {
    'task': task,
    'launches': len(launches),
    'SIGKILL': sum(each.signal == 'SIGKILL' for each in launches),
    'SIGTERM': len(answers),
    'slowest_answer_s': round(max(answers, default=0.0), 1),
    'equal_to_the_bit': not any('differ' in each for each in faults),
    'faults': list(faults),
  }


if __name__ == '__main__':
  command.run(main)
