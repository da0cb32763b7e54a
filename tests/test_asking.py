"""Mixed states, standardised states and questions: numbers worked in NumPy.

The networks are linear, so that what they make of any state is a product of matrices.
"""

import chex
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax import types
from td_jax.methods import asking
from td_jax.methods import base
from td_jax.methods import hint
from td_jax.methods import losses
from td_jax.methods import mixing
from td_jax.methods import standardised
from td_jax.models import split

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

B, CLASSES = 6, 3
_RNG = np.random.default_rng(0)
_WIDTHS = {'student': (4, 5), 'teacher': (3, 2)}
_LAYERS = {
  name: [
    _RNG.normal(size=shape).astype(np.float32)
    for shape in (widths, (widths[1], CLASSES))
  ]
  for name, widths in _WIDTHS.items()
}
_LOW = {
  name: _RNG.normal(size=(B, widths[0])).astype(np.float32)
  for name, widths in _WIDTHS.items()
}


def _high(name, low):
  return low @ _LAYERS[name][0]


def _output(name, low):
  return _high(name, low) @ _LAYERS[name][1]


def _side(name, low):
  return split.Side(
    states=types.States(low, _high(name, low)),
    output=_output(name, low),
    interpret=lambda state, key: _high(name, state),
    output_of=lambda state, key: state @ _LAYERS[name][1],
  )


def _lesson(low=_LOW, *, mask=None, seed=0):
  low = jax.tree.map(jnp.asarray, low)
  return base.Lesson(
    student=_side('student', low['student']),
    teachers={'teacher': _side('teacher', low['teacher'])},
    batch=types.Batch(
      x=None, y=jnp.zeros(B), mask=jnp.ones(B) if mask is None else mask
    ),
    step=jnp.int32(0),
    rng=jax.random.key(seed),
  )


_near = chex.assert_trees_all_close


def test_outputs_on_mixed_states_are_compared():
  lesson = _lesson()
  pairs, _ = jax.random.split(lesson.rng)
  partner, share = mixing.draw(lesson.batch.mask, pairs)
  assert sorted(partner.tolist()) == list(range(B))
  assert np.ptp(share) > 0.3
  share = np.asarray(share)[:, None]
  student, teacher = (
    _output(name, share * low + (1 - share) * low[np.asarray(partner)])
    for name, low in _LOW.items()
  )
  expected = np.square(student - teacher).mean(axis=1)
  method = mixing.mixing(losses.l2)
  cost, _ = method.loss(method.init(lesson.rng, lesson), lesson)
  _near(np.asarray(cost), expected, rtol=1e-5)


def test_padding_is_not_mixed_into_examples():
  mask = jnp.array([1.0, 1, 0, 1, 0, 1])
  method = mixing.mixing(losses.l2)
  for seed in range(5):
    before, after = (
      method.loss({}, _lesson(low, mask=mask, seed=seed))[0] * mask
      for low in (
        _LOW,
        {name: low + 9 * (1 - mask)[:, None] for name, low in _LOW.items()},
      )
    )
    assert np.all(after[mask == 1] > 0)
    _near(before, after)


def test_outputs_of_states_are_in_units_too():
  """Else a cost would compare dollars with thousands of dollars."""
  plain = _asking()
  params = plain.init(jax.random.key(1), _lesson())
  _, terms = plain.loss(params, _lesson())
  _, scaled = base.in_units(plain, 10.0).loss(params, _lesson())
  for name in ('answer', 'channel_output'):
    _near(scaled[name], terms[name] / 100, rtol=1e-4)


def test_the_teacher_of_mixed_states_is_a_constant():
  method = mixing.mixing(losses.l2)

  def cost(low):
    return method.loss({}, _lesson(low))[0].sum()

  grads = jax.grad(cost)(jax.tree.map(jnp.asarray, _LOW))
  assert np.abs(grads['student']).max() > 0.1
  assert not np.any(grads['teacher'])


def _translate(params, values):
  """An encoder or decoder in NumPy."""
  first, second = params['params']['Dense_0'], params['params']['Dense_1']
  norm = params['params']['LayerNorm_0']
  values = np.maximum(values @ first['kernel'] + first['bias'], 0)
  centred = values - values.mean(axis=-1, keepdims=True)
  values = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6)
  values = values * norm['scale'] + norm['bias']
  return values @ second['kernel'] + second['bias']


def _asking(**options):
  return asking.asking(
    hidden=7, message=4, dropout=0.0, distance=losses.l2, **options
  )


