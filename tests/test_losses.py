"""Distances and task losses: numbers worked by hand, and properties."""

import functools

import hypothesis
from hypothesis import strategies
from hypothesis.extra import numpy as hypothesis_numpy
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax import types
from td_jax.methods import losses

_near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
_settings = hypothesis.settings(
  max_examples=40, deadline=None, database=None, derandomize=True
)
_pairs = hypothesis_numpy.arrays(
  np.float32,
  (2, 3, 4),  # a and b, [3, 4] each.
  elements=strategies.floats(-10, 10, width=32),
)
_jitted = {name: jax.jit(fn) for name, fn in losses.DISTANCES.items()}


def _f32(values):
  return jnp.asarray(values, jnp.float32)


def test_l2_by_hand():
  a, b = _f32([[1, 2], [0, 0]]), _f32([[0, 0], [3, 4]])
  _near(losses.l2(a, b), [(1 + 4) / 2, (9 + 16) / 2])


def test_l2_of_sequences_is_the_mean_over_tokens_and_width():
  a = _f32([[[1, 2], [3, 4]], [[0, 0], [0, 2]]])
  _near(losses.l2(a, 0 * a), [(1 + 4 + 9 + 16) / 4, 4 / 4])


def test_cosine_by_hand():
  a = _f32([[3, 4], [3, 4], [1, 0], [2, 2]])
  b = _f32([[4, 3], [-6, -8], [0, 5], [1, 1]])
  _near(losses.cosine(a, b), [1 - 24 / 25, 2, 1, 0])


def test_cosine_of_sequences_is_the_mean_over_tokens():
  a, b = _f32([[[3, 4], [1, 0]]]), _f32([[[4, 3], [0, 5]]])
  _near(losses.cosine(a, b), [(0.04 + 1) / 2])


def test_pearson_by_hand():
  a = _f32([[1, 2, 3], [1, 2, 3], [1, 2, 3]])
  b = _f32([[2, 2, 5], [13, 15, 17], [3, 2, 1]])
  # (-1, 0, 1) . (-1, -1, 2) / sqrt(2 x 6) = 3 / sqrt(12)
  _near(losses.pearson(a, b), [1 - 3 / np.sqrt(12), 0, 2])


@pytest.mark.parametrize(
  ('temperature', 'expected'),
  [
    # p_b = (3/4, 1/4), p_a = (1/2, 1/2):
    # 3/4 ln(3/2) + 1/4 ln(1/2) = 0.304099 - 0.173287
    (1.0, 0.130812),
    # p_b = (sqrt 3, 1) / (sqrt 3 + 1) = (0.633975, 0.366025):
    # 4 [0.633975 ln 1.267949 + 0.366025 ln 0.732051]
    (2.0, 4 * (0.633975 * 0.237401 - 0.366025 * 0.311905)),
    # p_b = (9, 1) / 10: 1/4 [0.9 ln 1.8 + 0.1 ln 0.2]
    (0.5, 0.25 * (0.9 * 0.587787 - 0.1 * 1.609438)),
  ],
)
def test_kl_by_hand(temperature, expected):
  a, b = _f32([[0, 0]]), _f32([[np.log(3), 0]])
  cost = losses.kl(a, b, temperature=temperature)
  np.testing.assert_allclose(cost, [expected], rtol=1e-4)


def test_the_second_argument_of_kl_is_the_target():
  a, b = _f32([[0, 0]]), _f32([[np.log(3), 0]])
  # 1/2 ln(2/3) + 1/2 ln 2
  np.testing.assert_allclose(losses.kl(b, a), [0.143841], rtol=1e-4)
  # Where p_b is 0, p_a may be large at no cost; the reverse is expensive.
  sure = _f32([[50, 0]])
  np.testing.assert_allclose(losses.kl(a, sure), [np.log(2)], rtol=1e-5)
  assert losses.kl(sure, a)[0] > 20


def test_gradient_of_kl_keeps_its_size_with_the_temperature():
  def grad(temperature):
    return jax.grad(lambda a: losses.kl(a, b, temperature=temperature).sum())(a)

  a, b = _f32([[0, 0]]), _f32([[2 * np.log(3), 0]])
  # T (p_a - p_b), with p_b = (3/4, 1/4) at T = 2.
  _near(grad(2.0), [[-0.5, 0.5]])
  # As T grows, the gradient tends to (a - b), centred, divided by the width.
  np.testing.assert_allclose(
    grad(1000.0), [[-np.log(3) / 2, np.log(3) / 2]], rtol=1e-3
  )


def test_squared_error_by_hand():
  _near(losses.squared_error(_f32([3.5, 1]), _f32([5, 1])), [2.25, 0])


