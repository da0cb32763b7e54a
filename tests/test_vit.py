"""The ViT: its parts at every split, its variants, and parity with NumPy.

test_pretrained.py compares it with published networks.
"""

import functools
import math
from typing import Any

import jax
from jax import numpy as jnp
import jax.extend
import numpy as np
import pytest

from td_jax import errors
from td_jax import models
from td_jax import types
from td_jax.methods import base
from td_jax.methods import losses
from td_jax.methods import talking
from td_jax.models import posemb
from td_jax.models import split
from td_jax.models import vit

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

B, SIZE, PATCH, WIDTH, DEPTH, CLASSES = 2, 12, 4, 8, 3, 5
TOKENS = (SIZE // PATCH) ** 2 + 1
SPLITS = [(1, 2), (1, 3), (2, 3)]  # All valid splits of 3 blocks.
_SETTINGS = {
  'classes': CLASSES,
  'width': WIDTH,
  'depth': DEPTH,
  'heads': 2,
  'mlp_width': 12,
  'patch': PATCH,
  'split': (1, 2),
  'class_token': 'before',
  'registers': 0,
  'position': 'learned',
  'pre_norm': False,
  'pooling': 'token',
  'pre_logits_width': 0,
  'layer_scale': 0.0,
  'mlp': 'gelu',
  'gelu': 'exact',
  'eps': 1e-6,
  'dropout': 0.0,
  'dtype': 'float32',
  'remat': False,
  'scan': False,
}
_RICH = {'pre_logits_width': 7, 'layer_scale': 0.5}
_near = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6)
_equal = np.testing.assert_array_equal


def _model(**changes) -> Any:
  return models.NETWORKS['vit'].module(**(_SETTINGS | changes))


@functools.cache
def _x():
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.uniform(-1, 1, (B, SIZE, SIZE, 3)), jnp.float32)


def _key(seed):
  return jax.random.key(seed)


def _shapes(model):
  init = functools.partial(model.init, train=False)
  return dict(jax.eval_shape(init, _key(0), _x()))


@functools.cache
def _initial(model):
  init = functools.partial(model.init, train=False)
  return dict(jax.jit(init)(_key(0), _x()))


