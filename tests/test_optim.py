"""The optimizer: its first steps by hand, who is decayed, who rests."""

import itertools

import jax
from jax import numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from td_jax import errors
from td_jax import models
from td_jax.configs import common
from td_jax.models import vit
from td_jax.training import optim

_PARAMS = {
  'student': {'kernel': [[2.0, -4.0]], 'bias': [2.0]},
  'method': {'kernel': [[1.0]]},
}
_GRADS = {
  'student': {'kernel': [[0.5, -0.25]], 'bias': [0.5]},
  'method': {'kernel': [[0.0]]},
}


def _tree(lists):
  return jax.tree.map(
    lambda leaf: jnp.asarray(leaf, jnp.float32),
    lists,
    is_leaf=lambda leaf: isinstance(leaf, list),
  )


def _config(**changes):
  config = ml_collections.ConfigDict(
    {
      'name': 'adamw',
      'learning_rate': 0.1,
      'method_learning_rate': 0.0,
      'warmup': 0,
      'decay': 'constant',
      'weight_decay': 0.0,
      'momentum': 0.9,
      'clip': 0.0,
      'skip_loss_above': 0.0,
    }
  )
  config.update(changes)
  return config


def _updates(config, grads, *, steps=10, stages=(0, 0), params=None):
  """The params after each update by one of `grads`."""
  params = _tree(_PARAMS if params is None else params)
  rule = optim.build(config, steps=steps, stages=stages)
  state = rule.init(params)
  update = jax.jit(rule.update)
  seen = [params]
  for grad in grads:
    moved, state = update(_tree(grad), state, params)
    params = optax.apply_updates(params, moved)
    seen.append(params)
  return jax.device_get(seen)


def _near(tree, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    tree,
    jax.device_get(_tree(expected)),
  )


def test_adamw_steps_by_hand():
  config = _config(weight_decay=0.5)
  first, second = _updates(config, [_GRADS, _GRADS])[1:]
  # m/(1 - b1) = g and v/(1 - b2) = g^2, so the step is the sign of g, and
  # matrices shrink by lr x decay = 0.05 besides; biases do not.
  _near(
    first,
    {
      'student': {
        'kernel': [[2 - 0.1 - 0.1, -4 + 0.1 + 0.2]],
        'bias': [1.9],
      },
      'method': {'kernel': [[0.95]]},  # No gradient: it is decayed alone.
    },
  )
  # The same gradient again: the same signs.
  _near(
    second,
    {
      'student': {
        'kernel': [[1.8 - 0.1 - 0.09, -3.7 + 0.1 + 0.185]],
        'bias': [1.8],
      },
      'method': {'kernel': [[0.9025]]},
    },
  )


def test_adamw_moments_by_hand():
  params = {'student': {'kernel': [[0.0]]}, 'method': {}}
  grads = [{'student': {'kernel': [[g]]}, 'method': {}} for g in (1.0, -0.5)]
  second = _updates(_config(), grads, params=params)[2]
  m = (0.9 * 0.1 * 1.0 + 0.1 * -0.5) / (1 - 0.9**2)
  v = (0.999 * 0.001 * 1.0 + 0.001 * 0.25) / (1 - 0.999**2)
  np.testing.assert_allclose(
    second['student']['kernel'],
    [[-0.1 - 0.1 * m / (np.sqrt(v) + 1e-8)]],
    rtol=1e-5,
  )


def test_sgd_steps_by_hand():
  config = _config(name='sgd', weight_decay=0.5)
  first, second = _updates(config, [_GRADS, _GRADS])[1:]
  # The decay is part of the gradient: 0.5 + 0.5 x 2 and -0.25 - 0.5 x 4.
  _near(first['student'], {'kernel': [[1.85, -3.775]], 'bias': [1.95]})
  # Velocities: 0.9 x 1.5 + 0.5 + 0.925; 0.9 x -2.25 - 0.25 - 1.8875.
  _near(
    second['student'],
    {
      'kernel': [[1.85 - 0.2775, -3.775 + 0.41625]],
      'bias': [1.95 - 0.1 * (0.9 * 0.5 + 0.5)],
    },
  )


