"""Learning rates and weights, at steps whose values are worked by hand."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax import errors
from td_jax.configs import allowed
from td_jax.methods import schedules


def _at(schedule, steps):
  return [float(schedule(jnp.int32(step))) for step in steps]


def test_warm_up_then_cosine():
  rate = schedules.learning_rate(2.0, warmup=4, decay='cosine', steps=12)
  # From 4 on: 1 + cos(pi (step - 4) / 8).
  expected = {
    0: 0,
    1: 0.5,
    3: 1.5,
    4: 2,
    6: 1 + np.sqrt(0.5),
    8: 1,
    10: 1 - np.sqrt(0.5),
    12: 0,
    20: 0,
  }
  np.testing.assert_allclose(
    _at(rate, expected), list(expected.values()), atol=1e-6
  )


def test_cosine_without_warm_up_starts_at_the_peak():
  rate = schedules.learning_rate(0.3, warmup=0, decay='cosine', steps=8)
  np.testing.assert_allclose(_at(rate, [0, 4, 8]), [0.3, 0.15, 0], atol=1e-7)


def test_warm_up_then_constant():
  rate = schedules.learning_rate(0.3, warmup=3, decay='constant', steps=8)
  np.testing.assert_allclose(
    _at(rate, [0, 1, 2, 3, 7, 99]), [0, 0.1, 0.2, 0.3, 0.3, 0.3], atol=1e-7
  )


def test_warm_up_as_long_as_the_run():
  rate = schedules.learning_rate(1.0, warmup=4, decay='cosine', steps=4)
  np.testing.assert_allclose(_at(rate, [0, 2, 3]), [0, 0.5, 0.75], atol=1e-7)


def test_a_number_stays_a_number():
  for number in (0, 2, 0.25):
    weight = schedules.build(number)
    assert isinstance(weight, float)
    assert weight == number
  assert schedules.build(0.0, start=5) == 0.0


def test_straight_lines_connect_knots():
  weight = schedules.build(((10, 1.0), (20, 3.0), (24, 0.0)))
  np.testing.assert_allclose(
    _at(weight, [0, 10, 15, 20, 21, 24, 500]),
    [1, 1, 2, 3, 2.25, 0, 0],
    atol=1e-6,
  )


def test_one_knot_is_a_constant():
  assert _at(schedules.build([(5, 0.5)]), [0, 5, 9]) == [0.5, 0.5, 0.5]


def test_a_weight_is_0_before_its_start():
  constant = schedules.build(0.5, start=3)
  assert _at(constant, [0, 2, 3, 4]) == [0, 0, 0.5, 0.5]
  # Knots count steps of the run, not from the start.
  knots = schedules.build(((0, 4.0), (4, 0.0)), start=2)
  np.testing.assert_allclose(_at(knots, [0, 1, 2, 3, 4]), [0, 0, 2, 1, 0])


def test_a_weight_can_be_compiled():
  weight = jax.jit(schedules.build(((0, 1.0), (4, 0.0)), start=1))
  assert _at(weight, [0, 1, 2]) == [0, 0.75, 0.5]


@pytest.mark.parametrize(
  'spec', [0, 0.0, 1.5, ((0, 1.0),), [[0, 1], [500, 0.0]], ((3, 0), (4, 9))]
)
def test_valid_weights_are_accepted(spec):
  assert schedules.is_weight(spec)


@pytest.mark.parametrize(
  'spec',
  [
    -1,
    float('nan'),
    float('inf'),
    'much',
    None,
    (),
    ((0, 1.0), (0, 2.0)),
    ((5, 1.0), (2, 0.0)),
    ((0, -1.0),),
    ((0, float('nan')),),
    (0, 1.0),
    ((0, 1.0, 2.0),),
    True,
    ((0, 1e39),),
  ],
)
def test_invalid_weights_are_refused_by_name(spec):
  field = 'config.distill.weights.state'
  with pytest.raises(errors.ConfigError) as caught:
    allowed.check(field, spec, schedules.WEIGHT)
  message = str(caught.value)
  assert message.startswith(f'{field} is {spec!r};')
  assert '((0, 1.0), (500, 0.0))' in message
  assert '\n' not in message
