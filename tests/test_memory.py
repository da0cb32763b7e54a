"""A run that cannot fit into memory is refused before anything is made."""

import pathlib

import conftest
import jax
import pytest
import tiny_vision

from benchmarks import topologies
from td_jax import errors
from td_jax import models
from td_jax.devices import parallel as parallel_lib
from td_jax.run import memory
from td_jax.run import pipeline
from td_jax.run import plan
from td_jax.storage import results_log

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
    # 4 bytes of an id of each example, 4 in each of 2 steps of 2 seeds, and 4 for
    # each of 12 + 8 units.
    ({'batch_size': 2**28}, 'at least 26.8 GB .*1.1 GB for the inputs'),
    ({'steps_per_dispatch': 2**24, 'batch_size': 16}, '2.1 GB for the rows'),
    # 4 bytes x 20000^2 x 2 seeds x (student, best, gradient and two moments).
    (
      {'model.hidden': (20000, 20000)},
      '16.0 GB for the networks of config.seeds=2',
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
    ({'data.size': 8000}, 'at least 64,.* GB .*6.1 GB for the inputs'),
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


@pytest.mark.parametrize(
  ('overrides', 'said'),
  [
    # 4 bytes x 400 blocks x 2 x 8 x 60000.
    (
      {'teacher.model.mlp_width': 60000, 'teacher.model.depth': 400},
      'at least 1.5 GB .*1.5 GB for the teacher',
    ),
    # 4 bytes x 256 images x 2 heads x 1025^2 tokens.
    (
      {'data.size': 256, 'batch_size': 256},
      '2.2 GB for a step on the examples of config.batch_size=256',
    ),
    # 4 bytes x 256 images x 17 tokens x (30 blocks x 800 + 2 states x 16000).
    (
      {
        **{'data.size': 32, 'batch_size': 256, 'student_init': 'random'},
        **{'model.width': 800, 'model.depth': 30, 'model.mlp_width': 1},
        **{'teacher.model.width': 16000, 'teacher.model.mlp_width': 1},
        'teacher.model.depth': 0,
      },
      '1.0 GB for a step on the examples of config.batch_size=256',
    ),
  ],
)
def test_the_teacher_and_a_step_are_counted(overrides, said):
  config = tiny_vision.get_config('method=td')
  parallel = parallel_lib.Parallel('single', 1)
  memory.check(config, parallel, config.teacher.model)
  config.update_from_flattened_dict(overrides)
  with pytest.raises(errors.ConfigError, match=said):
    memory.check(config, parallel, config.teacher.model)


def test_cached_states_are_counted_before_the_teacher_trains(
  small_movielens, tmp_path, monkeypatch
):
  del small_movielens  # Replaces the data alone.
  monkeypatch.setattr(
    parallel_lib.Parallel, 'memory', lambda self: ('this machine', 10**5)
  )
  config = conftest.small_config()
  # 1215 ratings x 4 bytes x (20 + 16) units.
  with pytest.raises(errors.ConfigError, match='1,215 examples, at least') as e:
    pipeline.run(
      config, tmp_path, watch=conftest.Watch(), log=lambda line: None
    )
  assert 'choose config.teacher.cache=False' in str(e.value)
  assert not (tmp_path / 'teacher').exists()


@pytest.mark.parametrize('mlp', ['gelu', 'swiglu'])
def test_the_formula_counts_the_matrices_of_a_vit(mlp):
  config = tiny_vision.get_config().model
  config.update({'mlp': mlp, 'depth': 3})
  shapes = jax.eval_shape(
    lambda: models.build(config, {'classes': 3}).init(
      jax.random.key(0), jax.numpy.zeros((1, 16, 16, 3)), train=False
    )
  )
  sizes = {
    jax.tree_util.keystr(path): leaf.size
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
  }
  expected = sum(
    size
    for name, size in sizes.items()
    if 'kernel' in name and 'head' not in name
  )
  found = models.NETWORKS['vit'].footprint(config, {'image_size': 16})
  assert found.parameters == 4 * expected


class _Chips(parallel_lib.Parallel):
  """TPUs that are not here."""

  def __init__(self, count):
    self.count, self.platform = count, 'tpu'


def test_what_is_counted_is_less_than_what_a_compiled_step_takes():
  """The compiler's own count is at hand for some steps on TPUs."""
  file = (
    pathlib.Path(topologies.__file__).parents[1]
    / 'results/compile_imagenet.jsonl'
  )
  rows = results_log.read(file)
  assert rows
  for row in rows:
    config = topologies.CONFIGS[row['teacher']]()
    config.batch_size = row['batch_size']
    config.eval_batch = 1  # A step evaluates nothing.
    parts = memory.least(config, _Chips(row['chips']), config.teacher.model)
    assert 0.1 < sum(parts.values()) / row['memory']['used'] < 0.9
