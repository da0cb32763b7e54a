"""Trials are the same in every call, run once, and never see the test split."""

import pathlib

import conftest
import numpy as np
import pytest

from td_jax import errors
from td_jax.data import sources
from td_jax.paper import table_specs
from td_jax.paper import tables
from td_jax.paper import tune
from td_jax.run import pipeline
from td_jax.storage import results_log

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

ROOT = pathlib.Path(__file__).parents[1]


def _tune(folder, what, *, count=2, domain='movielens', seeds=1):
  tune.run(
    domain,
    what,
    folder,
    folder,
    count=count,
    seeds=seeds,
    teacher='weights',
    watch=conftest.Watch(),
    log=lambda line: None,
  )


@pytest.mark.parametrize('domain', tune.SPACES)
def test_every_method_has_as_many_trials(domain):
  for space in tune.SPACES[domain].values():
    trials = tune.trials(space, 3)
    assert trials == tune.trials(space, 5)[:3]
    assert len({str(trial) for trial in trials}) == 3
    for trial in trials:
      assert all(value in space[name] for name, value in trial.items())
  assert set(table_specs.BASELINE_METHODS) - {'scratch'} <= set(
    tune.SPACES[domain]
  )


def test_a_small_space_is_tried_whole():
  assert len(tune.trials({'a': (1, 2), 'b': (3,)}, 9)) == 2


@pytest.fixture
def ran(monkeypatch):
  """Replaces training; the list of configs that 'ran'."""
  configs = []

  def run(config, path, **_):
    del path
    configs.append(config)
    return {
      'metric': 'rmse',
      'validation': {'mean': config.distill.weights.logit},
      'best_step': [1],
      'seconds': 1.0,
      'commit': 'abc',
    }

  monkeypatch.setattr(pipeline, 'run', run)
  monkeypatch.setattr(tables, 'teacher_of', lambda *_, **__: 'teacher')
  return configs


def test_trials_run_once_and_on_validation(tmp_path, ran):
  _tune(tmp_path, ['ld'])
  assert len(ran) == 4  # Two settings, two genres.
  for config in ran:
    assert (config.method, config.refit_on_validation, config.test) == (
      'ld',
      False,
      False,
    )
    assert config.teacher.checkpoint == 'teacher/selection'
  _tune(tmp_path, ['ld'])
  assert len(ran) == 4
  _tune(tmp_path, ['ld'], count=3)
  assert len(ran) == 6
  rows = results_log.read(tmp_path / 'search.jsonl')
  (settings, score, count) = tune.best(rows)['ld']
  tried = tune.trials(tune.SPACES['movielens']['ld'], 3)
  lowest = min(trial['distill.weights.logit'] for trial in tried)
  assert settings == {'distill.weights.logit': lowest}
  assert (score, count) == (lowest, 3)


def test_the_search_of_dropout_trains_td_with_a_teacher(tmp_path, ran):
  _tune(tmp_path, ['dropout'], count=5)
  assert {config.method for config in ran} == {'td'}
  assert {config.teacher.checkpoint for config in ran} == {'teacher/selection'}
  assert {config.distill.dropout for config in ran} == {0.0, 0.1, 0.2, 0.3, 0.5}


def test_what_another_process_does_is_left_to_it(tmp_path, ran):
  (tmp_path / 'tune').mkdir()
  settings = tune.trials(tune.SPACES['movielens']['ld'], 1)[0]
  name = tune._name('ld', 'Drama', settings)
  with results_log.lock(tmp_path / 'tune' / name):
    _tune(tmp_path, ['ld'], count=1)
  assert [config.data.genre for config in ran] == ['War']
  _tune(tmp_path, ['ld'], count=1)
  assert [config.data.genre for config in ran] == ['War', 'Drama']


