"""Hidden labels, and examples that are seen without one."""

import functools
import itertools

import conftest
import jax
import numpy as np
import pytest
import tiny_images
import tiny_vision

from td_jax import errors
from td_jax import types
from td_jax.data import classification
from td_jax.data import feed as feed_lib
from td_jax.data import movielens
from td_jax.devices import parallel as parallel_lib
from td_jax.models import probe
from td_jax.run import config as config_lib
from td_jax.run import experiment
from td_jax.run import pipeline
from td_jax.run import plan
from td_jax.run import teachers

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

GENRE = 'Drama'


def _ratings_config(**overrides):
  return conftest.small_config(
    f'genre={GENRE}', **{'refit_on_validation': False} | overrides
  )


def _ratings_task(**overrides):
  return movielens.task(_ratings_config(**overrides), conftest.small_ratings())


def _keys(columns):
  """{(user, movie, rating)} of the real rows, as the teacher sees them."""
  real = conftest.real(columns)
  x = real.input_of('teacher')
  rows = zip(x['user'], x['movie'], real.y, strict=True)
  return [tuple(map(float, row)) for row in rows]


def _columns(count, first=0):
  return types.Batch(
    x=np.arange(first, first + count),
    y=np.arange(first, first + count) + 0.5,
    mask=np.ones(count, np.float32),
  )


# Batches.


def test_a_batch_has_two_parts():
  labelled = feed_lib.padded(_columns(10), 12)
  feed = feed_lib.feed(
    labelled, None, feed_lib.Unlabelled(_columns(7, first=100), 0.25)
  )
  assert feed.size == 19
  rows = feed.train_rows(3, 8, 0, 20, slice(0, 8))
  batches = jax.vmap(lambda ids: feed.make_batch(feed.columns, ids, None))(rows)
  first, second = batches.x[:, :6], batches.x[:, 6:]
  np.testing.assert_array_equal(batches.labelled[:, :6], 1)
  np.testing.assert_array_equal(batches.labelled[:, 6:], 0)
  np.testing.assert_array_equal(batches.mask, 1)
  np.testing.assert_array_equal(batches.y[:, :6], first + 0.5)
  # The labels of the others do not even reach the device.
  np.testing.assert_array_equal(feed.columns.y[12:], 0)
  # Each part has epochs of its own.
  for part, values in ((first, range(10)), (second, range(100, 107))):
    epochs = np.asarray(part).ravel()
    for start in range(0, len(epochs) - len(values), len(values)):
      assert sorted(epochs[start : start + len(values)]) == list(values)
  # A resumed run goes on with the same batches; a host feeds its slice.
  np.testing.assert_array_equal(
    feed.train_rows(3, 8, 5, 20, slice(2, 8)), rows[5:, 2:]
  )
  assert np.any(feed.train_rows(4, 8, 0, 20, slice(0, 8)) != rows)


def test_labelled_batches_are_those_of_before():
  """The labelled part does not depend on how many examples are unlabelled."""
  parts = [
    feed_lib.feed(
      _columns(10), None, feed_lib.Unlabelled(_columns(count), 0.5)
    ).train_rows(0, 8, 0, 9, slice(0, 4))
    for count in (3, 30)
  ]
  np.testing.assert_array_equal(*parts)
  plain = feed_lib.feed(_columns(10), None).train_rows(0, 4, 0, 9, slice(0, 4))
  np.testing.assert_array_equal(parts[0], plain)


class _Stream:
  """Delivers the seed, step and position of each example."""

  def __init__(self, offset):
    self._offset = offset

  def __len__(self):
    return 10

  def whole(self, batch, host_slice):
    raise NotImplementedError  # Only training mixes streams.

  def train(self, seed, step, batch, host_slice):
    place = np.arange(batch)[host_slice]
    values = self._offset + 100 * seed + 10 * step + place
    return types.Batch(
      x=values, y=values + 1, mask=np.ones(len(place), np.float32)
    )


