"""Teachers of the user's own: functions, and answers computed elsewhere."""

import functools
import json
import os
import sys

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest
import tiny_vision

import td_jax
from td_jax import errors
from td_jax.configs import image_folder as image_folder_config
from td_jax.configs import table as table_config
from td_jax.data import answers
from td_jax.data import image_files
from td_jax.data import images
from td_jax.data import preprocess
from td_jax.models import pretrained
from td_jax.models import vit
from td_jax.run import completion
from td_jax.run import config as config_lib
from td_jax.run import pipeline
from td_jax.run import preemption
from td_jax.run import teachers

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

_MODULE = 'teachers_of_test_own_teacher'
_TOKENS = (tiny_vision.SIZE // tiny_vision.PATCH) ** 2


class CNN(nn.Module):
  """A patch's features, then a convolution over patches: both states have 4."""

  def setup(self):
    side = tiny_vision.PATCH
    self.stem = nn.Conv(6, (side, side), strides=(side, side))
    self.block = nn.Conv(9, (3, 3))
    self.head = nn.Dense(tiny_vision.CLASSES)

  def low(self, x):
    return nn.relu(self.stem(x)).reshape(len(x), _TOKENS, -1)

  def interpret(self, low):
    grid = low.reshape(len(low), 2, 2, -1)
    return nn.relu(self.block(grid)).reshape(len(low), _TOKENS, -1)

  def output(self, high):
    return self.head(high.mean(axis=1))

  def features(self, x):
    return self.interpret(self.low(x)).mean(axis=1)

  def __call__(self, x):
    return self.output(self.interpret(self.low(x)))


@functools.cache
def _cnn():
  model = CNN()
  x = jnp.zeros((1, tiny_vision.SIZE, tiny_vision.SIZE, 3))
  variables = model.init(jax.random.key(0), x)

  def method(name):
    return functools.partial(model.apply, method=name)

  return td_jax.Frozen(
    variables,
    method('output'),
    low=method('low'),
    interpret=method('interpret'),
  ), td_jax.Frozen(variables, method('features'))


@pytest.fixture
def module(monkeypatch):
  """A module of a user's own, with functions that make teachers."""
  made = type(sys)(_MODULE)
  monkeypatch.setitem(sys.modules, _MODULE, made)
  made.cnn = lambda: _cnn()[0]
  made.features = lambda: _cnn()[1]
  return made


def _config(data, method, **changes):
  config = tiny_vision.get_config(f'method={method}')
  config.student_init = 'random'
  config.data.update({'dir': str(data), 'augment': 'none'})
  config.data.smaller_side = tiny_vision.SIZE
  config.update_from_flattened_dict(changes)
  return config


def _run(config, path):
  return pipeline.run(
    config, path, watch=preemption.Watch(), log=lambda line: None
  )


def _metrics(path):
  lines = (path / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def _near(one, other):
  assert [row.keys() for row in one] == [row.keys() for row in other]
  for ours, theirs in zip(one, other, strict=True):
    for key, value in ours.items():
      np.testing.assert_allclose(theirs[key], value, rtol=1e-4, err_msg=key)


def test_a_function_teaches_what_its_weights_teach(
  vision_data, vision_teacher, module, tmp_path
):
  """The same ViT, as published weights and as a module with variables."""
  path = str(vision_teacher)

  def vit_teacher():
    loaded = pretrained.load(path, image_size=tiny_vision.SIZE)
    running = pretrained.RUNNING | {'split': (1, 2)}
    return vit.ViT(**loaded.settings, **running), loaded.variables

  module.vit = vit_teacher
  published = {'teacher.checkpoint': path}
  built = {'teacher.checkpoint': '', 'teacher.build': f'{_MODULE}:vit'}
  scores = []
  for name, teacher in (('published', published), ('built', built)):
    config = _config(vision_data, 'td_ld', **teacher)
    scores.append(_run(config, tmp_path / name)['teachers']['teacher'])
  _near(*(_metrics(tmp_path / name) for name in ('published', 'built')))
  assert scores[1].pop('folder') == f'{_MODULE}:vit'
  scores[0].pop('folder')
  assert scores[0] == scores[1]


@pytest.mark.parametrize('method', ['ld', 'hybrid'])
def test_answers_teach_what_their_network_teaches(
  vision_data, module, tmp_path, method
):
  """A CNN, as a function and as its states and outputs in a file."""
  built = {'teacher.checkpoint': '', 'teacher.build': f'{_MODULE}:cnn'}
  tokens = {'model.class_token': 'none', 'model.pooling': 'mean'}
  config = _config(vision_data, method, **built, **tokens)
  first = _run(config, tmp_path / 'function')
  _write_answers(vision_data, tmp_path / 'answers.npz', config)
  changes = {
    'teacher.checkpoint': '',
    'teacher.states': str(tmp_path / 'answers.npz'),
  }
  config = _config(vision_data, method, **changes, **tokens)
  second = _run(config, tmp_path / 'file')
  _near(*(_metrics(tmp_path / name) for name in ('function', 'file')))
  for split in ('validation', 'test'):
    assert first['teachers']['teacher'][split] == pytest.approx(
      second['teachers']['teacher'][split]
    )


def _write_answers(data, path, config):
  """As a user would: an image after the other, by the path of its file."""
  names = sorted(str(file.relative_to(data)) for file in data.rglob('*.png'))
  pixels = [
    preprocess.whole_image(
      image_files.decode((data / name).read_bytes()),
      size=tiny_vision.SIZE,
      smaller_side=tiny_vision.SIZE,
    )
    for name in names
  ]
  levels = np.floor(np.stack(pixels) + 0.5)  # As they are kept.
  x = (levels - np.float32(config.data.mean)) / config.data.std
  x = x.astype(np.float32)
  model, _ = _cnn()
  low = model.low(model.params, x)
  high = model.interpret(model.params, low)
  np.savez(
    path,
    example=np.asarray(names),
    low=low,
    high=high,
    output=model.output(model.params, high),
  )


def test_a_function_sees_streamed_images(vision_data, module, tmp_path):
  changes = {'teacher.build': f'{_MODULE}:cnn', 'teacher.checkpoint': ''}
  stream = {'data.memory': 'stream', 'data.augment': 'inception'}
  config = _config(vision_data, 'ld', **changes, **stream)
  assert _run(config, tmp_path)['teachers']['teacher']['test'] > 0
  assert _run(config, tmp_path)['label'] == 'ld'  # The teacher is known again.


def test_no_head_gives_zeros(vision_data, module, tmp_path):
  """Three classes of zeros are all alike."""
  changes = {'teacher.head': 'none', 'teacher.build': f'{_MODULE}:cnn'}
  tokens = {'model.class_token': 'none', 'model.pooling': 'mean'}
  config = _config(
    vision_data, 'fd', **changes, **tokens, **{'teacher.checkpoint': ''}
  )
  results = _run(config, tmp_path)
  first = results['baselines']['most frequent class']
  assert results['teachers']['teacher']['test'] == pytest.approx(1 / 3)
  assert first['test'] == pytest.approx(1 / 3)


def test_a_head_is_fitted_to_features(vision_data, module, tmp_path):
  changes = {'teacher.head': 'probe', 'teacher.build': f'{_MODULE}:features'}
  config = _config(vision_data, 'ld', **changes, **{'teacher.checkpoint': ''})
  results = _run(config, tmp_path)
  # Colours hint at the label, so features of a random CNN tell them apart.
  assert results['teachers']['teacher']['test'] > 0.8
  again = pipeline.evaluate(
    config, tmp_path, watch=preemption.Watch(), log=lambda line: None
  )
  assert again['teachers'] == results['teachers']


def _raise():
  raise ValueError('no weights')


@pytest.mark.parametrize(
  'build', ['nowhere.teacher:make', 'nowhere.py:make', '/nowhere.py:make']
)
def test_a_module_that_is_not_there(build):
  """The message names it, and no line of ours or of Python's import."""
  with pytest.raises(errors.ConfigError, match='nowhere') as e:
    teachers.built(build)
  assert ' line ' not in str(e.value)


@pytest.mark.parametrize(
  ('function', 'method', 'message'),
  [
    ('cn', 'ld', r"is 'cn'; choose one of: .*Did you mean 'cnn'"),
    ('raises', 'ld', r'ValueError: no weights \(.*test_own_teacher.py, line '),
    (
      'features',
      'ld',
      r'output has shape \[b, 9\]; it must be \[b, 3\], for classes',
    ),
    ('output', 'td', "has an output alone, but method 'td' looks at hidden"),
    ('half', 'ld', 'only one of low and interpret'),
    ('count', 'ld', "is 'count'; choose one of: "),
    ('number', 'ld', r'it is int; it must be a td_jax\.Frozen'),
    ('other', 'ld', r'fails on inputs \[b, 16, 16, 3\] float32: '),
    ('flat', 'ld', r'low state has shape \[b, 2, 2, 6\]'),
  ],
)
def test_a_function_that_does_not_fit(  # noqa: PLR0917
  vision_data, module, tmp_path, function, method, message
):
  whole, _ = _cnn()
  module.raises = _raise
  module.half = lambda: whole._replace(interpret=None)
  module.output = lambda: td_jax.Frozen(whole.params, CNN().apply)
  module.number, module.count = lambda: 3, 3
  module.other = lambda: whole._replace(low=lambda params, x: x @ jnp.ones(5))
  module.flat = lambda: whole._replace(
    low=lambda params, x: whole.low(params, x).reshape(-1, 2, 2, 6),
    interpret=lambda params, low: whole.interpret(
      params, low.reshape(-1, _TOKENS, 6)
    ),
  )
  changes = {'teacher.build': f'{_MODULE}:{function}', 'teacher.checkpoint': ''}
  config = _config(vision_data, method, **changes)
  with pytest.raises(errors.ConfigError, match=message) as caught:
    _run(config, tmp_path / 'run')
  assert 'config.teacher.build is' in str(caught.value)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('changes', 'method', 'message'),
  [
    ({'teacher.build': 'mine'}, 'ld', "as in 'package.module:function'"),
    ({'teacher.build': 'a:b', 'teacher.states': 'c'}, 'ld', 'give one of them'),
    ({'teacher.states': 'c'}, 'td', "in method 'td' the teacher interprets"),
    (
      {'teacher.build': 'a:b', 'student_init': 'first_n'},
      'ld',
      r"choose config\.student_init='random'",
    ),
    (
      {
        'teacher.states': 'c',
        'data.fixed_crops': 2,
        'data.augment': 'inception',
      },
      'ld',
      'one answer for each image',
    ),
  ],
)
def test_configs_that_cannot_work(vision_data, changes, method, message):
  config = _config(vision_data, method, **{'teacher.checkpoint': ''} | changes)
  with pytest.raises(errors.ConfigError, match=message):
    config_lib.validate(config)


def test_the_config_of_photos_takes_a_function():
  config = image_folder_config.get_config('data=x,teacher=mine.own:teacher')
  assert config.teacher.build == 'mine.own:teacher'
  assert not config.teacher.checkpoint and not config.teacher.as_stored
  config_lib.validate(
    completion.complete(_with_data(config), log=lambda line: None)
  )


def _with_data(config):
  config.data.update(
    {'classes': 3, 'train': 'train', 'validation': 'validation', 'test': ''}
  )
  config.test = False
  return config


def test_another_teacher_in_the_same_folder_is_noticed(
  vision_data, module, tmp_path
):
  changes = {'teacher.checkpoint': '', 'teacher.build': f'{_MODULE}:cnn'}
  config = _config(vision_data, 'ld', **changes)
  _run(config, tmp_path)
  whole, _ = _cnn()
  module.cnn = lambda: whole._replace(
    output=lambda params, high: -whole.output(params, high)
  )
  with pytest.raises(
    errors.DataError, match='a teacher that answered otherwise'
  ):
    _run(config, tmp_path)
  module.cnn = lambda: sys.exit(3)
  with pytest.raises(errors.ConfigError, match=r'by sys\.exit\(3\)'):
    _run(config, tmp_path)


# Answers.


@pytest.fixture
def table(tmp_path):
  """A table of 60 rows in random order of time, some without a price."""
  rng = np.random.default_rng(0)
  area, time = rng.uniform(20, 90, 60), rng.permutation(60)
  price = [f'{3 * a:.1f}' if i % 6 else '' for i, a in enumerate(area)]
  lines = [
    f'{a:.2f},{t},{p}' for a, t, p in zip(area, time, price, strict=True)
  ]
  path = tmp_path / 'houses.csv'
  path.write_text('\n'.join(['area,time,price', *lines]) + '\n')
  return path, area


def _table_config(path, **changes):
  config = table_config.get_config(
    f'data={path},target=price,method=ld,runlocal'
  )
  config.data.time = 'time'
  config.seeds, config.steps = 1, 20
  config.update_from_flattened_dict(changes)
  return config


def test_rows_of_a_table_have_the_answers_of_their_line(table, tmp_path):
  path, area = table
  # Backwards, so that the order of the file says nothing.
  line = np.arange(60)[::-1]
  np.savez(tmp_path / 'a.npz', example=line, output=3 * area[line] + 1)
  config = _table_config(path, **{'teacher.states': str(tmp_path / 'a.npz')})
  results = _run(config, tmp_path / 'run')
  # The answers are 1 off, everywhere.
  assert results['teachers']['teacher']['test'] == pytest.approx(1, abs=0.1)
  assert results['unlabelled'] == 10


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'output': np.zeros(60)}, "has no array 'example'; it has output"),
    ({'example': np.arange(59), 'output': np.zeros(59)}, "lacks 1 of .* '59'"),
    ({'example': np.zeros(60), 'output': np.zeros(60)}, 'names 1 examples'),
    ({'example': np.arange(60), 'output': np.zeros(9)}, r'one row for each of'),
    (
      {'example': np.arange(60), 'output': np.full(60, np.nan)},
      'not finite in float32',
    ),
    (
      {'example': np.arange(60), 'output': np.zeros((60, 2))},
      r'output has shape \[b, 2\]; it must be \[b\], for numbers',
    ),
    (
      {'example': np.arange(60), 'output': np.zeros(60), 'low': np.zeros(60)},
      "has 'low' alone",
    ),
    (
      {'example': np.arange(60), 'output': np.asarray(['a'] * 60)},
      'must be of numbers',
    ),
  ],
)
def test_answers_that_cannot_be_used(table, tmp_path, arrays, message):
  path, _ = table
  np.savez(tmp_path / 'a.npz', **arrays)
  config = _table_config(path, **{'teacher.states': str(tmp_path / 'a.npz')})
  with pytest.raises(errors.TdError, match=message) as caught:
    _run(config, tmp_path / 'run')
  assert 'a.npz' in str(caught.value) and '\n' not in str(caught.value)


