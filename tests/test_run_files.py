"""The files of a run: whatever they hold, a reader gets them or a DataError."""

import contextlib
import copy
import json
import shutil

import conftest
import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from td_jax import errors
from td_jax.run import config as config_lib
from td_jax.run import metrics_log
from td_jax.run import pipeline
from td_jax.run import results
from td_jax.run import saved
from td_jax.run import summary
from td_jax.run import workdir
from td_jax.storage import files
from td_jax.storage import results_log

pytestmark = pytest.mark.usefixtures('small_movielens')

_FUZZ = hypothesis.settings(
  max_examples=100,
  deadline=None,
  derandomize=True,  # The same cases in each run of the tests.
  phases=[hypothesis.Phase.generate],  # Shrinking a failure takes a minute.
  suppress_health_check=list(hypothesis.HealthCheck),
)
_SCALARS = (
  st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
)
_JSON = st.recursive(
  _SCALARS,
  lambda inner: (
    st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=3), inner, max_size=3)
  ),
  max_leaves=4,
)
_GONE = object()


def _deep(levels):
  return json.loads('[' * levels + ']' * levels)


def _config():
  config = conftest.small_config('method=ld', steps=4, eval_every=2, seeds=1)
  config.teacher.update({'steps': 2, 'eval_every': 2})
  return config


def _run(path, config, log=lambda line: None):
  pipeline.run(config, path, watch=conftest.Watch(), log=log)


@pytest.fixture(scope='module')
def trained(tmp_path_factory, small_movielens):
  """The folder of a run of 4 steps; checkpoints 2 and 4."""
  path = tmp_path_factory.mktemp('trained')
  _run(path, _config())
  return path


def _places(tree, at=()):
  """The path of every value in a JSON tree."""
  yield at
  if isinstance(tree, (dict, list)):
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
      yield from _places(value, (*at, key))


def _changed(tree, at, value):
  """A copy of `tree` with another value at a place, or without it."""
  if not at:
    return None if value is _GONE else value
  tree = copy.deepcopy(tree)
  *parents, last = at
  block = tree
  for key in parents:
    block = block[key]
  if value is _GONE:
    del block[last]
  else:
    block[last] = value
  return tree


def _edits(tree):
  return st.tuples(
    st.sampled_from(list(_places(tree))),
    st.just(_GONE) | _JSON | st.just(_deep(60)),
  )


def _read_or_refuse(file, read):
  """Calls `read`; whatever it refuses, it names the file in one line."""
  try:
    return read()
  except errors.DataError as e:
    assert str(file) in str(e) or file.name in str(e)
    assert '\n' not in str(e)
    return None


def test_any_config(trained, tmp_path):
  file = tmp_path / 'config.json'
  whole = json.loads((trained / 'config.json').read_text())
  config = saved.config_of(trained)
  (tmp_path / 'checkpoints').mkdir()
  folder = workdir.Workdir(tmp_path)

  def claim():
    try:
      folder.claim(config)
    except errors.ConfigError as e:
      assert 'another config' in str(e) or 'is not of a run' in str(e)

  @hypothesis.settings(_FUZZ, max_examples=40)
  @hypothesis.given(_edits(whole))
  def check(edit):
    file.write_text(json.dumps(_changed(whole, *edit)))
    stored = _read_or_refuse(file, lambda: saved.config_of(tmp_path))
    if stored is not None:
      # Good for all that reads it next.
      config_lib.as_teacher(stored)
    file.write_text(json.dumps(_changed(whole, *edit)))
    _read_or_refuse(file, claim)

  with contextlib.closing(folder):
    check()


def test_any_results(trained, tmp_path):
  file = tmp_path / 'results.json'
  whole = json.loads((trained / 'results.json').read_text())

  @_FUZZ
  @hypothesis.given(_edits(whole))
  def check(edit):
    file.write_text(json.dumps(_changed(whole, *edit)))
    found = _read_or_refuse(file, lambda: results.read(tmp_path))
    if found is not None:
      summary.table(found)

  check()


