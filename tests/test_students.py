"""Initialising a student from its teacher, and networks that do not fit."""

import functools
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax import errors
from td_jax.models import students
from td_jax.models import vit

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

SIZE = 8
_SETTINGS = {
  'classes': 3,
  'width': 8,
  'depth': 4,
  'heads': 2,
  'mlp_width': 12,
  'patch': 4,
  'split': (2, 4),
  'class_token': 'before',
  'registers': 0,
  'position': 'learned',
  'pre_norm': False,
  'pooling': 'token',
  'pre_logits_width': 0,
  'layer_scale': 0.0,
  'mlp': 'gelu',
  'gelu': 'tanh',
  'eps': 1e-6,
  'dropout': 0.0,
  'dtype': 'float32',
  'remat': False,
  'scan': False,
}


def _vit(**changes) -> Any:
  return vit.ViT(**(_SETTINGS | changes))


TEACHER = _vit(depth=6, split=(3, 6), classes=7)
STUDENT = _vit()


def _x(size=SIZE):
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.uniform(-1, 1, (2, size, size, 3)), jnp.float32)


@functools.cache
def _variables(model, seed, size=SIZE):
  """Random variables in which no two elements are equal."""
  shapes = jax.eval_shape(
    functools.partial(model.init, train=False), jax.random.key(0), _x(size)
  )
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32),
    dict(shapes),
  )


def _start(kind, student=STUDENT, teacher=TEACHER, **sizes):
  return students.initialise(
    kind,
    _variables(student, 1),
    student=student,
    teacher=teacher,
    teacher_variables=_variables(teacher, 2, **sizes),
  )


def test_first_n_computes_the_states_of_the_teacher():

  def states(model, variables):
    run = jax.jit(functools.partial(model.apply, train=False))
    return run(variables, _x())[:2]

  # The teacher, split where the student is.
  cut = _vit(depth=6, split=(2, 4), classes=7)
  for state, expected in zip(
    states(STUDENT, _start('first_n')),
    states(cut, _variables(TEACHER, 2)),
    strict=True,
  ):
    np.testing.assert_array_equal(state, expected)


def _equal(tree, expected):
  jax.tree.map(np.testing.assert_array_equal, tree, expected)


@pytest.mark.parametrize(
  ('kind', 'depth', 'layers'),
  [
    ('first_n', 4, [0, 1, 2, 3]),
    ('first_n', 6, [0, 1, 2, 3, 4, 5]),
    ('uniform', 4, [0, 2, 3, 5]),
    ('uniform', 6, [0, 1, 2, 3, 4, 5]),
    ('uniform', 2, [0, 5]),
  ],
)
def test_each_layer_is_copied_from_the_right_one(kind, depth, layers):
  student = _vit(depth=depth, split=(1, 2), pre_logits_width=5)
  params = _start(kind, student)['params']
  teacher_params = _variables(TEACHER, 2)['params']
  own_params = _variables(student, 1)['params']
  assert params.keys() == own_params.keys()
  for name in ('embed', 'norm'):
    _equal(params[name], teacher_params[name])
  for i, layer in enumerate(layers):
    _equal(params[f'blocks_{i}'], teacher_params[f'blocks_{layer}'])
  for name in ('head', 'pre_logits'):
    _equal(params[name], own_params[name])


def test_uniform_of_twelve():
  uniform: Any = students.INITS['uniform']
  assert uniform(depth=4, teacher_depth=12) == [0, 4, 7, 11]


def test_random_copies_nothing_from_any_teacher():
  student = _vit(width=12, heads=3, gelu='exact')
  _equal(_start('random', student), _variables(student, 1))


@pytest.mark.parametrize('scanned', ['student', 'teacher', 'both'])
def test_scanned_networks_start_the_same(scanned):
  plain = _start('uniform')
  student = _vit(scan=scanned != 'teacher')
  teacher = _vit(depth=6, split=(3, 6), classes=7, scan=scanned != 'student')
  own, teachers = _variables(STUDENT, 1), _variables(TEACHER, 2)
  variables = students.initialise(
    'uniform',
    vit.stack(own) if student.scan else own,
    student=student,
    teacher=teacher,
    teacher_variables=vit.stack(teachers) if teacher.scan else teachers,
  )
  _equal(variables, vit.stack(plain) if student.scan else plain)


def test_it_compiles_under_vmap_over_seeds():
  keys = jax.random.split(jax.random.key(0), 2)

  @jax.jit
  def start(teacher_variables):
    own = jax.vmap(lambda _: _variables(STUDENT, 1))(keys)
    return jax.vmap(
      lambda own: students.initialise(
        'first_n',
        own,
        student=STUDENT,
        teacher=TEACHER,
        teacher_variables=teacher_variables,
      )
    )(own)

  variables = start(_variables(TEACHER, 2))
  alone = _start('first_n')
  for seed in range(2):
    _equal(jax.tree.map(lambda leaf, s=seed: leaf[s], variables), alone)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'width': 16}, "the student's width is 16 and the teacher's 8"),
    ({'heads': 4}, "the student's heads is 4 and the teacher's 2"),
    ({'mlp_width': 8}, "the student's mlp_width is 8 and the teacher's 12"),
    ({'patch': 2}, "the student's patch is 2 and the teacher's 4"),
    ({'gelu': 'exact'}, "the student's gelu is 'exact' and the teacher's"),
    ({'eps': 1e-5}, "the student's eps is 1e-05 and the teacher's 1e-06"),
    ({'class_token': 'after'}, "the student's class_token is 'after'"),
    ({'layer_scale': 0.1}, "the student's layer_scale is True and the"),
    ({'depth': 7}, 'the student has 7 blocks and the teacher 6'),
  ],
)
@pytest.mark.parametrize('kind', ['first_n', 'uniform'])
def test_a_setting_that_does_not_fit_is_named(kind, changes, message):
  with pytest.raises(errors.ConfigError) as caught:
    _start(kind, _vit(**changes))
  assert message in str(caught.value)
  assert "'random'" in str(caught.value)


def test_initial_layer_scales_may_differ():
  student = _vit(layer_scale=0.1)
  variables = _start('first_n', student, _vit(depth=6, layer_scale=1.0))
  assert 'attention_scale' in variables['params']['blocks_0']


def test_images_of_another_size_do_not_fit():
  with pytest.raises(errors.ConfigError) as caught:
    _start('first_n', size=12)
  message = "position table has shape (5, 8) and the teacher's (10, 8)"
  assert message in str(caught.value)


def test_an_unknown_kind_raises_an_error():
  with pytest.raises(errors.ConfigError, match="Did you mean 'first_n'"):
    _start('first_m')
