"""Published teachers: parity with the original code, and damaged files.

`../shared/golden` holds the outputs of the original implementations; its
manifest gives the tolerances. Tests of damage write tiny files of their own.
"""

import functools
import io
import json
import os
import pathlib
import pickle
import re
import struct
import tracemalloc
from typing import Any
import zipfile

import etils.epath
import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors

from td_jax import errors
from td_jax.models import posemb
from td_jax.models import pretrained
from td_jax.models import vit

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

SHARED = pathlib.Path(
  os.environ.get('TD_JAX_SHARED', pathlib.Path(__file__).parents[2] / 'shared')
)
GOLDEN = SHARED / 'golden'
needs_golden = pytest.mark.skipif(
  not GOLDEN.is_dir(), reason=f'{GOLDEN} is absent; set TD_JAX_SHARED'
)
_CASES = [
  'vitjax_a_base',
  'vitjax_a_geluprobe',
  'vitjax_a_prelogits',
  'vitjax_a_smallvar',
  'bigvision_a_gap',
  'bigvision_a_gap_sincos_rep',
  'bigvision_a_map',
  'bigvision_a_tok',
  'hf_a_cls',
  'hf_a_geluprobe',
  'hf_a_model_pooler',
  'hf_a_smallvar',
  'hf_a_smallvar_eps1e-5',
]
_RESIZED = [
  ('vitjax_a_base', 16),
  ('vitjax_a_base', 48),
  ('bigvision_a_tok', 56),
  ('hf_a_cls', 48),
]
# Arrays of the files that are not states, or that other tests compare.
_NOT_STATES = r'inputs|attention_\d\d|new_head_.*|pos_embedding'


def _golden(name, part='expected'):
  separator = '/' if name.startswith('hf_') else '.'
  with np.load(GOLDEN / f'{name}{separator}{part}.npz') as file:
    return dict(file)


def _path(name):
  ending = '' if name.startswith('hf_') else '.ckpt.npz'
  return f'{GOLDEN / name}{ending}'


@functools.cache
def _manifest(name):
  return json.loads((GOLDEN / 'manifest.json').read_text())['cases'][name]


def _load(name, size=32, **arguments):
  expected = {'position': 'sincos2d'} if 'sincos' in name else {}
  return pretrained.load(
    _path(name), image_size=size, expected=expected, **arguments
  )


def _states(teacher, x):
  """Every state that `teacher` computes, by its name in the files."""
  model = vit.ViT(**teacher.settings, **pretrained.RUNNING)
  run = functools.partial(model.apply, train=False, method='intermediates')
  named: Any = jax.jit(run)(teacher.variables, x)
  named['last_hidden_state'] = named['encoder_norm']
  named['cls_token'] = named['encoder_norm'][:, 0]
  if 'pre_logits' in named:
    named['pooler_output'] = named['pre_logits']
  return named


def _compare(name, states, expected):
  near = functools.partial(
    np.testing.assert_allclose, **_manifest(name)['tolerance']
  )
  compared = 0
  for key, value in expected.items():
    if not re.fullmatch(_NOT_STATES, key):
      near(states[key], value, err_msg=key)
      compared += 1
  return compared


@needs_golden
@pytest.mark.parametrize('name', _CASES)
def test_every_state_equals_that_of_the_original_code(name):
  teacher = _load(name)
  expected = _golden(name)
  compared = _compare(name, _states(teacher, expected['inputs']), expected)
  assert compared >= teacher.settings['depth'] + 3
  config = _manifest(name)['config']
  for ours, theirs in {
    'classes': ('classes', 'num_labels'),
    'width': ('width', 'hidden_size'),
    'depth': ('depth', 'num_hidden_layers'),
    'heads': ('heads', 'num_attention_heads'),
    'mlp_width': ('mlp_dim', 'intermediate_size'),
    'patch': ('patch', 'patch_size'),
    'eps': ('layer_norm_eps',),
  }.items():
    values = [config[key] or 0 for key in theirs if key in config] or [0]
    assert [teacher.settings[ours]] == values, ours
  assert teacher.settings['gelu'] == config.get('gelu', 'exact')
  pool = {'gap': 'mean', 'map': 'map'}.get(config.get('pool'), 'token')
  assert teacher.settings['pooling'] == pool
  assert bool(teacher.settings['pre_logits_width']) == (
    'representation_size' in config or 'rep_size' in config or 'pooler' in name
  )
  for leaf in jax.tree.leaves(teacher.variables):
    assert leaf.dtype == np.float32


@needs_golden
@pytest.mark.parametrize(('name', 'size'), _RESIZED)
def test_other_resolutions_equal_those_of_the_original_code(name, size):
  hf = name.startswith('hf_')
  expected = _golden(name, f'expected_resize{size}' if hf else _resize(size))
  teacher = _load(name, size)
  np.testing.assert_allclose(
    teacher.variables['params']['embed']['position'],
    expected['pos_embedding'][0],
    **_manifest(name)['tolerance'],
  )
  states = _states(teacher, expected['inputs'])
  assert _compare(name, states, expected) >= 2


