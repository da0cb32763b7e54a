"""The conversation against Algorithm 1, transcribed in NumPy by hand.

`_algorithm_1` below follows the paper's lines with plain loops, one example at
a time in float64, and shares nothing with td_jax but the weights.
"""

import functools
import inspect
import itertools
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax import types
from td_jax.methods import base
from td_jax.methods import channel
from td_jax.methods import losses
from td_jax.methods import talk
from td_jax.methods import talking
from td_jax.models import split

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

B, T = 3, 2
G_LOW, G_HIGH, H_LOW, H_HIGH = 4, 3, 6, 5  # Widths of student and teacher.
HIDDEN, MESSAGE = 8, 7


# The NumPy side.


def _dense(p, vector):
  out = np.zeros(p['kernel'].shape[1])
  for j in range(len(out)):
    out[j] = p['bias'][j]
    for i, value in enumerate(vector):
      out[j] += value * p['kernel'][i, j]
  return out


def _relu(vector):
  return np.array([max(value, 0.0) for value in vector])


def _layer_norm(p, vector):
  mean = sum(vector) / len(vector)
  variance = sum((value - mean) ** 2 for value in vector) / len(vector)
  return (vector - mean) / np.sqrt(variance + 1e-6) * p['scale'] + p['bias']


def _translate(p, vector):
  """Dense -> ReLU -> LayerNorm -> Dense."""
  vector = _relu(_dense(p['Dense_0'], vector))
  return _dense(p['Dense_1'], _layer_norm(p['LayerNorm_0'], vector))


def _tokens(fn, *sequences):
  """Applies fn to each token of [t, d], or to the vector [d] of an MLP."""
  if sequences[0].ndim == 1:
    return fn(*sequences)
  rows = [fn(*vectors) for vectors in zip(*sequences, strict=True)]
  return np.array(rows)


def _d(a, b):
  """L2: the mean over elements of the squared difference."""
  a, b = a.ravel(), b.ravel()
  return sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / a.size


class _Speaker:
  """E, D and the interpreting layer H[l+1..h] of one side."""

  def __init__(self, weights, side, *, low, encodes_high=True):
    self._encoder = weights[f'{side}_encoder']['params']
    self._decoder = weights[f'{side}_decoder']['params']
    self._layer = weights[f'{side}_layer']['params']
    self._low, self._encodes_high = low, encodes_high

  def encode(self, s, e):
    def one(s, e):
      parts = [s, e] if self._encodes_high else [s]
      return _translate(self._encoder, np.concatenate(parts))

    return _tokens(one, s, e)

  def decode(self, m):
    both = _tokens(lambda m: _translate(self._decoder, m), m)
    return both[..., : self._low], both[..., self._low :]

  def interpret(self, s):
    return _tokens(lambda s: _relu(_dense(self._layer, s)), s)


def _algorithm_1(weights, states, *, k, original, encodes_high=True):
  """Lines 3 to 19 for one example; `states` are s_g, e_g, s_h, e_h."""
  s_g, e_g, s_h, e_h = states
  g = _Speaker(weights, 'student', low=G_LOW, encodes_high=encodes_high)
  h = _Speaker(weights, 'teacher', low=H_LOW)
  m_g0 = g.encode(s_g, e_g)  # line 4
  m_h0 = h.encode(s_h, e_h)  # line 6
  d_g = g.decode(m_h0)
  d_h = h.decode(m_g0)
  state = _d(s_g, d_g[0]) + _d(e_g, d_g[1])
  state += _d(s_h, d_h[0]) + _d(e_h, d_h[1])
  transcript = {
    'student_message': m_g0,
    'teacher_message': m_h0,
    'student_low': d_g[0],
    'student_high': d_g[1],
    'teacher_low': d_h[0],
    'teacher_high': d_h[1],
    'interact': np.zeros(k),
    'message': _d(m_g0, m_h0),  # L_MC
    'state': state,  # L_SC
  }
  s_x, e_x = s_g, e_g
  m_g = m_g0
  for i in range(k):
    s_h1, _ = h.decode(m_g)  # line 11
    e_h1 = h.interpret(s_h1)  # line 12
    m_h = h.encode(s_h1, e_h1)  # line 13
    s_g1, e_g1 = g.decode(m_h)  # line 14
    target = (s_x, e_x) if original else (s_g, e_g)
    transcript['interact'][i] = _d(target[0], s_g1) + _d(
      target[1], e_g1
    )  # line 15
    transcript['answer'] = m_h
    transcript['last_low'], transcript['last_high'] = s_g1, e_g1
    s_g, e_g = s_g1, g.interpret(s_g1)  # lines 16 and 17
    m_g = g.encode(s_g, e_g)  # line 18
  return transcript


