"""--mode=compile for images, without TPUs and without libtpu."""

import importlib.util

import jax
import pytest
import test_step_cost
import tiny_vision

from td_jax.tpu_cost import estimate
from td_jax.tpu_cost import step_cost
from td_jax.tpu_cost import topology

# ml_collections loads configs by a function that Python has deprecated.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')
CONFIG = f'--config={tiny_vision.FILE}'


class _StopError(Exception):
  """Ends a test before anything is compiled."""


def test_a_step_is_built_without_data_or_weights(monkeypatch):
  """With CPU devices in the place of TPUs. Nothing is compiled."""
  described = test_step_cost._topology()
  monkeypatch.setattr(topology, 'describe', lambda name: described)
  given = {}

  def report(step, arguments, **named):
    given.update(named)
    raise _StopError

  monkeypatch.setattr(step_cost, 'report', report)
  config = tiny_vision.get_config('method=ld,teacher=/nowhere')
  config.data.dir = '/nowhere'
  config.teacher.model.depth = 3
  with pytest.raises(_StopError):
    estimate.cost(config, 'v4:2x2x2', mfu=0.3)
  assert given['topology'] is described
  assert (given['steps'], given['mfu']) == (config.steps, 0.3)
  width, mlp, patch = tiny_vision.W, tiny_vision.MLP, tiny_vision.PATCH
  block = 4 * (width + 1) * width + 2 * width * mlp + width + mlp + 4 * width
  tokens = (tiny_vision.SIZE // patch) ** 2 + 1
  rest = (
    3 * patch**2 + 1 + tokens + 1
  ) * width  # Patches, positions, class token.
  rest += 2 * width + (width + 1) * tiny_vision.CLASSES  # LayerNorm, head.
  sizes = [
    sum(leaf.size for leaf in jax.tree.leaves(tree))
    for tree in given['parameters']
  ]
  assert sizes == [rest + 2 * block, rest + 3 * block]


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ((CONFIG, '--topology=v4:2x2x1'), 'pip install libtpu'),
    ((CONFIG,), '--mode=compile needs --topology'),
    ((CONFIG, '--topology=v9:2x2'), "'v9'; choose one of: v4"),
    ((CONFIG, '--topology=v4:2x2'), "'v4:2x2', but v4 takes 3 sizes"),
    ((CONFIG, '--config.data.fixed_crops=-1'), 'config.data.fixed_crops is -1'),
    ((f'{CONFIG}:method=teacher',), 'its teacher is published'),
  ],
)
def test_mistakes_are_one_line(command, monkeypatch, tmp_path, args, message):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  code, out, err = command(*args, '--mode=compile')
  assert (code, out) == (2, ''), err
  assert err.startswith('error: ')
  assert message in err
  assert err.count('\n') == 1
  assert list(tmp_path.iterdir()) == []