def _resize(size):
  return f'resize{size}.expected'


@needs_golden
@pytest.mark.parametrize('size', [16, 48])
def test_a_new_head_is_zeros_until_it_is_filled(size):
  expected = _golden('vitjax_a_base', _resize(size))
  teacher = _load('vitjax_a_base', size, classes=5)
  _fill(teacher, expected['new_head_kernel'], expected['new_head_bias'])
  states = _states(teacher, expected['inputs'])
  np.testing.assert_allclose(
    states['logits'], expected['new_head_logits'], atol=2e-5, rtol=1e-4
  )


@needs_golden
def test_pre_logits_are_dropped_with_the_head():
  name = 'vitjax_a_prelogits'
  expected = _golden(name, 'drophead.expected')
  load = functools.partial(
    pretrained.load,
    _path(name),
    image_size=32,
    expected={'pre_logits_width': 0},
  )
  teacher = load(classes=5)
  assert teacher.settings['pre_logits_width'] == 0
  _fill(teacher, expected['head_kernel'], expected['head_bias'])
  states = _states(teacher, expected['inputs'])
  for key in ('cls_token', 'logits'):
    np.testing.assert_allclose(states[key], expected[key], atol=2e-5, rtol=1e-4)
  # The stored head has as many classes, but it reads the dropped pre-logits.
  assert not np.any(load(classes=11).variables['params']['head']['kernel'])
  with pytest.raises(
    errors.ConfigError, match='cannot be used without its pre-logits'
  ):
    load()


def _fill(teacher, kernel, bias):
  head = teacher.variables['params']['head']
  assert head['kernel'].shape == kernel.shape
  assert not np.any(head['kernel'])
  assert not np.any(head['bias'])
  teacher.variables['params']['head'] = {'kernel': kernel, 'bias': bias}


@needs_golden
@pytest.mark.parametrize('pair', ['28to48', '8to26', '7to12'])
def test_positions_are_resized_without_the_zero_rows_of_zoom(pair):
  with np.load(GOLDEN / 'posemb_zoom_edge_a.npz') as file:
    table, expected = (
      file[f'{pair}/pos_embedding'],
      file[f'{pair}/align_corners'],
    )
  resized = posemb.resize(
    table[0],
    int(pair.split('to')[1]),
    rule=posemb.align_corners,
    class_row=True,
  )
  assert resized.dtype == np.float32
  np.testing.assert_allclose(resized, expected[0], rtol=0, atol=1e-6)


@pytest.mark.skipif(
  not (SHARED / 'teacher').is_dir(),
  reason=f'{SHARED / "teacher"} is absent; set TD_JAX_SHARED',
)
def test_a_real_teacher_computes_the_states_of_hugging_face():
  teacher = pretrained.load(str(SHARED / 'teacher'), image_size=224)
  with np.load(GOLDEN / 'dinov2_teacher_224.npz') as file:
    states = _states(teacher, file['inputs'])
    expected = file['last_hidden_state']
  # The original ran with weights in fp16. Another rule for resizing positions
  # would differ by more than this.
  np.testing.assert_allclose(states['encoder_norm'], expected, rtol=0, atol=0.1)
  assert teacher.settings == {
    'classes': 0,
    'width': 384,
    'depth': 12,
    'heads': 6,
    'mlp_width': 1536,
    'patch': 14,
    'class_token': 'before',
    'registers': 0,
    'position': 'learned',
    'pre_norm': False,
    'pooling': 'token',
    'pre_logits_width': 0,
    'layer_scale': 1.0,
    'mlp': 'gelu',
    'gelu': 'exact',
    'eps': 1e-6,
  }


def test_cubic_weights_by_hand():
  """With a = -0.75 a tap weighs 19/32 at 0.5 cells and -3/32 at 1.5 cells."""
  near, far = 19 / 32, -3 / 32
  np.testing.assert_array_equal(
    posemb.bicubic(4, 2),
    [[near + far, near, far, 0], [0, far, near, near + far]],
  )
  np.testing.assert_allclose(posemb.bicubic(37, 16).sum(axis=1), 1.0)


def test_linear_weights_by_hand():
  np.testing.assert_array_equal(
    posemb.align_corners(3, 5),
    [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]],
  )
  np.testing.assert_array_equal(posemb.align_corners(3, 1), [[1, 0, 0]])


def test_rows_and_columns_are_resized_independently():
  """Each entry holds its own row and column; the class row must not change."""
  cells = [[10.0 * row, column] for row in range(3) for column in range(3)]
  resized = posemb.resize(
    np.array([[-1.0, -2.0], *cells]),
    5,
    rule=posemb.align_corners,
    class_row=True,
  )
  np.testing.assert_array_equal(resized[0], [-1, -2])
  np.testing.assert_array_equal(
    resized[1:].reshape(5, 5, 2)[3], [[15, 0.5 * column] for column in range(5)]
  )


# Tiny files with the names and shapes of each origin.
W, HEADS, MLP, PATCH, GRID, CLASSES = 8, 2, 12, 4, 3, 5
SIZE = PATCH * GRID