def _expected(weights, states, **options):
  """All examples: {name: [b, ...]}."""
  weights = _float64(weights)
  states = [np.asarray(part, np.float64) for part in states]
  examples = [
    _algorithm_1(weights, example, **options)
    for example in zip(*states, strict=True)
  ]
  return {name: np.array([e[name] for e in examples]) for name in examples[0]}


def _float64(tree):
  return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


# The JAX side.


class _Inputs(NamedTuple):
  weights: dict[str, Any]
  states: tuple[Any, ...]  # low_g, high_g, low_h, high_h


def _roughen(tree, seed):
  """Adds noise to every weight, so that no bias is 0 and no scale is 1."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: leaf + 0.3 * rng.normal(size=leaf.shape).astype(np.float32),
    tree,
  )


@functools.cache
def _inputs(rank, encodes_high=True):
  middle = {2: (), 3: (T,)}[rank]
  rng = np.random.default_rng(rank)
  low_g, high_g, low_h, high_h = (
    jnp.asarray(rng.normal(size=(B, *middle, d)), jnp.float32)
    for d in (G_LOW, G_HIGH, H_LOW, H_HIGH)
  )
  message = jnp.zeros((B, *middle, MESSAGE))
  encoder, student, teacher = _modules()
  keys = jax.random.split(jax.random.key(0), 6)
  encoded = (low_g, high_g) if encodes_high else (low_g,)
  weights = {
    'student_encoder': encoder.init(keys[0], encoded, train=False),
    'teacher_encoder': encoder.init(keys[1], (low_h, high_h), train=False),
    'student_decoder': student.init(keys[2], message, train=False),
    'teacher_decoder': teacher.init(keys[3], message, train=False),
    'student_layer': nn.Dense(G_HIGH).init(keys[4], low_g),
    'teacher_layer': nn.Dense(H_HIGH).init(keys[5], low_h),
  }
  return _Inputs(_roughen(weights, seed=1), (low_g, high_g, low_h, high_h))


def _modules(dropout=0.0):
  encoder = channel.Encoder(HIDDEN, MESSAGE, dropout)
  student = channel.Decoder(HIDDEN, (G_LOW, G_HIGH), dropout)
  teacher = channel.Decoder(HIDDEN, (H_LOW, H_HIGH), dropout)
  return encoder, student, teacher


def _speakers(weights, states):
  encoder, *decoders = _modules()

  def speaker(name, decoder, layer, states):
    def interpret(low, key):
      del key  # No dropout here.
      return nn.relu(layer.apply(weights[f'{name}_layer'], low))

    return talk.Speaker(
      states=types.States(*states),
      encode=lambda states, key: encoder.apply(
        weights[f'{name}_encoder'], states, train=False
      ),
      decode=lambda message, key: decoder.apply(
        weights[f'{name}_decoder'], message, train=False
      ),
      interpret=interpret,
    )

  return (
    speaker('student', decoders[0], nn.Dense(G_HIGH), states[:2]),
    speaker('teacher', decoders[1], nn.Dense(H_HIGH), states[2:]),
  )


def _named(result):
  """A Transcript as a dictionary of arrays."""
  opening = result.opening
  transcript = {
    'student_message': opening.student_message,
    'teacher_message': opening.teacher_message,
    'student_low': opening.student_decoded.low,
    'student_high': opening.student_decoded.high,
    'teacher_low': opening.teacher_decoded.low,
    'teacher_high': opening.teacher_decoded.high,
    'interact': result.interact.T,
  }
  if result.answer is not None:
    transcript['answer'] = result.answer
    transcript['last_low'] = result.student_decoded.low
    transcript['last_high'] = result.student_decoded.high
  return transcript


def _score(transcript):
  """One number that depends on every array of a transcript."""
  return sum(
    np.cos(i + 1.0) * (value * (1 + 0.1 * value)).sum()
    for i, (_, value) in enumerate(sorted(transcript.items()))
  )


def _transcript(weights, states, **options):
  student, teacher = _speakers(weights, states)
  return _named(
    talk.converse(student, teacher, rng=jax.random.key(0), **options)
  )


@functools.cache
def _talk(k, original, unroll=True, remat=False):
  """(transcript, gradients of its score by weights and states), compiled."""

  def score(weights, states):
    transcript = _transcript(
      weights,
      states,
      k=k,
      original_target=original,
      unroll=unroll,
      remat=remat,
    )
    return _score(transcript), transcript

  grads, transcript = jax.jit(jax.grad(score, argnums=(0, 1), has_aux=True))(
    *_inputs(2)
  )
  return jax.device_get(transcript), jax.device_get(grads)


def _assert_same_transcript(transcript, expected):
  expected = {
    n: v for n, v in expected.items() if n not in ('message', 'state')
  }
  assert transcript.keys() == expected.keys()
  for name, value in expected.items():
    assert transcript[name].shape == value.shape, name
    np.testing.assert_allclose(
      transcript[name], value, rtol=2e-5, atol=2e-5, err_msg=name
    )


# The tests.


@pytest.mark.parametrize('rank', [2, 3])
@pytest.mark.parametrize(
  ('k', 'original'), [(0, False), (1, True), (3, False), (3, True)]
)
def test_transcript_is_algorithm_1(rank, k, original):
  transcript = jax.jit(
    functools.partial(_transcript, k=k, original_target=original)
  )(*_inputs(rank))
  _assert_same_transcript(
    transcript, _expected(*_inputs(rank), k=k, original=original)
  )


def test_the_two_targets_agree_in_the_first_iteration_only():
  chained, original = (_talk(3, target)[0] for target in (False, True))
  np.testing.assert_array_equal(
    chained['interact'][:, 0], original['interact'][:, 0]
  )
  for i in (1, 2):
    gap = chained['interact'][:, i] - original['interact'][:, i]
    assert np.all(np.abs(gap) > 1e-3)
  # The target is only compared with: the messages do not depend on it.
  np.testing.assert_array_equal(chained['answer'], original['answer'])


@pytest.mark.parametrize('original', [False, True])
def test_gradient_is_that_of_the_numpy_transcript(original):
  """Central differences of the float64 transcript, along random directions.

  This shows that no gradient of Algorithm 1 is stopped, for any of the weights,
  the teacher's layer and the states included.
  """
  inputs = _inputs(2)
  _, grads = _talk(3, original)
  grads = _Inputs(*_float64(grads))
  point = _Inputs(*_float64(inputs))
  rng = np.random.default_rng(5)

  def score(at):
    transcript = _expected(*at, k=3, original=original)
    return _score(
      {n: v for n, v in transcript.items() if n not in ('message', 'state')}
    )

  groups = [('weights', name) for name in point.weights]
  groups += [('states', i) for i in range(4)]
  for group, name in groups:
    here = getattr(point, group)[name]
    way = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), here)

    def moved(by, group=group, name=name, here=here, way=way):
      new = jax.tree.map(lambda leaf, step: leaf + by * step, here, way)
      values = getattr(point, group)
      if group == 'states':
        values = (*values[:name], new, *values[name + 1 :])
      else:
        values = values | {name: new}
      return point._replace(**{group: values})

    slope = (score(moved(1e-6)) - score(moved(-1e-6))) / 2e-6
    grad = getattr(grads, group)[name]
    dot = sum(
      np.vdot(a, b)
      for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(way), strict=True)
    )
    assert abs(slope) > 1e-2, name
    np.testing.assert_allclose(dot, slope, rtol=5e-4, err_msg=f'{name}')


@pytest.mark.parametrize(
  ('original', 'unroll', 'remat'),
  [
    (False, False, False),
    (False, True, True),
    (False, False, True),
    (True, False, True),
  ],
)
def test_unroll_and_remat_change_neither_values_nor_gradients(
  original, unroll, remat
):
  plain = _talk(3, original)
  other = _talk(3, original, unroll, remat)
  for name, value in plain[0].items():
    np.testing.assert_allclose(
      other[0][name], value, rtol=1e-5, atol=1e-5, err_msg=name
    )
  for one, two in zip(
    jax.tree.leaves(plain[1]), jax.tree.leaves(other[1]), strict=True
  ):
    largest = np.abs(one).max()
    assert largest > 0
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize('unroll', [False, True])
@pytest.mark.parametrize('remat', [False, True])
def test_loop_and_remat_are_in_the_program_as_asked(unroll, remat):
  """Otherwise the test above would compare a program with itself."""

  def answer(weights, states):
    student, teacher = _speakers(weights, states)
    return talk.converse(
      student,
      teacher,
      rng=jax.random.key(0),
      k=3,
      unroll=unroll,
      remat=remat,
    ).answer

  text = str(jax.make_jaxpr(answer)(*_inputs(2)))
  assert ('checkpoint' in text or 'remat' in text) == remat
  assert ('length=2' in text) and (('unroll=1' in text) == (not unroll))


def test_k_must_be_static():
  weights, states = _inputs(2)

  def interact(k):
    # Unwrapped, because the type check of the tests refuses a tracer as well.
    return inspect.unwrap(talk.converse)(
      *_speakers(weights, states), rng=jax.random.key(0), k=k
    ).interact

  with pytest.raises(jax.errors.ConcretizationTypeError):
    jax.jit(interact)(3)


# Speakers that repeat what they receive, so that noise is all that changes it.


def _echo(x):
  student = talk.Speaker(
    states=types.States(x, x),
    encode=lambda states, key: states.low,
    decode=lambda message, key: types.States(message, message),
    interpret=lambda low, key: low,
  )
  return student, student


@functools.partial(jax.jit, static_argnames=('k', 'noise', 'unroll'))
def _echoed(x, key, k=2, noise=0.1, unroll=True):
  transcript = talk.converse(
    *_echo(x), rng=key, k=k, noise=noise, unroll=unroll
  )
  return transcript.answer, transcript.interact


def _rows():
  """Examples [b, t, d] whose scales differ by up to 10^6."""
  x = np.random.default_rng(2).normal(size=(7, 30, 100))
  return jnp.asarray(x * 10.0 ** np.arange(-3, 4)[:, None, None], jnp.float32)


def _rms(x):
  return np.sqrt(np.mean(np.square(np.asarray(x, np.float64)), axis=(1, 2)))


def test_zero_noise_is_noiseless():
  x = _rows()
  answer, interact = _echoed(x, jax.random.key(0), noise=0.0)
  np.testing.assert_array_equal(answer, x)
  np.testing.assert_array_equal(interact, np.zeros((2, 7)))


@pytest.mark.parametrize('unroll', [False, True])
def test_noise_is_a_tenth_of_each_examples_rms(unroll):
  x, key = _rows(), jax.random.key(1)
  received = [np.asarray(x, np.float64)]
  costs = []
  for k in (1, 2):  # A longer conversation has the same first iteration.
    answer, costs = _echoed(x, key, k=k, unroll=unroll or k == 1)
    received.append(np.asarray(answer, np.float64))
  drawn = []
  for i, (before, after) in enumerate(itertools.pairwise(received)):
    ratio = _rms(after - before) / _rms(before)
    # With 3000 draws per example the ratio's standard deviation is 1.3%.
    np.testing.assert_allclose(ratio, 0.1, rtol=0.06)
    np.testing.assert_allclose(ratio.mean(), 0.1, rtol=0.02)
    # The cost adds the means of the low and the high state, which are equal.
    np.testing.assert_allclose(
      costs[i], 2 * _rms(after - before) ** 2, rtol=1e-4
    )
    drawn.append((after - before) / (0.1 * _rms(before)[:, None, None]))
  drawn = np.array(drawn)  # [k, b, t, d], each standard normal
  assert abs(drawn.mean()) < 0.02
  # Noise differs between iterations, examples and tokens.
  for axis in (0, 1, 2):
    one, two = np.take(drawn, 0, axis), np.take(drawn, 1, axis)
    assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.15
  np.testing.assert_allclose(np.mean(drawn**4), 3, rtol=0.1)  # Gaussian.


def test_noise_changes_with_the_key():
  x = _rows()
  one, two, again = (
    np.asarray(_echoed(x, jax.random.key(seed), k=1)[0] - x)
    for seed in (1, 2, 1)
  )
  np.testing.assert_array_equal(one, again)
  scale = _rms(x)[:, None, None]
  link = np.corrcoef((one / scale).ravel(), (two / scale).ravel())[0, 1]
  assert abs(link) < 0.05


def test_the_size_of_the_noise_is_a_constant_to_the_gradient():
  x = _rows()
  way = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)
  grad = jax.grad(
    lambda x: jnp.sum(way * _echoed(x, jax.random.key(0), k=2)[0])
  )(x)
  np.testing.assert_allclose(grad, way, rtol=1e-6)


def test_no_key_is_used_twice():
  used = []

  def note(fn):
    def noted(value, key):
      used.append(tuple(jax.random.key_data(key).tolist()))
      return fn(value)

    return noted

  x = jnp.ones((2, 3))
  speakers = [
    talk.Speaker(
      states=types.States(x, x),
      encode=note(lambda states: states.low),
      decode=note(lambda message: types.States(message, message)),
      interpret=note(lambda low: low),
    )
    for _ in range(2)
  ]
  with jax.disable_jit():
    talk.converse(*speakers, rng=jax.random.key(0), k=3)
  # The opening uses 4 keys. Each of 3 replies uses 3, to interpret, encode and
  # decode, and so does each of the 2 follow-ups.
  assert len(used) == 4 + 3 * 3 + 2 * 3
  assert len(set(used)) == len(used)


# The conversation as a method: parameter names, weights, one-sided messages.


@pytest.mark.parametrize('encodes_high', [True, False])
def test_talking_weighs_the_three_losses(encodes_high):
  weights, states = _inputs(2, encodes_high)
  method = talking.talking(
    weights=talking.Weights(interact=0.5, message=0.25, state=2.0),
    hidden=HIDDEN,
    message=MESSAGE,
    dropout=0.0,
    distance=losses.l2,
    student_encodes_high=encodes_high,
    k=2,
  )

  def side(name, states):
    layer = nn.Dense(states[1].shape[-1])
    return split.Side(
      states=types.States(*states),
      output=jnp.zeros(B),
      interpret=lambda low, key: nn.relu(
        layer.apply(weights[f'{name}_layer'], low)
      ),
      output_of=lambda high, key: high,
    )

  lesson = base.Lesson(
    student=side('student', states[:2]),
    teachers={'teacher': side('teacher', states[2:])},
    batch=types.Batch(x=None, y=jnp.zeros(B), mask=jnp.ones(B)),
    step=jnp.int32(0),
    rng=jax.random.key(0),
  )
  names = [name for name in weights if not name.endswith('layer')]
  params = {name: weights[name] for name in names}
  made = jax.eval_shape(lambda: method.init(jax.random.key(0), lesson))
  assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)
  cost, terms = jax.jit(lambda params: method.loss(params, lesson))(params)

  expected = _expected(
    weights, states, k=2, original=False, encodes_high=encodes_high
  )
  interact = expected['interact']
  message, state = expected['message'], expected['state']
  near = functools.partial(np.testing.assert_allclose, rtol=5e-5)
  near(terms['interact_0'], interact[:, 0])
  near(terms['interact_1'], interact[:, 1])
  near(terms['interact'], interact.sum(axis=1))
  near(terms['message'], message)
  near(terms['state'], state)
  near(cost, 0.5 * interact.sum(axis=1) + 0.25 * message + 2 * state)
  messages = expected['student_message']
  near(terms['spread'], ((messages - messages.mean(axis=0)) ** 2).mean(axis=1))
