"""Frozen teachers: their heads, and folders that hold none."""

import json
import shutil

import conftest
import jax
import numpy as np
import pytest
import tiny_vision

from td_jax import errors
from td_jax.data import classification
from td_jax.data import streamed_split
from td_jax.models import class_names
from td_jax.run import config as config_lib
from td_jax.run import pipeline
from td_jax.run import saved
from td_jax.run import teachers

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

GREY = (127.5, 127.5, 127.5)


@pytest.fixture(scope='module')
def config(vision_data):
  made = tiny_vision.get_config('method=ld,teacher=published')
  made.data.dir = str(vision_data)
  return made


@pytest.fixture
def named(vision_teacher, tmp_path):
  """(names) -> the published teacher, whose head names its classes so."""

  def write(*names):
    folder = tmp_path / 'named'
    shutil.copytree(vision_teacher, folder, dirs_exist_ok=True)
    config = json.loads((folder / 'config.json').read_text())
    config['id2label'] = {str(i): name for i, name in enumerate(names)}
    (folder / 'config.json').write_text(json.dumps(config))
    return folder

  return write


@pytest.fixture
def load(config, vision_teacher, tmp_path):
  """(head, folder, **overrides) -> (teacher, what was logged)."""

  def run(head, folder=vision_teacher, *, as_kept=False, **overrides):
    own = config.copy_and_resolve_references()
    own.teacher.head = head
    own.update_from_flattened_dict(overrides)
    if as_kept:
      (tmp_path / 'config.json').write_text(config_lib.to_json(own))
      own = saved.config_of(tmp_path)
    task = classification.load(own, log=print)
    lines = []
    found = teachers.load(
      own, task, path=tmp_path, folder=str(folder), log=lines.append
    )
    return found, lines

  return run


def _head(teacher):
  return teacher.variables['params']['head']


def _same(one, other):
  jax.tree.map(np.testing.assert_array_equal, _head(one), _head(other))


def test_a_probe_is_fitted_once_and_kept(load, tmp_path):
  first, lines = load('probe')
  assert 'fitting' in lines[0]
  (file,) = tmp_path.glob('head-*.npz')
  second, lines = load('probe')
  assert lines == []
  _same(first, second)
  # Evaluation has the config from the run's folder.
  written = {'data.mean': GREY, 'data.std': GREY}
  grey, lines = load('probe', **written)
  assert 'fitting' in lines[0]
  kept, lines = load('probe', as_kept=True, **written)
  assert lines == []
  _same(grey, kept)
  assert (_head(grey)['kernel'] != _head(first)['kernel']).any()
  assert load('probe')[1] == []  # Of other data, and still there.
  # What a process that was killed, or a full disk, may leave.
  whole = file.read_bytes()
  for damaged in (whole[:-40], b''):
    file.write_bytes(damaged)
    again, lines = load('probe')
    assert 'is ignored' in lines[0]
    assert 'fitting' in lines[1]
    _same(first, again)
    assert load('probe')[1] == []
  assert len(list(tmp_path.iterdir())) == 3  # Two heads and the config.


def test_the_fit_names_the_classes_that_a_stream_lacks(load, monkeypatch):
  # As of a dataset of TFDS: its labels are known once its images are read.
  monkeypatch.setattr(streamed_split.Split, 'labels', None)
  _, lines = load(
    'probe', **{'data.memory': 'stream', 'data.validation': 'validation[:1]'}
  )
  assert any('all 1 examples of validation are of class' in s for s in lines)


def test_what_is_kept_is_computed_once(load, tmp_path):
  def other():
    raise AssertionError('computed again')

  folder = tmp_path / 'kept'
  first, _ = load('probe', **{'teacher.cache_dir': str(folder)})
  made = first.cache.get('scores', lambda: {'score': np.arange(3.0)})
  again, lines = load('probe', **{'teacher.cache_dir': str(folder)})
  assert lines == []
  np.testing.assert_array_equal(
    again.cache.get('scores', other)['score'], made['score']
  )
  assert len(list(folder.iterdir())) == 2
  # Another head, other images: nothing of it holds.
  for head, changes in (('none', {}), ('probe', {'data.mean': GREY})):
    found, _ = load(head, **changes, **{'teacher.cache_dir': str(folder)})
    with pytest.raises(AssertionError, match='again'):
      found.cache.get('scores', other)
  # Without a folder nothing but the head is kept.
  alone, _ = load('probe')
  assert alone.cache.get('scores', lambda: {'score': 1})['score'] == 1
  with pytest.raises(AssertionError, match='again'):
    alone.cache.get('scores', other)