def _block(attention, second, mlp):
  by_head = (HEADS, W // HEADS)
  shapes = {}
  for name in ('query', 'key', 'value'):
    shapes[f'{attention}/{name}/kernel'] = (W, *by_head)
    shapes[f'{attention}/{name}/bias'] = by_head
  shapes[f'{attention}/out/kernel'] = (*by_head, W)
  shapes[f'{attention}/out/bias'] = (W,)
  for name in ('LayerNorm_0', second):
    shapes |= {f'{name}/scale': (W,), f'{name}/bias': (W,)}
  shapes |= {f'{mlp}/Dense_0/kernel': (W, MLP), f'{mlp}/Dense_0/bias': (MLP,)}
  shapes |= {f'{mlp}/Dense_1/kernel': (MLP, W), f'{mlp}/Dense_1/bias': (W,)}
  return shapes


_OLD = ('MultiHeadDotProductAttention_1', 'LayerNorm_2', 'MlpBlock_3')
_LINEN = ('MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0')


def _google_shapes(depth, names):
  shapes = {
    'embedding/kernel': (PATCH, PATCH, 3, W),
    'embedding/bias': (W,),
    'cls': (1, 1, W),
    'Transformer/posembed_input/pos_embedding': (1, GRID**2 + 1, W),
    'Transformer/encoder_norm/scale': (W,),
    'Transformer/encoder_norm/bias': (W,),
    'head/kernel': (W, CLASSES),
    'head/bias': (CLASSES,),
  }
  for i in range(depth):
    for name, shape in _block(*names).items():
      shapes[f'Transformer/encoderblock_{i}/{name}'] = shape
  return shapes


def _hf_shapes(kind, depth):
  shapes = {
    'embeddings.cls_token': (1, 1, W),
    'embeddings.position_embeddings': (1, GRID**2 + 1, W),
    'embeddings.patch_embeddings.projection.weight': (W, 3, PATCH, PATCH),
    'embeddings.patch_embeddings.projection.bias': (W,),
    'layernorm.weight': (W,),
    'layernorm.bias': (W,),
  }
  norms, layers = {
    'vit': (
      ('layernorm_before', 'layernorm_after'),
      ('intermediate.dense', 'output.dense'),
    ),
    'dinov2': (('norm1', 'norm2'), ('mlp.fc1', 'mlp.fc2')),
  }[kind]
  for i in range(depth):
    block = f'encoder.layer.{i}'
    for name in ('query', 'key', 'value'):
      shapes[f'{block}.attention.attention.{name}.weight'] = (W, W)
      shapes[f'{block}.attention.attention.{name}.bias'] = (W,)
    shapes[f'{block}.attention.output.dense.weight'] = (W, W)
    shapes[f'{block}.attention.output.dense.bias'] = (W,)
    for name in norms:
      shapes[f'{block}.{name}.weight'] = shapes[f'{block}.{name}.bias'] = (W,)
    for name, (wide, narrow) in zip(layers, [(MLP, W), (W, MLP)], strict=True):
      shapes[f'{block}.{name}.weight'] = (wide, narrow)
      shapes[f'{block}.{name}.bias'] = (wide,)
    if kind == 'dinov2':
      shapes[f'{block}.layer_scale1.lambda1'] = (W,)
      shapes[f'{block}.layer_scale2.lambda1'] = (W,)
  return shapes


def _fill_shapes(shapes, dtype=np.float32):
  """Random numbers for every leaf, all of which bfloat16 represents exactly."""
  rng = np.random.default_rng(0)
  return {
    name: (rng.integers(1, 100, shape) / 64).astype(dtype)
    for name, shape in shapes.items()
  }


def _google(depth=2, names=_OLD):
  return _fill_shapes(_google_shapes(depth, names))


@pytest.fixture
def npz(tmp_path):
  """npz(arrays) -> the path of a file that holds them."""

  def write(arrays, **others):
    path = tmp_path / 'teacher.npz'
    with open(path, 'wb') as file:
      np.savez(file, **arrays, **others)
    return str(path)

  return write


@pytest.fixture
def folder(tmp_path):
  """folder(kind, arrays, **config) -> the path of a Hugging Face folder."""

  def write(kind, arrays, **changes):
    config = {
      'model_type': kind,
      'hidden_size': W,
      'num_hidden_layers': 2,
      'num_attention_heads': HEADS,
      'hidden_act': 'gelu',
      'layer_norm_eps': 1e-5,
      'image_size': SIZE,
      'patch_size': PATCH,
      'qkv_bias': True,
    }
    config |= (
      {'intermediate_size': MLP} if kind == 'vit' else {'mlp_ratio': MLP / W}
    )
    config = {k: v for k, v in (config | changes).items() if v is not None}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    safetensors.save_file(arrays, tmp_path / 'model.safetensors')
    return str(tmp_path)

  return write


def _same(teacher, expected):
  assert teacher.settings == expected.settings
  jax.tree.map(
    np.testing.assert_array_equal, teacher.variables, expected.variables
  )


@pytest.mark.parametrize(
  'prefix', ['', 'params/', 'opt/target/', 'opt/target/params/']
)
@pytest.mark.parametrize('names', [_OLD, _LINEN])
def test_names_of_all_versions_and_prefixes_load_the_same(npz, names, prefix):
  plain = pretrained.load(npz(_google()), image_size=SIZE)
  # The same numbers under other names, in the same order.
  arrays = dict(zip(_google_shapes(2, names), _google().values(), strict=True))
  arrays = {prefix + name: value for name, value in arrays.items()}
  if prefix:
    arrays |= {'opt/state/step': np.zeros((), int), 'step': np.zeros(())}
  _same(pretrained.load(npz(arrays), image_size=SIZE), plain)
  if prefix:
    arrays[f'{prefix}more'] = np.zeros(())
    with pytest.raises(errors.DataError, match=f'leaf {prefix}more'):
      pretrained.load(npz(arrays), image_size=SIZE)


def test_eleven_blocks_are_ordered_by_number(npz):
  arrays = _google(depth=11)
  for i in range(11):
    arrays[f'Transformer/encoderblock_{i}/LayerNorm_0/bias'][:] = i
  params = pretrained.load(npz(arrays), image_size=SIZE).variables['params']
  for i in range(11):
    np.testing.assert_array_equal(
      params[f'blocks_{i}']['attention_norm']['bias'], i
    )


@pytest.mark.parametrize('dtype', [np.float16, np.float64, ml_dtypes.bfloat16])
def test_weights_become_float32(npz, dtype):
  plain = pretrained.load(npz(_google()), image_size=SIZE)
  stored = {name: value.astype(dtype) for name, value in _google().items()}
  teacher = pretrained.load(npz(stored), image_size=SIZE)
  _same(teacher, plain)
  assert {leaf.dtype for leaf in jax.tree.leaves(teacher.variables)} == {
    np.dtype(np.float32)
  }


@pytest.mark.parametrize('dtype', [np.float16, np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize('kind', ['vit', 'dinov2'])
def test_hugging_face_layouts(folder, kind, dtype):
  arrays = _fill_shapes(_hf_shapes(kind, 2), dtype)
  arrays['embeddings.mask_token'] = np.zeros((1, W), dtype)
  teacher = pretrained.load(folder(kind, arrays), image_size=SIZE)
  assert teacher.settings['eps'] == 1e-5
  assert teacher.settings['layer_scale'] == (kind == 'dinov2')
  params = teacher.variables['params']
  kernel = arrays['embeddings.patch_embeddings.projection.weight']
  np.testing.assert_array_equal(
    params['embed']['patches']['kernel'].reshape(PATCH, PATCH, 3, W)[1, 2, 0],
    kernel[:, 0, 1, 2].astype(np.float32),
  )
  first = 'mlp.fc1' if kind == 'dinov2' else 'intermediate.dense'
  np.testing.assert_array_equal(
    params['blocks_1']['mlp']['in']['kernel'],
    arrays[f'encoder.layer.1.{first}.weight'].T.astype(np.float32),
  )
  if kind == 'dinov2':
    for ours, theirs in (('attention_scale', 1), ('mlp_scale', 2)):
      np.testing.assert_array_equal(
        params['blocks_0'][ours],
        arrays[f'encoder.layer.0.layer_scale{theirs}.lambda1'].astype(float),
      )


def test_the_head_of_dinov2_reads_token_and_mean(folder):
  shapes = {f'dinov2.{k}': v for k, v in _hf_shapes('dinov2', 2).items()}
  shapes |= {'classifier.weight': (3, 2 * W), 'classifier.bias': (3,)}
  path = folder(
    'dinov2', _fill_shapes(shapes), id2label={'0': 'a', '1': 'b', '2': 'c'}
  )
  teacher = pretrained.load(path, image_size=SIZE)
  assert teacher.settings['pooling'] == 'token_and_mean'
  assert teacher.settings['classes'] == 3
  assert teacher.variables['params']['head']['kernel'].shape == (2 * W, 3)


def test_a_head_is_replaced_only_if_the_classes_differ(npz, folder):
  stored = _google()['head/kernel']
  load = functools.partial(pretrained.load, npz(_google()), image_size=SIZE)
  for teacher in (load(), load(classes=CLASSES)):
    assert teacher.settings['classes'] == CLASSES
    np.testing.assert_array_equal(
      teacher.variables['params']['head']['kernel'], stored
    )
  other = load(classes=7)
  assert other.settings['classes'] == 7
  np.testing.assert_array_equal(
    other.variables['params']['head']['kernel'], np.zeros((W, 7))
  )
  assert 'head' not in load(classes=0).variables['params']
  path = folder('dinov2', _fill_shapes(_hf_shapes('dinov2', 2)))
  assert pretrained.load(path, image_size=SIZE).settings['classes'] == 0
  teacher = pretrained.load(path, image_size=SIZE, classes=4)
  assert teacher.variables['params']['head']['kernel'].shape == (W, 4)


def _refused(path, *texts, error: Any = errors.DataError, **arguments: Any):
  """Asserts that loading raises an error whose message has all `texts`."""
  arguments = {'image_size': SIZE} | arguments
  with pytest.raises(error) as caught:
    pretrained.load(path, **arguments)
  message = str(caught.value)
  assert '\n' not in message
  for text in texts:
    assert text in message


_BLOCK_1 = 'Transformer/encoderblock_1/'


def test_a_missing_block_is_not_renumbered(npz):
  arrays = _google(depth=3)
  without = {k: v for k, v in arrays.items() if not k.startswith(_BLOCK_1)}
  _refused(npz(without), f'leaf {_BLOCK_1}', 'as nothing and expected as [')
  # A huge number of a block is refused without looping over it.
  far = {k.replace('block_2', 'block_999999999'): v for k, v in arrays.items()}
  _refused(
    npz(far), 'depth is 1000000000; it must be a whole number from 1 to 1000'
  )
  # A missing last block is noticed only if the depth is expected.
  last = {k: v for k, v in arrays.items() if 'encoderblock_2' not in k}
  assert pretrained.load(npz(last), image_size=SIZE).settings['depth'] == 2
  _refused(
    npz(last),
    'leaf Transformer/encoderblock_2/',
    'is stored as nothing',
    expected={'depth': 3},
  )


@pytest.mark.parametrize(
  'name', sorted(_google_shapes(1, _OLD)), ids=lambda name: name.split('/')[-1]
)
def test_every_missing_leaf_is_named(npz, name):
  arrays = _google()
  del arrays[name]
  if name == 'cls':
    # Without a class token the table has one row too many.
    _refused(npz(arrays), 'pos_embedding is stored as [1, 10, 8]', '[1, 9, 8]')
  else:
    _refused(npz(arrays), f'leaf {name}', 'stored as nothing')


def test_unexpected_and_misshapen_leaves_are_named(npz):
  _refused(
    npz(_google() | {f'{_BLOCK_1}extra': np.zeros(3)}),
    f'leaf {_BLOCK_1}extra is stored as [3] and expected as nothing',
  )
  name = f'{_BLOCK_1}MlpBlock_3/Dense_1/kernel'
  _refused(
    npz(_google() | {name: np.zeros((W, MLP))}),
    f'leaf {name} is stored as [8, 12] and expected as [12, 8]',
  )


@pytest.mark.parametrize(
  ('expected', 'texts'),
  [
    ({'width': 16}, ['leaf Transformer/encoderblock_0/', '[2, 4]', '[2, 8]']),
    ({'depth': 4}, ['leaf Transformer/encoderblock_3/', 'as nothing and']),
    ({'depth': 2}, ['encoderblock_2/', 'expected as nothing']),
    ({'patch': 2}, ['leaf embedding/kernel', '[4, 4, 3, 8]', '[2, 2, 3, 8]']),
    ({'heads': 4}, ['leaf Transformer/encoderblock_0/', '[2, 4]', '[4, 2]']),
    ({'mlp_width': 16}, ['MlpBlock_3/Dense_0', '[12]', '[16]']),
    ({'pre_logits_width': 6}, ['leaf head/kernel', '[8, 5]', '[6, 5]']),
    ({'gelu': 'exact'}, ["gelu is 'tanh', and 'exact' is expected"]),
    ({'eps': 1e-12}, ['eps is 1e-06, and 1e-12 is expected']),
    ({'pooling': 'mean'}, ["pooling is 'token', and 'mean' is expected"]),
    ({'position': 'sincos2d'}, ['posembed_input/pos_embedding', 'as nothing']),
  ],
)
def test_the_difference_to_the_expected_network_is_named(npz, expected, texts):
  _refused(npz(_google(depth=3)), *texts, expected=expected)


def test_settings_that_agree_are_accepted(npz):
  expected = {'width': W, 'depth': 2, 'gelu': 'tanh', 'split': (1, 2)}
  path = npz(_google())
  pretrained.load(path, image_size=SIZE, expected=expected)
  _refused(
    path,
    "Did you mean 'width'?",
    error=errors.ConfigError,
    expected={'widht': W},
  )
  _refused(path, 'divide images of 13', error=errors.ConfigError, image_size=13)


def test_fixed_positions_must_be_expected(npz):
  arrays = {
    name: value
    for name, value in _fill_shapes(_google_shapes(2, _LINEN)).items()
    if 'pos_embedding' not in name
  }
  _refused(npz(arrays), "set position='sincos2d'")
  teacher = pretrained.load(
    npz(arrays), image_size=SIZE, expected={'position': 'sincos2d'}
  )
  assert teacher.settings['class_token'] == 'after'
  assert 'position' not in teacher.variables['params']['embed']


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'model_type': 'swin'},
      "model_type is 'swin'; of Hugging Face models only vit",
    ),
    ({'hidden_act': 'relu'}, "hidden_act is 'relu'; only gelu, gelu_new"),
    ({'num_channels': 1}, 'num_channels is 1; only 3'),
    ({'patch_size': [4, 2]}, 'patch_size is [4, 2]; only squares'),
    ({'model_type': None}, 'model_type is None; it must be of type str'),
    ({'hidden_size': '8'}, "hidden_size is '8'; it must be of type int"),
    (
      {'num_hidden_layers': True},
      'num_hidden_layers is True; it must be of type int',
    ),
    ({'num_hidden_layers': 3}, 'leaf encoder.layer.2.'),
    (
      {'num_hidden_layers': 10**9},
      'depth is 1000000000; it must be a whole number from 1 to 1000',
    ),
    ({'num_attention_heads': 3}, 'it must be a multiple of'),
    ({'patch_size': 0}, 'patch_size is 0; it must be at least 1'),
    ({'image_size': 16}, 'position_embeddings is stored as [1, 10, 8] and'),
    ({'intermediate_size': 16}, 'is stored as [12'),
  ],
)
def test_a_wrong_field_of_config_json_is_named(folder, changes, message):
  path = folder('vit', _fill_shapes(_hf_shapes('vit', 2)), **changes)
  _refused(path, message)


