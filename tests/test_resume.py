"""A run that was stopped, killed or damaged ends as an uninterrupted one."""

import collections
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import conftest
import numpy as np
import pytest

from td_jax import errors
from td_jax.data import movielens
from td_jax.data import sources
from td_jax.run import metrics_log
from td_jax.run import pipeline
from td_jax.run import workdir
from td_jax.storage import checkpoint

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

# Few enough for an epoch to end within the run.
ROWS = 200
SINGLE = {'parallel.kind': 'single', 'parallel.devices': 1}


@pytest.fixture(autouse=True, scope='module')
def _small_data():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      sources,
      'movielens_100k',
      lambda *a, **k: conftest.small_ratings(rows=ROWS),
    )
    yield


class _CrashError(Exception):
  pass


def _stop_at(path, step, *, crash=False):
  """Stops a run, or makes it crash, once its metrics have a row `step`."""

  def when():
    reached = _last_row(path) >= step
    if reached and crash:
      raise _CrashError
    return reached

  return conftest.Watch(when)


def _last_row(path):
  try:
    return json.loads((path / 'metrics.jsonl').read_text().splitlines()[-1])[
      'step'
    ]
  except (OSError, IndexError, ValueError):
    return 0


def _run(path, config, watch=None):
  return pipeline.run(
    config, path, watch=watch or conftest.Watch(), log=lambda line: None
  )


def _config(arg='method=scratch', **overrides):
  return conftest.small_config(arg, **(SINGLE | overrides))


def _zeros(kind):
  """'float32[2, 3]' -> zeros."""
  dtype, _, shape = kind.partition('[')
  return np.zeros(json.loads('[' + shape), dtype)


def _restored(path):
  """({item: {leaf: array}}, record) of the latest checkpoint, read afresh."""
  folder = path / workdir.CHECKPOINTS
  latest = max(int(step.name) for step in folder.iterdir())
  record = json.loads(
    (folder / str(latest) / 'record' / 'metadata').read_text()
  )
  checkpoints = checkpoint.Checkpoints(folder)
  try:
    return checkpoints.restore(
      {
        item: collections.OrderedDict(
          (leaf, _zeros(kind)) for leaf, kind in about['leaves'].items()
        )
        for item, about in record['items'].items()
      }
    )
  finally:
    checkpoints.close()


def _outcome(path):
  """All that two equal runs have in common, bit for bit."""
  items, record = _restored(path)
  leaves = {
    (item, leaf): (value.dtype, value.shape, value.tobytes())
    for item, tree in items.items()
    for leaf, value in tree.items()
  }
  results = json.loads((path / 'results.json').read_text())
  del results['seconds']
  rows = (path / 'metrics.jsonl').read_bytes()
  return leaves, rows, results, record['step']