def test_a_stored_head_and_none(load, tmp_path):
  stored, lines = load('stored')
  assert lines == []
  assert np.std(_head(stored)['kernel']) > 0.1
  none, _ = load('none')
  assert not np.any(_head(none)['kernel'])
  bare = tiny_vision.teacher(tmp_path / 'bare', classes=0)
  five = tiny_vision.teacher(tmp_path / 'five', classes=5)
  for folder, said in ((bare, 'a head of 0 classes'), (five, 'of 5 classes')):
    with pytest.raises(errors.DataError, match=said) as e:
      load('stored', folder)
    assert 'image_folder has 3' in str(e.value)
    assert "config.teacher.head='probe'" in str(e.value)
    assert '\n' not in str(e.value)


def test_a_stored_head_follows_the_names_of_its_classes(load, named):
  plain, lines = load('stored')
  assert not any('warning' in line for line in lines)
  other, lines = load('stored', named('2', '0', '1'))
  for name, leaf in _head(plain).items():
    # Output 0 of the file is about class 2.
    np.testing.assert_array_equal(_head(other)[name][..., 2], leaf[..., 0])
    np.testing.assert_array_equal(_head(other)[name][..., 0], leaf[..., 1])
  assert not any('warning' in line for line in lines)
  unnamed, lines = load('stored', named('LABEL_0', 'LABEL_1', 'LABEL_2'))
  _same(unnamed, plain)
  assert sum('taken to be in the order of the data' in s for s in lines) == 1


def test_a_head_of_other_classes_is_refused():
  names = [f'class {number}' for number in range(100)]
  with pytest.raises(errors.DataError) as e:
    class_names.order(
      ['cat', *names[1:]], names, where='teacher', log=lambda line: None
    )
  said = str(e.value)
  assert "teacher has a head for the classes 'cat', 'class 1'" in said
  assert "those of the data are 'class 0'" in said and len(said) < 400
  assert 'id2label' in said and "head='probe'" in said


@pytest.mark.parametrize('part', ['all', 'config.json', 'model.safetensors'])
def test_a_folder_that_is_not_whole(load, vision_teacher, tmp_path, part):
  folder = shutil.copytree(vision_teacher, tmp_path / 'teacher')
  if part == 'all':
    shutil.rmtree(folder)
  else:
    (folder / part).unlink()
  with pytest.raises(errors.DataError) as e:
    load('stored', folder)
  assert str(folder) in str(e.value)
  assert 'model.safetensors' in str(e.value) or 'config.json' in str(e.value)
  assert '\n' not in str(e.value)


def test_another_network_than_is_declared(load, vision_teacher):
  for overrides, said in (
    ({'teacher.model.depth': 3}, 'encoder.layer.2'),
    ({'teacher.model.patch': 4}, 'patch_embeddings'),
    ({'teacher.model.eps': 1e-12}, 'eps is 1e-06'),
  ):
    with pytest.raises(errors.DataError, match=said) as e:
      load('stored', **overrides)
    assert '\n' not in str(e.value)
  with pytest.raises(errors.ConfigError, match='not divide images of 20'):
    load('stored', **{'data.size': 20})
  with pytest.raises(errors.ConfigError, match="name is 'mlp'"):
    load('stored', **{'teacher.model.name': 'mlp'})


@pytest.mark.usefixtures('small_movielens')
def test_validation_is_scored_by_a_teacher_that_has_not_seen_it(tmp_path):
  def run(name, arg, **overrides):
    lines = []
    found = pipeline.run(
      conftest.small_config(arg, seeds=1, **overrides),
      tmp_path / name,
      watch=conftest.Watch(),
      log=lines.append,
    )
    return found, '\n'.join(lines)

  run('teacher', 'method=teacher', refit_on_validation=True)
  named = {'teacher.checkpoint': str(tmp_path / 'teacher')}
  before, said = run('before', 'method=ld', **named)
  assert before['teachers']['teacher']['folder'] == str(
    tmp_path / 'teacher/selection'
  )
  assert 'has trained on validation' not in said
  both, _ = run('both', 'method=ld', refit_on_validation=True, **named)
  assert both['teachers']['teacher']['folder'] == str(tmp_path / 'teacher')
  assert (
    both['teachers']['teacher']['validation']
    == before['teachers']['teacher']['validation']
  )
  shutil.rmtree(tmp_path / 'teacher/selection')
  late, said = run('late', 'method=ld', **named)
  assert late['teachers']['teacher']['folder'] == str(tmp_path / 'teacher')
  assert 'has trained on validation' in said


def test_a_head_of_imagenet_is_in_the_order_of_its_numbers():
  """TFDS names its classes by WordNet's numbers, and published heads in English."""
  lines = []
  numbers = ('n01440764', 'n01443537', 'n01484850')
  stored = ('tench', 'goldfish', 'great white shark')
  found = class_names.order(stored, numbers, where='DIR', log=lines.append)
  assert found.tolist() == [0, 1, 2]
  assert len(lines) == 1 and lines[0].startswith('warning: DIR')
  with pytest.raises(errors.DataError, match=r'tench.*n01443537'):
    class_names.order(stored, numbers[::-1], where='DIR', log=lines.append)
