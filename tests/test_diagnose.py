"""The diagnosis measures what it claims, and renders from its rows alone."""

import functools
import pathlib
import types

import conftest
import jax
import numpy as np
import pytest

from benchmarks import diagnose
from td_jax.data import movielens
from td_jax.data import sources
from td_jax.devices import parallel
from td_jax.paper import diagnosis
from td_jax.paper import diagnosis_plot
from td_jax.run import experiment
from td_jax.run import pipeline
from td_jax.run import teachers
from td_jax.storage import results_log

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

ROOT = pathlib.Path(__file__).parents[1]


def test_every_run_has_a_row_of_its_own():
  runs = [run[:4] for run in diagnosis.runs()]
  assert len(set(runs)) == len(runs)


def test_rank_of_equal_directions():
  rng = np.random.default_rng(0)
  square = np.linalg.qr(rng.normal(size=(50, 8)))[0]
  square -= square.mean(axis=0)
  # Three directions that vary alike: by hand (1 + 1 + 1)^2 / (1 + 1 + 1).
  values = np.linalg.qr(square)[0][:, :3] @ rng.normal(size=(3, 3))
  u, _, v = np.linalg.svd(values, full_matrices=False)
  assert float(diagnose._rank(u @ v)) == pytest.approx(3, rel=1e-4)
  line = np.outer(np.arange(9.0), [1, 2, 3])
  assert float(diagnose._rank(line)) == pytest.approx(1, rel=1e-5)


def test_share_of_the_variance_that_is_missed():
  target = np.array([[0.0, 1], [2, 1], [4, 1]])
  assert float(diagnose._missed(target, target)) == 0
  assert float(diagnose._missed(target.mean(axis=0), target)) == 1
  # Half of each distance from the mean is a quarter of the variance.
  half = (target + target.mean(axis=0)) / 2
  assert float(diagnose._missed(half, target)) == pytest.approx(0.25)


@pytest.fixture
def small(monkeypatch):
  ratings = conftest.small_ratings()
  monkeypatch.setattr(sources, 'movielens_100k', lambda *_, **__: ratings)
  short = types.SimpleNamespace(get_config=conftest.small_config)
  monkeypatch.setattr(diagnose, 'movielens_config', short)
  return ratings


@pytest.fixture
def teacher(small, tmp_path):
  config = conftest.small_config('method=teacher')
  pipeline.run(
    config, tmp_path / 'teacher', watch=conftest.Watch(), log=lambda line: None
  )
  return str(tmp_path / 'teacher')


def test_a_share_of_the_ratings(small):
  task = movielens.load(conftest.small_config(), log=lambda line: None)
  part = diagnose.with_share(task, 0.2)
  rows = int(task.train.mask.sum())
  assert part.train.mask.sum() == round(0.2 * rows)
  assert len(part.train.mask) == len(task.train.mask)
  real = part.train.mask > 0
  for name in ('user', 'movie'):
    known = set(part.train.x[name][real].tolist())
    assert 0 < len(known) < len(set(task.train.x[name].tolist()))
    assert set(part.validation.x[name].tolist()) <= known | {0}
    np.testing.assert_array_equal(
      part.validation.teacher_x['teacher'][name],
      task.validation.teacher_x['teacher'][name],
    )
  again = diagnose.with_share(task, 0.2)
  jax.tree.map(np.testing.assert_array_equal, again.train, part.train)
  assert diagnose.with_share(task, 1.0) is task


