"""Several methods on the same data: what is shared, and what the table says."""

import re
import shutil

import conftest
import numpy as np
import pytest

import td_jax
from td_jax import errors
from td_jax import types
from td_jax.data import movielens
from td_jax.study import compare

pytestmark = [
  pytest.mark.long,  # `.ci/run` runs it on one Python.
  # ml_collections loads config files so.
  pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning'),
]

# Steps of milliseconds, as `conftest.small_config` has them.
SMALL = [
  f'--config.{key}={value}'
  for part in ('', 'teacher.')
  for key, value in (
    (f'{part}steps', 12),
    (f'{part}steps_per_dispatch', 2),
    (f'{part}log_every', 2),
    (f'{part}eval_every', 4),
    (f'{part}batch_size', 16),
    (f'{part}optim.warmup', 2),
  )
] + [
  '--config.parallel.devices=1',
  '--config.model.hidden=(12, 8)',
  '--config.teacher.model.hidden=(20, 16)',
  '--config.distill.hidden=14',
  '--config.distill.message=10',
]
METHODS = ('scratch', 'ld')


def _configs(names=METHODS, *, refit=False, seeds=2, more=()):
  words = [*SMALL, f'--config.refit_on_validation={refit}', *more]
  return compare.configs('movielens:genre=War', words, names, seeds=seeds)


def _run(configs, folder, log=types.no_log):
  return compare.run(configs, folder, watch=conftest.Watch(), log=log)


@pytest.fixture(scope='module')
def compared(small_movielens, tmp_path_factory):
  """(folder, results) of two methods."""
  folder = tmp_path_factory.mktemp('compare') / 'runs'
  return folder, _run(_configs(), folder)


def _result(scores, label, *, metric='rmse', **more):
  found = {
    split: {'per_seed': [score + 0.5 * (split == 'test') for score in scores]}
    for split in ('validation', 'test')
  }
  return {
    'label': label,
    'metric': metric,
    'task': 'War',
    'seeds': [0, 1, 2],
    'baselines': {'mean': {'validation': 2.0, 'test': 2.25}},
    'teachers': {},
    'seconds': 7.4,
    **found,
    **more,
  }


def test_each_method_has_the_weights_of_its_config():
  configs = _configs(('ld', 'td_ld'), seeds=3, more=['--config.k=2'])
  # Those of configs/movielens.py, which chooses them by the method.
  assert configs['ld'].distill.weights.logit == 0.03
  assert configs['td_ld'].distill.weights.state == 0.01
  for name, config in configs.items():
    assert (config.method, config.seeds, config.k) == (name, 3, 2)
    assert config.data.genre == 'War'


def test_a_config_without_arguments(tmp_path):
  file = tmp_path / 'own.py'
  file.write_text(
    'from td_jax.configs import movielens\n'
    'def get_config():\n'
    '  return movielens.get_config("runlocal")\n'
  )
  configs = compare.configs(str(file), [], ['ld', 'fd'], seeds=2)
  assert [config.method for config in configs.values()] == ['ld', 'fd']
  assert configs['ld'].steps == 60


@pytest.mark.parametrize(
  ('config', 'words', 'names', 'message'),
  [
    ('movielens', [], ['lds'], "Did you mean 'ld'"),
    ('movieline', [], ['ld'], "Did you mean 'movielens'"),
    ('movielens:gen=War', [], ['ld'], "Did you mean 'genre'"),
    ('movielens', ['--config.kk=1'], ['ld'], "no key 'kk'"),
  ],
)
def test_what_cannot_be_compared(config, words, names, message):
  with pytest.raises(errors.ConfigError, match=message):
    compare.configs(config, words, names, seeds=2)


def test_all_is_checked_before_anything_is_trained(tmp_path):
  configs = _configs(('scratch', 'td'))
  configs['td'].distill.message = 0
  with pytest.raises(errors.ConfigError, match='message'):
    _run(configs, tmp_path / 'runs')
  assert not (tmp_path / 'runs').exists()


def test_one_teacher_serves_all(compared):
  folder, results = compared
  assert sorted(path.name for path in folder.iterdir()) == [
    'ld', 'scratch', 'teacher',
  ]  # fmt: skip
  teacher = str((folder / 'teacher').absolute())
  assert results['ld']['teachers']['teacher']['folder'] == teacher
  assert results['scratch']['teachers'] == {}
  # A method's run is as any other.
  assert td_jax.load(folder / 'ld').predict([('1', '2')]).shape == (1,)