@pytest.mark.parametrize(
  'changes', [{'num_attention_heads': 3}, {'num_hidden_layers': 10**9}]
)
def test_a_fact_of_config_json_is_not_blamed_on_the_weights(folder, changes):
  path = folder('vit', _fill_shapes(_hf_shapes('vit', 2)), **changes)
  _refused(path, f'{path}/config.json: ')


def test_a_network_that_config_json_does_not_state_is_named(folder):
  path = folder('vit', _fill_shapes(_hf_shapes('vit', 2)))
  for expected in ({'eps': 1e-12}, {'gelu': 'tanh'}):
    _refused(path, f'{path}/config.json: ', 'is expected', expected=expected)
  arguments: Any = {'error': errors.ConfigError, 'image_size': 13}
  _refused(path, f'{path}/config.json: patches of 4 pixels', **arguments)
  path = folder('vit', _fill_shapes(_hf_shapes('vit', 2)), image_size=16)
  _refused(path, f'than {path}/config.json and the config say')


_BASE = {'width': 768, 'depth': 12, 'heads': 12, 'mlp_width': 3072}


@pytest.mark.parametrize(
  ('kind', 'expected'),
  [
    ('vit', {**_BASE, 'patch': 16, 'gelu': 'exact', 'eps': 1e-12}),
    ('deit', {**_BASE, 'patch': 16, 'gelu': 'exact', 'eps': 1e-12}),
    ('dinov2', {**_BASE, 'patch': 14, 'gelu': 'exact', 'eps': 1e-6}),
    (
      'dinov2_with_registers',
      {**_BASE, 'patch': 16, 'gelu': 'exact', 'eps': 1e-6},
    ),
    (
      'dinov3_vit',
      {'width': 384, 'depth': 12, 'heads': 6, 'mlp_width': 1536, 'patch': 16},
    ),
  ],
)
def test_fields_that_a_config_leaves_out_are_those_of_transformers(
  tmp_path, kind, expected
):
  (tmp_path / 'config.json').write_text(json.dumps({'model_type': kind}))
  arrays = {'embeddings.cls_token': np.zeros((1, 1, 8), np.float32)}
  safetensors.save_file(arrays, tmp_path / 'model.safetensors')
  settings = pretrained.describe(str(tmp_path)).settings
  assert settings | expected == settings


