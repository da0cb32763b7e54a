"""The study of few labels: its cells, its work and its page."""

import itertools
import json

import conftest
import numpy as np
import pytest

from td_jax import types
from td_jax.run import config as config_lib
from td_jax.study import few_labels
from td_jax.study import few_labels_page
from td_jax.study import regimes

FEW = regimes.Regime(0.05, 'kept', 'rest')
ALONE = regimes.Regime(0.05, 'all', 'none')


def test_every_row_has_trials_of_its_own_kind():
  rows, tuned = regimes.rows(), regimes.tuned()
  assert len(set(rows)) == len(rows)
  for regime, row in rows:
    searched, method = regimes.tuned_as(regime, row)
    assert (searched, method) in tuned
    assert searched.teacher == regime.teacher
    assert row.startswith(method)
    # Nothing is chosen with labels that the row hides from scratch.
    assert row != regimes.SCRATCH or searched == regime


def test_trials_are_as_many_and_as_wide_for_every_method():
  for method in (regimes.SCRATCH, *regimes.METHODS):
    trials = regimes.trials(method, 6)
    assert len({json.dumps(trial) for trial in trials}) == 6
    assert trials == regimes.trials(method, 12)[:6]
  logits = [
    sorted(t['distill.weights.logit'] for t in regimes.trials(method, 6))
    for method in ('ld', 'hybrid', 'td_ld')
  ]
  assert logits[0] == logits[1] == logits[2]


@pytest.mark.parametrize(('regime', 'row'), regimes.rows())
def test_configs_are_valid_and_teachers_fit(regime, row):
  _, method = regimes.tuned_as(regime, row)
  (trial,) = regimes.trials(method, 1)
  config = regimes.config(
    regime, row, 'War', seeds=range(3), teacher='', weights=trial
  )
  config_lib.validate(config)
  assert config.data.labels.share == regime.share
  teacher = config_lib.as_teacher(regimes.teacher_config(regime, 'War'))
  config_lib.validate(teacher)
  expected = config_lib.as_teacher(config).data.labels
  assert teacher.data.labels.share == expected.share
  if expected.share < 1:
    assert teacher.data.labels == expected


def _cell(regime, row, column, seeds):
  """A finished cell; RMSE 1 + a tenth of the genre's number + the seed's."""
  number = regimes.COLUMNS.index(column)
  scores = [1 + number / 10 + seed for seed in seeds]
  return {
    'regime': regime._asdict(),
    'row': row,
    'column': column,
    **{split: {'per_seed': scores} for split in ('validation', 'test')},
    'teachers': {'teacher': {'validation': 0.9, 'test': 0.95}},
    'baselines': {'user+movie bias': {'validation': 1.1, 'test': 1.2}},
  }


def _rows():
  return [
    *(_cell(ALONE, 'scratch', c, (0.02, 0.04)) for c in regimes.COLUMNS),
    *(_cell(FEW, 'ld', c, (0.01, 0.02)) for c in regimes.COLUMNS),
    # Not in every genre, so that its mean could not be compared.
    _cell(FEW, 'td', 'Drama', (0.0, 0.0)),
  ]


def test_the_page_by_hand():
  text = few_labels_page.page(few_labels_page.Finished(_rows()))
  # 1.35 is the mean over the genres; the gains of the seeds are 0.01 and 0.02.
  assert (
    '| Label distillation (LD) | with the pairs of the hidden ratings '
    '| 1.3650 ± 0.0050 | +0.0150 ± 0.0050 | 1.3650 ± 0.0050 |'
  ) in text
  assert '| From scratch | labelled ratings only | 1.3800 ± 0.0100 |' in text
  assert '| Teacher (frozen) |  | 0.9000 |' in text
  assert '| TD' not in text


def test_rendering_writes_page_and_figure(tmp_path):
  few_labels_page.render(_rows(), tmp_path)
  assert (tmp_path / 'few_labels.md').read_text().startswith('# Few labels')
  assert (tmp_path / 'few_labels.png').read_bytes()[1:4] == b'PNG'


def test_the_best_weights_have_the_best_mean_of_both_genres():
  trials = [
    {
      'regime': FEW._asdict(),
      'method': 'ld',
      'column': column,
      'weights': {'distill.weights.logit': weight},
      'validation': {'mean': mean},
    }
    for weight, column, mean in (
      (1.0, 'Drama', 0.9),
      (1.0, 'War', 1.1),
      (3.0, 'Drama', 0.95),
      (3.0, 'War', 1.0),
      (10.0, 'War', 0.5),  # The other genre has not run.
    )
  ]
  for order in itertools.permutations(trials):
    assert few_labels.best(order) == {
      (FEW, 'ld'): {'distill.weights.logit': 3.0}
    }


@pytest.mark.usefixtures('small_movielens')
def test_the_study_resumes(tmp_path, monkeypatch):
  """Trials, then cells with the best weights; what is done is not run again."""
  rows = [(ALONE, 'scratch'), (FEW, 'ld')]
  monkeypatch.setattr(regimes, 'rows', lambda: rows)
  monkeypatch.setattr(regimes, 'COLUMNS', ('Drama', 'War'))
  monkeypatch.setattr(regimes, 'TUNED_ON', ('Drama', 'War'))
  small = conftest.small_config('method=teacher')

  def shrunk(make):
    def config(*args, **kwargs):
      made = make(*args, **kwargs)
      for learner, model in (
        (made, small.model),
        (made.teacher, small.teacher.model),
      ):
        learner.update({'steps': 4, 'batch_size': 16, 'eval_every': 2})
        learner.update({'steps_per_dispatch': 2, 'log_every': 2})
        learner.model.hidden = model.hidden
        learner.optim.warmup = 1
      return made

    return config

  monkeypatch.setattr(regimes, 'config', shrunk(regimes.config))
  monkeypatch.setattr(regimes, 'teacher_config', shrunk(regimes.teacher_config))
  lines = []

  def study():
    made = few_labels.Study(
      tmp_path / 'work',
      tmp_path / 'results',
      watch=conftest.Watch(),
      log=lines.append,
    )
    made.search(trials=1, seeds=1)
    made.cells(seeds=2)

  study()
  files = [
    tmp_path / 'results' / n for n in (few_labels.SEARCH, few_labels.CELLS)
  ]
  found = [
    [json.loads(line) for line in f.read_text().splitlines()] for f in files
  ]
  assert [len(rows) for rows in found] == [4, 4]
  ld = [row for row in found[1] if row['row'] == 'ld']
  assert all(row['labels'] < row['unlabelled'] for row in ld)
  assert all(np.isfinite(row['test']['mean']) for row in found[1])
  assert all('folder' not in row['teachers'].get('teacher', {}) for row in ld)
  before = [f.read_bytes() for f in files]
  # An honest teacher of each genre; scratch asked for none but that of all.
  folders = {
    f.parent.name for f in (tmp_path / 'work').glob('teacher*/results.json')
  }
  assert folders == {'teacher', 'teacher-0.05-Drama', 'teacher-0.05-War'}
  study()
  assert [f.read_bytes() for f in files] == before
  assert types.TEACHER in ld[0]['teachers']
