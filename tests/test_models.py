"""The protocol of networks, and the MLP against NumPy."""

import functools

import jax
from jax import numpy as jnp
import ml_collections
import numpy as np
import pytest

from td_jax import errors
from td_jax import models
from td_jax import types
from td_jax.configs import movielens as movielens_config
from td_jax.configs import vit_cifar10 as vit_config
from td_jax.models import mlp
from td_jax.models import split

B = 5
HIDDEN = (6, 5, 4)  # With the head: 4 layers.
SPLITS = [(1, 2), (1, 3), (2, 3)]  # All valid splits of 4 layers.
_FROM_DATA = {'users': 9, 'movies': 8, 'words': 7, 'mean': 3.5}


def _model(**changes):
  config = ml_collections.ConfigDict(
    {
      'name': 'mlp',
      'hidden': HIDDEN,
      'split': (1, 2),
      'dropout': 0.0,
      'unknown_rate': 0.0,
      'id_width': 3,
      'bag_width': 2,
    }
  )
  config.update(changes)
  return models.build(config, _FROM_DATA)


@functools.cache
def _x():
  rng = np.random.default_rng(0)
  title = rng.integers(1, 7, (B, 3))
  title[1, 2:], title[2, :2], title[3] = 0, 0, 0  # 0 is padding, anywhere.
  genres = rng.random((B, 4)).astype(np.float32)
  return {
    'user': jnp.asarray([1, 0, 8, 3, 3]),
    'movie': jnp.asarray([7, 2, 0, 1, 1]),
    'title': jnp.asarray(title),
    'genres': jnp.asarray(genres / genres.sum(axis=1, keepdims=True)),
  }


@functools.cache
def _variables():
  """Weights of a 4-layer MLP in which no bias is 0."""
  variables = _model().init(jax.random.key(0), _x(), train=False)
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32),
    variables,
  )


def _layers_in_numpy():
  """[input, hidden layers..., output] in float64."""
  p = jax.tree.map(
    lambda leaf: np.asarray(leaf, np.float64), _variables()['params']
  )
  rows = []
  for i in range(B):
    x = jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], _x())
    words = [p['title']['embedding'][w] for w in x['title'] if w != 0]
    mean = sum(words) / len(words) if words else np.zeros(2)
    hidden = np.concatenate(
      [
        p['user']['embedding'][x['user']],
        p['movie']['embedding'][x['movie']],
        mean,
        x['genres'].astype(np.float64) @ p['genres']['kernel'],
      ]
    )
    row = [hidden]
    for n in range(3):
      layer = p[f'layers_{n}']
      hidden = np.maximum(hidden @ layer['kernel'] + layer['bias'], 0)
      row.append(hidden)
    row.append(hidden @ p['head']['kernel'][:, 0] + p['head']['bias'][0])
    rows.append(row)
  return [np.array(column) for column in zip(*rows, strict=True)]


@pytest.mark.parametrize('cut', SPLITS)
def test_the_three_parts_compose_to_the_whole_at_every_split(cut):
  model, variables, x = _model(split=cut), _variables(), _x()
  part = functools.partial(model.apply, variables, train=False)
  low, high, output = part(x)
  assert low.shape == (B, HIDDEN[cut[0] - 1])
  assert high.shape == (B, HIDDEN[cut[1] - 1])
  assert output.shape == (B,)
  np.testing.assert_array_equal(part(x, method='low'), low)
  np.testing.assert_array_equal(part(low, method='interpret'), high)
  np.testing.assert_array_equal(part(high, method='output'), output)
  # The network is the same wherever it is split.
  layers = _layers_in_numpy()
  near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  near(low, layers[cut[0]])
  near(high, layers[cut[1]])
  near(output, layers[-1])


@pytest.mark.parametrize('cut', SPLITS)
def test_a_side_holds_one_forward_pass(cut):
  model, variables, x = _model(split=cut), _variables(), _x()
  low, high, output = model.apply(variables, x, train=False)
  side = split.side(model, variables, x)
  np.testing.assert_array_equal(side.states.low, low)
  np.testing.assert_array_equal(side.states.high, high)
  np.testing.assert_array_equal(side.output, output)
  np.testing.assert_array_equal(side.interpret(low, None), high)


@pytest.mark.parametrize('cut', SPLITS)
def test_a_precomputed_side_interprets_with_the_live_network(cut):
  model, variables = _model(split=cut), _variables()
  live = split.side(model, variables, _x())
  # Other states than the network's own: a side must return them as they are.
  states = types.States(live.states.low + 1, live.states.high + 1)
  side = split.precomputed(states, live.output + 1, model, variables)
  np.testing.assert_array_equal(side.states.low, states.low)
  np.testing.assert_array_equal(side.states.high, states.high)
  np.testing.assert_array_equal(side.output, live.output + 1)
  # A teacher is frozen, so there is no dropout even if a key is given.
  for key in (None, jax.random.key(0)):
    np.testing.assert_array_equal(
      side.interpret(live.states.low, key), live.states.high
    )