def test_momentum_is_the_configs():
  config = _config(name='sgd', momentum=0.0)
  second = _updates(config, [_GRADS, _GRADS])[2]
  _near(second['student']['bias'], [2 - 2 * 0.05])


def test_the_rate_follows_the_schedule():
  config = _config(name='sgd', momentum=0.0, warmup=2, decay='cosine')
  seen = _updates(config, [_GRADS] * 7, steps=6)
  bias = np.array([float(params['student']['bias'][0]) for params in seen])
  rates = -np.diff(bias) / 0.5
  rise, fall = [0, 0.05], [0.05 * (1 + np.cos(np.pi * i / 4)) for i in range(5)]
  np.testing.assert_allclose(rates, rise + fall, atol=1e-6)


@pytest.mark.parametrize(
  ('clip', 'factor'), [(0.0, 1.0), (10.0, 1.0), (5.0, 0.5), (1.0, 0.1)]
)
def test_clip_is_by_the_norm_of_student_and_method(clip, factor):
  params = {'student': {'a': [0.0]}, 'method': {'b': [[0.0]]}}
  grads = {'student': {'a': [6.0]}, 'method': {'b': [[8.0]]}}  # Norm 10.
  config = _config(name='sgd', learning_rate=1.0, clip=clip)
  _near(
    _updates(config, [grads], params=params)[1],
    {'student': {'a': [-6 * factor]}, 'method': {'b': [[-8 * factor]]}},
  )


def test_clip_comes_before_the_decay():
  params = {'student': {'a': [[10.0]]}, 'method': {}}
  grads = {'student': {'a': [[4.0]]}, 'method': {}}
  config = _config(name='sgd', learning_rate=1.0, clip=1.0, weight_decay=0.1)
  _near(
    _updates(config, [grads], params=params)[1],
    {'student': {'a': [[10.0 - 1 - 1]]}, 'method': {}},
  )


def test_adamw_is_that_of_optax():
  rng = np.random.default_rng(0)
  params = {'student': {'a': rng.normal(size=(3, 4))}, 'method': {}}
  params = jax.tree.map(jnp.float32, params)
  rule = optim.build(
    _config(learning_rate=0.03, weight_decay=0.1), steps=50, stages=(0, 0)
  )
  theirs = optax.adamw(0.03, weight_decay=0.1)
  state, known = rule.init(params), theirs.init(params)
  expected = params
  for step in range(30):
    # Gradients of many sizes, and now and then none.
    size = 10.0 ** rng.integers(-6, 3, (3, 4)) * (step % 7 != 0)
    grads = {'student': {'a': jnp.float32(size * rng.normal(size=(3, 4)))}}
    grads['method'] = {}
    moved, state = rule.update(grads, state, params)
    params = optax.apply_updates(params, moved)
    moved, known = theirs.update(grads, known, expected)
    expected = optax.apply_updates(expected, moved)
    np.testing.assert_allclose(
      params['student']['a'], expected['student']['a'], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize('name', ['adamw', 'sgd'])
@pytest.mark.parametrize(
  ('stages', 'student', 'method'),
  [
    ((0, 0), '11111', '11111'),
    ((2, 0), '11111', '00111'),
    ((0, 2), '00111', '11111'),
    ((1, 2), '10011', '01111'),
  ],
)
def test_groups_rest_in_their_stages(name, stages, student, method):
  params = {'student': {'a': [[1.0]]}, 'method': {'a': [[1.0]]}}
  grads = {'student': {'a': [[1.0]]}, 'method': {'a': [[1.0]]}}
  # Whoever rests is not decayed either.
  config = _config(name=name, weight_decay=0.1)
  seen = _updates(config, [grads] * 5, stages=stages, params=params)
  for group, moves in (('student', student), ('method', method)):
    values = [float(params[group]['a'][0, 0]) for params in seen]
    moved = ''.join(str(int(a != b)) for a, b in itertools.pairwise(values))
    assert moved == moves, group
  if stages == (1, 2):
    # The student's moments are those of its own two updates.
    plain = _updates(config, [grads] * 2, params=params)
    _near(seen[4]['student'], plain[2]['student'])


@pytest.mark.parametrize('name', ['adamw', 'sgd'])
@pytest.mark.parametrize('stages', [(0, 0), (1, 2)])
def test_a_method_may_have_a_rate_of_its_own(name, stages):
  """It moves as with this rate for all, and the student as without."""
  grads = [
    {
      'student': {'kernel': [[0.5, -0.25]], 'bias': [0.5 / (i + 1)]},
      'method': {'kernel': [[0.1 - 0.3 * i]]},
    }
    for i in range(5)
  ]

  def run(**rates):
    config = _config(
      name=name, decay='cosine', warmup=2, weight_decay=0.1, **rates
    )
    return _updates(config, grads, stages=stages)[-1]

  both = run(learning_rate=0.1, method_learning_rate=0.3)
  slow, fast = run(learning_rate=0.1), run(learning_rate=0.3)
  for group, other in (('student', slow), ('method', fast)):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5),
      both[group],
      other[group],
    )
  assert not np.allclose(both['method']['kernel'], slow['method']['kernel'])


