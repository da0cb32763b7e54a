"""The command: flags, exit codes, and one line for every error."""

import datetime
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import conftest
import numpy as np
import pytest

from td_jax.run import command_line
from td_jax.run import workdir
from td_jax.training import statistics

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """A data folder that holds `small_ratings`."""
  return conftest.small_data(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def environment(data_dir):
  return os.environ | {
    'PYTHONPATH': str(ROOT),
    'TFDS_DATA_DIR': str(data_dir),
    'XLA_FLAGS': conftest.FAST_COMPILE,
  }


CONFIG = f'--config={ROOT}/configs/movielens.py'
VIT = CONFIG.replace('movielens', 'vit_cifar10')


def _start(environment, cwd, *args):
  return subprocess.Popen(
    [sys.executable, '-m', 'td_jax.main', *args],
    cwd=cwd,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def _run(environment, cwd, *args):
  """(exit code, stdout, stderr)"""
  process = _start(environment, cwd, *args)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


SHORT = (
  f'{CONFIG}:runlocal,method=ld',
  conftest.SMALL_DATA,
  '--config.steps=20',
  '--config.teacher.steps=20',
  '--config.eval_every=20',
  '--config.teacher.eval_every=20',
)


@pytest.fixture(scope='module')
def done(tmp_path_factory, environment):
  """A finished run, in a folder that the command named itself."""
  cwd = tmp_path_factory.mktemp('cwd')
  began = datetime.datetime.now().replace(microsecond=0)
  code, out, err = _run(environment, cwd, *SHORT)
  return cwd, began, code, out, err


def test_a_whole_run(done):
  cwd, began, code, out, err = done
  assert code == 0, err
  assert 'Traceback' not in err
  assert 'Warning' not in err
  (path,) = (cwd / 'runs').iterdir()
  name, _, when = path.name.partition('-')
  assert name == 'movielens'
  made = datetime.datetime.strptime(when, '%Y%m%d-%H%M%S-%f')
  assert began <= made <= datetime.datetime.now()
  assert str(path.relative_to(cwd)) in err
  # stdout has the table and nothing else.
  lines = out.splitlines()
  assert re.fullmatch(r'Drama: 2 seeds, 20 steps, \d+ s', lines[0])
  assert lines[1].split() == ['validation', 'RMSE', 'test', 'RMSE']
  names = [line.split('  ')[0] for line in lines[2:]]
  assert names == [
    'mean rating',
    'user+movie bias',
    'teacher (frozen)',
    'student (ld)',
  ]
  assert {path.name for path in path.iterdir() if path.name[0] != '.'} > {
    'config.json',
    'metrics.jsonl',
    'results.json',
    'checkpoints',
    'teacher',
  }


def test_results_hold_what_tables_need(done):
  (path,) = (done[0] / 'runs').iterdir()
  results = json.loads((path / 'results.json').read_text())
  assert results['method'] == 'ld'
  assert results['genre'] == 'Drama'
  assert results['k'] == 1
  assert results['seeds'] == [0, 1]
  assert results['steps'] == 20
  assert results['metric'] == 'rmse'
  assert len(results['best_step']) == 2
  assert results['seconds'] > 0
  for split in ('validation', 'test'):
    score = results[split]
    one, other = score['per_seed']
    assert score['mean'] == pytest.approx((one + other) / 2)
    # The standard error of two numbers is half their distance.
    assert score['standard_error'] == pytest.approx(abs(one - other) / 2)
    assert results['teachers']['teacher'][split] > 0
    assert results['baselines']['user+movie bias'][split] > 0
    assert f'{score["mean"]:.6f} +- {score["standard_error"]:.6f}' in done[3]
  assert results['teachers']['teacher']['folder'] == 'teacher'
  assert re.fullmatch(r'[0-9a-f]{12}(-dirty)?|unknown', results['commit'])
  assert results['python'] == sys.version.split()[0]
  assert set(results['versions']) >= {'jax', 'flax', 'optax', 'numpy'}
  teacher = json.loads((path / 'teacher' / 'results.json').read_text())
  assert (teacher['method'], teacher['genre']) == ('teacher', '')
  assert teacher['seeds'] == [0]
  assert teacher['test']['standard_error'] is None
  assert teacher['teachers'] == {}
  # Metrics do not depend on the clock.
  rows = (path / 'metrics.jsonl').read_text()
  assert 'second' not in rows


def test_eval_prints_the_same_table(done, environment, tmp_path):
  (path,) = (done[0] / 'runs').iterdir()
  moved = path.rename(tmp_path / 'moved')  # With its teacher.
  try:
    code, out, err = _run(
      environment, tmp_path, '--mode=eval', f'--workdir={moved}'
    )
  finally:
    moved.rename(path)
  assert code == 0, err
  assert out == done[3]


def test_help_is_quick_and_light(environment, tmp_path):
  began = time.monotonic()
  code, out, _ = _run(environment, tmp_path, '--help')
  assert time.monotonic() - began < 3
  assert code == 0
  for flag in ('--config', '--workdir', '--mode', '--[no]debug'):
    assert flag in out
  probe = (
    'import sys, td_jax.main; '
    "print([name for name in ('jax', 'tensorflow', 'flax', 'orbax') "
    'if name in sys.modules])'
  )
  process = subprocess.run(
    [sys.executable, '-c', probe],
    env=environment,
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=True,
  )
  assert process.stdout.strip() == '[]'


# Errors that show before JAX is imported, which takes seconds.
@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ((), '--config is missing'),
    (('movielens',), 'did you mean --config=movielens?'),
    ((CONFIG, 'runlocal'), "'runlocal' is not a flag; the arguments"),
    (('--config=configs/none.py',), 'configs/none.py'),
    ((CONFIG, '--workdr=x'), "'workdr'. Did you mean: workdir"),
    (
      (CONFIG, '--mode=test'),
      "--mode is 'test'; choose one of: cka, compile, config, eval, train",
    ),
    ((CONFIG, '--config.kk=3'), "no key 'kk'"),
    ((CONFIG, '--config.methid=td'), "Did you mean 'method'"),
    ((CONFIG, '--config.optim.learning_rat=1'), "mean 'learning_rate'"),
    ((CONFIG, '--config.k=two'), 'two'),
    ((f'{CONFIG}:genr=War',), "Did you mean 'genre'?"),
    ((f'{CONFIG}:runlocal=maybe',), 'write runlocal'),
  ],
)
def test_wrong_flags_are_one_line(environment, tmp_path, args, message):
  code, out, err = _run(environment, tmp_path, *args)
  assert code == 2
  assert message in err
  assert err.startswith('error: ')
  assert err.count('\n') == 1
  assert out == ''
  assert list(tmp_path.iterdir()) == []


