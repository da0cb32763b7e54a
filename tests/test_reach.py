"""Which parameters each term of the loss has a gradient for.

The table TERMS was derived from the equations of sections 3.2 to 3.4 before any
gradient was computed. g is the student and h the teacher; E encodes and D
decodes. Each group's gradient is either nonzero in every leaf, or 0 in every
element.
"""

import functools

import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

from td_jax import types
from td_jax.methods import base
from td_jax.methods import channel
from td_jax.methods import feature
from td_jax.methods import hint
from td_jax.methods import logit
from td_jax.methods import losses
from td_jax.methods import talking
from td_jax.methods import task
from td_jax.models import mlp
from td_jax.models import split
from td_jax.training import step

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

B = 6
_SIZES = {'users': 7, 'movies': 6, 'words': 5, 'id_width': 3, 'bag_width': 2}
_QUIET = {'dropout': 0.0, 'unknown_rate': 0.0, 'mean': 3.0}
STUDENT = mlp.MLP(hidden=(7, 6, 5), split=(1, 2), **_SIZES, **_QUIET)
TEACHER = mlp.MLP(hidden=(9, 8, 7, 4), split=(2, 3), **_SIZES, **_QUIET)
_TABLES = ('user', 'movie', 'title', 'genres')
GROUPS = {
  'student': {
    'low': (*_TABLES, 'layers_0'),
    'high': ('layers_1',),
    'head': ('layers_2', 'head'),
  },
  'teacher': {
    'h low': (*_TABLES, 'layers_0', 'layers_1'),
    'h high': ('layers_2',),
    'h head': ('layers_3', 'head'),
  },
}
CHANNELS = {
  'student_encoder': 'E_g',
  'teacher_encoder': 'E_h',
  'student_decoder': 'D_g',
  'teacher_decoder': 'D_h',
}


def _talk(k=1, *, encodes_high=True, original=False, **weights):
  return talking.talking(
    weights=talking.Weights(
      **dict.fromkeys(talking.Weights._fields, 0.0) | weights
    ),
    hidden=8,
    message=5,
    dropout=0.0,
    distance=losses.l2,
    student_encodes_high=encodes_high,
    k=k,
    original_target=original,
  )


def _feature(**options):
  encoder = channel.Encoder(hidden=8, message=5, dropout=0.0)
  return feature.feature(encoder=encoder, distance=losses.l2, **options)


def _hint(**options):
  return hint.hint(hidden=8, dropout=0.0, distance=losses.l2, **options)


# Name: (term, groups with a gradient). The groups of the teacher, 'h ...', are
# differentiated in these tests only; training never does that.
TERMS = {
  'task': (task.task(losses.squared_error), 'low, high, head'),
  # d(y_g, y_h)
  'logit': (
    logit.logit(losses.l2),
    'low, high, head, h low, h high, h head',
  ),
  # d(E_g(g), E_h(h))
  'feature, both': (
    _feature(fixed_teacher=False),
    'low, high, E_g, E_h, h low, h high',
  ),
  'feature, teacher': (_feature(fixed_teacher=True), 'low, high, E_g'),
  # d(g, D(h)), and d(h, D(g))
  'hint, paper': (_hint(original=False), 'low, high, D, h low, h high'),
  'hint, original': (_hint(original=True), 'low, high, D, h low, h high'),
  # Without an iteration there is no L_interact.
  'interact, k=0': (_talk(0, interact=1.0), ''),
  # d(g, D_g(E_h(low_h', H(low_h')))) with low_h' from D_h(E_g(g)): it does not
  # contain h(x).
  'interact, k=1': (
    _talk(1, interact=1.0),
    'low, high, E_g, E_h, D_g, D_h, h high',
  ),
  'interact, k=2': (
    _talk(2, interact=1.0),
    'low, high, E_g, E_h, D_g, D_h, h high',
  ),
  # d(E_g(g), E_h(h)), for any number of iterations
  'message, k=0': (
    _talk(0, message=1.0),
    'low, high, E_g, E_h, h low, h high',
  ),
  # d(g, D_g(E_h(h))) + d(h, D_h(E_g(g)))
  'state, k=0': (
    _talk(0, state=1.0),
    'low, high, E_g, E_h, D_g, D_h, h low, h high',
  ),
  'state, k=2': (
    _talk(2, state=1.0),
    'low, high, E_g, E_h, D_g, D_h, h low, h high',
  ),
  # One-sided messages: E_g(low_g). The high state is still a target.
  'message, one-sided': (
    _talk(1, message=1.0, encodes_high=False),
    'low, E_g, E_h, h low, h high',
  ),
  'interact, one-sided': (
    _talk(1, interact=1.0, encodes_high=False),
    'low, high, E_g, E_h, D_g, D_h, h high',
  ),
}