def test_cross_entropy_by_hand():
  logits = _f32([[0, np.log(3)], [0, np.log(3)], [1000, 0]])
  cost = losses.cross_entropy(logits, jnp.array([1, 0, 0]))
  _near(cost, [-np.log(0.75), -np.log(0.25), 0])


def test_cross_entropy_is_taken_in_float32():
  logits = jnp.asarray([[0, 3]], jnp.bfloat16)
  cost = losses.cross_entropy(logits, jnp.array([0]))
  assert cost.dtype == jnp.float32
  _near(cost, [np.log(1 + np.exp(3))])


def test_tables_have_all_functions():
  assert {
    'l2': losses.l2,
    'cosine': losses.cosine,
    'pearson': losses.pearson,
    'kl': losses.kl,
  } == losses.DISTANCES
  assert {
    'squared_error': losses.squared_error,
    'cross_entropy': losses.cross_entropy,
  } == losses.TASK_LOSSES


def test_between_states_takes_a_mean_for_each_state():
  a = types.States(low=_f32([[1, 1], [0, 0]]), high=_f32([[2] * 4, [0] * 4]))
  b = types.States(low=_f32([[0, 0], [0, 3]]), high=_f32([[0] * 4, [0] * 4]))
  # Concatenated they would cost (2 x 1 + 4 x 4) / 6 = 3 and 1.5.
  _near(losses.between_states(losses.l2, a, b), [1 + 4, 4.5])


def test_between_states_keeps_the_order_of_its_sides():
  a = types.States(low=_f32([[0, 0]]), high=_f32([[0, 0]]))
  b = types.States(low=_f32([[np.log(3), 0]]), high=_f32([[0, 0]]))
  cost = losses.between_states(losses.kl, a, b)
  np.testing.assert_allclose(cost, [0.130812], rtol=1e-4)


@pytest.mark.parametrize('name', losses.DISTANCES)
@pytest.mark.parametrize('zero', ['a', 'b', 'both', 'constant'])
def test_gradients_are_finite_for_zero_and_constant_vectors(name, zero):
  a, b = _f32([[1, -2, 3]]), _f32([[3, 1, 1]])
  a = 0 * a if zero in ('a', 'both') else a
  b = 0 * b if zero in ('b', 'both') else b
  if zero == 'constant':
    a = b = jnp.full_like(a, 7.0)
  cost, grads = jax.value_and_grad(
    lambda a, b: losses.DISTANCES[name](a, b).sum(), argnums=(0, 1)
  )(a, b)
  assert np.isfinite(cost)
  assert all(np.isfinite(grad).all() for grad in grads)
  if name == 'cosine' and zero != 'constant':
    _near(cost, 1.0)  # As for orthogonal vectors.
  if name == 'pearson' and zero != 'constant':
    _near(cost, 1.0)


@pytest.mark.parametrize('name', losses.DISTANCES)
@hypothesis.given(pair=_pairs)
@_settings
def test_distances_are_not_negative_and_treat_examples_separately(name, pair):
  distance = _jitted[name]
  whole = distance(*pair)
  assert whole.shape == (3,)
  assert np.all(whole >= -1e-5)
  # The cost of an example does not depend on the others.
  other = pair.copy()
  other[:, 1:] = 3.0
  np.testing.assert_array_equal(distance(*other)[0], whole[0])


@pytest.mark.parametrize('name', ['l2', 'cosine', 'pearson'])
@hypothesis.given(pair=_pairs)
@_settings
def test_distances_are_symmetric(name, pair):
  distance = _jitted[name]
  _near(distance(*pair), distance(pair[1], pair[0]), atol=1e-5)


@pytest.mark.parametrize('name', losses.DISTANCES)
@hypothesis.given(pair=_pairs)
@_settings
def test_distance_to_itself_is_0(name, pair):
  spread = pair[0] + np.float32([30, 0, -30, 10])  # Never constant.
  _near(_jitted[name](spread, spread), np.zeros(3), atol=1e-5)


@hypothesis.given(pair=_pairs, scale=strategies.floats(0.125, 8, width=32))
@_settings
def test_cosine_ignores_length_and_pearson_and_kl_a_shift(pair, scale):
  a = pair[0] + np.float32([30, 0, -30, 10])
  b = pair[1] + np.float32([0, 20, 40, -20])
  scale = np.float32(scale)
  _near(_jitted['cosine'](scale * a, b), _jitted['cosine'](a, b), atol=1e-5)
  _near(
    _jitted['pearson'](scale * a + scale, b),
    _jitted['pearson'](a, b),
    atol=1e-5,
  )
  _near(_jitted['kl'](a + scale, b), _jitted['kl'](a, b), rtol=1e-4, atol=1e-4)