def test_settings_that_lack_a_column_do_not_count():
  def row(column, weight, score, metric='rmse'):
    return {
      'what': 'ld',
      'column': column,
      'settings': {'w': weight},
      'metric': metric,
      'validation': {'mean': score},
    }

  rows = [row('a', 1, 0.5), row('b', 1, 0.7), row('a', 2, 0.1)]
  assert tune.best(rows) == {'ld': ({'w': 1}, 0.6, 1)}
  rows = [
    row('a', weight, score, 'accuracy')
    for weight, score in ((1, 0.5), (2, 0.9))
  ]
  assert tune.best(rows) == {'ld': ({'w': 2}, 0.9, 2)}


def test_a_teacher_is_scored_by_the_genres_it_will_teach(tmp_path, monkeypatch):
  small = conftest.small_ratings()
  monkeypatch.setattr(sources, 'movielens_100k', lambda *_, **__: small)
  monkeypatch.setattr(tune.movielens, 'GENRES', small.genre_names)
  real = table_specs.config

  def short(*args, **more):
    config = real(*args, **more)
    config.teacher.update(
      {'steps': 4, 'steps_per_dispatch': 2, 'log_every': 2, 'eval_every': 4}
    )
    config.teacher.model.hidden, config.parallel.devices = (20, 16), 1
    return config

  monkeypatch.setattr(table_specs, 'config', short)
  monkeypatch.setitem(
    tune.SPACES['movielens'], 'teacher', {'teacher.batch_size': (16,)}
  )
  monkeypatch.setattr(tune, '_WINDOWS', ('1.0',))  # The test below has all.
  _tune(tmp_path, ['teacher'], count=1, seeds=2)
  (row,) = results_log.read(tmp_path / 'search.jsonl')
  assert row['column'] == '1.0'
  assert len(row['validation']['per_seed']) == 2
  # Each of the same teacher, by hand, in another run of it.
  config = table_specs.config(
    'movielens', 'teacher', '', seeds=range(1), teacher='', cache_dir=''
  )
  config.test = config.refit_on_validation = False
  config.teacher.batch_size, config.seed = 16, 1
  pipeline.run(
    config, tmp_path / 'run', watch=conftest.Watch(), log=lambda _: None
  )
  each = [tune._score(config, tmp_path / 'run', g) for g in small.genre_names]
  assert row['validation']['per_seed'][1] == pytest.approx(
    np.mean(each), rel=1e-6
  )


def test_the_better_half_is_tried_on_the_next_window(tmp_path, monkeypatch):
  ran = []

  def train_teachers(config, watch):
    del watch
    ran.append((config.data.train_fraction, config.teacher.steps))
    # The fewer the steps the better, but for 700 on the first window.
    first = config.teacher.steps == 700 and config.data.train_fraction == 1
    mean = 0.0 if first else config.teacher.steps
    mean += 10_000 * (
      1 - config.data.train_fraction
    )  # Earlier windows are harder.
    return {'metric': 'rmse', 'validation': {'mean': mean}, 'seconds': 1.0}

  monkeypatch.setattr(tune, '_train_teachers', train_teachers)
  monkeypatch.setitem(
    tune.SPACES['movielens'], 'teacher', {'teacher.steps': (300, 500, 700, 900)}
  )
  _tune(tmp_path, ['teacher'], count=4)
  assert [share for share, _ in ran] == [1.0] * 4 + [0.9] * 2 + [0.8]
  assert {steps for share, steps in ran if share == 0.9} == {300, 700}
  # (300 + 300) / 2 against (0 + 700) / 2.
  assert ran[-1] == (0.8, 300)
  best = tune.best(results_log.read(tmp_path / 'search.jsonl'))
  assert best['teacher'] == ({'teacher.steps': 300}, pytest.approx(1300), 1)
  _tune(tmp_path, ['teacher'], count=4)
  assert len(ran) == 7


def test_best_of_what_is_committed():
  for domain, file in tune.FILES.items():
    for row in results_log.read(ROOT / 'results' / file):
      assert 'test' not in row
      assert row['what'] in tune.SPACES[domain]


def test_an_unknown_what(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr('sys.argv', ['tune', '--what=lda'])
  with pytest.raises(SystemExit) as end:
    tune.main()
  assert end.value.code == errors.ConfigError.exit_code
  assert 'lda' in capsys.readouterr().err