def test_the_side_of_an_image_may_be_a_pair(folder):
  plain = folder('vit', _fill_shapes(_hf_shapes('vit', 2)))
  expected = pretrained.load(plain, image_size=SIZE)
  paired = folder(
    'vit',
    _fill_shapes(_hf_shapes('vit', 2)),
    image_size=[SIZE, SIZE],
    patch_size=[PATCH, PATCH],
  )
  _same(pretrained.load(paired, image_size=SIZE), expected)


@pytest.mark.parametrize('name', ['model.safetensors', 'other.safetensors'])
def test_the_file_of_the_weights_may_be_named(folder, name):
  path = folder('vit', _fill_shapes(_hf_shapes('vit', 2)))
  expected = pretrained.load(path, image_size=SIZE)
  file = pathlib.Path(path) / 'model.safetensors'
  file = file.rename(file.with_name(name))
  assert pretrained.is_published(str(file))
  _same(pretrained.load(str(file), image_size=SIZE), expected)
  assert pretrained.describe(str(file)) == pretrained.Description(
    {k: v for k, v in expected.settings.items() if k != 'classes'},
    ((127.5,) * 3,) * 2,
  )
  _refused(f'{path}/no.safetensors', 'no.safetensors does not exist')


def test_the_list_of_several_files_may_be_named(folder):
  arrays = _fill_shapes(_hf_shapes('vit', 2))
  path = pathlib.Path(folder('vit', arrays))
  expected = pretrained.load(str(path), image_size=SIZE)
  (path / 'model.safetensors').rename(path / 'part.safetensors')
  index = path / 'model.safetensors.index.json'
  parts = dict.fromkeys(arrays, 'part.safetensors')
  index.write_text(json.dumps({'weight_map': parts}))
  for name in (path, index):
    assert pretrained.is_published(str(name))
    _same(pretrained.load(str(name), image_size=SIZE), expected)