def test_messages_are_measured_by_hand(small, teacher):
  method, changes = diagnosis.weights('td', 1.0, 'message', 'state')
  run = diagnosis.Run('weight', 'Drama', 'both', 1.0, method, changes)
  row = diagnose.measure(run, teacher, seeds=1, steps=4)
  assert len(row['validation']['per_seed']) == 1
  assert row['steps'] == [2, 4]
  config = conftest.small_config('method=td', seeds=1)
  config.refit_on_validation = False
  task = movielens.load(config, log=lambda line: None)
  frozen = teachers.load(config, task, path=pathlib.Path(), folder=teacher)
  rng = np.random.default_rng(1)
  made = experiment.build(
    config,
    parallel.Parallel('single', 1),
    task,
    {'teacher': frozen},
  )
  params = jax.tree.map(
    lambda leaf: rng.normal(0, 1 / 4, (2, *leaf.shape[1:])).astype(np.float32),
    made.state.params,
  )
  measured = diagnose.measure_messages(
    config, task, params, model=made.model, teacher=frozen, examples=20
  )
  one = jax.tree.map(lambda leaf: leaf[0], params)
  batch = jax.device_get(task.examples(task.validation, np.arange(20)))
  talk = one['method']['talk']

  def translate(part, values):
    layers = talk[part]['params']
    hidden = np.maximum(
      values @ layers['Dense_0']['kernel'] + layers['Dense_0']['bias'], 0
    )
    norm = layers['LayerNorm_0']
    hidden = (hidden - hidden.mean(-1, keepdims=True)) / np.sqrt(
      hidden.var(-1, keepdims=True) + 1e-6
    )
    hidden = hidden * norm['scale'] + norm['bias']
    return hidden @ layers['Dense_1']['kernel'] + layers['Dense_1']['bias']

  g, h = (
    jax.device_get(
      jax.jit(functools.partial(model.apply, train=False))(variables, x)
    )
    for model, variables, x in (
      (made.model, one['student'], batch.x),
      (frozen.model, frozen.variables, batch.input_of('teacher')),
    )
  )
  message = translate('student_encoder', np.concatenate(g[:2], axis=1))
  decoded = translate('teacher_decoder', message)[:, : h[0].shape[1]]
  own = frozen.variables['params']
  high = np.maximum(
    decoded @ own['layers_1']['kernel'] + own['layers_1']['bias'], 0
  )
  output = (high @ own['head']['kernel'] + own['head']['bias'])[:, 0]

  def missed(got, target):
    target = np.asarray(target)
    return ((got - target) ** 2).sum() / ((target - target.mean(0)) ** 2).sum()

  expected = {
    'missed low_h': missed(decoded, h[0]),
    'missed high_h': missed(high, h[1]),
    'rmse of low_h': np.sqrt(np.mean((h[2] - batch.y) ** 2)),
    'rmse of decoded low_h': np.sqrt(np.mean((output - batch.y) ** 2)),
  }
  covariance = np.cov(message.T, bias=True)
  expected['rank m_g'] = np.trace(covariance) ** 2 / (covariance**2).sum()
  for name, value in expected.items():
    np.testing.assert_allclose(
      measured[name][0], value, rtol=1e-3, err_msg=name
    )


def test_gaps_are_of_the_same_seeds():
  def row(name, x, scores):
    return {
      'part': 'share', 'genre': 'Drama', 'name': name, 'x': x,
      'validation': {'per_seed': scores},
    }  # fmt: skip

  rows = diagnosis.Rows(
    [row('scratch', 0.2, [1.0, 2.0]), row('td', 0.2, [0.9, 1.7])]
  )
  gap = rows.gap('share', 'Drama', 'td', 0.2)
  assert gap['mean'] == pytest.approx(-0.2)
  assert gap['standard_error'] == pytest.approx(0.1)
  assert rows.gap('share', 'Drama', 'td', 0.3) is None


def test_the_committed_page_is_rendered_from_its_rows():
  rows = diagnosis.Rows(results_log.read(ROOT / 'results/diagnosis.jsonl'))
  assert all(run in rows for run in diagnosis.runs())
  page = (ROOT / 'results/diagnosis.md').read_text()
  assert page == diagnose.render(ROOT / 'results')


def test_figures_are_drawn_from_the_committed_rows(tmp_path):
  pytest.importorskip('matplotlib')
  rows = diagnosis.Rows(results_log.read(ROOT / 'results/diagnosis.jsonl'))
  diagnosis_plot.draw(rows, tmp_path)
  for name in ('weight', 'iteration'):
    png = (tmp_path / f'diagnosis_{name}.png').read_bytes()
    assert png.startswith(b'\x89PNG')