def _assert_same(path, other):
  for ours, theirs in zip(_outcome(path), _outcome(other), strict=True):
    assert ours == theirs


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The folder of an uninterrupted run of `_config()`."""
  path = tmp_path_factory.mktemp('whole')
  _run(path, _config())
  return path


def test_the_run_is_a_fair_one(whole):
  config = _config()
  mask = movielens.load(config, log=lambda line: None).train.mask
  rows = int(np.count_nonzero(mask))
  assert rows < config.steps * config.batch_size / 1.5  # Epochs end inside.
  assert min(config.model.dropout, config.model.unknown_rate) > 0
  leaves, metrics, _, step = _outcome(whole)
  assert step == config.steps == 12
  assert [json.loads(row)['step'] for row in metrics.splitlines()] == [
    2,
    4,
    6,
    8,
    10,
    12,
  ]
  names = ' '.join(leaf for _, leaf in leaves)
  for part in ('opt_state', 'rng', 'params.student', 'loss'):
    assert part in names


def test_stopped_at_every_point_it_ends_the_same(tmp_path, whole):
  for stop in (2, 4, 6, 10, 12):
    with pytest.raises(errors.PreemptedError, match=f'saved step {stop}') as e:
      _run(tmp_path, _config(), _stop_at(tmp_path, stop))
    assert e.value.exit_code == 75
    assert not (tmp_path / 'results.json').exists()
    assert _last_row(tmp_path) == _restored(tmp_path)[1]['step'] == stop
  _run(tmp_path, _config())
  _assert_same(tmp_path, whole)


def test_skipped_steps_are_skipped_again(tmp_path):
  """Loss spikes are told by a mean that is kept too."""
  config = _config(**{'optim.skip_loss_above': 1.01})
  _run(tmp_path / 'whole', config)
  path = tmp_path / 'cut'
  with pytest.raises(errors.PreemptedError, match='saved step 6'):
    _run(path, config, _stop_at(path, 6))
  _run(path, config)
  _assert_same(path, tmp_path / 'whole')
  rows = (path / 'metrics.jsonl').read_text().splitlines()
  shares = [share for row in rows for share in json.loads(row)['skipped']]
  assert set(shares) == {0.0, 0.5, 1.0}  # Of the two steps of a row.
  items, _ = _restored(path)
  (skipped,) = (
    leaf for name, leaf in items['state'].items() if 'skipped' in name
  )
  assert skipped.sum() == 2 * sum(shares)


def test_two_networks_that_talk(tmp_path):
  """The teacher is interrupted, then the student; noise of every kind is on."""
  config = _config(
    'method=td', **{'distill.dropout': 0.1, 'distill.noise': 0.1, 'seeds': 1}
  )
  _run(tmp_path / 'whole', config)
  path = tmp_path / 'cut'
  with pytest.raises(
    errors.PreemptedError, match=r'saved step 6 in .*/teacher'
  ):
    _run(path, config, _stop_at(path / 'teacher', 6))
  with pytest.raises(errors.PreemptedError, match=r'saved step 6 in .*/cut'):
    _run(path, config, _stop_at(path, 6))
  _run(path, config)
  _assert_same(path, tmp_path / 'whole')
  _assert_same(path / 'teacher', tmp_path / 'whole' / 'teacher')


def test_a_run_that_is_older_than_a_key_goes_on(tmp_path):
  config = _config('method=ld', seeds=1)
  _run(tmp_path / 'whole', config)
  path = tmp_path / 'cut'
  with pytest.raises(errors.PreemptedError, match=r'saved step 6 in .*/cut'):
    _run(path, config, _stop_at(path, 6))
  for file in (path / 'config.json', path / 'teacher/config.json'):
    stored = json.loads(file.read_text())
    for learner in (stored, stored['teacher']):
      del learner['optim']['skip_loss_above']
      learner['dispatch'] = learner.pop('steps_per_dispatch')
    stored['refit'] = stored.pop('refit_on_validation')
    stored['select'] = stored.pop('score_before_refit')
    stored['data']['until'] = stored['data'].pop('train_fraction')
    stored['distill']['student_sends'] = stored['distill'].pop(
      'student_encodes'
    )
    del stored['distill']['unroll']  # As if it were a new key.
    file.write_text(json.dumps(stored))
  _run(path, config)
  _assert_same(path, tmp_path / 'whole')


def test_another_seed_is_another_run(tmp_path, whole):
  config = _config()
  config.seed = 1
  _run(tmp_path, config)
  for ours, theirs in zip(_outcome(tmp_path), _outcome(whole), strict=True):
    if isinstance(ours, int):
      assert ours == theirs  # The step.
    else:
      assert ours != theirs


# At 6 the last checkpoint is that of 4; at 8 that of 8 is being written.
@pytest.mark.parametrize('step', [2, 6, 8])
def test_crashed_it_ends_the_same(tmp_path, whole, step):
  with pytest.raises(_CrashError):
    _run(tmp_path, _config(), _stop_at(tmp_path, step, crash=True))
  _run(tmp_path, _config())
  _assert_same(tmp_path, whole)


@pytest.mark.parametrize('kind', ['pmap', 'mesh'])
def test_on_two_devices_too(tmp_path, kind):
  config = _config(**{'parallel.kind': kind, 'parallel.devices': 2, 'seeds': 1})
  _run(tmp_path / 'whole', config)
  with pytest.raises(errors.PreemptedError):
    _run(tmp_path / 'cut', config, _stop_at(tmp_path / 'cut', 6))
  _run(tmp_path / 'cut', config)
  _assert_same(tmp_path / 'cut', tmp_path / 'whole')


def test_devices_may_change_on_the_way(tmp_path):
  quiet = {'model.dropout': 0.0, 'model.unknown_rate': 0.0, 'seeds': 1}
  _run(tmp_path / 'whole', _config(**quiet))
  for kind, devices, stop in (('pmap', 4, 4), ('mesh', 2, 8)):
    config = _config(**quiet)
    config.parallel.update({'kind': kind, 'devices': devices})
    with pytest.raises(errors.PreemptedError):
      _run(tmp_path / 'cut', config, _stop_at(tmp_path / 'cut', stop))
    before, _ = _restored(tmp_path / 'cut')
    assert all(np.isfinite(leaf).all() for leaf in before['state'].values())
  _run(tmp_path / 'cut', _config(**quiet))
  ours, theirs = (
    [json.loads(row) for row in file.read_text().splitlines()]
    for file in (tmp_path / name / 'metrics.jsonl' for name in ('cut', 'whole'))
  )
  for one, other in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(one['loss'], other['loss'], atol=1e-6, rtol=1e-6)


def test_a_run_that_is_over_stays_as_it_is(tmp_path, whole):
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  before = {
    path: path.read_bytes()
    for path in tmp_path.rglob('*')
    if path.is_file() and not path.name.startswith('events')
  }
  del before[tmp_path / 'results.json']  # Its seconds: see `_outcome`.
  _run(tmp_path, _config())
  for path, content in before.items():
    assert path.read_bytes() == content, path
  _assert_same(tmp_path, whole)


def _drop_latest(path):
  shutil.rmtree(path / workdir.CHECKPOINTS / '12')


def _tear_last_row(path):
  _drop_latest(path)
  file = path / 'metrics.jsonl'
  file.write_bytes(file.read_bytes()[:-9])


def _add_half_a_row(path):
  _drop_latest(path)
  with (path / 'metrics.jsonl').open('a') as file:
    file.write('{"step": 14, "lo')


def _add_zeros(path):
  """What a crash of the machine may leave: a block that was not written."""
  _drop_latest(path)
  with (path / 'metrics.jsonl').open('ab') as file:
    file.write(b'\0' * 50 + b'\n')


@pytest.mark.parametrize(
  'damage', [_drop_latest, _tear_last_row, _add_half_a_row, _add_zeros]
)
def test_rows_after_the_checkpoint_are_written_anew(tmp_path, whole, damage):
  shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
  (tmp_path / 'results.json').unlink()
  damage(tmp_path)
  _run(tmp_path, _config())
  _assert_same(tmp_path, whole)


def test_rows_are_kept_whatever_happens_while_they_are_cut(
  tmp_path, monkeypatch
):
  rows = metrics_log.MetricsLog(tmp_path, step=0)
  for step in (2, 4):
    rows.write(step, {'loss': np.ones(1)})
  rows.close()
  file = tmp_path / 'metrics.jsonl'
  before = file.read_bytes()

  def killed(*args):
    raise _CrashError

  monkeypatch.setattr(os, 'replace', killed)
  with pytest.raises(_CrashError):
    metrics_log.MetricsLog(tmp_path, step=2)
  assert file.read_bytes() == before


# A process that has all imported forks one run after another: that saves the
# seconds of the imports. It has no thread of JAX before it forks.
_DRIVER = """
import json, os, pathlib, sys
import conftest
from td_jax import errors
from td_jax.run import pipeline, preemption
from td_jax.data import sources