@pytest.mark.parametrize('between', [True, False])
def test_the_costs_of_asking(between):
  method, lesson = _asking(between=between), _lesson()
  params = method.init(jax.random.key(1), lesson)
  cost, terms = method.loss(params, lesson)
  params = jax.tree.map(np.asarray, params)

  def decoded(low):
    states = np.concatenate([low, _high('student', low)], axis=1)
    message = _translate(params['encoder'], states)
    return _translate(params['decoder'], message)

  def square(a, b):
    return np.square(a - b).mean(axis=1)

  low, own = _LOW['student'], _LOW['teacher']
  question = low
  if between:
    keys = jax.random.split(lesson.rng, 5)
    partner, share = mixing.draw(lesson.batch.mask, keys[1])
    share = np.asarray(share)[:, None]
    question = share * low + (1 - share) * low[np.asarray(partner)]
  expected = {
    'answer': square(
      _output('student', question), _output('teacher', decoded(question))
    ),
    'channel_state': square(decoded(low), own),
    'channel_output': square(
      _output('teacher', decoded(low)), _output('teacher', own)
    ),
  }
  _near(jax.tree.map(np.asarray, terms), expected, rtol=1e-4, atol=1e-5)
  _near(np.asarray(cost), sum(expected.values()), rtol=1e-4)


@pytest.mark.parametrize(
  ('term', 'student', 'own'),
  [
    ('answer', True, False),
    ('channel_state', False, True),
    ('channel_output', False, True),
  ],
)
def test_each_cost_of_asking_trains_one_side(term, student, own):
  method = _asking()
  params = method.init(jax.random.key(1), _lesson())

  def cost(low, params):
    low = {'student': low, 'teacher': _LOW['teacher']}
    return method.loss(params, _lesson(low))[1][term].sum()

  grads = jax.grad(cost, argnums=(0, 1))(jnp.asarray(_LOW['student']), params)
  for tree, reached in zip(grads, (student, own), strict=True):
    size = max(np.abs(leaf).max() for leaf in jax.tree.leaves(tree))
    assert (size > 1e-3) == reached


def test_standardised_states():
  """Mean 0 and variance 1, and the networks behind them stay what they are."""
  seen = {}

  def init(rng, lesson):
    seen['lesson'] = lesson
    return {}

  def loss(params, lesson):
    low = lesson.student.states.low
    high = lesson.student.interpret(low, None)
    return losses.l2(high, lesson.student.states.high), {
      'output': lesson.student.output_of(high, None).sum(axis=-1)
    }

  method = standardised.standardised(base.Method(init, loss))
  lesson = _lesson()
  params = method.init(jax.random.key(0), lesson)
  for side in (seen['lesson'].student, seen['lesson'].teacher):
    for states in side.states:
      _near(states.mean(axis=0), jnp.zeros(states.shape[1]), atol=1e-5)
      _near(states.std(axis=0), jnp.ones(states.shape[1]), rtol=1e-4)
  for student in (_LOW['student'], 2 * _LOW['student'] + 1):
    low = {'student': student, 'teacher': _LOW['teacher']}
    cost, terms = method.loss(params, _lesson(low))
    _near(cost, jnp.zeros(B), atol=1e-5)
    _near(
      np.asarray(terms['output']),
      _output('student', low['student']).sum(axis=1),
      rtol=1e-3,
      atol=1e-4,
    )


def test_standardised_units_are_those_of_the_start():
  method = standardised.standardised(
    hint.hint(hidden=4, dropout=0.0, distance=losses.l2, original=True)
  )
  params = method.init(jax.random.key(0), _lesson())
  (statistics,) = params[base.FIXED]['teachers'].values()
  teacher = _LOW['teacher']
  _near(np.asarray(statistics['low']['mean'][0]), teacher.mean(axis=0))
  _near(np.asarray(statistics['low']['scale']), teacher.std(axis=0), rtol=1e-5)
  grads = jax.grad(lambda p: method.loss(p, _lesson())[0].sum())(params)
  assert not any(map(np.any, jax.tree.leaves(grads[base.FIXED])))
  assert any(map(np.any, jax.tree.leaves(grads['own'])))


def test_a_dimension_without_spread_is_bounded():
  low = {name: states.copy() for name, states in _LOW.items()}
  low['teacher'][:, 0] = 2.0
  method = standardised.standardised(
    hint.hint(hidden=4, dropout=0.0, distance=losses.l2, original=True)
  )
  params = method.init(jax.random.key(0), _lesson(low))
  low['teacher'][:, 0] += 0.01
  cost, _ = method.loss(params, _lesson(low))
  assert np.all(np.isfinite(cost))
  # 0.01 is 10 times the least scale, a thousandth of the RMS.
  scale = params[base.FIXED]['teachers']['teacher']['low']['scale']
  rms = np.sqrt(np.square(np.asarray(scale)).mean())
  _near(np.asarray(scale[0]), np.float32(1e-3 * rms), rtol=1e-2)
