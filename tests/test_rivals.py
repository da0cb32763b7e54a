"""Methods of others against their authors' own numbers.

`../shared/golden/methods` holds random inputs, and what the authors' code made of them;
its README names each commit, the equations and the tolerances.
"""

import os
import pathlib

import conftest
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax import errors
from td_jax import types
from td_jax.methods import at
from td_jax.methods import bd_kd
from td_jax.methods import dist
from td_jax.methods import dkd
from td_jax.methods import logit
from td_jax.methods import logit_std
from td_jax.methods import losses
from td_jax.methods import pkt
from td_jax.methods import rkd
from td_jax.methods import sp
from td_jax.methods import srrl
from td_jax.methods import vkd

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

SHARED = pathlib.Path(
  os.environ.get('TD_JAX_SHARED', pathlib.Path(__file__).parents[2] / 'shared')
)
FOLDER = SHARED / 'golden' / 'methods'
needs_golden = pytest.mark.skipif(
  not FOLDER.is_dir(), reason=f'{FOLDER} is absent; set TD_JAX_SHARED'
)


def _lesson(student, teacher, labels=None, *, states=False, mask=None):
  """A lesson on outputs, or with `states` on high states, [b, ...]."""
  if labels is None:
    labels = jnp.zeros(len(student), jnp.int32)
  lesson = conftest.lesson(student, teacher, labels)
  if states:
    lesson = lesson._replace(
      student=lesson.student._replace(states=types.States(student, student)),
      teachers={
        name: side._replace(states=types.States(teacher, teacher))
        for name, side in lesson.teachers.items()
      },
    )
  if mask is not None:
    lesson = lesson._replace(batch=lesson.batch._replace(mask=mask))
  return lesson


def _mean_cost(method, lesson, params=None):
  cost, _ = method.loss(params or {}, lesson)
  assert cost.shape == lesson.batch.mask.shape
  return jnp.sum(cost * lesson.batch.mask) / lesson.batch.mask.sum()


def _tokens(maps):
  """Maps [b, c, h, w] as states [b, t, c]."""
  return maps.reshape(*maps.shape[:2], -1).swapaxes(1, 2)


def _of_logits(make):
  """(inputs, settings, case) -> the loss of `make(settings)` on logits."""

  def loss(given, settings, case):
    group = case.split('_')[0]
    names = ('student', 'teacher', 'labels')
    logits = [given.get(f'{group}/{name}') for name in names]
    if group == 'seg':  # Every pixel is a row.
      return sum(
        _mean_cost(
          make(settings), _lesson(*(_tokens(v)[i] for v in logits[:2]))
        )
        for i in range(len(logits[0]))
      )
    return _mean_cost(make(settings), _lesson(*logits))

  return loss


def _of_states(make, student='student', teacher='teacher'):
  def loss(given, settings, case):
    del case
    states = [given[name] for name in (student, teacher)]
    if states[0].ndim == 4:
      states = [_tokens(maps) for maps in states]
    lesson = _lesson(*states, states=True)
    return settings.get('feat_weight', 1.0) * _mean_cost(make(settings), lesson)

  return loss


def _kl(settings):
  return logit.logit(
    lambda a, b: losses.kl(a, b, temperature=settings['temperature'])
  )


def _logit_std(given, settings, case):
  method = dkd.dkd(**settings) if case.endswith('dkd') else _kl(settings)
  loss = _of_logits(lambda _: logit_std.logit_std(method))(
    given, settings, case
  )
  weight = settings.get('kd_weight', settings.get('extra_weight', 1.0))
  if 'ce_weight' not in settings:
    return weight * loss
  group = case.split('_')[0]
  log_p = jax.nn.log_softmax(given[f'{group}/student'])
  labels = given[f'{group}/labels']
  task = -jnp.mean(log_p[jnp.arange(len(labels)), labels])
  return weight * loss + settings['ce_weight'] * task


def _rkd(settings):
  return rkd.rkd(
    distance=settings.get('dist_ratio', 0.0),
    angle=settings.get('angle_ratio', 0.0),
  )


def _rkd_cases(given, settings, case):
  student, teacher = given['student'], given['teacher']
  if case in ('distance', 'angle'):
    settings = {'dist_ratio' if case == 'distance' else 'angle_ratio': 1.0}
  if case == 'authors_teacher_l2':
    teacher /= jnp.linalg.norm(teacher, axis=-1, keepdims=True)
  if case == 'duplicate_rows':
    student = given['student_dup']
  return _mean_cost(_rkd(settings), _lesson(student, teacher, states=True))