# Stores the gradient as the optimizer's state and updates nothing.
_SPY = optax.GradientTransformation(
  init=lambda params: (),
  update=lambda grads, state, params: (
    jax.tree.map(jnp.zeros_like, grads),
    grads,
  ),
)


def _teacher_sides(variables, batch):
  return {'teacher': split.side(TEACHER, variables, batch.input_of('teacher'))}


def _parts(method, **changes):
  return {
    'model': STUDENT,
    'method': method,
    'optimizer': _SPY,
    'teacher_sides': _teacher_sides,
  } | changes


@functools.cache
def _batch():
  rng = np.random.default_rng(0)

  def x():
    genres = rng.random((B, 4)).astype(np.float32)
    return {
      'user': jnp.asarray(rng.integers(0, 7, B)),
      'movie': jnp.asarray(rng.integers(0, 6, B)),
      'title': jnp.asarray(rng.integers(1, 5, (B, 3))),
      'genres': jnp.asarray(genres),
    }

  y = jnp.asarray(rng.normal(size=B), jnp.float32)
  return types.Batch(x=x(), y=y, mask=jnp.ones(B), teacher_x={'teacher': x()})


@functools.cache
def _teacher():
  made = TEACHER.init(
    jax.random.key(9), _batch().teacher_x['teacher'], train=False
  )
  return _alive(made, seed=1)


def _alive(tree, seed):
  """Adds positive biases, so that few ReLUs are dead for the whole batch."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: (
      leaf
      + 0.2 * rng.normal(size=leaf.shape).astype(np.float32)
      + (0.8 if leaf.ndim == 1 else 0.0)
    ),
    tree,
  )


def _state(method):
  """A state with weights from NumPy, so that nothing is compiled for it."""
  made = jax.eval_shape(
    functools.partial(step.init, **_parts(method)),
    jnp.int32(0),
    _batch(),
    _teacher(),
  )
  empty = jax.tree.map(
    lambda leaf: np.zeros(leaf.shape, np.float32), made.params
  )
  state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), made)
  return state._replace(params=_alive(empty, seed=2))


def _grads(method, state, teacher):
  """Gradients of one train_step: (trained parameters, teacher)."""
  run = functools.partial(step.train_step, **_parts(method))

  def loss(teacher):
    after, metrics = run(state, _batch(), teacher)
    return metrics['loss'], after.opt_state

  (_, trained), frozen = jax.value_and_grad(loss, has_aux=True)(teacher)
  return trained, frozen


@functools.cache
def _all_grads():
  """{term: gradients}. One program for all compiles faster than many."""
  terms = {
    name: base.combine(it=(1.0, term)) for name, (term, _) in TERMS.items()
  }
  states = {name: _state(method) for name, method in terms.items()}

  @jax.jit
  def run(states, teacher):
    return {
      name: _grads(method, states[name], teacher)
      for name, method in terms.items()
    }

  return jax.device_get(run(states, _teacher()))


def _by_group(trained, frozen):
  """{group: leaves} of all gradients."""
  groups = {}
  for side, tree in (('student', trained['student']), ('teacher', frozen)):
    named = set()
    for group, layers in GROUPS[side].items():
      groups[group] = jax.tree.leaves([tree['params'][n] for n in layers])
      named |= set(layers)
    assert named == set(tree['params'])
  method = trained['method'].get('it', {})
  if 'params' in method:  # FitNet's one decoder.
    groups['D'] = jax.tree.leaves(method)
  elif 'student' in method:  # Feature distillation's two encoders.
    groups['E_g'] = jax.tree.leaves(method['student'])
    groups['E_h'] = jax.tree.leaves(method.get('teacher', method.get('fixed')))
  else:
    for name, tree in method.items():
      groups[CHANNELS[name]] = jax.tree.leaves(tree)
  return groups


@pytest.mark.parametrize('name', TERMS)
def test_reach(name):
  expected = {group for group in TERMS[name][1].split(', ') if group}
  groups = _by_group(*_all_grads()[name])
  assert expected <= groups.keys()
  for group, leaves in groups.items():
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    sizes = [float(np.abs(leaf).max()) for leaf in leaves]
    if group in expected:
      assert min(sizes) > 1e-6, group
    else:
      assert max(sizes) == 0, group


@pytest.mark.parametrize('name', TERMS)
def test_only_student_and_method_are_differentiated(name):
  trained, _ = _all_grads()[name]
  assert trained.keys() == {'student', 'method'}
  assert trained['student']['params'].keys() == {
    *_TABLES,
    'layers_0',
    'layers_1',
    'layers_2',
    'head',
  }


def test_interact_leaves_the_decoded_high_state_of_the_teacher_alone():
  """e_h' trains D_h in L_SC only (section 3.3)."""

  def last_kernel(name):
    decoder = _all_grads()[name][0]['method']['it']['teacher_decoder']
    return np.abs(decoder['params']['Dense_1']['kernel']).max(axis=0)

  width = TEACHER.hidden[1]
  for name in ('interact, k=1', 'interact, k=2'):
    assert np.all(last_kernel(name)[:width] > 1e-6)
    assert np.all(last_kernel(name)[width:] == 0)
  assert np.all(last_kernel('state, k=2') > 1e-6)


