"""The split contract and the MLP, against NumPy."""

import functools

import jax
from jax import numpy as jnp
import ml_collections
import numpy as np
import pytest

from td_jax import errors
from td_jax import models
from td_jax.models import mlp
from td_jax.models import split

B = 5
HIDDEN = (6, 5, 4)  # With the head: 4 layers.
SPLITS = [(1, 2), (1, 3), (2, 3)]  # All there are.
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
  """Weights of a 4-layer MLP, every bias other than 0."""
  made = _model().init(jax.random.key(0), _x(), train=False)
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32),
    made,
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
def test_the_parts_make_the_whole_at_every_split(cut):
  model, variables, x = _model(split=cut), _variables(), _x()
  part = functools.partial(model.apply, variables, train=False)
  low, high, output = part(x)
  assert low.shape == (B, HIDDEN[cut[0] - 1])
  assert high.shape == (B, HIDDEN[cut[1] - 1])
  assert output.shape == (B,)
  np.testing.assert_array_equal(part(x, method='low'), low)
  np.testing.assert_array_equal(part(low, method='interpret'), high)
  np.testing.assert_array_equal(part(high, method='output'), output)
  # And it is the same network wherever it is cut.
  layers = _layers_in_numpy()
  near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  near(low, layers[cut[0]])
  near(high, layers[cut[1]])
  near(output, layers[-1])


@pytest.mark.parametrize('cut', SPLITS)
def test_a_side_holds_one_run_of_the_network(cut):
  model, variables, x = _model(split=cut), _variables(), _x()
  low, high, output = model.apply(variables, x, train=False)
  side = split.side(model, variables, x)
  np.testing.assert_array_equal(side.states.low, low)
  np.testing.assert_array_equal(side.states.high, high)
  np.testing.assert_array_equal(side.output, output)
  np.testing.assert_array_equal(side.interpret(low, None), high)


@pytest.mark.parametrize('cut', SPLITS)
def test_interpreting_reads_the_middle_layers_only(cut):
  model, variables = _model(split=cut), _variables()
  low = jnp.ones((B, HIDDEN[cut[0] - 1]))
  high = split.interpreter(model, variables, train=False)(low, None)
  middle = [f'layers_{i}' for i in range(*cut)]
  noisy = {
    name: tree if name in middle else jax.tree.map(lambda v: v + 1e3, tree)
    for name, tree in variables['params'].items()
  }
  again = split.interpreter(model, {'params': noisy}, train=False)(low, None)
  np.testing.assert_array_equal(again, high)


@pytest.mark.parametrize('cut', SPLITS)
def test_valid_splits_pass(cut):
  split.check('config.model.split', cut, 4)


@pytest.mark.parametrize(
  'cut', [(0, 1), (1, 1), (2, 2), (3, 2), (1, 4), (3, 4), (2, 5), (-1, 2)]
)
def test_other_splits_are_refused_with_the_valid_range(cut):
  with pytest.raises(errors.ConfigError) as caught:
    split.check('config.teacher.model.split', cut, 4)
  message = str(caught.value)
  assert message.startswith(f'config.teacher.model.split is {cut};')
  assert '4 layers' in message
  assert '1 <= l < h <= 3' in message


def test_the_output_starts_at_the_mean_rating():
  made = _model().init(jax.random.key(0), _x(), train=False)
  assert made['params']['head']['bias'] == 3.5


def test_id_0_is_the_unknown_row():
  variables, x = _variables(), _x()

  def grad(column):
    # The first layer's sum before its ReLU, so that no unit is dead.
    tables = jax.grad(
      lambda v: _model().apply(v, x, True, method='_embed').sum()
    )(variables)['params']
    rows = np.abs(tables[column]['embedding']).sum(axis=1)
    return set(np.flatnonzero(rows).tolist())

  assert grad('user') == {0, 1, 3, 8}
  assert grad('movie') == {0, 1, 2, 7}
  # Padding's row is never read.
  assert grad('title') == set(np.unique(x['title']).tolist()) - {0}


def test_a_title_without_words_is_the_zero_vector():
  table = _variables()['params']['title']['embedding']
  title = jnp.asarray([[0, 0, 0], [0, 4, 0], [4, 4, 5]])
  found = mlp._mean_of_words(table, title)
  expected = [0 * table[0], table[4], (2 * table[4] + table[5]) / 3]
  np.testing.assert_allclose(found, np.array(expected), rtol=1e-6)


def test_a_title_teaches_each_of_its_words_by_its_share():
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


def test_dropout_is_for_training_only():
  model = _model(dropout=0.5)
  plain = _model().apply(_variables(), _x(), train=False)
  for name, quiet in zip(('low', 'high', 'output'), plain, strict=True):
    i = ('low', 'high', 'output').index(name)
    np.testing.assert_array_equal(_run(model, 0, train=False)[i], quiet)
    one, two, again = (_run(model, seed)[i] for seed in (0, 1, 0))
    np.testing.assert_array_equal(one, again)
    if name == 'low':  # The input of the first layer is not dropped.
      np.testing.assert_array_equal(one, quiet)
    else:
      assert np.any(one != quiet)
      assert np.any(one != two)


def test_a_side_drops_out_only_with_a_key():
  model, variables, x = _model(dropout=0.5), _variables(), _x()
  low = jnp.ones((B, HIDDEN[0]))
  quiet, loud = (
    split.side(model, variables, x, key=key)
    for key in (None, jax.random.key(0))
  )
  plain = _model().apply(variables, x, train=False)
  np.testing.assert_array_equal(quiet.output, plain[-1])
  assert np.any(loud.output != plain[-1])
  # A side of evaluation interprets quietly, whatever key it is given.
  one, two, three, four = (
    side.interpret(low, key)
    for side in (quiet, loud)
    for key in (None, jax.random.key(1))
  )
  np.testing.assert_array_equal(one, two)
  np.testing.assert_array_equal(one, three)
  assert np.any(four != one)


def test_dropout_keeps_the_mean_of_what_a_layer_hears():
  """Half the units silent, the rest doubled: inverted dropout."""
  model = _model(dropout=0.5)
  eye = {'params': dict(_variables()['params'])}
  eye['params']['layers_1'] = {
    'kernel': jnp.eye(6)[:, :5],
    'bias': jnp.zeros(5),
  }
  low = jnp.ones((2000, 6))
  heard = model.apply(
    eye,
    low,
    train=True,
    rngs={'dropout': jax.random.key(3)},
    method='interpret',
  )
  assert set(np.unique(heard).tolist()) == {0.0, 2.0}
  assert abs(float(heard.mean()) - 1) < 0.05  # 5 standard deviations.


def test_unknown_rate_hides_users_and_movies_apart_and_in_training_only():
  rate, rows = 0.3, 4000
  model = _model(unknown_rate=rate)
  # Tables and a first layer through which one can read the ids.
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
  assert set(np.unique(seen).tolist()) == {0.0, 1.0}  # Hidden is row 0.
  # 5 standard deviations of a mean of 4000.
  np.testing.assert_allclose(1 - seen.mean(axis=0), [rate, rate], atol=0.036)
  assert abs(np.corrcoef(seen.T)[0, 1]) < 0.08  # Each id for itself.
  assert np.any(seen != np.asarray(run(1)[0][:, :2]))
  np.testing.assert_array_equal(run(0, train=False)[0][:, :2], 1.0)
