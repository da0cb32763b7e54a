"""Faults and bad input; the numbers are the rows of the reliability table."""

import collections
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

import conftest
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax import data
from td_jax import errors
from td_jax.data import feed
from td_jax.data import movielens
from td_jax.data import shuffle
from td_jax.data import sources
from td_jax.devices import parallel as parallel_lib
from td_jax.methods import losses
from td_jax.run import config as config_lib
from td_jax.run import experiment
from td_jax.run import metrics_log
from td_jax.run import pipeline
from td_jax.run import preemption
from td_jax.run import saved
from td_jax.run import workdir
from td_jax.storage import checkpoint
from td_jax.storage import files
from td_jax.training import evaluate
from td_jax.training import metrics

# ... where it cannot read or write a file.
_orbax_leaves_coroutines = pytest.mark.filterwarnings(
  'ignore::pytest.PytestUnraisableExceptionWarning'
)


pytestmark = pytest.mark.usefixtures('small_movielens')


def _config(arg='method=scratch', **overrides):
  return conftest.small_config(
    arg, **({'parallel.kind': 'single', 'parallel.devices': 1} | overrides)
  )


def _run(path, config=None, watch=None):
  return pipeline.run(
    config or _config(),
    path,
    watch=watch or conftest.Watch(),
    log=lambda line: None,
  )


def _code(kind):
  return kind.exit_code


@pytest.fixture(scope='module')
def trained(tmp_path_factory, small_movielens):
  """The folder of a run of 12 steps; checkpoints 8 and 12."""
  path = tmp_path_factory.mktemp('trained')
  _run(path)
  return path


@pytest.fixture
def run(trained, tmp_path):
  """A copy of `trained`, to be damaged."""
  return shutil.copytree(trained, tmp_path / 'run')


def _zeros(kind):
  """'float32[2, 3]' -> zeros."""
  dtype, _, shape = kind.partition('[')
  return np.zeros(json.loads('[' + shape), dtype)


def _templates(path, step=12):
  record = json.loads(
    (path / workdir.CHECKPOINTS / f'{step}' / 'record' / 'metadata').read_text()
  )
  return {
    item: collections.OrderedDict(
      (leaf, _zeros(kind)) for leaf, kind in about['leaves'].items()
    )
    for item, about in record['items'].items()
  }


@contextlib.contextmanager
def _opened(path, **options):
  checkpoints = checkpoint.Checkpoints(path / workdir.CHECKPOINTS, **options)
  try:
    yield checkpoints
  finally:
    checkpoints.close()


def _restored(path, templates):
  """(step, record, {(item, leaf): bytes}) of what a reader gets."""
  with _opened(path, read_only=True) as checkpoints:
    items, record = checkpoints.restore(templates)
  leaves = {
    (item, leaf): value.tobytes()
    for item, tree in items.items()
    for leaf, value in tree.items()
  }
  return record['step'], record, leaves


@pytest.fixture(scope='module')
def sound(trained):
  """{step: what a reader gets of it where nothing is damaged}."""
  templates = _templates(trained)
  both = {12: _restored(trained, templates)}
  shutil.move(trained / 'checkpoints' / '12', trained / '12')
  both[8] = _restored(trained, templates)
  shutil.move(trained / '12', trained / 'checkpoints' / '12')
  assert both[8][0] == 8
  return both


def _files(path, step):
  return sorted(
    file
    for file in (path / workdir.CHECKPOINTS / f'{step}').rglob('*')
    if file.is_file()
  )


def _weights(path, step):
  """The file that holds the arrays of the state."""
  folder = path / workdir.CHECKPOINTS / f'{step}' / 'state'
  files = [file for file in folder.rglob('*') if file.is_file()]
  return max(files, key=lambda file: file.stat().st_size)


def _flip(file, at):
  content = bytearray(file.read_bytes())
  content[at] ^= 1 << (at % 8)
  file.write_bytes(content)


# Rows 9 and 11.