@functools.cache
def _noisy(model):
  """Variables of `model` in which no element is 0."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: jnp.asarray(
      rng.choice([-1, 1], leaf.shape) * rng.uniform(0.1, 0.5, leaf.shape),
      jnp.float32,
    ),
    _shapes(model),
  )


@functools.cache
def _compiled(model, method, train):
  def apply(variables, x, key):
    rngs = {'dropout': key} if train else None
    return model.apply(variables, x, method=method, train=train, rngs=rngs)

  return jax.jit(apply)


def _apply(model, variables, x, method=None, seed=None):
  apply = _compiled(model, method, seed is not None)
  return apply(variables, x, _key(seed or 0))


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize('cut', SPLITS)
def test_the_three_parts_compose_to_the_whole_at_every_split(cut, scan):
  model = _model(split=cut, scan=scan, **_RICH)
  loop = _noisy(_model(**_RICH))
  variables = vit.stack(loop) if scan else loop

  @jax.jit
  def run(variables, low, high):
    part = functools.partial(model.apply, variables, train=False)
    return part(_x()), (
      part(_x(), method='low'),
      part(low, method='interpret'),
      part(high, method='output'),
    )

  blank = jnp.zeros((B, TOKENS, WIDTH))
  (low, high, output), _ = run(variables, blank, blank)
  assert low.shape == high.shape == (B, TOKENS, WIDTH)
  assert output.shape == (B, CLASSES)
  _, parts = run(variables, low, high)
  # XLA may fuse the parts otherwise, which changes a last bit.
  last_bit = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7)
  jax.tree.map(last_bit, parts, (low, high, output))
  # The network is the same wherever it is split, scanned or not.
  named = _apply(_model(**_RICH), loop, _x(), 'intermediates')
  _near(low, named[f'block_{cut[0] - 1:02d}'])
  _near(high, named[f'block_{cut[1] - 1:02d}'])
  _near(output, named['logits'])
  # Interpreting, and nothing else, reads the middle blocks.
  middle = [f'blocks_{i}' for i in range(*cut)]
  for changes in (set(loop['params']) - set(middle), middle):
    noisy = {
      'params': {
        name: jax.tree.map(lambda leaf: -leaf, tree)
        if name in changes
        else tree
        for name, tree in loop['params'].items()
      }
    }
    _, parts = run(vit.stack(noisy) if scan else noisy, low, high)
    # Other signs of the weights change far more than a last bit.
    same = [
      np.allclose(part, before, rtol=1e-6, atol=1e-7)
      for part, before in zip(parts, (low, high, output), strict=True)
    ]
    assert same == (
      [True, False, True] if changes is middle else [False, True, False]
    )


def test_a_side_holds_one_forward_pass():
  model = _model(**_RICH)
  variables = _noisy(model)

  @jax.jit
  def run(variables):
    side = split.side(model, variables, _x())
    return side.states, side.output, side.interpret(side.states.low, None)

  (low, high), output, again = run(variables)
  jax.tree.map(_near, (low, high, output), _apply(model, variables, _x()))
  _equal(again, high)


def _in_numpy(params, x, *, heads, eps, gelu, class_token):
  """Every block's output and the class token after the norm, in float64."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
  x = np.asarray(x, np.float64)

  def dense(values, layer):
    return values @ layer['kernel'] + layer['bias']

  def norm(values, layer):
    mean = values.mean(-1, keepdims=True)
    deviation = np.sqrt(values.var(-1, keepdims=True) + eps)
    return (values - mean) / deviation * layer['scale'] + layer['bias']

  def activate(v):
    if gelu == 'exact':
      return v * 0.5 * (1 + np.vectorize(math.erf)(v / math.sqrt(2)))
    return (
      0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)))
    )

  def attend(values, layer):
    size = values.shape[-1] // heads
    out = np.zeros_like(values)
    for h in range(heads):
      part = slice(h * size, (h + 1) * size)
      q, k, v = (
        dense(values, layer[name])[..., part]
        for name in ('query', 'key', 'value')
      )
      scores = q @ k.swapaxes(-1, -2) / math.sqrt(size)
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      out[..., part] = weights / weights.sum(-1, keepdims=True) @ v
    return dense(out, layer['out'])

  tokens = []
  for row in range(0, SIZE, PATCH):
    for column in range(0, SIZE, PATCH):
      cell = x[:, row : row + PATCH, column : column + PATCH]
      tokens.append(dense(cell.reshape(len(x), -1), p['embed']['patches']))
  tokens = np.stack(tokens, axis=1)
  token = np.broadcast_to(p['embed']['class_token'], (len(x), 1, WIDTH))
  if class_token == 'before':
    tokens = np.concatenate([token, tokens], axis=1) + p['embed']['position']
  else:
    tokens = np.concatenate([token, tokens + p['embed']['position']], axis=1)
  states = []
  for i in range(DEPTH):
    block = p[f'blocks_{i}']
    scales = (block.get(f'{part}_scale', 1.0) for part in ('attention', 'mlp'))
    first, second = scales
    normed = norm(tokens, block['attention_norm'])
    tokens = tokens + first * attend(normed, block['attention'])
    hidden = activate(
      dense(norm(tokens, block['mlp_norm']), block['mlp']['in'])
    )
    tokens = tokens + second * dense(hidden, block['mlp']['out'])
    states.append(tokens)
  return states, norm(tokens, p['norm'])