def test_the_same_command_runs_what_is_missing(compared, tmp_path):
  folder, results = compared
  copy = tmp_path / 'runs'
  shutil.copytree(folder, copy)
  shutil.rmtree(copy / 'ld')
  before = (copy / 'scratch' / 'metrics.jsonl').stat().st_mtime_ns
  # The teacher is that of the copy, where the first has its own: a new folder
  # is no other teacher.
  configs = _configs()
  for config in configs.values():
    config.teacher.checkpoint = str(folder / 'teacher')
  again = _run(configs, copy)
  assert again['ld']['test'] == results['ld']['test']
  assert again['scratch']['test'] == results['scratch']['test']
  assert (copy / 'scratch' / 'metrics.jsonl').stat().st_mtime_ns == before


def test_a_refit_is_compared_too(small_movielens, tmp_path):
  """Curves are those before the refit, which has no validation."""
  folder = tmp_path / 'runs'
  results = _run(_configs(('scratch',), refit=True), folder)
  curves = compare.curves(folder, ['scratch'], 'rmse')
  assert curves['scratch'].steps.tolist() == [4, 8, 12]
  assert curves['scratch'].scores.shape == (3, 2)
  assert 'validation' in results['scratch']


def test_the_page_by_hand():
  runs = {
    'scratch': _result([1.0, 1.2, 1.4], 'scratch'),
    'ld': _result([0.9, 1.0, 1.4], 'ld'),
    'td': _result([1.0, 1.3, 1.6], 'td, k=1'),
  }
  runs['ld']['teachers'] = {'teacher': {'validation': 0.5, 'test': 0.6}}
  text = compare.page(runs)
  # Differences of ld are -0.1, -0.2 and 0: t = -sqrt(3), so p = 0.2254.
  for line in (
    '| mean | 2.0000 | 2.2500 |  |  |',
    '| teacher (frozen) | 0.5000 | 0.6000 |  |  |',
    '| scratch | 1.2000 ± 0.1155 | 1.7000 ± 0.1155 |  | 7 |',
    '| ld | 1.1000 ± 0.1528 | 1.6000 ± 0.1528 | -0.1000 ± 0.0577 (p = 0.23) | 7 |',
    'lower is better',
    'The best by validation is ld; on test it differs from scratch by -0.1000',
  ):
    assert line in text
  accuracies = {
    name: run | {'metric': 'accuracy'} for name, run in runs.items()
  }
  assert 'The best by validation is td, k=1; on' in compare.page(accuracies)
  assert 'higher is better' in compare.page(accuracies)


def test_a_single_seed_has_no_error():
  runs = {
    name: _result([1.0 + i], name, seeds=[0])
    for i, name in enumerate(('scratch', 'ld'))
  }
  text = compare.page(runs)
  assert '| ld | 2.0000 | 2.5000 | +1.0000 | 7 |' in text
  assert 'says nothing of the spread' in text and 't-test' not in text
  assert 'The best by validation is scratch.' in text


def test_the_command(compared, small_movielens, capfd, monkeypatch, tmp_path):
  folder, results = compared
  copy = tmp_path / 'runs'
  shutil.copytree(folder, copy)
  words = [*SMALL, '--config.refit_on_validation=False', f'--workdir={copy}']
  words.append(f'--config.teacher.checkpoint={folder / "teacher"}')
  monkeypatch.setattr(compare.compile_cache, 'enable', lambda: None)
  compare.main(
    [
      '--config=movielens:genre=War',
      '--methods=scratch,ld',
      '--seeds=2',
      *words,
    ]
  )
  out, err = capfd.readouterr()
  assert out.strip() == (copy / 'compare.md').read_text().strip()
  found = re.search(r'\| ld \| ([\d.]+) ±', out)
  assert found
  assert float(found[1]) == pytest.approx(
    np.mean(results['ld']['validation']['per_seed']), abs=5e-5
  )
  assert 'method 2 of 2: ld' in err
  assert (copy / 'compare.png').read_bytes().startswith(b'\x89PNG')


def test_few_labels_are_compared(small_movielens, tmp_path):
  """With a teacher that has never seen the hidden ones."""
  more = ['--config.data.labels.share=0.5', '--config.teacher.labels=kept']
  results = _run(_configs(('ld',), more=more), tmp_path / 'runs')
  war = movielens.parts(conftest.small_ratings(), 'War').train
  assert results['ld']['labels'] == round(0.5 * len(war))


def test_data_are_looked_at_before_a_teacher_is_trained(
  small_movielens, tmp_path
):
  more = ['--config.data.unlabelled.source=rest']
  with pytest.raises(errors.ConfigError, match='hides no label'):
    _run(_configs(('ld',), more=more), tmp_path / 'runs')
  assert not (tmp_path / 'runs').exists()
