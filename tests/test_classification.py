"""The task of a folder of images: views, subsets, and what is refused."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest
import tiny_vision

from td_jax import errors
from td_jax.data import classification
from td_jax.data import feed as feed_lib
from td_jax.devices import parallel as parallel_lib
from td_jax.methods import base
from td_jax.models import split
from td_jax.run import config as config_lib
from td_jax.run import experiment
from td_jax.run import plan
from td_jax.run import teachers

TRAIN = tiny_vision.SIZES['train']


@pytest.fixture
def config(vision_data, vision_teacher):
  """(method, **overrides) -> a config of the tiny images."""

  def make(method='scratch', **overrides):
    made = tiny_vision.get_config(f'method={method},teacher={vision_teacher}')
    made.data.dir = str(vision_data)
    made.update_from_flattened_dict(overrides)
    return made

  return make


def _load(config):
  return classification.load(config, log=lambda line: None)


def _build(config, tmp_path):
  """The experiment of `config`, its task and its teacher."""
  config_lib.validate(config)
  task = _load(config)
  teacher = teachers.load(
    config, task, path=tmp_path, folder=config.teacher.checkpoint
  )
  parallel = parallel_lib.Parallel('single', 1)
  teachers_by_name = {'teacher': teacher}
  built = experiment.build(config, parallel, task, teachers_by_name)
  return built, task, teacher


def test_views_are_examples_of_their_own(config):
  whole, viewed = _load(config()), _load(config(**{'data.fixed_crops': 3}))
  feed = feed_lib.feed(viewed.train, viewed.make_batch)
  assert feed.size == 3 * TRAIN
  # An epoch has each view once.
  ids = feed.train_rows(0, 8, 0, 9, slice(0, 8)).ravel()
  np.testing.assert_array_equal(np.sort(ids), np.arange(3 * TRAIN))
  # The views of an image differ; their label does not, nor does a view when
  # it is seen again, by another seed.
  pick = jax.jit(viewed.make_batch)
  same = np.arange(3, dtype=np.int32) * TRAIN + 5
  once = pick(viewed.train, same, jax.random.key(1))
  again = pick(viewed.train, same, jax.random.key(2))
  np.testing.assert_array_equal(once.x, again.x)
  np.testing.assert_array_equal(once.y, whole.train.y[[5, 5, 5]])
  for one, other in ((0, 1), (0, 2), (1, 2)):
    assert np.abs(once.x[one] - once.x[other]).max() > 0.1
  # It is as many images as before.
  assert viewed.metadata['train_examples'] == TRAIN
  assert viewed.baselines() == whole.baselines()


def test_views_change_no_score(config):
  whole, viewed = _load(config()), _load(config(**{'data.fixed_crops': 3}))
  for name in ('validation', 'test'):
    split = getattr(viewed, name)
    jax.tree.map(np.testing.assert_array_equal, split, getattr(whole, name))
    ids = np.arange(4)
    np.testing.assert_array_equal(
      viewed.make_batch(split, ids, None).x,
      whole.make_batch(split, ids, None).x,
    )


def test_a_cached_teacher_teaches_the_same(config, tmp_path):
  own = config(
    'td_ld',
    **{
      'data.fixed_crops': 2,
      'teacher.cache': True,
      'eval_batch': 10,
    },  # Not of 48.
  )
  made, task, teacher = _build(own, tmp_path)
  _, cached = made.fixed
  assert len(cached.mask) == 2 * TRAIN
  parts = experiment.step_parts(
    own, task, made.model, {'teacher': teacher.model}
  )
  params = jax.tree.map(lambda leaf: leaf[0], made.state.params)

  @jax.jit
  def cost(columns, ids, key):
    batch = task.make_batch(columns, ids, key)
    lesson = base.Lesson(
      student=split.side(made.model, params['student'], batch.x),
      teachers=parts['teacher_sides']({'teacher': teacher.variables}, batch),
      batch=batch,
      step=jnp.int32(0),
      rng=jax.random.key(1),
    )
    cost, terms = parts['method'].loss(params['method'], lesson)
    return cost, terms, lesson.teacher[:2]

  ids = jnp.arange(2 * TRAIN)
  live = jax.tree.map(jnp.asarray, task.train)
  found, expected = (
    cost(columns, ids, jax.random.key(seed))
    for seed, columns in enumerate((cached, live))
  )
  _, terms, (states, output) = expected
  assert {'talk/message', 'talk/state', 'logit'} <= terms.keys()
  for state in (states.low, states.high, output):
    assert np.std(state, axis=0).mean() > 0.01  # One example is not another.
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(
      one, other, rtol=1e-4, atol=1e-4
    ),
    found,
    expected,
  )


def test_limit_is_a_balanced_subset_for_all_seeds(config):
  whole = _load(config())
  part = _load(config(**{'data.limit': 9}))
  np.testing.assert_array_equal(np.bincount(part.train.y), [3, 3, 3])
  assert part.metadata['train_examples'] == 9
  images = [image.tobytes() for image in whole.train.x]
  assert {image.tobytes() for image in part.train.x} < set(images)
  other = _load(config(**{'data.limit': 9, 'seed': 5, 'seeds': 2}))
  jax.tree.map(np.testing.assert_array_equal, part.train, other.train)
  assert part.fingerprint == other.fingerprint != whole.fingerprint
  for name in ('validation', 'test'):
    jax.tree.map(
      np.testing.assert_array_equal, getattr(part, name), getattr(whole, name)
    )


@pytest.mark.parametrize(
  ('overrides', 'said'),
  [
    ({'data.memory': 'devise'}, "Did you mean 'device'"),
    ({'data.augment': 'nine'}, "Did you mean 'none'"),
    (
      {'data.size': 20},
      'config.model.patch is 8, which does not divide config.data.size, 20;',
    ),
    ({'data.area': (0.5, 0.1)}, 'config.data.area is'),
    ({'data.area': (0.5,)}, 'config.data.area is'),
    ({'data.mean': (1.0, 2.0)}, 'config.data.mean is'),
    ({'data.std': (1.0, 2.0, 0.0)}, 'config.data.std is'),
    ({'data.fixed_crops': -1}, 'config.data.fixed_crops is -1'),
    (
      {'data.fixed_crops': 2, 'data.memory': 'stream'},
      'config.data.fixed_crops is 2',
    ),
    (
      {'data.fixed_crops': 2, 'data.augment': 'none'},
      'config.data.fixed_crops is 2',
    ),
    ({'data.limit': -1}, 'config.data.limit is -1'),
    ({'data.limit': 9, 'data.memory': 'stream'}, 'config.data.limit is 9'),
    (
      {'data.smaller_side': 8, 'data.memory': 'stream'},
      'config.data.smaller_side is 8',
    ),
    ({'data.augment': 'none', 'data.memory': 'stream'}, 'augment'),
    ({'teacher.cache': True}, 'config.teacher.cache is True'),
    (
      {'teacher.cache': True, 'data.memory': 'stream'},
      'config.teacher.cache is True',
    ),
    ({'refit_on_validation': True}, 'config.refit_on_validation is True'),
    ({'method': 'teacher'}, 'its teacher is published'),
    ({'model.name': 'mlp'}, "config.model.name is 'mlp', which has no setting"),
    ({'model.patch': 0}, 'config.model.patch is 0'),
    ({'teacher.head': 'prob'}, "Did you mean 'probe'"),
    ({'teacher.head': 'none', 'method': 'td_ld'}, "head is 'none'"),
    ({'teacher.checkpoint': ''}, 'config.teacher.checkpoint is empty'),
  ],
)
def test_what_cannot_work_is_one_line(config, overrides, said):
  with pytest.raises(errors.ConfigError) as e:
    config_lib.validate(config(**{'method': 'td'} | overrides))
  assert said in str(e.value)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  ('overrides', 'error', 'said'),
  [
    ({'data.limit': 99}, errors.ConfigError, 'config.data.limit is 99'),
    ({'data.classes': 4}, errors.ConfigError, 'config.data.classes is 4'),
    ({'data.train': 'trian'}, errors.ConfigError, "Did you mean 'train'"),
    ({'data.dataset': 'no such'}, errors.ConfigError, "dataset 'no such'"),
    ({'data.dataset': 'cifar10'}, errors.DataError, 'To prepare it'),
    ({'data.dir': '/nowhere'}, errors.DataError, '/nowhere'),
  ],
)
@pytest.mark.parametrize('memory', ['device', 'stream'])
def test_what_the_data_refuse(config, memory, overrides, error, said):
  if memory == 'stream' and 'data.limit' in overrides:
    pytest.skip('is refused before')
  with pytest.raises(error) as e:
    _load(config(**overrides, **{'data.memory': memory}))
  assert said in str(e.value)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  ('overrides', 'said'),
  [
    ({'model.width': 16}, "the student's width is 16 and the teacher's"),
    ({'model.heads': 1}, "the student's heads is 1 and"),
    ({'model.mlp_width': 5}, "the student's mlp_width is 5 and"),
    ({'model.patch': 4}, r'tokens \(17,\) and'),
    ({'model.depth': 9}, 'the student has 9 blocks'),
    ({'model.layer_scale': 0.1}, "the student's layer_scale is True"),
    ({'model.patch': 4, 'student_init': 'random'}, r'tokens \(17,\) and'),
    ({'model.split': (1, 3)}, r'model.split is \(1, 3\)'),
    ({'teacher.model.split': (2, 9)}, r'teacher.model.split is \(2, 9\)'),
  ],
)
def test_a_student_that_does_not_fit_its_teacher(
  config, tmp_path, overrides, said
):
  """Is refused before the data are read: there are none."""
  small = config('td', **overrides, **{'data.dir': '/nowhere'})
  with pytest.raises(errors.ConfigError, match=said) as e:
    plan.make(small, tmp_path)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  ('field', 'ours', 'stored'),
  [('width', 16, 8), ('depth', 3, 2), ('heads', 4, 2), ('patch', 4, 8)],
)
def test_a_published_teacher_of_another_shape(
  config, tmp_path, field, ours, stored
):
  """Student and config agree, but config.json beside the weights does not."""
  overrides = {f'{model}.{field}': ours for model in ('model', 'teacher.model')}
  small = config('td', **overrides, **{'data.dir': '/nowhere'})
  with pytest.raises(errors.ConfigError) as e:
    plan.make(small, tmp_path)
  said = str(e.value)
  assert f'config.teacher.model has {field}={ours}, but ' in said
  assert f'config.json has {field}={stored}; ' in said
  assert f'--config.teacher.model.{field}={stored}' in said
  assert '\n' not in said


@pytest.mark.parametrize('method', ['td', 'fd', 'fitnet'])
def test_other_tokens_than_the_teachers(config, tmp_path, method):
  """Patches of 4 pixels, to a teacher of 8."""
  small = config(method, **{'model.patch': 4, 'student_init': 'random'})
  with pytest.raises(errors.ConfigError, match=r'\(17,\) .* \(5,\)') as e:
    _build(small, tmp_path)
  assert '\n' not in str(e.value)