@pytest.mark.parametrize(
  'changes',
  [
    {'layer_scale': 0.5, 'pre_logits_width': 7},
    {'gelu': 'tanh', 'class_token': 'after'},
    {'eps': 0.1, 'heads': 4},
  ],
)
def test_every_state_equals_that_of_numpy(changes):
  model = _model(**changes)
  variables = _noisy(model)
  p = jax.tree.map(np.asarray, variables['params'])
  named = _apply(model, variables, _x(), 'intermediates')
  states, encoded = _in_numpy(
    p,
    _x(),
    heads=model.heads,
    eps=model.eps,
    gelu=model.gelu,
    class_token=model.class_token,
  )
  for i, state in enumerate(states):
    _near(named[f'block_{i:02d}'], state)
  _near(named['encoder_norm'], encoded)
  pooled: Any = encoded[:, 0]
  if model.pre_logits_width:
    layer = p['pre_logits']
    pooled = np.tanh(pooled @ layer['kernel'] + layer['bias'])
  _near(named['logits'], pooled @ p['head']['kernel'] + p['head']['bias'])


def test_intermediates_are_in_the_order_of_computation():
  model = _model(**_RICH)
  names = []
  jax.eval_shape(
    lambda v: names.extend(
      model.apply(v, _x(), train=False, method='intermediates')
    ),
    _noisy(model),
  )
  assert names == [
    'embedded',
    'block_00',
    'block_01',
    'block_02',
    'encoder_norm',
    'pooled',
    'pre_logits_linear',
    'pre_logits',
    'logits',
  ]


@pytest.mark.parametrize(
  ('class_token', 'pooling'),
  [
    ('before', 'token'),
    ('after', 'mean'),
    ('none', 'mean'),
    ('before', 'token_and_mean'),
  ],
)
def test_pooling_reads_the_right_tokens(class_token, pooling):
  rng = np.random.default_rng(0)
  encoded = jnp.asarray(rng.normal(size=(B, 4, WIDTH)), jnp.float32)
  patches = encoded if class_token == 'none' else encoded[:, 1:]
  token, mean = encoded[:, 0], np.asarray(patches).mean(axis=1)
  expected = {
    'token': token,
    'mean': mean,
    'token_and_mean': np.concatenate([token, mean], axis=1),
  }
  model = _model(class_token=class_token, pooling=pooling)
  _near(model.apply({}, encoded, method='_pool'), expected[pooling])


def test_without_classes_the_output_is_the_input_of_the_head():
  with_head = _model(**_RICH)
  variables = _noisy(with_head)
  named = _apply(with_head, variables, _x(), 'intermediates')
  params = {k: v for k, v in variables['params'].items() if k != 'head'}
  without = _model(classes=0, **_RICH)
  assert jax.tree.map(jnp.shape, {'params': params}) == jax.tree.map(
    jnp.shape, _shapes(without)
  )
  *_, output = _apply(without, {'params': params}, _x())
  _near(output, named['pre_logits'])


def test_logits_start_at_0():
  model = _model(pre_logits_width=7)
  *_, output = _apply(model, _initial(model), _x())
  _equal(output, 0.0)


def test_fixed_positions_are_not_a_parameter():
  model = _model(position='sincos2d', class_token='after')
  variables = _noisy(model)
  assert set(variables['params']['embed']) == {'patches', 'class_token'}
  named = _apply(model, variables, jnp.zeros_like(_x()), 'intermediates')
  bias = variables['params']['embed']['patches']['bias']
  table = posemb.sincos2d(rows=3, columns=3, width=WIDTH)
  _near(named['embedded'][0, 1:], table + bias[None])
  # Cell (row 1, column 2), frequencies 1 and 1 / 10,000.
  _near(
    table[1 * 3 + 2],
    [f(v * w) for v in (2, 1) for f in (np.sin, np.cos) for w in (1, 1e-4)],
  )


def test_stacking_and_unstacking_are_inverse():
  loop, scan = _model(layer_scale=0.5), _model(layer_scale=0.5, scan=True)
  variables = _noisy(loop)
  stacked = vit.stack(variables)
  assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(
    jnp.shape, _shapes(scan)
  )
  assert vit.count_blocks(variables) == vit.count_blocks(stacked) == DEPTH
  jax.tree.map(_equal, vit.unstack(stacked), variables)


