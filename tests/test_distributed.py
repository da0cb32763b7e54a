"""Two processes are one run: same numbers, one checkpoint, one exit code."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import conftest
import pytest

from td_jax import errors
from td_jax.devices import distributed

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

ROOT = pathlib.Path(__file__).resolve().parents[1]
ARGS = (
  f'--config={ROOT}/configs/movielens.py:runlocal,method=ld',
  conftest.SMALL_DATA,
  '--config.refit_on_validation=False',
  '--config.seeds=1',
)


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
  root = conftest.small_data(tmp_path_factory.mktemp('data'))
  return os.environ | {
    'PYTHONPATH': str(ROOT),
    'TFDS_DATA_DIR': str(root),
    'XLA_FLAGS': (
      f'--xla_force_host_platform_device_count=4 {conftest.FAST_COMPILE}'
    ),
  }


def _start(environment, path, *args):
  """Starts the run in `path` as two processes with two devices each."""
  return subprocess.Popen(
    [
      *(sys.executable, str(ROOT / 'launch/local.py'), '2'),
      # The processes must notice a failure themselves, before local.py acts.
      *('--devices_per_process=2', '--grace=100', '--'),
      *(sys.executable, '-m', 'td_jax.main', '--distributed=on'),
      *(*ARGS, f'--workdir={path}', *args),
    ],
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,
  )


def _results(path):
  return json.loads((path / 'results.json').read_text())


@pytest.fixture(scope='module')
def alone(tmp_path_factory, environment):
  """The same run as one process with four devices."""
  path = tmp_path_factory.mktemp('alone') / 'run'
  subprocess.run(
    [
      *(sys.executable, '-m', 'td_jax.main', *ARGS, f'--workdir={path}'),
      '--config.parallel.kind=mesh',
    ],
    env=environment,
    check=True,
    capture_output=True,
  )
  return path


def test_two_processes_learn_the_same_as_one(tmp_path, environment, alone):
  path = tmp_path / 'run'
  process = _start(environment, path)
  output, _ = process.communicate(timeout=300)
  assert process.returncode == 0, output
  # Only the main process writes files and prints.
  assert output.count('student (ld)') == 1
  ours, theirs = _results(path), _results(alone)
  # Sums over devices are taken in another order, and Adam divides by values
  # close to 0. On one machine this changed the error by 3e-5 of its value.
  for split in ('validation', 'test'):
    assert ours[split]['per_seed'] == pytest.approx(
      theirs[split]['per_seed'], rel=3e-4
    )
    assert ours['teachers']['teacher'][split] == pytest.approx(
      theirs['teachers']['teacher'][split], rel=3e-4
    )


def _wait_for_row(path):
  file, until = path / 'metrics.jsonl', time.monotonic() + 200
  while not (file.exists() and file.read_text()):
    assert time.monotonic() < until
    time.sleep(0.01)


def _pids(process):
  """The ids of the two workers, which local.py prints first."""
  lines = [process.stdout.readline() for _ in range(2)]
  return [int(re.fullmatch(r'\[\d\] pid (\d+)\n', line)[1]) for line in lines]


@pytest.fixture
def long(tmp_path, environment, alone):
  """(process, folder) of a run that takes longer than any test."""
  path = tmp_path / 'run'
  process = _start(
    environment,
    path,
    '--config.steps=10000',
    '--config.steps_per_dispatch=10',
    f'--config.teacher.checkpoint={alone / "teacher"}',
  )
  yield process, path
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
  process.communicate()


def test_a_signal_to_one_saves_for_both(long):
  process, path = long
  pids = _pids(process)
  _wait_for_row(path)
  began = time.monotonic()
  os.kill(pids[1], signal.SIGTERM)
  output, _ = process.communicate(timeout=60)
  assert time.monotonic() - began < 20
  assert process.returncode == 75, output
  # Only one process received the signal, but both stop at the same step.
  assert set(re.findall(r'\[\d\] ended with (\d+)', output)) == {'75'}
  (step,) = set(re.findall(r'saved step (\d+) ', output))
  assert 'SIGTERM: saved' in output
  assert 'another process was asked to stop: saved' in output
  steps = [int(p.name) for p in (path / 'checkpoints').iterdir()]
  assert int(step) == max(steps) < 10_000


def test_if_one_process_dies_the_other_ends(long):
  process, path = long
  pids = _pids(process)
  _wait_for_row(path)
  began = time.monotonic()
  os.kill(pids[1], signal.SIGKILL)
  output, _ = process.communicate(timeout=60)
  assert process.returncode != 0
  # It ended by itself, not by a signal from local.py.
  (status,) = re.findall(r'\[0\] ended with (\d+)', output)
  assert int(status) not in (0, 128 + signal.SIGTERM, 128 + signal.SIGKILL)
  assert time.monotonic() - began < 15
  assert not (path / 'results.json').exists()


@pytest.mark.parametrize(
  'variables',
  [
    {'JAX_COORDINATOR_ADDRESS': 'localhost:1'},
    {
      'JAX_COORDINATOR_ADDRESS': 'localhost:1',
      'JAX_NUM_PROCESSES': 'two',
      'JAX_PROCESS_ID': '0',
    },
  ],
)
def test_incomplete_variables_are_one_line(monkeypatch, variables):
  for name, value in variables.items():
    monkeypatch.setenv(name, value)
  with pytest.raises(errors.ConfigError, match='set all three') as e:
    distributed.initialize('on')
  assert '\n' not in str(e.value)


def test_unknown_mode():
  with pytest.raises(errors.ConfigError, match="mean 'auto'"):
    distributed.initialize('autos')