def test_streams_are_joined():
  feed = feed_lib.feed(
    _Stream(0), None, feed_lib.Unlabelled(_Stream(5000), 0.5)
  )
  rows = feed.train_rows(2, 8, 1, 3, slice(0, 8))
  np.testing.assert_array_equal(
    rows.x,
    [
      [210, 211, 212, 213, 5210, 5211, 5212, 5213],
      [220, 221, 222, 223, 5220, 5221, 5222, 5223],
    ],
  )
  np.testing.assert_array_equal(rows.labelled, [[1, 1, 1, 1, 0, 0, 0, 0]] * 2)
  np.testing.assert_array_equal(rows.y[:, 4:], 0)
  # The second of two hosts reads its half of each part.
  rows = feed.train_rows(2, 8, 1, 2, slice(4, 8))
  np.testing.assert_array_equal(rows.x, [[212, 213, 5212, 5213]])
  with pytest.raises(errors.ConfigError, match='8 hosts cannot divide'):
    feed.train_rows(2, 8, 1, 2, slice(0, 1))


# Ratings.


def test_labels_are_nested_and_hidden_in_the_training_rows_alone():
  whole = _ratings_task()
  before = set()
  for share in (0.05, 0.2, 1.0):
    task = _ratings_task(
      **{'data.labels.share': share, 'data.unlabelled.source': 'none'}
    )
    kept = _keys(task.train)
    assert len(kept) == round(share * len(_keys(whole.train)))
    assert before <= set(kept)
    before = set(kept)
    assert task.metadata['labels'] == len(kept)
    assert _keys(task.validation) == _keys(whole.validation)
    assert _keys(task.test) == _keys(whole.test)
    np.testing.assert_allclose(
      task.model_args['mean'], np.mean([key[2] for key in kept]), rtol=1e-6
    )
  other = _ratings_task(**{'data.labels.share': 0.2, 'data.labels.draw': 1})
  assert set(_keys(other.train)) != set(
    _keys(_ratings_task(**{'data.labels.share': 0.2}).train)
  )


def test_the_rest_is_seen_without_ratings():
  whole = _ratings_task()
  task = _ratings_task(
    **{'data.labels.share': 0.2, 'data.unlabelled.source': 'rest'}
  )
  rest = conftest.real(task.unlabelled.split)
  assert not rest.y.any()
  pairs = [
    sorted(key[:2] for key in keys)
    for keys in (_keys(whole.train), _keys(task.train) + _keys(rest))
  ]
  assert pairs[0] == pairs[1]
  assert task.metadata['unlabelled'] == len(rest.y)
  # Students know all ids that they see, and those alone.
  alone = _ratings_task(**{'data.labels.share': 0.2})
  assert len(np.unique(task.validation.x['user'])) >= len(
    np.unique(alone.validation.x['user'])
  )


def test_a_refit_hides_the_same_ratings():
  share = {'data.labels.share': 0.2}
  whole = _ratings_task(refit_on_validation=True)
  before = _ratings_task(**share)
  after = _ratings_task(**share, refit_on_validation=True)
  kept = _keys(after.train)
  assert set(_keys(before.train)) <= set(kept) <= set(_keys(whole.train))
  # The validation split gives the same share of its ratings as the other.
  assert len(kept) == len(_keys(before.train)) + round(
    0.2 * len(_keys(before.validation))
  )


def test_random_pairs():
  task = _ratings_task(
    **{'data.unlabelled.source': 'pairs', 'data.unlabelled.pairs': 500}
  )
  rows = conftest.real(task.unlabelled.split)
  assert len(rows.y) == 500
  for field in ('user', 'movie'):
    known = np.unique(conftest.real(task.train).x[field])
    assert set(np.unique(rows.x[field])) <= set(known)
  # Nobody rated most of them.
  rated = {key[:2] for key in _keys(task.train)}
  assert np.mean([key[:2] in rated for key in _keys(rows)]) < 0.9


