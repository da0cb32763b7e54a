"""Published ViTs: parity with transformers and timm on small random networks.

tests/golden/published/make.py wrote the files and the answers.
"""

import functools
import json
import pathlib
import shutil

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax import errors
from td_jax.models import archive
from td_jax.models import pretrained
from td_jax.models import students
from td_jax.models import vit

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

_FOLDER = pathlib.Path(__file__).parent / 'golden' / 'published'
_CASES = sorted(
  path.name
  for path in _FOLDER.iterdir()
  if path.name.startswith(('hf', 'timm'))
)
# What a wrong guess would change. The values are those of make.py.
_SETTINGS = {
  'hf_deit_distilled': {'registers': 1, 'classes': 0},
  'hf_dinov2_registers': {'registers': 3, 'pooling': 'token_and_mean'},
  'hf_dinov3': {'registers': 2, 'position': 'rope', 'layer_scale': 1.0},
  'hf_clip': {'pre_norm': True, 'gelu': 'quick', 'eps': 1e-5},
  'hf_siglip': {'class_token': 'none', 'pooling': 'map', 'gelu': 'tanh'},
  'timm_deit3': {'class_token': 'after', 'classes': 3},
  'timm_dinov2_giant': {'mlp': 'swiglu', 'mlp_width': 12},
  'timm_siglip_tanh': {'gelu': 'tanh'},
  'timm_siglip_gap': {'pooling': 'mean', 'gelu': 'exact'},
}


@functools.cache
def _images():
  with np.load(_FOLDER / 'images.npz') as file:
    return {name: jnp.asarray(file[name]) for name in file.files}


def _answer(path, x, scan=False):
  teacher = pretrained.load(str(path), image_size=x.shape[1])
  model = vit.ViT(**teacher.settings, **pretrained.RUNNING | {'scan': scan})
  variables = vit.stack(teacher.variables) if scan else teacher.variables
  *_, output = _apply(model, variables, x)
  return output


def _apply(model, variables, x, method=None):
  run = functools.partial(model.apply, train=False, method=method)
  return jax.jit(run)(variables, x)


@pytest.mark.parametrize('name', _CASES)
def test_answers_are_those_of_the_original(name):
  folder = _FOLDER / name
  with np.load(folder / 'expected.npz') as expected:
    for key, x in _images().items():
      np.testing.assert_allclose(
        _answer(folder, x), expected[key], rtol=1e-4, atol=2e-5, err_msg=key
      )


@pytest.mark.parametrize('name', _SETTINGS)
def test_settings(name):
  settings = pretrained.describe(str(_FOLDER / name)).settings
  stored = pretrained.load(str(_FOLDER / name), image_size=12).settings
  assert stored | _SETTINGS[name] == stored
  assert settings == {k: v for k, v in stored.items() if k != 'classes'}


def test_blocks_may_be_scanned_and_students_take_them_over():
  """Registers, rotations and gates, in a scan and in a student."""
  x = _images()['own']
  for name in ('hf_dinov3_gated', 'hf_clip', 'timm_dinov2_registers'):
    expected = _answer(_FOLDER / name, x)
    scanned = _answer(_FOLDER / name, x, scan=True)
    np.testing.assert_allclose(scanned, expected, rtol=1e-5, atol=1e-6)
    teacher = pretrained.load(str(_FOLDER / name), image_size=12)
    model = vit.ViT(**teacher.settings, **pretrained.RUNNING)
    init = jax.jit(functools.partial(model.init, train=False))
    student = students.initialise(
      'first_n',
      init(jax.random.key(0), x),
      student=model,
      teacher=model,
      teacher_variables=teacher.variables,
    )
    *_, output = _apply(model, student, x)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-6)


def test_interpreting_continues_where_low_ends():
  """Rotations depend on the number of tokens alone, not on the image."""
  teacher = pretrained.load(str(_FOLDER / 'hf_dinov3'), image_size=20)
  model = vit.ViT(**teacher.settings, **pretrained.RUNNING)
  x = _images()['other']
  low, high, _ = _apply(model, teacher.variables, x)
  again = _apply(model, teacher.variables, low, method='interpret')
  np.testing.assert_allclose(again, high, rtol=1e-6)
  with pytest.raises(errors.ConfigError, match='takes square images'):
    _apply(model, teacher.variables, low[:, :-1], method='interpret')


