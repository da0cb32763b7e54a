"""Learning curves: their configs, the command's work and its page."""

import json

import conftest
import numpy as np
import pytest
import tiny_vision

from td_jax.run import config as config_lib
from td_jax.study import curves

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.


@pytest.mark.parametrize('recipe', curves.RECIPES)
def test_configs_are_valid(recipe):
  config = curves.config(recipe, teacher='DIR', seeds=range(2))
  config_lib.validate(config)
  assert config.steps % config.eval_every == 0
  assert not config.test
  assert curves.RECIPES[recipe].group in curves.GROUPS


def test_flops_by_hand():
  config = curves.config('160 steps', teacher='DIR', seeds=range(1))
  tokens, width, hidden = 17, 384, 1536
  patches = 16 * (14 * 14 * 3) * width
  # Query, key, value and output; scores and their sums; the two layers.
  block = 4 * tokens * width**2 + 2 * tokens**2 * width
  block += 2 * tokens * width * hidden
  head = 2 * width * 10  # It reads the class token and the mean.
  assert curves.flops(config, config.model) == 2 * (patches + 2 * block + head)
  teacher = 2 * (patches + 12 * block + width * 10)
  assert curves.flops(config, config.teacher.model) == teacher


def test_a_curve_is_run_once(
  vision_data, vision_teacher, tmp_path, monkeypatch
):
  config = tiny_vision.get_config('method=ld')
  config.data.dir = str(vision_data)
  monkeypatch.setattr(curves.vit_cifar10, 'get_config', lambda arg: config)
  recipes = {'short': curves.Recipe('length', {'steps': 8})}
  monkeypatch.setattr(curves, 'RECIPES', recipes)

  def run():
    curves.run(
      tmp_path / 'work',
      tmp_path,
      recipes=recipes,
      teacher=str(vision_teacher),
      seeds=2,
      watch=conftest.Watch(),
      log=lambda line: None,
    )
    return (tmp_path / 'curves.jsonl').read_text()

  (line,) = run().splitlines()
  row = json.loads(line)
  assert [step for step, _ in row['curve']] == list(range(1, 9))
  best = np.max([scores for _, scores in row['curve']], axis=0)
  np.testing.assert_allclose(row['validation']['per_seed'], best)
  assert row['share_of_teachers_flops'] == 1
  assert run().splitlines() == [line]


def _row(curve):
  return {
    'curve': curve,
    'batch_size': 64,
    'seeds': [0, 1],
    'seconds': 30.0,
    'share_of_teachers_flops': 0.168,
    'validation': {'mean': 0.61, 'standard_error': 0.01},
    'teachers': {'teacher': {'validation': 0.7}},
  }


def test_the_page_by_hand(tmp_path):
  curve = [[120, [0.5, 0.6]], [160, [0.6, 0.62]]]
  rows = {'160 steps': _row(curve), '4 blocks': _row(curve)}
  text = curves.page(rows)
  assert (
    '| 160 steps | 10,240 | 0.6100 ± 0.0100 | +0.0600 | 16.8% | 15 |' in text
  )
  assert '## How large' in text
  assert '## How the student starts' not in text
  assert 'The teacher, with a linear head: 0.7000.' in text
  curves.draw(rows, tmp_path / 'curves.png')
  assert (tmp_path / 'curves.png').read_bytes()[1:4] == b'PNG'