@_orbax_leaves_coroutines
@pytest.mark.parametrize('damage', ['halved', 'emptied', 'deleted'])
def test_each_file_damaged(trained, run, sound, damage, caplog):
  templates = _templates(trained)
  passed_over = 0
  for file in _files(trained, 12):
    copy = run / file.relative_to(trained)
    if damage == 'deleted':
      copy.unlink()
    else:
      content = copy.read_bytes()
      copy.write_bytes(
        content[: len(content) // 2 if damage == 'halved' else 0]
      )
    caplog.clear()
    # Either it was not needed, or the step before is taken with a warning.
    got = _restored(run, templates)
    assert got == sound[got[0]], file
    if got[0] == 8:
      passed_over += 1
      if damage != 'deleted':  # An unfinished step is no step.
        assert '12 is damaged and passed over' in caplog.text, file
    shutil.copy(file, copy)
  assert passed_over >= 5
  assert _restored(run, templates) == sound[12]


def test_none_is_sound(run, trained):
  for step in (8, 12):
    _flip(_weights(run, step), 100)
  with pytest.raises(
    errors.DataError, match=r'none of the checkpoints \[12, 8'
  ):
    _restored(run, _templates(trained))
  with pytest.raises(errors.DataError, match='remove that folder') as e:
    _run(run)
  assert e.value.exit_code == 65
  assert '\n' not in str(e.value)


def test_a_damaged_step_is_made_anew(run, sound, trained):
  (run / 'results.json').unlink()
  _flip(_weights(run, 12), 100)
  _run(run)
  step, _, leaves = _restored(run, _templates(trained))
  assert (step, leaves) == (12, sound[12][2])
  ours, theirs = (
    json.loads((path / 'results.json').read_text()) for path in (run, trained)
  )
  assert ours['test'] == theirs['test']


# Row 10.


def test_each_flipped_byte_of_the_weights_is_noticed(
  run, trained, sound, caplog
):
  file = _weights(run, 12)
  rng = np.random.default_rng(0)
  whole = file.read_bytes()
  assert len(whole) > 10_000
  templates, noticed = _templates(trained), 0
  for at in rng.integers(0, len(whole), 30).tolist():
    _flip(file, at)
    caplog.clear()
    got = _restored(run, templates)
    # Some bytes of the file are nobody's: then all is as it was.
    assert got in (sound[8], sound[12]), at
    if got == sound[8]:
      noticed += 1
      assert '12 is damaged and passed over' in caplog.text
    file.write_bytes(whole)
  assert noticed > 20
  assert _restored(run, templates) == sound[12]


def test_no_flipped_byte_of_the_record_is_believed(run, trained, sound):
  file = run / workdir.CHECKPOINTS / '12' / 'record' / 'metadata'
  whole = file.read_bytes()
  templates = _templates(trained)
  # All digits of the step and the time, and places all over.
  head = whole.index(b'dataset')
  places = [*range(2, head, 3), *range(head, len(whole), len(whole) // 25)]
  for at in places:
    _flip(file, at)
    try:
      got = _restored(run, templates)
      assert got in (sound[8], sound[12]), (at, file.read_bytes()[:80])
    except errors.DataError as e:
      assert 'leaf' in str(e)
    file.write_bytes(whole)


# Rows 12 to 14.


def _fill(disk, leave=0):
  """Fills `disk` but for some bytes."""
  file = os.open(disk / 'filler', os.O_WRONLY | os.O_CREAT)
  with contextlib.suppress(OSError):
    while True:
      os.write(file, b'\1' * 4096)
  os.close(file)
  if leave:
    os.truncate(disk / 'filler', (disk / 'filler').stat().st_size - leave)


@_orbax_leaves_coroutines
@pytest.mark.parametrize('leave', [0, 60_000])
def test_full_disk_is_told_by_the_same_save(disk, leave):
  rng = np.random.default_rng(0)
  tree = {'state': {'w': rng.normal(size=(400, 400)).astype(np.float32)}}
  with _opened(disk) as checkpoints:
    checkpoints.save(4, tree, {'step': 4})
    checkpoints.wait()
    _fill(disk, leave)
    with pytest.raises(errors.IOFailedError, match='last good step is 4') as e:
      checkpoints.save(8, tree, {'step': 8})
      checkpoints.wait()
    assert e.value.exit_code == 74
    assert 'Free some space' in str(e.value)
    assert '\n' not in str(e.value)
    # What is left of the save would keep the disk full.
    names = [path.name for path in (disk / workdir.CHECKPOINTS).iterdir()]
    assert names == ['4']
  with _opened(disk) as checkpoints:
    items, record = checkpoints.restore(tree)
    assert record['step'] == 4
    np.testing.assert_array_equal(items['state']['w'], tree['state']['w'])
    (disk / 'filler').unlink()
    checkpoints.save(8, tree, {'step': 8})
    checkpoints.wait()
    assert checkpoints.restore(tree)[1]['step'] == 8
  assert sorted(
    path.name for path in (disk / workdir.CHECKPOINTS).iterdir()
  ) == ['4', '8']


@_orbax_leaves_coroutines
@pytest.mark.parametrize('fails', ['final', 'preempted'])
def test_a_run_whose_last_save_fails(disk, trained, monkeypatch, fails):
  save = checkpoint.Checkpoints.save
  at = {'final': 12, 'preempted': 10}[fails]

  def save_on_full_disk(self, step, *args):
    if step == at:
      self.wait()
      _fill(disk)
    save(self, step, *args)

  path = disk / 'run'
  watch = conftest.Watch(
    lambda: fails == 'preempted' and '"step": 10' in _text(path)
  )
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Checkpoints, 'save', save_on_full_disk)
    with pytest.raises(errors.IOFailedError, match='last good step is 8') as e:
      _run(path, watch=watch)
  assert e.value.exit_code == 74
  assert not (path / 'results.json').exists()
  (disk / 'filler').unlink()
  _run(path)
  assert _text(path) == _text(trained)
  templates = _templates(trained)
  assert _restored(path, templates)[2] == _restored(trained, templates)[2]


def _text(path):
  file = path / 'metrics.jsonl'
  return file.read_text() if file.exists() else ''


def test_full_disk_for_a_row(disk, monkeypatch):
  rows = metrics_log.MetricsLog(disk, step=0)
  values = {f'name {i}': np.ones(100) for i in range(50)}
  _fill(disk)
  with pytest.raises(errors.IOFailedError, match=r'metrics\.jsonl'):
    rows.write(2, values)
  (disk / 'filler').unlink()
  rows.close()


def test_full_disk_for_a_file(disk):
  folder = workdir.Workdir(disk / 'run')
  folder.write('results.json', {'old': 1})
  _fill(disk)
  with pytest.raises(errors.IOFailedError, match=r'results\.json') as e:
    folder.write('results.json', {'new': 'x' * 9000})
  assert e.value.exit_code == 74
  assert files.read_json(disk / 'run' / 'results.json') == {'old': 1}
  assert not list((disk / 'run').glob('*.part'))
  folder.close()


def _under_a_file(tmp_path):
  (tmp_path / 'file').write_text('')
  return tmp_path / 'file' / 'run'


def _a_file(tmp_path):
  (tmp_path / 'file').write_text('')
  return tmp_path / 'file'


def _in_proc(tmp_path):
  del tmp_path  # The kernel's own.
  return pathlib.Path('/proc/td_jax/run')


@pytest.mark.parametrize('make', [_under_a_file, _a_file, _in_proc])
def test_no_such_workdir(tmp_path, monkeypatch, make):
  _forbid_work(monkeypatch)
  with pytest.raises(errors.IOFailedError, match='cannot be written') as e:
    _run(make(tmp_path))
  assert e.value.exit_code == 74
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('name', ['r[1]', 'a*', 'q?', 'b\\c'])
def test_a_path_that_reads_as_a_pattern(tmp_path, monkeypatch, name):
  """orbax would save there what it cannot read."""
  _forbid_work(monkeypatch)
  (tmp_path / name).mkdir()
  monkeypatch.chdir(tmp_path / name)
  for path in (tmp_path / name / 'run', pathlib.Path('run')):
    with pytest.raises(errors.ConfigError, match='must not contain') as e:
      _run(path)
    assert e.value.exit_code == 2
    assert repr(str(tmp_path / name / 'run')) in str(e.value)
  assert list((tmp_path / name).iterdir()) == []


def test_the_first_save_is_read_back(tmp_path):
  tree = {'state': {'w': np.ones(4, np.float32)}}
  # There orbax says that it has saved, and has not.
  with _opened(tmp_path / 'r[1]') as checkpoints:
    with pytest.raises(
      errors.IOFailedError, match='There is no checkpoint'
    ) as e:
      checkpoints.save(4, tree, {'step': 4})
    assert '\n' not in str(e.value)


@pytest.mark.parametrize('used', [False, True], ids=['new', 'used'])
def test_read_only_workdir(disk, monkeypatch, used):
  if used:  # Its lock file can be opened all the same.
    workdir.Workdir(disk / 'run').close()
  subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
  _forbid_work(monkeypatch)
  with pytest.raises(errors.IOFailedError, match='Read-only file system') as e:
    _run(disk / 'run')
  assert e.value.exit_code == 74


def _forbid_work(monkeypatch):
  def work(*args, **kwargs):
    raise AssertionError('the folder is checked before any work')

  monkeypatch.setattr(experiment, 'build', work)
  monkeypatch.setattr(sources, 'movielens_100k', work)


def test_a_teacher_on_a_read_only_disk_serves(disk, trained):
  shutil.copytree(trained, disk / 'run')
  (disk / 'run' / 'checkpoints' / '16.orbax-checkpoint-tmp').mkdir()
  subprocess.run(['mount', '-o', 'remount,ro', str(disk)], check=True)
  found = saved.load(disk / 'run', movielens.load(_config()))
  assert found.step == 12


# Rows 15 to 17.


def test_teacher_of_another_width(run, tmp_path):
  config = json.loads((run / 'config.json').read_text())
  config['model']['hidden'] = [13, 8]
  (run / 'config.json').write_text(json.dumps(config))
  student = _config('method=td', **{'teacher.checkpoint': str(run)})
  with pytest.raises(errors.DataError) as e:
    _run(tmp_path / 'student', student)
  assert e.value.exit_code == 65
  said = str(e.value)
  assert 'student.params.layers_0.bias' in said
  assert 'stored as float32[2, 12]' in said
  assert 'expected as float32[2, 13]' in said
  assert '\n' not in said


def test_student_of_another_width_than_its_checkpoint(run):
  changed = _config(allow_changed_config=True)
  changed.model.hidden = (12, 9)
  with pytest.raises(errors.DataError, match=r'8, 1\] and expected as .*9, 1'):
    _run(run, changed)


def test_checkpoint_of_another_dtype(tmp_path):
  half = {'state': {'w': np.ones(4, np.float16)}}
  with _opened(tmp_path) as checkpoints:
    checkpoints.save(4, half, {'step': 4})
    checkpoints.wait()
    with pytest.raises(errors.DataError, match=r'float16\[4\] .* float32\[4\]'):
      checkpoints.restore({'state': {'w': np.ones(4, np.float32)}})
    assert checkpoints.restore(half)[1]['step'] == 4


@pytest.mark.parametrize('stored', [{'w', 'v'}, set()])
def test_checkpoint_of_other_leaves(tmp_path, stored):
  save = {'state': {name: np.ones(4, np.float32) for name in {'u'} | stored}}
  with _opened(tmp_path) as checkpoints:
    checkpoints.save(4, save, {'step': 4})
    checkpoints.wait()
    with pytest.raises(errors.DataError, match='nothing'):
      checkpoints.restore(
        {'state': {name: np.ones(4, np.float32) for name in 'uw'}}
      )


# Rows 20 to 24: see test_config.py and test_main.py too.


def test_names_that_are_no_steps_are_not_taken_for_one(run, trained, sound):
  folder = run / workdir.CHECKPOINTS
  for name in ('99x', '..99', 'latest', '-16'):
    shutil.copytree(folder / '12', folder / name)
  (folder / '20').symlink_to('../../outside')
  assert _restored(run, _templates(trained)) == sound[12]


def test_a_stored_config_is_text(run, tmp_path):
  canary = tmp_path / 'canary'
  code = f"__import__('pathlib').Path({str(canary)!r}).touch()"
  file = run / 'config.json'
  stored = json.loads(file.read_text())
  stored['name'] = code
  stored['data']['dir'] = '!!python/object/apply:os.system'
  file.write_text(json.dumps(stored))
  assert saved.config_of(run).name == code
  for block, key, value in (
    ('data', 'dir', {'!!python/object/apply:os:system': code}),
    ('model', 'name', code),
  ):
    changed = {**stored, block: {**stored[block], key: value}}
    file.write_text(json.dumps(changed))
    with pytest.raises(errors.DataError) as e:
      saved.load(run, movielens.load(_config()))
    assert e.value.exit_code == 65
  assert not canary.exists()


@pytest.mark.parametrize(
  'content', ['', '{"k": 1', '[]', '"x"', '{}', '{"k": 1}']
)
def test_a_damaged_stored_config(run, content):
  (run / 'config.json').write_text(content)
  with pytest.raises(errors.DataError, match=r'config\.json') as e:
    saved.load(run, movielens.load(_config()))
  assert '\n' not in str(e.value)


def test_no_run_there(tmp_path):
  task = movielens.load(_config())
  with pytest.raises(errors.DataError, match=r'is .* the folder of a run'):
    saved.load(tmp_path, task)
  (tmp_path / 'config.json').write_text(config_lib.to_json(_config()))
  with pytest.raises(errors.DataError, match='has no checkpoints'):
    saved.load(tmp_path, task)
  assert [path.name for path in tmp_path.iterdir()] == ['config.json']
  (tmp_path / workdir.CHECKPOINTS).mkdir()
  with pytest.raises(errors.DataError, match='no complete checkpoint'):
    saved.load(tmp_path, task)


# Row 25.


def _change_task(monkeypatch, change):
  domain = data.DOMAINS['movielens']
  monkeypatch.setitem(
    data.DOMAINS,
    'movielens',
    domain._replace(task=lambda *a, **k: change(domain.task(*a, **k))),
  )


def _assert_finite(path, templates):
  """The latest checkpoint is; returns its step."""
  with _opened(path) as checkpoints:
    items, record = checkpoints.restore(templates)
  assert all(np.isfinite(leaf).all() for leaf in items['state'].values())
  return record['step']


def test_nan_label(tmp_path, trained, monkeypatch):
  config = _config()
  # A row that seed 1 meets first in the update from step 6 to 7.
  task = movielens.load(config)
  ids = [
    shuffle.batches(
      seed=seed,
      examples=int(np.count_nonzero(task.train.mask)),
      batch_size=config.batch_size,
      start=0,
      stop=config.steps,
    )
    for seed in (0, 1)
  ]
  row = next(
    i for i in ids[1][6] if i not in ids[0][:8] and i not in ids[1][:6]
  )

  def spoil(task):
    y = task.train.y.copy()
    y[row] = np.nan
    return task._replace(train=task.train._replace(y=y))

  _change_task(monkeypatch, spoil)
  with pytest.raises(
    errors.NonFiniteError,
    match=r'^task is .* at step 7; the last checkpoint, of step 4, is finite',
  ) as e:
    _run(tmp_path, config)
  assert e.value.exit_code == 70
  assert '\n' not in str(e.value)
  assert _assert_finite(tmp_path, _templates(trained)) == 4
  assert 'NaN' not in _text(tmp_path)
  with pytest.raises(errors.NonFiniteError, match='at step 7;'):
    _run(tmp_path, config)


def test_nan_in_the_gradient_only(tmp_path, monkeypatch):
  monkeypatch.setitem(
    losses.TASK_LOSSES,
    'squared_error',
    # 0 itself, but the root's slope at 0 is infinite.
    lambda output, y: jnp.square(output - y) + 0 * jnp.sqrt(0 * output),
  )
  with pytest.raises(
    errors.NonFiniteError,
    match=r'^grad_norm is .* at step 1; nothing has been saved yet',
  ):
    _run(tmp_path)
  with _opened(tmp_path) as checkpoints:
    assert checkpoints.restore({}) is None


def test_a_learning_rate_that_blows_up(tmp_path, trained):
  config = _config(**{'optim.learning_rate': 1e30, 'optim.warmup': 0})
  with pytest.raises(errors.NonFiniteError, match=r'learning_rate'):
    _run(tmp_path, config)
  with _opened(tmp_path) as checkpoints:
    found = checkpoints.restore({})
  if found is not None:
    _assert_finite(tmp_path, _templates(trained))


def test_a_leaf_that_is_not_finite_is_not_saved(tmp_path):
  tree = {'state': {'w': np.ones(3, np.float32)}}
  with _opened(tmp_path) as checkpoints:
    checkpoints.save(4, tree, {'step': 4})
    for bad in (np.nan, np.inf):
      tree['state']['w'][1] = bad
      with pytest.raises(errors.NonFiniteError, match=r'^w is .* step 8') as e:
        checkpoints.save(8, tree, {'step': 8})
      assert 'The last good step is 4' in str(e.value)
    assert checkpoints.restore(tree)[1]['step'] == 4


# Rows 27 and 28.


def test_no_dataset(tmp_path, monkeypatch):
  def absent(data_dir, *, log):
    raise sources.NoSourceError('prepare it')

  monkeypatch.setattr(sources, 'movielens_100k', absent)
  with pytest.raises(errors.DataError, match='prepare it') as e:
    _run(tmp_path)
  assert e.value.exit_code == 65


def test_genre_without_rows(tmp_path, monkeypatch):
  ratings = conftest.small_ratings()
  ratings.genres[:, 1] = False
  monkeypatch.setattr(sources, 'movielens_100k', lambda *a, **k: ratings)
  with pytest.raises(
    errors.DataError, match=r"no rows for train .*genre='War'"
  ) as e:
    _run(tmp_path, _config('genre=War,method=scratch'))
  assert e.value.exit_code == 65
  assert 'Drama' in str(e.value)


@pytest.mark.parametrize('name', ['train', 'validation', 'test'])
def test_empty_split(monkeypatch, name):
  ratings = conftest.small_ratings()
  rows = movielens.parts(ratings)._asdict()[name]
  # Its movies become one that is not of the genre.
  ratings.genres[1] = [True, False, True]
  ratings.movie_id[rows] = 1
  monkeypatch.setattr(sources, 'movielens_100k', lambda *a, **k: ratings)
  with pytest.raises(errors.DataError, match=f'no rows for {name} of'):
    movielens.load(_config('genre=War'))


def test_unknown_genre(tmp_path):
  with pytest.raises(errors.ConfigError, match="Did you mean 'Drama'") as e:
    _run(tmp_path, _config('genre=Dramma,method=scratch'))
  assert e.value.exit_code == 2


# Rows 31 to 33.


def test_changed_config_is_refused_with_the_difference(run):
  changed = _config(k=3)
  changed.optim.learning_rate = 0.5
  before = (run / 'config.json').read_bytes()
  with pytest.raises(errors.ConfigError) as e:
    _run(run, changed)
  assert e.value.exit_code == 2
  said = str(e.value)
  assert 'k: 1 -> 3; optim.learning_rate: 0.001 -> 0.5)' in said
  assert 'allow_changed_config=True' in said
  assert (run / 'config.json').read_bytes() == before
  changed.allow_changed_config = True
  _run(run, changed)
  assert files.read_json(run / 'config.json')['k'] == 3


def test_more_steps_where_allowed(run):
  more = _config(steps=16, allow_changed_config=True)
  watch = conftest.Watch()
  results = _run(run, more, watch)
  assert results['steps'] == 16
  assert watch.state == f'the last save is of step 16 in {run}'
  assert _text(run).count('\n') == 8


def test_a_signal_after_a_run_stops_the_next(run):
  """As in a table, which is many runs of one process."""
  watch = preemption.Watch()
  _run(run, watch=watch)
  os.kill(os.getpid(), signal.SIGTERM)
  with pytest.raises(errors.PreemptedError, match='SIGTERM'):
    _run(run, watch=watch)


def test_devices_folders_and_data_dir_may_change(run, monkeypatch):
  monkeypatch.setattr(sources, 'check_named', lambda data_dir: None)
  changed = _config(
    **{
      'parallel.kind': 'mesh',
      'parallel.devices': 2,
      'data.dir': '/elsewhere',
      'checkpoint': '/elsewhere',
    }
  )
  _run(run, changed)


# With fewer users the network has other shapes, but that is not the reason.
@pytest.mark.parametrize('users', [40, 20])
def test_changed_data_are_refused(run, trained, tmp_path, monkeypatch, users):
  ratings = conftest.small_ratings(users=users)
  ratings = ratings._replace(fingerprint='1' * 64)
  monkeypatch.setattr(sources, 'movielens_100k', lambda *a, **k: ratings)
  for what in (
    lambda: _run(run),
    lambda: saved.load(run, movielens.load(_config())),
    lambda: _run(
      tmp_path / 'student',
      _config('method=ld', **{'teacher.checkpoint': str(trained)}),
    ),
    lambda: pipeline.evaluate(
      _config(), run, watch=conftest.Watch(), log=lambda line: None
    ),
  ):
    with pytest.raises(errors.DataError, match='000000, here 1111') as e:
      what()
    assert e.value.exit_code == 65


def test_two_runs_in_one_workdir(run):
  first = workdir.Workdir(run)
  with pytest.raises(errors.IOFailedError, match='in use by another run') as e:
    _run(run)
  assert e.value.exit_code == 74
  first.close()
  _run(run)


def test_leftovers_are_neither_taken_nor_kept(run, trained, sound):
  folder = run / workdir.CHECKPOINTS
  for name in ('16.orbax-checkpoint-tmp', '20.orbax-checkpoint-tmp-1700000000'):
    shutil.copytree(folder / '12', folder / name)
    shutil.move(
      folder / name / 'state', folder / name / 'state.orbax-checkpoint-tmp'
    )
  # A reader leaves them be: they may be another process's work.
  assert _restored(run, _templates(trained)) == sound[12]
  assert len(list(folder.iterdir())) == 4
  with _opened(run) as checkpoints:
    assert checkpoints.restore(_templates(trained))[1]['step'] == 12
  # orbax removes them in a thread of its own.
  deadline = time.monotonic() + 20
  while len(list(folder.iterdir())) > 2 and time.monotonic() < deadline:
    time.sleep(0.05)
  assert sorted(path.name for path in folder.iterdir()) == ['12', '8']


# Row 34.


@pytest.mark.parametrize(
  ('kind', 'devices', 'batch'),
  [('single', 1, 7), ('single', 1, 2048), ('pmap', 3, 7), ('mesh', 8, 5)],
)
def test_every_example_is_counted(trained, kind, devices, batch):
  task = movielens.load(_config())
  test = conftest.real(task.test)
  inputs = task.examples(test, np.arange(len(test.mask))).x
  assert len(test.mask) % (batch * devices)
  found = saved.load(trained, task)
  metric = metrics.METRICS['rmse']
  got = evaluate.scorer(
    feed.feed(task.test, task.make_batch),
    model=found.model,
    metric=metric,
    parallel=parallel_lib.Parallel(kind, devices),
    batch=batch,
  )(found.variables)
  assert got.shape == (2,)
  for seed, score in enumerate(got.tolist()):
    one = jax.tree.map(lambda leaf, seed=seed: leaf[seed], found.variables)
    guess = found.model.apply(one, inputs, train=False)[-1]
    error = np.asarray(guess, np.float64) - test.y
    # One example of about 90 left out changes this by 1e-3 or so.
    assert score == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-6)


# 3 devices do not divide the batch of training.
@pytest.mark.parametrize(
  ('kind', 'devices'), [('single', 1), ('pmap', 3), ('mesh', 3)]
)
def test_evaluation_says_what_training_said(run, kind, devices):
  results = json.loads((run / 'results.json').read_text())
  config = _config(**{'parallel.kind': kind, 'parallel.devices': devices})
  lines = []
  again = pipeline.evaluate(
    config, run, watch=conftest.Watch(), log=lines.append
  )
  assert not [line for line in lines if 'differs' in line]
  for split in ('validation', 'test'):
    np.testing.assert_allclose(
      again[split]['per_seed'], results[split]['per_seed'], rtol=1e-6
    )
  assert again['baselines'] == results['baselines']


def test_evaluation_says_that_another_config_is_not_used(trained):
  lines = []
  pipeline.evaluate(
    _config(**{'optim.warmup': 3, 'k': 2}),
    trained,
    watch=conftest.Watch(),
    log=lines.append,
  )
  (line,) = (line for line in lines if 'differs' in line)
  assert 'k: 1 -> 2; optim.warmup: 2 -> 3' in line


def test_the_best_student_is_kept(trained):
  """By validation, with its step."""
  rows = [json.loads(row) for row in _text(trained).splitlines()]
  scores = np.array(
    [row['validation_rmse'] for row in rows if 'validation_rmse' in row]
  )  # [validations, seeds]
  results = json.loads((trained / 'results.json').read_text())
  assert results['best_step'] == [
    [4, 8, 12][i] for i in scores.argmin(axis=0).tolist()
  ]
  np.testing.assert_allclose(
    results['validation']['per_seed'], scores.min(axis=0), rtol=1e-6
  )