def test_a_config_file_that_raises(environment, tmp_path):
  for name, source, message in (
    ('syntax', 'def get_config(:', 'invalid syntax'),
    ('boom', 'def get_config(arg=None):\n  raise OSError("boom")', 'boom'),
    ('none', 'x = 1', 'get_config'),
  ):
    file = tmp_path / f'{name}.py'
    file.write_text(source)
    code, _, err = _run(environment, tmp_path, f'--config={file}')
    assert code == 2, err
    assert message in err
    assert err.count('\n') == 1, err


@pytest.mark.parametrize('flag', ['--debug', '--debug=true', '-debug'])
def test_debug_shows_the_traceback(environment, tmp_path, flag):
  code, _, err = _run(environment, tmp_path, flag, CONFIG, '--mode=test')
  assert code == 2
  assert err.startswith('Traceback')
  assert "error: --mode is 'test'" in err.splitlines()[-1]


# Errors that show later are tested in this process, to import JAX only once.


@pytest.fixture(autouse=True)
def _data(monkeypatch, data_dir):
  monkeypatch.setenv('TFDS_DATA_DIR', str(data_dir))


# ml_collections loads configs with a function that Python has deprecated.
_old_loader = pytest.mark.filterwarnings('ignore:the load_module')


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)


@_old_loader
@pytest.mark.parametrize(
  ('args', 'code', 'message'),
  [
    ((f'{CONFIG}:method=tdd',), 2, "Did you mean 'td'?"),
    ((CONFIG, '--config.k=-1'), 2, 'config.k is -1'),
    ((CONFIG, '--config.distill.weights.state=-1.0'), 2, 'weights.state'),
    ((CONFIG, '--config.distill.weights.state=high'), 2, 'weights.state'),
    ((CONFIG, '--config.parallel.devices=99'), 2, 'there are 8 cpu devices'),
    ((CONFIG, '--config.parallel.devices=3'), 2, 'choose a multiple of 3'),
    (
      (f'{CONFIG}:genre=Warr,method=scratch', conftest.SMALL_DATA),
      2,
      "Did you mean 'War'?",
    ),
    ((CONFIG, '--workdir=/proc/nowhere/run'), 74, 'cannot be written'),
    ((CONFIG, '--mode=eval', '--workdir=nowhere'), 65, 'config.json'),
    ((CONFIG, '--mode=eval'), 2, '--workdir is missing'),
    ((CONFIG, '--config.teacher.checkpoint=nowhere'), 65, 'published weights'),
    ((CONFIG, '--config.model.hidden=(0,-1)'), 2, 'the widths of the layers'),
    ((f'{VIT}:laptop,teacher=',), 2, 'config.teacher.checkpoint is empty'),
    ((f'{VIT}:laptop,teacher=README.md',), 65, 'neither the folder of a run'),
  ],
)
def test_later_errors_are_one_line(command, elsewhere, args, code, message):
  del elsewhere  # The fixture only changes the working directory.
  got, out, err = command(*args)
  assert got == code
  errors = [line for line in err.splitlines() if line.startswith('error: ')]
  assert len(errors) == 1
  assert message in errors[0]
  assert err.splitlines()[-1] == errors[0]
  assert 'Traceback' not in err
  assert out == ''