sources.movielens_100k = lambda *a, **k: conftest.small_ratings(rows={rows})
for line in sys.stdin:
  child = os.fork()
  if not child:
    path, arg, overrides = json.loads(line)
    try:
      config = conftest.small_config(arg, **overrides)
      pipeline.run(
          config, pathlib.Path(path), watch=preemption.Watch(), log=print
      )
      code = 0
    except errors.TdError as e:
      (pathlib.Path(path) / 'said').write_text(str(e))
      code = e.exit_code
    os._exit(code)
  print('child', child, flush=True)
  _, status = os.waitpid(child, 0)
  print('code', os.waitstatus_to_exitcode(status), flush=True)
"""


class _Driver:
  def __init__(self):
    here = pathlib.Path(__file__).parent
    self._process = subprocess.Popen(
      [sys.executable, '-c', _DRIVER.format(rows=ROWS)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {'PYTHONPATH': f'{here.parent}:{here}'},
    )

  def start(self, path, arg, overrides):
    path.mkdir(exist_ok=True)
    self._process.stdin.write(json.dumps([str(path), arg, overrides]) + '\n')
    self._process.stdin.flush()
    return int(self._answer('child'))

  def code(self):
    return int(self._answer('code'))

  def close(self):
    self._process.stdin.close()
    self._process.stdout.close()
    assert self._process.wait(30) == 0

  def _answer(self, word):
    for line in self._process.stdout:
      if line.startswith(word):
        return line.split()[1]
    raise AssertionError('the driver has died')


@pytest.fixture(scope='module')
def driver():
  driver = _Driver()
  yield driver
  driver.close()


# Long enough to be hit: some seconds, a save each 4 steps.
LONG = SINGLE | {'steps': 72, 'seeds': 1}
LONG_ARG = 'method=scratch'


@pytest.fixture(scope='module')
def long_run(tmp_path_factory):
  path = tmp_path_factory.mktemp('long')
  _run(path, _config(LONG_ARG, **LONG))
  return path


def _wait_for_row(path, step):
  until = time.monotonic() + 120
  while _last_row(path) < step:
    assert time.monotonic() < until
    time.sleep(0.005)


def test_kill_9_at_random_times(tmp_path, driver, long_run):
  path = tmp_path / 'run'
  rng = np.random.default_rng(0)
  seen = 0
  for _ in range(4):
    child = driver.start(path, LONG_ARG, LONG)
    # Rows later than the last checkpoint are still there: wait for new ones.
    _wait_for_row(path, seen + 8)
    time.sleep(rng.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    assert driver.code() == -signal.SIGKILL
    reached = _last_row(path)
    steps = [
      int(step.name)
      for step in (path / workdir.CHECKPOINTS).iterdir()
      if step.name.isdigit()
    ]
    # At most the interval at hand and the one whose save was under way.
    assert max(steps, default=0) >= reached - 2 * 4
    seen = reached
  assert not (path / 'results.json').exists()  # The kills came in time.
  _run(path, _config(LONG_ARG, **LONG))
  _assert_same(path, long_run)


@pytest.mark.parametrize(
  'signals',
  [
    (signal.SIGTERM,),
    (signal.SIGTERM, signal.SIGTERM),
    (signal.SIGINT,),
  ],
  ids=lambda signals: '+'.join(number.name for number in signals),
)
def test_a_signal_saves_and_is_answered_by_75(
  tmp_path, driver, long_run, signals
):
  path = tmp_path / 'run'
  child = driver.start(path, LONG_ARG, LONG)
  _wait_for_row(path, 20)
  began = time.monotonic()
  for number in signals:
    os.kill(child, number)
    time.sleep(0.01)
  assert driver.code() == 75
  assert time.monotonic() - began < 10
  said = (path / 'said').read_text()
  assert signals[-1].name in said
  assert f'saved step {_last_row(path)} ' in said
  assert _restored(path)[1]['step'] == _last_row(path)
  assert not (path / 'results.json').exists()
  if signals == (signal.SIGTERM, signal.SIGTERM):
    _run(path, _config(LONG_ARG, **LONG))
    _assert_same(path, long_run)


def test_a_signal_while_compiling(tmp_path, driver):
  path = tmp_path / 'run'
  child = driver.start(path, LONG_ARG, LONG)
  until = time.monotonic() + 60
  while not (path / 'config.json').exists():
    assert time.monotonic() < until
    time.sleep(0.005)
  os.kill(child, signal.SIGTERM)
  assert driver.code() == 75
  said = (path / 'said').read_text()
  assert 'saved step 2 ' in said or 'nothing to save' in said
