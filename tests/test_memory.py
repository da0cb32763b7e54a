"""A run that cannot fit into memory is refused before anything is made."""

import conftest
import pytest
import tiny_vision

from td_jax import errors
from td_jax.devices import parallel as parallel_lib
from td_jax.run import plan

GB = 10**9


@pytest.fixture(autouse=True)
def one_gigabyte(monkeypatch):
  monkeypatch.setattr(
    parallel_lib.Parallel, 'memory', lambda self: ('this machine', GB)
  )


def _refused(config, path, said):
  with pytest.raises(errors.ConfigError, match=said) as e:
    plan.make(config, path)
  assert '\n' not in str(e.value)
  assert 'but this machine has 1.0 GB; choose a smaller' in str(e.value)


@pytest.mark.parametrize(
  ('overrides', 'said'),
  [
    # 4 bytes of an id of each example, and 4 in each of 2 steps of 2 seeds.
    ({'batch_size': 2**28}, 'at least 5.4 GB .*1.1 GB for the inputs'),
    ({'steps_per_dispatch': 2**24, 'batch_size': 16}, '2.1 GB for the rows'),
    # 4 bytes x 20000^2 x 2 seeds x (student, best, gradient and two moments).
    (
      {'model.hidden': (20000, 20000)},
      '16.1 GB for the networks of config.seeds=2',
    ),
    (
      {'teacher.model.hidden': (20000, 20000)},
      '8.0 GB for the networks of config.seeds=1',
    ),
  ],
)
def test_tables(overrides, said, tmp_path):
  if 'steps_per_dispatch' in overrides:
    every = overrides['steps_per_dispatch']
    overrides = overrides | {'log_every': every, 'eval_every': every}
  config = conftest.small_config()
  plan.make(config, tmp_path)
  config.update_from_flattened_dict(overrides)
  _refused(config, tmp_path, said)


@pytest.mark.parametrize(
  ('overrides', 'said'),
  [
    # 8 images of 12 bytes a pixel.
    ({'data.size': 8000}, 'at least 6.1 GB .*6.1 GB for the inputs'),
    (
      {'data.memory': 'stream', 'eval_batch': 2**20},
      'for the inputs of config.eval_batch=1048576',
    ),
    (
      {'model.mlp_width': 60000, 'model.depth': 200},
      'for the networks of config.seeds=1',
    ),
  ],
)
def test_images(overrides, said, tmp_path, vision_data, vision_teacher):
  config = tiny_vision.get_config(f'method=scratch,teacher={vision_teacher}')
  config.data.dir = str(vision_data)
  config.student_init = 'random'
  plan.make(config, tmp_path)
  config.update_from_flattened_dict(overrides)
  _refused(config, tmp_path, said)