def test_more_pairs_than_there_are():
  with pytest.raises(errors.ConfigError, match='pairs is 2147483647, but'):
    _ratings_task(
      **{
        'data.unlabelled.source': 'pairs',
        'data.unlabelled.pairs': 2**31 - 1,
      }
    )


@pytest.mark.parametrize('kept', [True, False])
def test_what_the_teacher_learns_from(kept):
  config = _ratings_config(
    **{
      'data.labels.share': 0.2,
      'teacher.labels': 'kept' if kept else 'all',
    }
  )
  ratings = conftest.small_ratings()
  student = movielens.task(config, ratings)
  hidden = _ratings_task(
    **{'data.labels.share': 0.2, 'data.unlabelled.source': 'rest'}
  )
  own = config_lib.as_teacher(config)
  config_lib.validate(own)
  teacher = movielens.task(own, ratings)
  everyone = len(movielens.parts(ratings).train)
  missing = hidden.metadata['unlabelled'] if kept else 0
  assert teacher.metadata['labels'] == everyone - missing
  # A row belongs to all genres of its movie and is hidden from the teacher
  # altogether.
  rows = {key[:2] for key in _keys(teacher.train)}
  pairs = [key[:2] for key in _keys(hidden.unlabelled.split)]
  again = [pair for pair in pairs if pair in rows]
  # A few pairs were rated twice.
  assert (len(again) < 0.5 * len(pairs)) if kept else len(again) == len(pairs)
  assert set(_keys(student.train)) <= set(_keys(teacher.train))


@pytest.fixture(scope='module')
def made(tmp_path_factory, small_movielens):
  """(name, arg, **overrides) -> (results, log) of a run in its own folder."""
  root = tmp_path_factory.mktemp('runs')

  def run(name, arg, watch=None, **overrides):
    lines = []
    config = conftest.small_config(
      arg, **{'refit_on_validation': False, 'seeds': 1} | overrides
    )
    results = pipeline.run(
      config, root / name, watch=watch or conftest.Watch(), log=lines.append
    )
    return results, lines

  return root, run


FEW = {'data.labels.share': 0.1, 'data.unlabelled.source': 'rest'}


def test_scratch_ignores_unlabelled_examples(made):
  _, run = made
  alone, _ = run('alone', 'method=scratch', **{'data.labels.share': 0.1})
  told, lines = run('told', 'method=scratch', **FEW)
  assert told['test'] == alone['test']
  assert any('scratch learns from labels alone' in line for line in lines)


def test_a_run_resumes_with_the_same_batches(made):
  root, run = made
  named = {'teacher.checkpoint': str(root / 'teacher')}
  run('teacher', 'method=teacher')
  whole, _ = run('whole', 'method=ld', **FEW, **named)
  calls = iter([False, False, True])
  with pytest.raises(errors.PreemptedError):
    run(
      'cut',
      'method=ld',
      watch=conftest.Watch(lambda: next(calls, True)),
      **FEW,
      **named,
    )
  resumed, lines = run('cut', 'method=ld', **FEW, **named)
  assert any('resumed' in line for line in lines)
  assert resumed['test'] == whole['test']
  read = [
    (root / name / 'metrics.jsonl').read_bytes() for name in ('whole', 'cut')
  ]
  assert read[0] == read[1]
  assert whole['unlabelled'] > 0
  without, _ = run(
    'without',
    'method=ld',
    **FEW | {'data.unlabelled.source': 'none'},
    **named,
  )
  assert without['test'] != whole['test']


