"""DKD against the authors' code, and by hand.

`../shared/golden/methods` holds what mdistiller's `dkd_loss` answered; its README
names the commit and the tolerances.
"""

import pathlib

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax import methods
from td_jax import types
from td_jax.methods import dkd
from td_jax.models import split

FILE = (
  pathlib.Path(__file__).resolve().parents[2] / 'shared/golden/methods/dkd.npz'
)
CASES = [
  f'{classes}_{variant}'
  for classes in ('c10', 'c100')
  for variant in ('default', 'other', 'tckd', 'nckd')
]


def _cost(student, teacher, labels, **settings):
  """The cost [b] of DKD on these logits."""

  def side(output):
    return split.Side(types.States(None, None), output, lambda low, key: low)

  lesson = methods.Lesson(
    student=side(student),
    teachers={'teacher': side(teacher)},
    batch=types.Batch(x=None, y=labels, mask=jnp.ones(len(labels))),
    step=jnp.int32(0),
    rng=jax.random.key(0),
  )
  cost, terms = dkd.dkd(**settings).loss({}, lesson)
  assert terms.keys() == {'target', 'others'}
  return cost


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('case', CASES)
def test_as_the_authors(case, dtype):
  if not FILE.exists():
    pytest.skip(f'needs {FILE}')
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


def test_by_hand():
  """Three classes with probabilities that are easy to divide."""
  student = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  teacher = jnp.log(jnp.array([[0.2, 0.6, 0.2]]))
  cost = _cost(
    student, teacher, jnp.array([0]), alpha=2.0, beta=3.0, temperature=1.0
  )
  # Target and rest: (0.2, 0.8) against (0.5, 0.5). The others, renormalised:
  # (0.75, 0.25) against (0.5, 0.5).
  target = 0.2 * np.log(0.2 / 0.5) + 0.8 * np.log(0.8 / 0.5)
  others = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
  np.testing.assert_allclose(cost, [2 * target + 3 * others], rtol=1e-5)


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