def test_blocks_are_stacked_by_number():
  numbered = {f'blocks_{i}': {'bias': jnp.full(2, i)} for i in range(11)}
  stacked = vit.stack({'params': numbered | {'norm': {}}})
  _equal(stacked['params']['blocks']['bias'][:, 0], np.arange(11))


def _loss(model, variables, key):
  low, high, output = model.apply(
    variables,
    _x(),
    train=key is not None,
    rngs=None if key is None else {'dropout': key},
  )
  return jnp.sum(jnp.sin(output)) + jnp.mean(low**2) + jnp.mean(high**3)


@functools.cache
def _grad(model):
  return jax.jit(jax.grad(functools.partial(_loss, model)))


def _grads(model, variables, seed=None):
  return _grad(model)(variables, None if seed is None else _key(seed))


def _residual_size(model, variables):
  """Elements that the forward pass stores for the backward pass."""
  pullback = jax.eval_shape(
    lambda v: jax.vjp(lambda v: _loss(model, v, None), v)[1], variables
  )
  return sum(leaf.size for leaf in jax.tree.leaves(pullback))


def test_scan_and_remat_do_not_change_gradients():
  model = functools.partial(_model, layer_scale=0.5, depth=2)
  variables = _noisy(model())
  loop = _grads(model(), variables)
  near = functools.partial(_near, rtol=1e-4)
  jax.tree.map(near, _grads(model(remat=True), variables), loop)
  scanned = _grads(model(remat=True, scan=True), vit.stack(variables))
  jax.tree.map(near, vit.unstack(scanned), loop)


@pytest.mark.parametrize('scan', [False, True])
def test_rematerialised_blocks_store_less(scan):
  model, remat = _model(scan=scan), _model(scan=scan, remat=True)
  variables = _shapes(model)
  plain = _residual_size(model, variables)
  assert _residual_size(remat, variables) < 0.7 * plain


def test_every_block_starts_with_different_weights():
  variables = _initial(_model(scan=True))
  kernels = variables['params']['blocks']['mlp']['in']['kernel']
  assert np.any(kernels[0] != kernels[1])
  # Xavier's limit of one block; it would be smaller for the stack.
  limit = math.sqrt(6 / (WIDTH + _SETTINGS['mlp_width']))
  assert 0.8 * limit < np.abs(kernels).max() <= limit


@pytest.mark.parametrize(('scan', 'remat'), [(False, True), (True, False)])
def test_dropout_applies_in_training_only(scan, remat):
  model = _model(scan=scan, remat=remat, dropout=0.5, layer_scale=0.5)
  loop = _noisy(_model(layer_scale=0.5))
  variables = vit.stack(loop) if scan else loop
  plain = _apply(_model(layer_scale=0.5), loop, _x())
  jax.tree.map(_near, _apply(model, variables, _x()), plain)
  first, other, again = (
    _apply(model, variables, _x(), seed=s) for s in (0, 1, 0)
  )
  for i in range(3):
    _equal(first[i], again[i])
    assert np.any(first[i] != plain[i])
    assert np.any(first[i] != other[i])


def test_dropout_applies_to_embeddings_and_in_mlps():
  model = _model(dropout=0.5, split=(1, 2))
  params = _noisy(_model())['params']
  params |= {
    f'blocks_{i}': jax.tree.map(jnp.zeros_like, params['blocks_0'])
    for i in range(DEPTH)
  }
  # Block 1 adds nothing, so low is the embeddings after dropout.
  low, _, _ = _apply(model, {'params': params}, _x(), seed=0)
  named = _apply(_model(), {'params': params}, _x(), 'intermediates')
  factor = low / named['embedded']
  assert set(np.unique(np.round(factor, 5)).tolist()) == {0.0, 2.0}
  assert 0.35 < np.mean(factor == 0) < 0.65
  # Block 2 adds the sum of 12 hidden units of 1 to every feature of a token.
  mlp = params['blocks_1']['mlp']
  active = float(jax.nn.gelu(1.0, approximate=False))
  mlp['in']['bias'] = jnp.ones(12)
  mlp['out']['kernel'] = jnp.full((12, WIDTH), 1 / active)
  low = jnp.zeros((B, TOKENS, WIDTH))
  high = _apply(model, {'params': params}, low, 'interpret', seed=0)
  units = np.round(np.unique(high) / 4, 4)  # A unit adds 2 x 2, or 0.
  np.testing.assert_array_equal(units, np.round(units))
  assert len(units) > 3