def test_a_pipe_holds_no_answers(tmp_path):
  os.mkfifo(tmp_path / 'answers.npz')
  with pytest.raises(errors.DataError, match='is a pipe or a device'):
    answers.read(str(tmp_path / 'answers.npz'))


def test_one_answer_alone_and_files_of_another_kind(tmp_path):
  np.savez(tmp_path / 'a.npz', example='x', output=[1.0])
  assert answers.Index(str(tmp_path / 'a.npz')).rows(['x'], what='x') == [0]
  np.save(tmp_path / 'a.npy', np.zeros(3))
  with pytest.raises(errors.DataError, match='it is one array'):
    answers.read(str(tmp_path / 'a.npy'))


def test_no_file_of_answers(table, tmp_path):
  path, _ = table
  for name, text in (('absent.npz', None), ('text.npz', 'text')):
    if text:
      (tmp_path / name).write_text(text)
    config = _table_config(path, **{'teacher.states': str(tmp_path / name)})
    with pytest.raises(errors.DataError, match=f'{name} cannot be read'):
      _run(config, tmp_path / 'run')


def test_answers_about_images_of_tfds_go_by_number(tmp_path):
  np.savez(tmp_path / 'a.npz', example=['train/1', 'train/0', 'test/0'])
  index = answers.Index(str(tmp_path / 'a.npz'))
  rows = index.rows(['train/0', 'test/0'], what='cifar10')
  np.testing.assert_array_equal(rows, [1, 2])
  names = images.examples(
    'cifar10', 'train[:1%]', np.arange(2), data_dir='', labelled=True
  )
  assert names == ['train/0', 'train/1']