def test_a_teacher_that_saw_other_labels_is_refused(made):
  root, run = made
  run(
    'honest',
    'method=teacher',
    **{
      'teacher.labels': 'kept',
      'data.labels.share': 0.1,
      'data.labels.genre': GENRE,
    },
  )
  config = conftest.small_config(
    f'method=ld,genre={GENRE}',
    **FEW,
    **{
      'teacher.checkpoint': str(root / 'honest'),
      'refit_on_validation': False,
    },
  )
  with pytest.raises(errors.ConfigError, match=r"teacher\.labels is 'all'"):
    plan.make(config, root / 'ld')
  config.teacher.labels = 'kept'
  plan.make(config, root / 'ld')
  config.data.labels.share = 0.2
  with pytest.raises(errors.ConfigError, match=r"teacher\.labels is 'kept'"):
    plan.make(config, root / 'ld')


# Images.


@pytest.fixture
def image_config(vision_data, vision_teacher):
  def make(method='ld', **overrides):
    made = tiny_vision.get_config(f'method={method},teacher={vision_teacher}')
    made.data.dir = str(vision_data)
    made.update_from_flattened_dict(overrides)
    return made

  return make


def _image_task(config):
  config_lib.validate(config)
  return classification.load(config, log=types.no_log)


def test_images_keep_labels_of_each_class(image_config):
  whole = _image_task(image_config())
  few = _image_task(
    image_config(
      **{'data.labels.per_class': 2, 'data.unlabelled.source': 'rest'}
    )
  )
  more = _image_task(
    image_config(**{'data.labels.share': 0.5, 'data.unlabelled.source': 'rest'})
  )
  assert np.bincount(few.train.y).tolist() == [2] * tiny_vision.CLASSES
  assert np.bincount(more.train.y).tolist() == [4] * tiny_vision.CLASSES

  def images(columns):
    return {image.tobytes() for image in columns.x}

  assert images(few.train) < images(more.train) < images(whole.train)
  for task in (few, more):
    assert images(task.train) | images(task.unlabelled.split) == images(
      whole.train
    )
    assert not images(task.train) & images(task.unlabelled.split)
    feed = task.train_feed
    assert not feed.columns.y[len(task.train.y) :].any()
  assert few.fingerprint == whole.fingerprint


def test_mixtures_of_labelled_images(image_config):
  few = {'data.labels.per_class': 2, 'data.unlabelled.source': 'mixtures'}
  task = _image_task(image_config(**few))
  mixed = task.unlabelled.split
  count = 10 * len(task.train.y)
  assert mixed.x.shape == (count, *task.train.x.shape[1:])
  assert task.metadata['unlabelled'] == count and not mixed.y.any()
  kept = task.train.x.reshape(len(task.train.y), -1).astype(np.float64)
  shares = []
  for image in mixed.x.reshape(count, -1)[:20]:
    # Of each pair the shares that fit best; one pair fits up to rounding.
    fits = []
    for a, b in itertools.product(kept, kept):
      gap = ((a - b) ** 2).sum()
      share = ((image - b) @ (a - b)) / gap if gap else 1.0
      missed = np.abs(share * a + (1 - share) * b - image).max()
      fits.append((missed, share))
    missed, share = min(fits)
    assert missed <= 1 and -0.01 <= share <= 1.01
    shares.append(share)
  assert np.std(shares) > 0.15
  same = _image_task(image_config(**few)).unlabelled.split
  np.testing.assert_array_equal(same.x, mixed.x)
  other = _image_task(image_config(**few, **{'data.labels.draw': 1}))
  assert not np.array_equal(other.unlabelled.split.x, mixed.x)
  some = _image_task(image_config(**few, **{'data.unlabelled.mixtures': 7}))
  assert len(some.unlabelled.split.y) == 7


def test_fixed_crops_of_both_parts(image_config):
  task = _image_task(
    image_config(
      **{
        'data.labels.per_class': 2,
        'data.unlabelled.source': 'rest',
        'data.fixed_crops': 3,
      }
    )
  )
  assert len(task.train.y) == 3 * 2 * tiny_vision.CLASSES
  assert task.metadata['train_examples'] == 2 * tiny_vision.CLASSES
  assert task.metadata['unlabelled'] == 24 - 2 * tiny_vision.CLASSES
  assert task.train_feed.size == 3 * 24


