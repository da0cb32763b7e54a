"""DKD against the authors' code, and by hand.

`../shared/golden/methods` holds the answers of mdistiller's `dkd_loss`. Its
README names the commit and the tolerances.
"""

import os
import pathlib

import conftest
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax.methods import dkd

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

SHARED = pathlib.Path(
  os.environ.get('TD_JAX_SHARED', pathlib.Path(__file__).parents[2] / 'shared')
)
FILE = SHARED / 'golden' / 'methods' / 'dkd.npz'
needs_golden = pytest.mark.skipif(
  not FILE.is_file(), reason=f'{FILE} is absent; set TD_JAX_SHARED'
)
CASES = [
  f'{classes}_{variant}'
  for classes in ('c10', 'c100')
  for variant in ('default', 'other', 'tckd', 'nckd')
]


def _cost(student, teacher, labels, **settings):
  """The cost [b] of DKD on these logits."""
  lesson = conftest.lesson(student, teacher, labels)
  cost, terms = dkd.dkd(**settings).loss({}, lesson)
  assert terms.keys() == {'target', 'others'}
  return cost


@needs_golden
def test_all_golden_cases_are_tested():
  with np.load(FILE) as golden:
    assert {name.split('/')[0] for name in golden.files} == {'in', *CASES}


@needs_golden
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('case', CASES)
def test_loss_and_gradient_are_those_of_the_authors(case, dtype):
  classes, _ = case.split('_')
  with np.load(FILE) as golden, jax.enable_x64(dtype == 'float64'):
    student, teacher = (
      jnp.asarray(golden[f'in/{classes}/{name}'], dtype)
      for name in ('student', 'teacher')
    )
    settings = {
      name: float(golden[f'{case}/hp/{name}'])
      for name in ('alpha', 'beta', 'temperature')
    }
    labels = jnp.asarray(golden[f'in/{classes}/labels'])
    loss, gradient = jax.value_and_grad(
      lambda student: _cost(student, teacher, labels, **settings).mean()
    )(student)
    assert loss.dtype == gradient.dtype == dtype
    limit = 1e-5 if dtype == 'float32' else 1e-9
    np.testing.assert_allclose(loss, golden[f'{case}/loss64'], rtol=limit)
    expected = golden[f'{case}/grad64/{classes}/student']
    error = np.abs(np.asarray(gradient, np.float64) - expected).max()
    assert error <= limit * np.abs(expected).max()


@pytest.mark.parametrize('t', [1.0, 2.0])
def test_by_hand(t):
  """Three classes with probabilities that are easy to divide."""
  student = t * jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  teacher = t * jnp.log(jnp.array([[0.2, 0.6, 0.2]]))
  cost = _cost(
    student, teacher, jnp.array([0]), alpha=2.0, beta=3.0, temperature=t
  )
  # Target and rest: (0.2, 0.8) against (0.5, 0.5). The others, renormalised:
  # (0.75, 0.25) against (0.5, 0.5).
  target = 0.2 * np.log(0.2 / 0.5) + 0.8 * np.log(0.8 / 0.5)
  others = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
  np.testing.assert_allclose(
    cost, [t**2 * (2 * target + 3 * others)], rtol=1e-5
  )


def test_it_is_kl_where_the_weights_are_the_teachers():
  """KL = TCKD + (1 - p_target of the teacher) NCKD (equation 5)."""
  rng = np.random.default_rng(0)
  student, teacher = jnp.asarray(rng.normal(size=(2, 6, 5)), jnp.float32)
  labels = jnp.arange(6) % 5
  target, others = dkd.divergences(student, teacher, labels)
  p, q = jax.nn.softmax(teacher), jax.nn.softmax(student)
  rest = 1 - p[jnp.arange(6), labels]
  np.testing.assert_allclose(
    target + rest * others, jnp.sum(p * jnp.log(p / q), axis=-1), rtol=1e-4
  )


@pytest.mark.parametrize('gap', [200.0, 1e4])
def test_finite_where_probabilities_underflow(gap):
  """The authors' code takes the log of 0 here."""
  for student, teacher in (
    ([[gap, 0.0, 0.0]], [[0.0, 1.0, 2.0]]),
    ([[0.0, 0.0, gap]], [[0.0, 1.0, 2.0]]),
    ([[0.0, 1.0, 2.0]], [[gap, 0.0, 0.0]]),
  ):
    value, gradient = jax.value_and_grad(
      lambda s, t=teacher: _cost(
        s, jnp.array(t), jnp.array([0]), alpha=1.0, beta=8.0, temperature=1.0
      ).sum()
    )(jnp.array(student))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert value > 0


@pytest.mark.parametrize(
  ('student', 'teacher', 'target', 'others'),
  [
    # The student excludes the target: log q = -300 - ln 2, while p = 1/3.
    ((-300, 0, 0), (0, 0, 0), 100 + np.log(2 / 3), 0),
    # The student excludes all others: log q = ln 2 - 300, while p = 2/3.
    ((300, 0, 0), (0, 0, 0), 200 - np.log(3), 0),
    # The student excludes the third class, one of two that the teacher accepts.
    (
      (0, 300, 0),
      (0, 0, 0),
      # (1/3, 2/3) against (e^-300, 1)
      100 + np.log(1 / 3) / 3 + np.log(2 / 3) * 2 / 3,
      # (1/2, 1/2) against (1, e^-300)
      150 - np.log(2),
    ),
    # The teacher is sure of the target, or sure that it is wrong.
    ((0, 0, 0), (300, 0, 0), np.log(3), 0),
    ((0, 0, 0), (-300, 0, 0), np.log(3 / 2), 0),
  ],
)
def test_underflowing_probabilities_by_hand(student, teacher, target, others):
  """exp(-300) is 0 in float32."""
  student, teacher = jnp.float32([student]), jnp.float32([teacher])
  labels = jnp.array([0])
  terms = dkd.divergences(student, teacher, labels)
  for term, expected in zip(terms, (target, others), strict=True):
    np.testing.assert_allclose(term, [expected], rtol=1e-6, atol=1e-6)
  gradient = jax.grad(
    lambda s: _cost(
      s, teacher, labels, alpha=1.0, beta=8.0, temperature=1.0
    ).sum()
  )(student)
  assert np.isfinite(gradient).all()
  # d TCKD / d target = q - p, and NCKD does not depend on the target.
  q, p = jax.nn.softmax(student), jax.nn.softmax(teacher)
  np.testing.assert_allclose(gradient[0, 0], (q - p)[0, 0], atol=1e-6)