@pytest.mark.parametrize(
  'name', ['pytorch_model.bin', 'pytorch_model-00001-of-00002.bin']
)
def test_weights_of_pytorch_alone_name_the_command_that_converts_them(
  folder, name
):
  path = pathlib.Path(folder('vit', _fill_shapes(_hf_shapes('vit', 2))))
  (path / 'model.safetensors').unlink()
  (path / name).write_bytes(b'')
  for place in (path, path / name):
    assert pretrained.is_published(str(place))
    _refused(str(place), f'{path}/{name}', 'python -c "', 'save_file')


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors', 'x.npz'])
def test_pipes_and_devices_are_not_opened(folder, name):
  path = pathlib.Path(folder('vit', _fill_shapes(_hf_shapes('vit', 2))))
  place = path / name if name == 'x.npz' else path
  (path / name).unlink(missing_ok=True)
  os.mkfifo(path / name)
  _refused(str(place), f'{name} is a pipe or a device')
  (path / name).unlink()
  (path / name).symlink_to('/dev/zero')
  _refused(str(place), f'{name} is a pipe or a device')
  (path / name).unlink()
  (path / name).mkdir()
  _refused(str(place), f'{name} is a folder')


def test_hugging_face_leaves_are_accounted_for(folder):
  arrays = _fill_shapes(_hf_shapes('vit', 2))
  name = 'encoder.layer.1.output.dense.weight'
  _refused(
    folder('vit', {k: v for k, v in arrays.items() if k != name}),
    f'leaf {name} is stored as nothing and expected as [8, 12]',
  )
  _refused(
    folder('vit', arrays | {'pooler.dense.weight': np.zeros((W, W))}),
    'leaf pooler.dense.bias is stored as nothing',
  )
  _refused(
    folder('vit', arrays | {name: np.full((W, MLP), np.nan, np.float32)}),
    f'leaf {name}',
    'not finite',
  )
  _refused(
    folder('vit', arrays | {name: np.zeros((W, MLP), np.int32)}),
    f'leaf {name}',
    'I32, not of floats',
  )