def test_an_unknown_optimizer_is_refused_with_the_nearest_name():
  with pytest.raises(errors.ConfigError, match=r"Did you mean 'adamw'\?"):
    optim.build(_config(name='adam_w'), steps=1, stages=(0, 0))


def test_a_spike_changes_nothing_and_is_counted():
  rule = optim.build(_config(skip_loss_above=3.0), steps=10, stages=(0, 0))
  params = _tree(_PARAMS)
  state, moved = rule.init(params), []
  before = state
  for loss in (1.0, 1.0, 3.1, 3.1, 2.0):
    before = state
    updates, state = jax.jit(rule.update)(
      _tree(_GRADS), state, params, value=jnp.float32(loss)
    )
    moved.append(bool(updates['student']['bias'][0]))
    if not moved[-1]:
      jax.tree.map(np.testing.assert_array_equal, state.inner, before.inner)
  # By hand: the first spike, taken as 3, makes the mean 1.02, so the limit 3.06.
  assert moved == [True, True, False, False, True]
  assert int(state.skipped) == 2
  means = [1.0, 1.0, 1.02, 1.02 + 0.01 * 2.04]
  means.append(means[-1] + 0.01 * (2 - means[-1]))
  assert float(state.mean) == pytest.approx(means[-1])


def test_losses_that_stay_high_are_trained_on_in_time():
  rule = optim.build(_config(skip_loss_above=2.0), steps=10, stages=(0, 0))
  params = _tree(_PARAMS)
  state, update = rule.init(params), jax.jit(rule.update)
  for loss in [1.0] + [3.0] * 60:
    _, state = update(_tree(_GRADS), state, params, value=jnp.float32(loss))
  # The mean grows by 1% a step, and passes 3 / 2 after 41: 1.01^41 = 1.504.
  assert int(state.skipped) == 41


@pytest.mark.parametrize('name', ['adamw', 'sgd'])
def test_stacked_blocks_are_decayed_like_single_ones(name):
  settings = common.vit(
    depth=2,
    split=(1, 2),
    **{'width': 8, 'heads': 2, 'mlp_width': 12, 'patch': 4},
    **{'layer_scale': 0.1, 'registers': 2, 'pre_norm': True},
  )
  network = models.build(settings, {'classes': 3})
  variables = network.init(
    jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False
  )
  # Nothing starts at 0, so that a decay shows.
  variables = jax.tree.map(lambda leaf: leaf + 1, variables)

  def decayed(variables):
    params = {'student': variables, 'method': {}}
    rule = optim.build(
      _config(name=name, weight_decay=0.5), steps=10, stages=(0, 0)
    )
    grads = jax.tree.map(jnp.zeros_like, params)
    updates, _ = rule.update(grads, rule.init(params), params)
    return updates['student']

  single = decayed(variables)
  jax.tree.map(
    np.testing.assert_array_equal,
    vit.stack(single),
    decayed(vit.stack(variables)),
  )
  moved = [bool(leaf.any()) for leaf in jax.tree.leaves(single['params'])]
  assert any(moved) and not all(moved)