@pytest.fixture
def changed(tmp_path):
  """(name, {field: value} of config.json) -> a changed copy of a folder."""

  def change(name, fields, inner=None):
    folder = tmp_path / name
    shutil.copytree(_FOLDER / name, folder)
    config = json.loads((folder / 'config.json').read_text())
    (config[inner] if inner else config).update(fields)
    (folder / 'config.json').write_text(json.dumps(config))
    return folder

  return change


@pytest.mark.parametrize(
  ('name', 'fields', 'inner', 'message'),
  [
    ('hf_dinov3', {'rope_theta': 10.0}, None, 'rope_theta is 10.0; only 100.0'),
    ('hf_dinov3_gated', {'hidden_act': 'gelu'}, None, "'gelu'; only silu"),
    ('hf_dinov3', {'query_bias': False, 'mlp_bias': 3}, None, 'mlp_bias is 3;'),
    ('hf_clip', {'image_size': [12, 8]}, 'vision_config', 'only squares'),
    (
      'hf_clip',
      {'hidden_act': 'relu'},
      'vision_config',
      'vision_config: hidden',
    ),
    ('hf_siglip', {'vision_use_head': False}, 'vision_config', 'only True'),
    (
      'hf_clip',
      {'vision_config': 3},
      None,
      'vision_config is 3; it must be of',
    ),
    (
      'hf_deit',
      {'model_type': 'swin'},
      None,
      'only vit, deit, dinov2, dinov2_',
    ),
    (
      'timm_vit',
      {'architecture': 'vit_relpos_base_patch16_224'},
      None,
      "timm's",
    ),
    ('timm_vit', {'qk_norm': True}, 'model_args', 'model_args.qk_norm cannot'),
    ('timm_vit', {'global_pool': 'max'}, None, "'max'; only token, avg, map"),
    ('timm_vit', {'model_args': {}}, None, 'the number of heads of'),
    ('timm_vit', {'pretrained_cfg': {}}, None, 'mean is None'),
  ],
)
def test_networks_that_cannot_be_loaded(changed, name, fields, inner, message):
  folder = changed(name, fields, inner)
  with pytest.raises(errors.DataError, match=message):
    pretrained.describe(str(folder))


def test_sizes_may_be_lists_and_biases_zero(changed):
  x = _images()['own']
  folder = changed('hf_deit', {'image_size': [12, 12], 'patch_size': [4, 4]})
  np.testing.assert_array_equal(
    _answer(folder, x), _answer(_FOLDER / 'hf_deit', x)
  )


def test_a_shard_that_is_missing_or_incomplete(changed):
  folder = changed('hf_siglip', {})
  index = folder / archive.INDEX
  listed = json.loads(index.read_text())
  first = min(listed['weight_map'].values())
  listed['weight_map']['vision_model.more'] = first
  index.write_text(json.dumps(listed))
  with pytest.raises(
    errors.DataError, match=f'vision_model.more is not in {first}'
  ):
    pretrained.describe(str(folder))
  listed['weight_map']['vision_model.more'] = '../secret'
  index.write_text(json.dumps(listed))
  with pytest.raises(errors.DataError, match='not the name of a file'):
    pretrained.describe(str(folder))
  del listed['weight_map']['vision_model.more']
  index.write_text(json.dumps(listed))
  (folder / first).unlink()
  with pytest.raises(errors.DataError, match=f'{first} does not exist'):
    pretrained.describe(str(folder))


def test_the_scale_of_images(changed):
  folder = changed('hf_siglip_vision', {})
  assert pretrained.describe(str(folder)).scale == ((127.5,) * 3, (127.5,) * 3)
  processor = folder / 'preprocessor_config.json'
  processor.write_text('{"image_mean": [0, 0.5, 1], "image_std": [1, 1, 0.5]}')
  scale = pretrained.describe(str(folder)).scale
  assert scale == ((0.0, 127.5, 255.0), (255.0, 255.0, 127.5))
  processor.write_text('{"do_normalize": false}')
  assert pretrained.describe(str(folder)).scale == ((0.0,) * 3, (255.0,) * 3)
  mean, _ = pretrained.describe(str(_FOLDER / 'timm_clip')).scale
  np.testing.assert_allclose(mean, [122.77, 116.75, 104.09], atol=0.01)