def test_results_are_read_once(trained, monkeypatch):
  read, seen = files.read_json, []
  monkeypatch.setattr(
    files,
    'read_json',
    lambda file, *a, **k: seen.append(file) or read(file, *a, **k),
  )
  results.read(trained)
  assert seen == [trained / 'results.json']


def test_any_rows(trained, tmp_path):
  file = tmp_path / 'metrics.jsonl'
  text = (trained / 'metrics.jsonl').read_text()
  whole = [json.loads(line) for line in text.splitlines()]

  @_FUZZ
  @hypothesis.given(_edits(whole[0]))
  def check(edit):
    rows = [_changed(whole[0], *edit), whole[1]]
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))

    def read():
      metrics_log.MetricsLog(tmp_path, step=4).close()
      return metrics_log.read(tmp_path)

    found = _read_or_refuse(file, read) or []
    np.asarray([row['loss'] for row in found if 'loss' in row])

  check()


@pytest.mark.parametrize(
  ('name', 'edit', 'message'),
  [
    ('config.json', (('k',), 'x'), "k is 'x'; it must be a whole number"),
    ('config.json', (('distill',), _GONE), 'distill is missing'),
    ('config.json', (('data', 'dir'), 5), 'data.dir is 5; it must be text'),
    ('config.json', (('model',), None), 'model is null; it must be an object'),
    ('config.json', ((), 3), 'it is 3; it must be an object'),
    ('results.json', (('seeds', 0), True), 'seeds[0] is true; it must be a'),
    ('results.json', (('teachers',), _GONE), 'teachers is missing'),
    ('results.json', (('name',), _deep(60)), 'nested more than 50 levels deep'),
    ('metrics.jsonl', (('step',), 2.5), 'line 1: step is 2.5; it must be a'),
    ('metrics.jsonl', (('loss',), None), 'loss is null; it must be a list'),
    ('metrics.jsonl', ((), []), 'line 1: it is []; it must be an object'),
  ],
)
def test_the_file_and_the_key_are_named(trained, tmp_path, name, edit, message):
  run = shutil.copytree(trained, tmp_path / 'run')
  lines = name.endswith('l')
  text = (run / name).read_text()
  tree = json.loads(text.splitlines()[0] if lines else text)
  (run / name).write_text(json.dumps(_changed(tree, *edit)) + '\n')
  read = {
    'config.json': saved.config_of,
    'results.json': results.read,
    'metrics.jsonl': metrics_log.read,
  }[name]
  with pytest.raises(errors.DataError) as e:
    read(run)
  assert str(run / name) in str(e.value)
  assert message in str(e.value)
  assert e.value.exit_code == 65


def test_brackets_without_end(tmp_path):
  for name, read in (
    ('x.json', files.read_json),
    ('x.jsonl', results_log.read),
  ):
    (tmp_path / name).write_text('[' * 100_000 + ']' * 100_000 + '\n')
    with pytest.raises(errors.DataError, match=name) as e:
      read(tmp_path / name)
    assert len(str(e.value)) < 400


def _cut(file):
  file.write_text('{"step": 2, "lo')


@pytest.mark.parametrize('damage', [lambda file: file.unlink(), _cut])
def test_lost_rows_are_told(trained, tmp_path, damage):
  run = shutil.copytree(trained, tmp_path / 'run')
  damage(run / 'metrics.jsonl')
  shutil.rmtree(run / workdir.CHECKPOINTS / '4')
  lines = []
  _run(run, _config(), lines.append)
  warnings = [line for line in lines if line.startswith('warning')]
  assert warnings == [
    f'warning: {run}/metrics.jsonl lacks 1 of the 1 rows up to step 2, where the '
    'run goes on; the first is that of step 2.'
  ]


def test_a_run_without_its_config_is_not_continued(trained, tmp_path):
  run = shutil.copytree(trained, tmp_path / 'run')
  (run / 'config.json').unlink()
  config = _config()
  config.optim.learning_rate = 0.5
  with pytest.raises(errors.DataError, match=r'but no config\.json') as e:
    _run(run, config)
  assert e.value.exit_code == 65
  config.allow_changed_config = True
  _run(run, config)
  assert saved.config_of(run).optim.learning_rate == 0.5