def test_missing_and_unreadable_files_are_named(tmp_path):
  _refused(str(tmp_path / 'no.npz'), 'no.npz does not exist')
  _refused(str(tmp_path), 'config.json does not exist')
  (tmp_path / 'config.json').write_text('{"model_type": ')
  _refused(str(tmp_path), 'config.json cannot be read')
  (tmp_path / 'config.json').write_text('[' * 100_000)
  _refused(str(tmp_path), 'config.json cannot be read')
  (tmp_path / 'config.json').write_text('[]')
  _refused(str(tmp_path), 'config.json cannot be read: it holds a list')
  (tmp_path / 'config.json').write_text('{"model_type": "vit"}')
  _refused(str(tmp_path), 'model.safetensors does not exist')


def test_a_remote_file_is_downloaded_and_then_deleted(npz, monkeypatch):
  path = npz(_google())
  copies = []

  class Bucket:
    def __init__(self, address):
      assert address == 'gs://bucket/teacher.npz'

    def copy(self, target):
      copies.append(target)
      target.write_bytes(pathlib.Path(path).read_bytes())

  monkeypatch.setattr(etils.epath, 'Path', Bucket)
  teacher = pretrained.load('gs://bucket/teacher.npz', image_size=SIZE)
  _same(teacher, pretrained.load(path, image_size=SIZE))
  assert not copies[0].exists()

  def fail(self, target):
    raise PermissionError('403')

  monkeypatch.setattr(Bucket, 'copy', fail)
  _refused('gs://bucket/teacher.npz', 'gs://bucket/teacher.npz cannot', '403')


class _Canary:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return pathlib.Path.touch, (self.path,)


def test_pickled_objects_are_refused_and_never_run(npz, tmp_path):
  canary = tmp_path / 'canary'
  bad = np.array([_Canary(canary)], dtype=object)
  assert b'touch' in pickle.dumps(_Canary(canary))
  _refused(
    npz(_google() | {'head/bias': bad}), 'leaf head/bias', 'never loaded'
  )
  assert not canary.exists()


def _zip(path, members, compression=zipfile.ZIP_DEFLATED):
  """Writes a .npz whose members are bytes, or lists of chunks of bytes."""
  with zipfile.ZipFile(path, 'w', compression) as file:
    for name, chunks in members.items():
      with file.open(f'{name}.npy', 'w') as member:
        for chunk in [chunks] if isinstance(chunks, bytes) else chunks:
          member.write(chunk)
  return str(path)


def _npy(array):
  stream = io.BytesIO()
  np.lib.format.write_array(stream, array)
  return stream.getvalue()


def _header(shape, descr='<f4'):
  stream = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    stream, {'descr': descr, 'fortran_order': False, 'shape': shape}
  )
  return stream.getvalue()