@_old_loader
def test_a_bad_genre_leaves_the_folder_free(command, tmp_path):
  """The corrected command must be able to use the same folder."""
  path = tmp_path / 'run'
  where = f'--workdir={path}'
  code, _, _ = command(
    f'{CONFIG}:genre=Warr,method=scratch', conftest.SMALL_DATA, where
  )
  assert code == 2
  code, _, err = command(
    f'{CONFIG}:genre=War,method=scratch', where, '--config.parallel.devices=7'
  )
  assert 'multiple of 7' in err
  assert not (path / 'config.json').exists()


def test_sigterm_to_the_command(environment, tmp_path):
  """The run saves and exits with 75 and one line."""
  args = (
    f'{CONFIG}:runlocal,method=scratch',
    conftest.SMALL_DATA,
    f'--workdir={tmp_path / "run"}',
    '--config.steps=100000',
    '--config.seeds=1',
    '--config.refit_on_validation=False',
  )
  process = _start(environment, tmp_path, *args)
  rows = tmp_path / 'run' / 'metrics.jsonl'
  until = time.monotonic() + 120
  while not (rows.exists() and rows.read_text().count('\n') > 3):
    assert time.monotonic() < until
    assert process.poll() is None, process.communicate()
    time.sleep(0.02)
  began = time.monotonic()
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=60)
  assert time.monotonic() - began < 10
  assert process.returncode == 75
  last = json.loads(rows.read_text().splitlines()[-1])['step']
  line = err.splitlines()[-1]
  assert line.startswith(f'error: SIGTERM: saved step {last} in ')
  assert 'Traceback' not in err
  assert out == ''


def test_a_full_disk_is_one_line(environment, disk, tmp_path):
  code, out, err = _run(
    environment,
    tmp_path,
    f'{CONFIG}:runlocal,method=scratch',
    conftest.SMALL_DATA,
    f'--workdir={disk / "run"}',
    '--config.model.hidden=(600,600)',  # 1.4 MB, and twice that for AdamW.
  )
  assert code == 74, err
  assert out == ''
  assert 'Traceback' not in err
  line = err.splitlines()[-1]
  assert line.startswith('error: could not save to ')
  assert 'No space left' in line
  assert not (disk / 'run' / 'results.json').exists()


# What orbax leaves behind when two files of a checkpoint cannot be written.
_TWO_FAILURES = """
import asyncio
from td_jax import errors
from td_jax.run import command

async def fail():
  raise OSError('no space')

async def save():
  other = asyncio.create_task(fail())
  await asyncio.sleep(0)
  await fail()

def main():
  try:
    asyncio.run(save())
  except OSError:
    raise errors.IOFailedError('could not save') from None

command.run(main)
"""


def test_only_the_first_of_two_failed_files_is_told(environment, tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', _TWO_FAILURES],
    cwd=tmp_path,
    env=environment,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert done.stderr == 'error: could not save\n'
  assert done.returncode == 74


def test_a_damaged_checkpoint_is_reported(done, environment, tmp_path):
  (path,) = (done[0] / 'runs').iterdir()
  copy = shutil.copytree(path, tmp_path / 'run')
  (copy / 'checkpoints' / '20' / 'best' / 'manifest.ocdbt').write_text('')
  code, _, err = _run(
    environment, tmp_path, *SHORT, '--mode=eval', f'--workdir={copy}'
  )
  assert code == 65
  warning, error = err.splitlines()[-2:]
  assert 'checkpoints/20 is damaged and passed over' in warning
  assert error.startswith('error: none of the checkpoints [20]')
  assert 'Traceback' not in err


def test_default_folders():
  names = [workdir.default('some') for _ in range(3)]
  assert len(set(names)) == 3  # In one second.
  for name in names:
    assert re.fullmatch(r'runs/some-\d{8}-\d{6}-\d{6}', name)


def test_no_name_leads_out_of_runs():
  assert pathlib.Path(workdir.default('../some/name')).parent.name == 'runs'


@_old_loader
def test_a_tilde_is_the_home_folder(command, elsewhere, monkeypatch, tmp_path):
  del elsewhere
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  code, _, err = command(
    f'{CONFIG}:method=ld', '--workdir=~/run', '--config.teacher.checkpoint=~/no'
  )
  assert code == 65
  assert f'workdir {tmp_path}/home/run' in err
  assert f"config.teacher.checkpoint is '{tmp_path}/home/no'" in err
  code, _, err = command('--mode=eval', '--workdir=~/run')
  assert code == 65
  assert f'{tmp_path}/home/run' in err
  parser = command_line.parser('', workdir='runs', results='rows')
  options = parser.parse_args(['--workdir=~/runs', '--results=~/rows'])
  assert options.workdir == tmp_path / 'home' / 'runs'
  assert options.results == tmp_path / 'home' / 'rows'


def test_spread():
  # mean 2, squared distances 1 + 0 + 1; SE = sqrt(2 / 2) / sqrt(3).
  spread = statistics.mean_and_stderr(np.array([1.0, 2.0, 3.0]))
  assert spread['mean'] == 2
  assert spread['standard_error'] == pytest.approx(3**-0.5)
  assert statistics.mean_and_stderr(np.array([1.5])) == {
    'mean': 1.5,
    'standard_error': None,
    'per_seed': [1.5],
  }