@pytest.mark.parametrize('scan', [False, True])
def test_dropout_differs_between_blocks(scan):
  """With equal blocks and an input of zeros only the noise can differ."""
  model = _model(scan=scan, dropout=0.5, split=(1, 3))
  block = jax.tree.map(jnp.zeros_like, _noisy(_model())['params']['blocks_0'])
  block['attention']['out']['bias'] += 1.0
  params = _noisy(_model())['params'] | {
    f'blocks_{i}': block for i in range(DEPTH)
  }
  variables = {'params': params}
  if scan:
    variables = vit.stack(variables)
  low = jnp.zeros((B, TOKENS, WIDTH))
  high = _apply(model, variables, low, 'interpret', seed=0)
  # Each of two blocks adds 0 or 2. With the same noise no sum would be 2.
  assert set(np.unique(high).tolist()) == {0.0, 2.0, 4.0}


@pytest.mark.parametrize(
  'changes',
  [
    {'pooling': 'map', 'class_token': 'none', 'pre_logits_width': 7},
    {'dtype': 'bfloat16', 'scan': True, 'remat': True, 'layer_scale': 1e-5},
  ],
)
def test_gradients_are_finite_and_reach_every_parameter(changes):
  model = _model(dropout=0.1, depth=2, **changes)
  grads = _grads(model, _noisy(model), seed=3)['params']
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    assert np.all(np.isfinite(leaf)), name
    # The bias of keys shifts all scores of a query alike; softmax ignores it.
    assert np.any(leaf != 0) or name.endswith('key/bias'), name


def _inputs(jaxpr):
  """[(primitive, dtypes of its inputs)] of a jaxpr and all inner jaxprs."""
  inputs = []
  for equation in jaxpr.eqns:
    dtypes = {var.aval.dtype.name for var in equation.invars}
    inputs.append((equation.primitive.name, dtypes))
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      inputs += _inputs(inner)
  return inputs


@pytest.mark.parametrize('scan', [False, True])
def test_bfloat16_blocks_return_float32(scan):
  exact, half = (
    _model(dtype=dtype, scan=scan, layer_scale=0.5)
    for dtype in ('float32', 'bfloat16')
  )
  variables = _noisy(exact)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(_shapes(half))} == {
    'float32'
  }
  jaxpr = jax.make_jaxpr(functools.partial(half.apply, train=False))(
    variables, _x()
  )
  inputs = _inputs(jaxpr.jaxpr)
  *blocks, head = [dtypes for name, dtypes in inputs if name == 'dot_general']
  assert head == {'float32'}
  assert len(blocks) > 8
  assert all(dtypes == {'bfloat16'} for dtypes in blocks)
  # Softmax, means and variances are float32.
  for primitive in ('exp', 'reduce_sum', 'rsqrt'):
    dtypes = [dtypes for name, dtypes in inputs if name == primitive]
    assert dtypes
    assert all(each == {'float32'} for each in dtypes), primitive
  added = [d for name, d in inputs if name == 'add' and 'bfloat16' in d]
  assert len(added) > 8  # The residual stream is bfloat16 too.
  for expected, value in zip(
    _apply(exact, variables, _x()), _apply(half, variables, _x()), strict=True
  ):
    assert expected.dtype == value.dtype == jnp.float32
    error = np.sqrt(np.mean((expected - value) ** 2) / np.mean(expected**2))
    # A mantissa of 8 bits, rounded some tens of times.
    assert 1e-4 < error < 0.02