def test_a_head_is_fitted_on_kept_labels_alone(image_config, tmp_path):
  def head(name, task, config):
    config.teacher.head = 'probe'
    teacher = teachers.load(
      config, task, path=tmp_path / name, folder=config.teacher.checkpoint
    )
    return teacher.variables['params']['head']['kernel']

  few = image_config(
    **{'data.labels.per_class': 2, 'data.unlabelled.source': 'rest'}
  )
  task = _image_task(few)
  honest = head('few', task, few)
  # As if the other images did not exist.
  alone = task._replace(unlabelled=None)
  np.testing.assert_array_equal(head('alone', alone, few), honest)
  whole = image_config()
  leaky = head('whole', _image_task(whole), whole)
  assert np.abs(leaky - honest).max() > 1e-3


def test_a_students_head_is_fitted_on_kept_labels_alone(image_config, tmp_path):
  few = {'data.labels.per_class': 2, 'data.unlabelled.source': 'rest'}
  config = image_config('scratch', student_head='probe', seeds=2, **few)
  task = _image_task(config)
  teacher = teachers.load(
    config, task, path=tmp_path, folder=config.teacher.checkpoint
  )
  made = experiment.build(
    config,
    parallel_lib.Parallel('single', 1),
    task,
    {types.TEACHER: teacher},
  )
  student = made.state.params['student']['params']
  first = jax.tree.map(lambda leaf: leaf[0], student)
  intermediates = jax.jit(
    functools.partial(made.model.apply, train=False, method='intermediates')
  )

  def pooled(split):
    batch = task.make_batch(split, np.arange(len(split.y)), None)
    named = intermediates({'params': first}, batch.x)
    return np.asarray(named['pooled'])

  expected = probe.fit(
    pooled(task.train),
    task.train.y,
    classes=tiny_vision.CLASSES,
    validation=(pooled(task.validation), task.validation.y),
  )
  for seed in range(2):
    np.testing.assert_allclose(
      student['head']['kernel'][seed], expected.kernel, rtol=1e-3, atol=1e-4
    )
  # The blocks below it are still the teacher's.
  jax.tree.map(
    np.testing.assert_array_equal,
    first['blocks_0'],
    teacher.variables['params']['blocks_0'],
  )


def test_a_fitted_head_needs_blocks_of_the_teacher(image_config):
  config = image_config(student_head='probe', student_init='random')
  with pytest.raises(errors.ConfigError, match="student_head is 'probe'"):
    config_lib.validate(config)


@pytest.mark.parametrize('memory', ['device', 'mixtures', 'stream'])
def test_images_train_with_unlabelled_ones(image_config, tmp_path, memory):
  """From the config to the scores, with cached states or streamed."""
  if memory == 'device':
    settings = {
      'data.labels.per_class': 2,
      'data.unlabelled.source': 'rest',
      'teacher.cache': True,
      'data.augment': 'none',
    }
  elif memory == 'mixtures':
    settings = {
      'data.labels.per_class': 2,
      'data.unlabelled.source': 'mixtures',
      'data.unlabelled.mixtures': 18,
      'teacher.cache': True,
      'data.augment': 'none',
    }
  else:
    settings = {
      'data.memory': 'stream',
      'data.augment': 'inception',
      'data.limit': 0,
      'data.train': 'train[:50%]',
      'data.unlabelled.source': 'dataset',
      'data.unlabelled.split': 'train[50%:]',
      'data.unlabelled.dataset': 'image_folder',
      'teacher.cache': False,
    }
  config = image_config('td_ld', **settings)
  results = pipeline.run(
    config, tmp_path, watch=conftest.Watch(), log=types.no_log
  )
  assert results['train_examples'] + results['unlabelled'] == 24
  assert 0 <= results['test']['mean'] <= 1
  rows = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert all('talk/interact' in row and 'task' in row for row in rows)