@pytest.mark.parametrize('cut', SPLITS)
def test_interpreting_reads_the_middle_layers_only(cut):
  model, variables = _model(split=cut), _variables()
  low = jnp.ones((B, HIDDEN[cut[0] - 1]))
  high = split.part(model, variables, 'interpret', train=False)(low, None)
  middle = [f'layers_{i}' for i in range(*cut)]
  noisy = {
    name: tree if name in middle else jax.tree.map(lambda v: v + 1e3, tree)
    for name, tree in variables['params'].items()
  }
  again = split.part(model, {'params': noisy}, 'interpret', train=False)(
    low, None
  )
  np.testing.assert_array_equal(again, high)


@pytest.mark.parametrize('cut', SPLITS)
def test_valid_splits_pass(cut):
  split.check('config.model.split', cut, 4)


@pytest.mark.parametrize(
  'cut', [(0, 1), (1, 1), (2, 2), (3, 2), (1, 4), (3, 4), (2, 5), (-1, 2)]
)
def test_invalid_splits_raise_an_error_with_the_valid_range(cut):
  with pytest.raises(errors.ConfigError) as caught:
    split.check('config.teacher.model.split', cut, 4)
  message = str(caught.value)
  assert message.startswith(f'config.teacher.model.split is {cut};')
  assert '4 layers' in message
  assert '1 <= l < h <= 3' in message


def test_the_output_starts_at_the_mean_rating():
  variables = _model().init(jax.random.key(0), _x(), train=False)
  assert variables['params']['head']['bias'] == 3.5


def test_id_0_is_the_unknown_row():
  variables, x = _variables(), _x()

  def grad(column):
    # The gradient of the first layer's input, where no ReLU can block it.
    tables = jax.grad(
      lambda v: _model().apply(v, x, True, method='_embed').sum()
    )(variables)['params']
    rows = np.abs(tables[column]['embedding']).sum(axis=1)
    return set(np.flatnonzero(rows).tolist())

  assert grad('user') == {0, 1, 3, 8}
  assert grad('movie') == {0, 1, 2, 7}
  # The row of padding is never read.
  assert grad('title') == set(np.unique(x['title']).tolist()) - {0}


def test_a_title_without_words_is_the_zero_vector():
  table = _variables()['params']['title']['embedding']
  title = jnp.asarray([[0, 0, 0], [0, 4, 0], [4, 4, 5]])
  means = mlp._mean_of_words(table, title)
  expected = [0 * table[0], table[4], (2 * table[4] + table[5]) / 3]
  np.testing.assert_allclose(means, np.array(expected), rtol=1e-6)


def test_the_gradient_of_a_word_is_its_share_of_the_title():
  table = _variables()['params']['title']['embedding']
  title = jnp.asarray([[0, 0, 0], [0, 4, 0], [4, 4, 5]])
  back = jnp.asarray([[1.0, 2.0], [10.0, 20.0], [300.0, 600.0]])
  grad = jax.grad(lambda t: jnp.sum(mlp._mean_of_words(t, title) * back))(table)
  expected = np.zeros(table.shape)
  expected[4], expected[5] = back[1] + 2 / 3 * back[2], back[2] / 3
  np.testing.assert_allclose(grad, expected, rtol=1e-6)


def _run(model, seed, x=None, variables=None, train=True):
  return model.apply(
    _variables() if variables is None else variables,
    _x() if x is None else x,
    train=train,
    rngs={'dropout': jax.random.key(seed)},
  )