def test_seeds_under_vmap_equal_single_runs():
  model = _model(dropout=0.5, layer_scale=0.5)
  keys = jax.random.split(_key(0), 2)
  first = _noisy(_model(layer_scale=0.5))
  seeds = [first, jax.tree.map(lambda leaf: -leaf, first)]
  both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
  run = _compiled(model, None, True)
  outputs = jax.jit(jax.vmap(run, in_axes=(0, None, 0)))(both, _x(), keys)
  for seed in range(2):
    alone = run(seeds[seed], _x(), keys[seed])
    for values, expected in zip(outputs, alone, strict=True):
      _near(values[seed], expected, atol=1e-5)


def test_networks_of_different_widths_can_talk():
  student, teacher = _model(depth=2), _model(depth=2, width=12, heads=3)
  teacher_variables = _noisy(teacher)
  method = talking.talking(
    weights=talking.Weights(interact=1.0, message=1.0, state=1.0),
    hidden=6,
    message=4,
    dropout=0.0,
    distance=losses.l2,
    student_encodes_high=True,
    k=2,
  )

  def lesson(variables):
    return base.Lesson(
      student=split.side(student, variables, _x()),
      teachers={'teacher': split.side(teacher, teacher_variables, _x())},
      batch=types.Batch(x=_x(), y=jnp.zeros(B, int), mask=jnp.ones(B)),
      step=jnp.int32(0),
      rng=_key(3),
    )

  @jax.jit
  @jax.grad
  def grads(variables):
    params = method.init(_key(4), lesson(variables))
    cost, _ = method.loss(params, lesson(variables))
    assert cost.shape == (B,)
    return cost.sum()

  kernel = grads(_noisy(student))['params']['embed']['patches']['kernel']
  assert np.all(np.isfinite(kernel))
  assert np.any(kernel != 0)


@pytest.mark.parametrize(
  'cut', [(0, 1), (1, 1), (2, 1), (1, 4), (3, 4), (-1, 2)]
)
def test_invalid_splits_raise_an_error_with_the_valid_range(cut):
  with pytest.raises(errors.ConfigError, match='1 <= l < h <= 3') as caught:
    _shapes(_model(split=cut))
  assert str(caught.value).startswith(f'model.split is {cut}; a split')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'gelu': 'erf'},
      "model.gelu is 'erf'; choose one of: exact, quick, tanh.",
    ),
    ({'pooling': 'cls'}, "model.pooling is 'cls'; choose one of"),
    ({'class_token': 'yes'}, "model.class_token is 'yes'; choose one of"),
    ({'position': 'sincos'}, "Did you mean 'sincos2d'?"),
    ({'dtype': 'float16'}, 'one of: bfloat16, float32.'),
    ({'heads': 3}, 'model.width is 8; it must be a multiple of model.heads, 3'),
    ({'depth': 0}, 'model.depth is 0; it must be a whole number from 1 to'),
    (
      {'dropout': 1.0},
      'model.dropout is 1.0; it must be a number at least 0 and',
    ),
    (
      {'class_token': 'none'},
      "model.pooling is 'token', but model.class_token",
    ),
    ({'position': 'sincos2d'}, "take 'after'"),
    ({'patch': 5}, 'images are 12 x 12 pixels; both sides must be'),
  ],
)
def test_settings_that_cannot_work_raise_an_error(changes, message):
  with pytest.raises(errors.ConfigError) as caught:
    _shapes(_model(**changes))
  assert message in str(caught.value)


def test_a_config_is_checked_against_the_images():
  vit.check('config.model', _model(), {'image_size': SIZE})
  with pytest.raises(errors.ConfigError) as caught:
    vit.check('config.model', _model(), {'image_size': SIZE + 1})
  assert str(caught.value) == (
    'config.model.patch is 4, which does not divide config.data.size, 13; make '
    'config.data.size a multiple of the patch.'
  )