_BOMBS = {
  'shape': (
    [_header((10**12,))],
    'its header declares [1000000000000] float32',
  ),
  'overflow': ([_header((2**40, 2**40))], 'its header declares'),
  'negative': ([_header((-1, -5)) + bytes(20)], 'its header declares [-1, -5]'),
  'text': (
    [_header((W, CLASSES), '<U9') + bytes(W * CLASSES * 36)],
    'not of floats',
  ),
  'long header': (
    [b'\x93NUMPY\x02\x00' + struct.pack('<I', 2**31), *[b' ' * 2**20] * 20],
    'cannot be read',
  ),
  'data': (
    [_header((W, 2**22)), *[bytes(2**20)] * 4 * W * 4],
    'would unpack to',
  ),
  'not npy': ([b'not an array'], 'cannot be read'),
  'empty': ([b''], 'cannot be read'),
}


@pytest.mark.parametrize('kind', _BOMBS)
def test_zip_bombs_are_refused_in_little_memory(tmp_path, kind):
  chunks, message = _BOMBS[kind]
  members = {name: _npy(value) for name, value in _google().items()}
  path = _zip(tmp_path / 'bomb.npz', members | {'head/kernel': chunks})
  tracemalloc.start()
  try:
    _refused(path, message)
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 100e6


def test_a_member_larger_than_declared_is_not_unpacked(tmp_path):
  """The archive declares 160 kB for a member that has 128 MiB more."""
  arrays = _google() | {
    'head/kernel': np.zeros((W, 5000), np.float32),
    'head/bias': np.zeros(5000, np.float32),
  }
  members: Any = {name: _npy(value) for name, value in arrays.items()}
  claimed = len(members['head/kernel'])
  members['head/kernel'] = [
    members['head/kernel'],
    *[bytes(2**20)] * 128,
  ]
  path = pathlib.Path(_zip(tmp_path / 'liar.npz', members))
  data = path.read_bytes()
  real = struct.pack('<I', claimed + 128 * 2**20)
  assert data.count(real) >= 1
  path.write_bytes(data.replace(real, struct.pack('<I', claimed)))
  tracemalloc.start()
  try:
    _refused(str(path), 'leaf head/kernel', 'CRC')
    _, peak = tracemalloc.get_traced_memory()
  finally:
    tracemalloc.stop()
  assert peak < 100e6


def test_truncated_files_are_refused(npz, folder):
  for path in (
    pathlib.Path(npz(_google())),
    pathlib.Path(folder('vit', _fill_shapes(_hf_shapes('vit', 2))))
    / 'model.safetensors',
  ):
    whole = path.read_bytes()
    name = str(path if path.suffix == '.npz' else path.parent)
    for length in np.linspace(0, len(whole) - 1, 12).astype(int):
      path.write_bytes(whole[:length])
      _refused(name, 'cannot be read')


def test_a_flipped_byte_is_detected(npz):
  path = pathlib.Path(npz(_google()))
  whole = path.read_bytes()
  plain = pretrained.load(str(path), image_size=SIZE)
  detected = 0
  for place in np.random.default_rng(0).integers(0, len(whole), 60):
    damaged = bytearray(whole)
    damaged[place] ^= 0x10
    path.write_bytes(damaged)
    try:
      teacher = pretrained.load(str(path), image_size=SIZE)
    except errors.DataError:
      detected += 1
    else:
      _same(teacher, plain)  # The byte had no meaning, such as in a date.
  assert detected > 30


def test_a_wrong_header_length_of_safetensors_is_refused(folder):
  path = folder('vit', _fill_shapes(_hf_shapes('vit', 2)))
  file = pathlib.Path(path) / 'model.safetensors'
  for start in (struct.pack('<Q', 2**62), struct.pack('<Q', 2**26)):
    file.write_bytes(start + file.read_bytes()[8:])
    _refused(path, 'model.safetensors cannot be read')


def test_names_that_escape_the_folder_are_harmless(npz, tmp_path):
  before = {p for p in tmp_path.parent.rglob('*') if 'teacher' not in p.name}
  for name in ('../../evil', '/tmp/evil', 'a/../../evil'):
    _refused(
      npz(_google() | {name: np.zeros(3)}), 'evil', 'expected as nothing'
    )
  after = {p for p in tmp_path.parent.rglob('*') if 'teacher' not in p.name}
  assert after == before


def test_a_duplicate_name_is_refused(tmp_path):
  path = _zip(
    tmp_path / 'twice.npz', {k: _npy(v) for k, v in _google().items()}
  )
  with (
    pytest.warns(UserWarning, match='Duplicate name'),
    zipfile.ZipFile(path, 'a') as file,
  ):
    file.writestr('cls.npy', _npy(np.zeros((1, 1, W), np.float32)))
  _refused(path, "it holds 'cls' 2 times")


def test_fortran_order_is_read(tmp_path):
  arrays = _google()
  plain = {name: _npy(value) for name, value in arrays.items()}
  fortran = {name: _npy(np.asfortranarray(v)) for name, v in arrays.items()}
  assert fortran != plain
  expected, teacher = (
    pretrained.load(_zip(tmp_path / f'{i}.npz', members), image_size=SIZE)
    for i, members in enumerate((plain, fortran))
  )
  _same(teacher, expected)