def _at(given, settings, case):
  def stage(student, teacher):
    maps = [
      at.attention(_tokens(each), int(settings['p']))
      for each in (student, teacher)
    ]
    return losses.l2(*maps).mean()

  cost = stage(given['student_map'], given['teacher_map'])
  if case == 'mdistiller_two_stages':
    big = given['student_big']
    b, c, h, w = big.shape
    pooled = big.reshape(b, c, h // 2, 2, w // 2, 2).mean(axis=(3, 5))
    cost += stage(pooled, given['teacher_small'])
  return settings.get('feat_weight', 1.0) * cost


def _vkd(given, settings, case):
  if case == 'logit_term':
    return _mean_cost(
      _kl(settings),
      _lesson(given['student_logits'], given['teacher_logits']),
    )
  wide = case == 'wide_student'
  student = given['student_wide' if wide else 'student_tokens']
  projected = student.mean(axis=1) @ given['W_wide' if wide else 'W'].T
  teacher = _tokens(given['teacher_map']).mean(axis=1)
  return settings['alpha'] * vkd.distance(projected, teacher).mean()


def _srrl(given, settings, case):
  del case
  student, teacher = (
    _tokens(given[f'{name}_map']) for name in ('student', 'teacher')
  )
  kernel, bias = given['teacher_head_kernel'], given['teacher_head_bias']

  def head(states, key):
    del key
    return states.mean(axis=1) @ kernel + bias[None]

  lesson = _lesson(student, teacher, states=True)
  side = lesson.teacher._replace(output_of=head, output=head(teacher, None))
  width = student.shape[-1]
  identity = {
    'params': {
      'kernel': jnp.eye(width, dtype=student.dtype),
      'bias': jnp.zeros(width, student.dtype),
    }
  }
  return _mean_cost(
    srrl.srrl(classifier=settings['weight']),
    lesson._replace(teachers={'teacher': side}),
    identity,
  )


def _bd_kd(settings):
  return bd_kd.bd_kd(nu=settings['nu'], temperature=settings['temperature'])


# {file: (loss, the cases of it that are left out)}
GOLDEN = {
  'kd': (_of_logits(_kl), ('c10_total', 'c100_total')),
  'dist': (
    _of_logits(
      lambda settings: dist.dist(
        beta=settings.get('beta', 1.0),
        gamma=settings.get('gamma', 1.0),
        temperature=settings.get('tau', 1.0),
      )
    ),
    ('seg_default',),  # Its columns go over the pixels of all images.
  ),
  'logit_std': (_logit_std, ()),
  # The other assignment of the two weights.
  'bdkd_unverified': (
    _of_logits(_bd_kd),
    ('c10_nu2_T1_swapped', 'c100_nu2_T1_swapped'),
  ),
  'rkd': (_rkd_cases, ()),
  'sp': (_of_states(lambda _: sp.sp()), ('weighted',)),
  'pkt': (_of_states(lambda _: pkt.pkt()), ()),
  'at': (_at, ()),
  'vkd': (_vkd, ('matrix_exp',)),
  # A connector of another method, with batch normalisation.
  'srrl': (_srrl, ('simkd_repo_connector',)),
}


def _cases():
  for name, (_, left_out) in GOLDEN.items():
    file = FOLDER / f'{name}.npz'
    if not file.is_file():
      yield pytest.param(name, '', marks=needs_golden)
      continue
    with np.load(file) as golden:
      cases = dict.fromkeys(key.split('/')[0] for key in golden.files)
    assert set(left_out) < set(cases)
    for case in cases:
      if case != 'in' and case not in left_out:
        yield pytest.param(name, case, id=f'{name}-{case}')


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize(('name', 'case'), [*_cases()])
def test_loss_and_gradient_are_those_of_the_authors(name, case, dtype):
  loss_of, _ = GOLDEN[name]
  with (
    np.load(FOLDER / f'{name}.npz') as golden,
    jax.enable_x64(dtype == 'float64'),
  ):
    given = {
      key.removeprefix('in/'): jnp.asarray(
        golden[key], dtype if golden[key].dtype.kind == 'f' else None
      )
      for key in golden.files
      if key.startswith('in/')
    }
    hp, grad = f'{case}/hp/', f'{case}/grad64/'
    settings = {
      key.removeprefix(hp): float(golden[key])
      for key in golden.files
      if key.startswith(hp)
    }
    wanted = {
      key.removeprefix(grad): golden[key]
      for key in golden.files
      if key.startswith(grad)
    }
    loss, gradients = jax.value_and_grad(
      lambda own: loss_of(given | own, settings, case)
    )({key: given[key] for key in wanted})
    limit = 1e-5 if dtype == 'float32' else 1e-9
    np.testing.assert_allclose(loss, golden[f'{case}/loss64'], rtol=limit)
    for key, want in wanted.items():
      assert gradients[key].dtype == dtype
      error = np.abs(np.asarray(gradients[key], np.float64) - want).max()
      assert error <= limit * np.abs(want).max(), key


_RELATIONS = {
  'dist': dist.dist(beta=1.0, gamma=2.0, temperature=1.0),
  'rkd': rkd.rkd(distance=1.0, angle=2.0),
  'sp': sp.sp(),
  'pkt': pkt.pkt(),
}


def _random(n, seed=0):
  rng = np.random.default_rng(seed)
  return [
    jnp.asarray(rng.normal(size=(n, width)), jnp.float32) for width in (5, 5)
  ]


@pytest.mark.parametrize('name', _RELATIONS)
def test_padding_is_as_if_it_were_not_there(name):
  method = _RELATIONS[name]
  student, teacher = _random(6)
  mask = jnp.array([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
  real = np.flatnonzero(mask)

  def cost(student, teacher, mask):
    return _mean_cost(method, _lesson(student, teacher, states=True, mask=mask))

  value, gradient = jax.value_and_grad(cost)(student, teacher, mask)
  expected, its = jax.value_and_grad(cost)(
    student[real], teacher[real], jnp.ones(len(real))
  )
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient[real], its, rtol=1e-4, atol=1e-6)
  assert not gradient[np.flatnonzero(mask == 0)].any()


@pytest.mark.parametrize('name', _RELATIONS)
def test_devices_compare_the_examples_of_all(name):
  """As one device does, also where one of them has padding alone."""
  method = _RELATIONS[name]
  student, teacher = _random(8)
  mask = jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
  weights = jnp.eye(5)  # Of a layer: most of the methods ignore a scale.
  expected = jax.grad(
    lambda w: _mean_cost(
      method, _lesson(student @ w, teacher, states=True, mask=mask)
    )
  )(weights)

  def part(student, teacher, mask):
    def own(w):
      lesson = _lesson(student @ w, teacher, states=True, mask=mask)
      cost, _ = method.loss({}, lesson._replace(axis_name='devices'))
      return jnp.sum(cost * mask) / jax.lax.psum(mask.sum(), 'devices')

    return jax.lax.psum(jax.grad(own)(weights), 'devices')

  parts = [
    each.reshape(4, 2, *each.shape[1:]) for each in (student, teacher, mask)
  ]
  shared = jax.pmap(part, axis_name='devices', devices=jax.devices()[:4])(
    *parts
  )
  assert np.abs(expected).max() > 1e-3
  for each in shared:
    np.testing.assert_allclose(each, expected, rtol=1e-4, atol=1e-6)


def test_alike_rows_have_a_finite_gradient():
  """Distances of 0, and a class that no example expects."""
  student, teacher = _random(4)
  student = student.at[1].set(student[0])
  for name, method in _RELATIONS.items():
    for given in (
      student,
      jnp.zeros_like(student),
      student.at[:, 0].set(-300.0),
    ):
      gradient = jax.grad(
        lambda s, m=method: _mean_cost(m, _lesson(s, teacher, states=True))
      )(given)
      assert np.isfinite(gradient).all(), name


@pytest.mark.parametrize('shape', [(7, 4), (4, 7), (5, 5)])
def test_a_projection_is_orthogonal(shape):
  free = jax.random.normal(jax.random.key(0), shape)
  p = vkd.orthogonal(free)
  assert p.shape == shape
  gram = p.T @ p if shape[0] >= shape[1] else p @ p.T
  np.testing.assert_allclose(gram, np.eye(min(shape)), atol=1e-5)
  # The signs of columns are those of `free`, so that no column can turn around.
  if shape[0] >= shape[1]:
    assert (np.diagonal(p.T @ free) > 0).all()
  np.testing.assert_allclose(vkd.orthogonal(p), p, atol=1e-5)
  np.testing.assert_allclose(vkd.orthogonal(free * 1.001), p, atol=1e-5)


def test_maps_need_tokens():
  lesson = _lesson(*_random(3), states=True)
  with pytest.raises(errors.ConfigError, match='no tokens'):
    at.at(power=2).init(jax.random.key(0), lesson)