def test_dropout_applies_in_training_only():
  model = _model(dropout=0.5)
  plain = _model().apply(_variables(), _x(), train=False)
  for name, plain_state in zip(('low', 'high', 'output'), plain, strict=True):
    i = ('low', 'high', 'output').index(name)
    np.testing.assert_array_equal(_run(model, 0, train=False)[i], plain_state)
    first, other, again = (_run(model, seed)[i] for seed in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    if name == 'low':  # The input of the first layer is not dropped.
      np.testing.assert_array_equal(first, plain_state)
    else:
      assert np.any(first != plain_state)
      assert np.any(first != other)


def test_a_side_applies_dropout_only_with_a_key():
  model, variables, x = _model(dropout=0.5), _variables(), _x()
  low = jnp.ones((B, HIDDEN[0]))
  evaluation, training = (
    split.side(model, variables, x, key=key)
    for key in (None, jax.random.key(0))
  )
  plain = _model().apply(variables, x, train=False)
  np.testing.assert_array_equal(evaluation.output, plain[-1])
  assert np.any(training.output != plain[-1])
  # Without dropout in the forward pass there is none in `interpret`, whatever
  # key it gets.
  expected = evaluation.interpret(low, None)
  key = jax.random.key(1)
  np.testing.assert_array_equal(evaluation.interpret(low, key), expected)
  np.testing.assert_array_equal(training.interpret(low, None), expected)
  assert np.any(training.interpret(low, key) != expected)


def test_dropout_preserves_the_mean_of_a_layers_input():
  """Inverted dropout at rate 1/2: half of the units are 0, the rest doubled."""
  model = _model(dropout=0.5)
  eye = {'params': dict(_variables()['params'])}
  eye['params']['layers_1'] = {
    'kernel': jnp.eye(6)[:, :5],
    'bias': jnp.zeros(5),
  }
  low = jnp.ones((2000, 6))
  dropped = model.apply(
    eye,
    low,
    train=True,
    rngs={'dropout': jax.random.key(3)},
    method='interpret',
  )
  assert set(np.unique(dropped).tolist()) == {0.0, 2.0}
  assert abs(float(dropped.mean()) - 1) < 0.05  # 5 standard deviations.


def test_unknown_rate_hides_ids_independently_and_in_training_only():
  rate, rows = 0.3, 4000
  model = _model(unknown_rate=rate)
  # The first two units of the first layer reveal the two ids.
  params = jax.tree.map(jnp.zeros_like, dict(_variables()['params']))
  params['user'] = {'embedding': jnp.zeros((9, 3)).at[5:, 0].set(1.0)}
  params['movie'] = {'embedding': jnp.zeros((8, 3)).at[5:, 0].set(1.0)}
  kernel = params['layers_0']['kernel'].at[0, 0].set(1.0).at[3, 1].set(1.0)
  params['layers_0'] = {'kernel': kernel, 'bias': jnp.zeros(6)}
  x = {
    'user': jnp.full(rows, 5),
    'movie': jnp.full(rows, 6),
    'title': jnp.zeros((rows, 3), jnp.int32),
    'genres': jnp.zeros((rows, 4)),
  }
  run = functools.partial(_run, model, x=x, variables={'params': params})
  seen = np.asarray(run(0)[0][:, :2])
  assert set(np.unique(seen).tolist()) == {0.0, 1.0}  # 0 is a hidden id.
  # 5 standard deviations of a mean of 4000.
  np.testing.assert_allclose(1 - seen.mean(axis=0), [rate, rate], atol=0.036)
  assert abs(np.corrcoef(seen.T)[0, 1]) < 0.08  # Hidden independently.
  assert np.any(seen != np.asarray(run(1)[0][:, :2]))
  np.testing.assert_array_equal(run(0, train=False)[0][:, :2], 1.0)


def _settings(name):
  config = {'mlp': movielens_config, 'vit': vit_config}[name].get_config()
  return config.model


_INPUTS = {'mlp': {}, 'vit': {'image_size': 224}}
_FROM_SIZES = {'mlp': _FROM_DATA, 'vit': {'classes': 3}}


@pytest.mark.parametrize('name', _INPUTS)
def test_every_network_follows_the_protocol(name):
  """Both states of every network have the token axes that `tokens` returns."""
  settings, inputs = _settings(name), _INPUTS[name]
  assert settings.name == name
  models.check('config.model', settings, inputs)
  model = models.build(settings, _FROM_SIZES[name])
  assert isinstance(model, split.Network)
  x = _x() if name == 'mlp' else jnp.zeros((B, 224, 224, 3))
  low, high, output = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), x, train=False)[0]
  )
  axes = models.tokens(settings, inputs)
  assert low.shape[:-1] == high.shape[:-1] == (B, *axes)
  assert output.shape[0] == B
  for array in (low, high, output):
    assert array.dtype == np.float32


def test_tokens_of_a_vit_count_the_class_token():
  settings = _settings('vit')
  settings.update({'patch': 16, 'class_token': 'before'})
  assert models.tokens(settings, {'image_size': 32}) == (5,)
  settings.update({'class_token': 'none'})
  assert models.tokens(settings, {'image_size': 32}) == (4,)
  with pytest.raises(errors.ConfigError, match="'vit', which needs images"):
    models.tokens(settings, {})


def test_only_a_vit_has_published_weights_and_starts_from_a_teacher():
  for name, network in models.NETWORKS.items():
    assert (network.published is not None) == (name == 'vit')
    assert (network.initialise is not None) == (name == 'vit')


def test_settings_of_another_network_are_named():
  settings = _settings('vit')
  settings.name = 'mlp'
  with pytest.raises(errors.ConfigError) as caught:
    models.check('config.model', settings, {})
  message = str(caught.value)
  assert "config.model.name is 'mlp', which has no setting" in message
  assert 'patch' in message


def test_a_patch_must_divide_the_images():
  settings = _settings('vit')
  models.check('config.model', settings, {})  # The image size is not known.
  with pytest.raises(errors.ConfigError) as caught:
    models.check('config.model', settings, {'image_size': 225})
  message = str(caught.value)
  assert message.startswith(f'config.model.patch is {settings.patch}, which')
  assert 'config.data.size, 225;' in message
