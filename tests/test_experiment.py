"""What a config is made into: the state at step 0, as built and as planned."""

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors
import tiny_vision

from td_jax.data import classification
from td_jax.devices import parallel as parallel_lib
from td_jax.run import experiment
from td_jax.run import teachers

TEACHER_DEPTH = 3


@pytest.fixture(scope='module')
def config(vision_data, tmp_path_factory):
  """Two seeds that talk about streamed images to a deeper teacher."""
  teacher = tiny_vision.teacher(
    tmp_path_factory.mktemp('teacher'), depth=TEACHER_DEPTH
  )
  made = tiny_vision.get_config(f'method=td,teacher={teacher}')
  made.teacher.model.update({'depth': TEACHER_DEPTH, 'split': (2, 3)})
  made.data.dir, made.data.memory = str(vision_data), 'stream'
  made.seeds = 2
  return made


@pytest.fixture(scope='module')
def parallel(config):
  return parallel_lib.Parallel('mesh', 1)


@pytest.fixture(scope='module')
def made(config, parallel, tmp_path_factory):
  task = classification.load(config, log=print)
  teacher = teachers.load(
    config,
    task,
    path=tmp_path_factory.mktemp('run'),
    folder=config.teacher.checkpoint,
  )
  return experiment.build(config, parallel, task, {'teacher': teacher})


def _described(tree):
  return {
    jax.tree_util.keystr(path): (leaf.shape, np.dtype(leaf.dtype))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


def test_a_plan_is_what_is_built(config, parallel, made):
  """Without data and without the teacher's weights."""
  planned = config.copy_and_resolve_references()
  planned.data.dir = planned.teacher.checkpoint = '/nowhere'
  task = classification.shapes(planned)
  _, (state, (teacher, columns), rows) = experiment.abstract(
    planned, parallel, task
  )
  assert _described(state) == _described(made.state)
  assert _described(teacher) == _described(made.fixed[0])
  assert (columns, made.fixed[1]) == ((), ())
  assert _described(rows) == _described(made.rows(0, 1))


def test_the_student_starts_as_the_teachers_first_blocks(config, made):
  """Of each seed; by the names that the weights are stored under."""
  stored = safetensors.load_file(
    f'{config.teacher.checkpoint}/model.safetensors'
  )
  stored = {name.removeprefix('vit.'): leaf for name, leaf in stored.items()}
  student = made.state.params['student']['params']
  assert sorted(name for name in student if 'blocks' in name) == [
    'blocks_0',
    'blocks_1',
  ]
  for block in (0, 1):
    for ours, theirs in (
      ('attention/query', 'attention.attention.query'),
      ('mlp/out', 'output.dense'),
    ):
      leaf = student[f'blocks_{block}']
      for part in ours.split('/'):
        leaf = leaf[part]
      expected = stored[f'encoder.layer.{block}.{theirs}.weight'].T
      for seed in (0, 1):
        np.testing.assert_array_equal(leaf['kernel'][seed], expected)
  for seed in (0, 1):
    np.testing.assert_array_equal(
      student['norm']['scale'][seed], stored['layernorm.weight']
    )
    np.testing.assert_array_equal(
      student['embed']['position'][seed],
      stored['embeddings.position_embeddings'][0],
    )
  # Its own are the head and what it talks with, another for each seed.
  assert not np.any(student['head']['kernel'])
  for leaf in jax.tree.leaves(made.state.params['method']):
    if leaf.ndim > 2:
      assert (leaf[0] != leaf[1]).any()


def test_uniform_takes_others(config, parallel, made):
  task = classification.load(config, log=print)
  teacher = teachers.load(
    config, task, path=None, folder=config.teacher.checkpoint
  )
  own = config.copy_and_resolve_references()
  own.update({'student_init': 'uniform', 'method': 'scratch', 'seeds': 1})
  uniform = experiment.build(own, parallel, task, {'teacher': teacher})
  # Once it has started it is left alone.
  assert uniform.fixed[0] == {}
  last = uniform.state.params['student']['params']['blocks_1']
  jax.tree.map(
    lambda leaf, theirs: np.testing.assert_array_equal(leaf[0], theirs),
    last,
    teacher.variables['params'][f'blocks_{TEACHER_DEPTH - 1}'],
  )