def test_a_folder_without_classes(image_config, tmp_path):
  photos = tmp_path / 'photos'
  (photos / 'holiday').mkdir(parents=True)
  for seed in range(5):
    place = photos / ('holiday' if seed % 2 else '.')
    (place / f'{seed}.png').write_bytes(tiny_images.png(900 + seed))
  source = {
    'data.unlabelled.source': 'dataset',
    'data.unlabelled.dir': str(photos),
  }
  task = _image_task(image_config(**source, **{'data.unlabelled.split': 'all'}))
  assert len(task.unlabelled.split.y) == 5
  part = _image_task(
    image_config(**source, **{'data.unlabelled.split': 'holiday'})
  )
  assert len(part.unlabelled.split.y) == 2
  assert task.fingerprint == part.fingerprint
  assert task.unlabelled_fingerprint != part.unlabelled_fingerprint
  # Streamed images may have any size.
  (photos / 'large.png').write_bytes(tiny_images.png(1000, 40, 50))
  streamed = _image_task(
    image_config(
      **source,
      **{
        'data.unlabelled.split': 'all',
        'data.memory': 'stream',
        'data.augment': 'inception',
        'teacher.cache': False,
        'data.limit': 0,
      },
    )
  )
  rows = streamed.train_feed.train_rows(0, 4, 0, 2, slice(0, 4))
  np.testing.assert_array_equal(rows.labelled, [[1, 1, 0, 0]] * 2)
  assert rows.x.shape[:2] == (2, 4)


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'data.labels.share': 0.0}, 'share is 0.0; it must be a number above 0'),
    ({'data.labels.draw': -1}, 'draw is -1'),
    ({'data.unlabelled.share': 1.0}, 'above 0 and below 1'),
    ({'data.unlabelled.source': 'pairs'}, 'one of: dataset, mixtures, none'),
    ({'data.unlabelled.mixtures': -1}, 'mixtures is -1'),
    (
      {
        'data.memory': 'stream',
        'data.limit': 0,
        'data.augment': 'inception',
        'teacher.cache': False,
        'data.unlabelled.source': 'mixtures',
      },
      'mixes images in memory',
    ),
    ({'data.unlabelled.source': 'rest'}, 'all labels are kept'),
    ({'data.unlabelled.source': 'dataset'}, "split is ''; name a split"),
    (
      {'data.labels.per_class': 2, 'data.labels.share': 0.5},
      'leave the other at',
    ),
    ({'data.labels.per_class': -2}, 'per_class is -2'),
    (
      {
        'data.memory': 'stream',
        'data.limit': 0,
        'data.augment': 'inception',
        'teacher.cache': False,
        'data.labels.share': 0.5,
      },
      'reads no labels in advance',
    ),
  ],
)
def test_image_settings_that_cannot_work(image_config, overrides, message):
  with pytest.raises(errors.ConfigError, match=message):
    config_lib.validate(image_config(**overrides))


def test_a_class_with_too_few_images(image_config):
  with pytest.raises(errors.ConfigError, match='class 0 has 8 training images'):
    _image_task(image_config(**{'data.labels.per_class': 9}))


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    ({'data.unlabelled.source': 'rest'}, 'hides no label'),
    ({'data.unlabelled.source': 'dataset'}, 'choose one of: none, pairs, rest'),
    ({'data.unlabelled.pairs': -1}, 'pairs is -1'),
    ({'teacher.labels': 'none'}, 'choose one of: all, kept'),
    (
      {'method': 'teacher', 'data.labels.share': 0.5},
      'gives a teacher all labels',
    ),
  ],
)
def test_rating_settings_that_cannot_work(overrides, message):
  config = _ratings_config(**overrides)
  with pytest.raises(errors.ConfigError, match=message):
    config_lib.validate(config)
    movielens.task(config, conftest.small_ratings())