def test_a_step_leaves_the_teacher_as_it_is():
  method = base.combine(
    logit=(1.0, TERMS['logit'][0]),
    talk=(1.0, _talk(2, interact=1.0, message=1.0, state=1.0)),
  )
  teacher = _teacher()
  before = jax.tree.map(np.array, teacher)
  parts = _parts(method, optimizer=optax.sgd(0.1))
  state = _state(method)
  state = state._replace(opt_state=parts['optimizer'].init(state.params))
  after, _ = jax.jit(functools.partial(step.train_step, **parts))(
    state, _batch(), teacher
  )
  jax.tree.map(np.testing.assert_array_equal, teacher, before)
  # The training state, which is saved, holds no parameters of the teacher.
  shapes = [leaf.shape for leaf in jax.tree.leaves(after)]
  assert (8, TEACHER.hidden[2]) not in shapes
  moved = jax.tree.map(
    lambda a, b: bool(np.any(a != b)), after.params, state.params
  )
  assert all(jax.tree.leaves(moved))


# With the weights state = message = 0 the teacher never sees x (section 6.1).


def _with_task(**weights):
  return base.combine(
    task=(1.0, TERMS['task'][0]), talk=(1.0, _talk(1, **weights))
  )


def _compiled(method, batch, **changes):
  run = functools.partial(step.train_step, **_parts(method, **changes))
  return jax.jit(run).lower(_state(method), batch, _teacher()).compile()


def _nan_for_teacher():
  batch = _batch()
  x = batch.input_of('teacher')
  x = x | {'genres': x['genres'] * np.nan}
  return batch._replace(teacher_x={'teacher': x})


def test_the_teacher_never_sees_x_without_consistency_losses():
  method = _with_task(interact=1.0)
  run = _compiled(method, _batch())
  args = _state(method), _batch(), _teacher()
  after, metrics = jax.device_get(run(*args))
  assert metrics['talk/interact'] > 0
  blind, its_metrics = jax.device_get(run(args[0], _nan_for_teacher(), args[2]))
  jax.tree.map(np.testing.assert_array_equal, blind, after)
  jax.tree.map(np.testing.assert_array_equal, its_metrics, metrics)
  # The program does not compute the teacher's states needlessly either: it has
  # as many operations as a program that receives them.
  side = _teacher_sides(_teacher(), _batch())['teacher']
  given = _batch()._replace(
    teacher_states={'teacher': (side.states, side.output)}
  )

  def cached(variables, batch):
    known = batch.teacher_states['teacher']
    return {'teacher': split.precomputed(*known, TEACHER, variables)}

  rest = _compiled(method, given, teacher_sides=cached)
  assert run.cost_analysis()['flops'] == rest.cost_analysis()['flops']


@pytest.mark.parametrize('name', ['message', 'state'])
def test_the_teacher_sees_x_for_a_consistency_loss(name):
  method = _with_task(interact=1.0, **{name: 1e-3})
  run = _compiled(method, _batch())
  _, metrics = run(_state(method), _batch(), _teacher())
  assert np.isfinite(metrics['loss'])
  _, metrics = run(_state(method), _nan_for_teacher(), _teacher())
  assert np.isnan(metrics['loss'])
