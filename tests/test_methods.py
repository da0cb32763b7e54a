"""The contract of every method, on made-up ratings and made-up classes.

A method that is added to `METHODS` is tested without any edit of this file, on
each task that its needs allow.

Each case is compiled once, as training compiles it: two seeds side by side, one
step per dispatch, and the optimizer. The examples are an argument of that
program, so tests can change them and their mask without compiling again. The
state of the optimizer contains the last gradient.
"""

import functools
from typing import Any
from typing import NamedTuple
import zlib

import conftest
from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import optax
import pytest

from td_jax import errors
from td_jax import methods
from td_jax import types
from td_jax.configs import common
from td_jax.configs import movielens as movielens_config
from td_jax.data import feed
from td_jax.data import shuffle
from td_jax.devices import parallel as parallel_lib
from td_jax.models import mlp
from td_jax.models import split
from td_jax.run import config_keys
from td_jax.training import optim
from td_jax.training import scan
from td_jax.training import step as step_lib

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

N, B = 48, 8
SEEDS = 2
CLASSES = 4
LEARN_STEPS = 240
_SIZES = {'users': 7, 'movies': 6, 'words': 5, 'id_width': 3, 'bag_width': 2}


class _Classifier(split.Network):
  """A small network of logits, with the inputs of the recommender."""

  hidden: tuple[int, int]
  dropout: float
  tokens: tuple[int, ...] = ()  # As in the shape of a state.

  def setup(self):
    first, second = self.hidden
    self.first = nn.DenseGeneral((*self.tokens, first))
    self.second = nn.Dense(second)
    self.head = nn.Dense(CLASSES)
    self.drop = nn.Dropout(self.dropout)

  def low(self, x, *, train):
    features = jnp.concatenate(
      [
        jax.nn.one_hot(x['user'], _SIZES['users']),
        jax.nn.one_hot(x['movie'], _SIZES['movies']),
        x['genres'],
      ],
      axis=-1,
    )
    return nn.relu(self.first(features))

  def interpret(self, low, *, train):
    return nn.relu(self.second(self.drop(low, deterministic=not train)))

  def output(self, high, *, train):
    return self.head(high.reshape(len(high), -1))


def _recommender(hidden, *, dropout=0.0, unknown_rate=0.0, mean=0.0):
  return mlp.MLP(
    hidden=hidden,
    split=(1, 2),
    dropout=dropout,
    unknown_rate=unknown_rate,
    mean=mean,
    **_SIZES,
  )


class Task(NamedTuple):
  loss: str
  teacher: Any
  student: Any  # config -> network


TASKS = {
  'ratings': Task(
    'squared_error',
    _recommender((9, 8), mean=3.0),
    lambda config: _recommender(
      (7, 6),
      dropout=config.model.dropout,
      unknown_rate=config.model.unknown_rate,
    ),
  ),
  'classes': Task(
    'cross_entropy',
    _Classifier((9, 8), 0.0),
    lambda config: _Classifier((7, 6), config.model.dropout),
  ),
  'tokens': Task(
    'cross_entropy',
    _Classifier((9, 8), 0.0, (4,)),
    lambda config: _Classifier((7, 6), config.model.dropout, (4,)),
  ),
}
TEACHER = TASKS['ratings'].teacher
# Each weight of the config has another value, its default times 0.5 to 2, so that a
# test notices if two are exchanged. It depends on the weight's name alone: a method
# that is added does not change the cases of the others.
WEIGHTS = {
  name: default * (0.5 + 1.5 * zlib.crc32(name.encode()) / 2**32)
  for name, default in common.distill().weights.items()
}


def _weighted(metrics):
  """{weight: the metric that it multiplies}, for the weights that are on."""
  return {
    weight: values
    for weight in WEIGHTS
    for name, values in metrics.items()
    # A term of the method, such as 'logit', or a part of one: 'talk/state'.
    if name == weight or name.endswith(f'/{weight}')
  }


class Case(NamedTuple):
  method: str
  changes: dict[str, Any]
  task: str = 'ratings'


def _allows(task, method):
  """Whether a method can run on a task, by its needs."""
  config = movielens_config.get_config(f'method={method}')
  needs = methods.needs(config, task_loss=TASKS[task].loss)
  if task == 'tokens':  # Those that need tokens, and what they add to.
    return methods.Need.SEVERAL_TOKENS in needs or not needs
  if methods.Need.SEVERAL_TOKENS in needs:
    return False
  if task == 'ratings':
    return methods.Need.CLASS_LABELS not in needs
  return task == 'classes'


_RICH = {
  'k': 3,
  'distill.interact_target': 'original',
  'distill.noise': 0.1,
  'distill.dropout': 0.1,
  'distill.unroll': False,
  'model.dropout': 0.1,
  'model.unknown_rate': 0.1,
}
# With the weight of DKD's other classes the task would need more steps to be learnt.
_MILD = {'logit_std_dkd': {'distill.dkd_beta': 1.0}}
METHOD_CASES = {
  (name if task == 'ratings' else f'{name}, {task}'): Case(
    name, _MILD.get(name, {}), task
  )
  for name in methods.METHODS
  for task in TASKS
  if _allows(task, name)
}
CASES = METHOD_CASES | {
  'fd, teacher': Case('fd', {'distill.feature_target': 'teacher'}),
  'fitnet, original': Case('fitnet', {'distill.hint_direction': 'original'}),
  'td, k=0': Case('td', {'k': 0}),
  'td, standardised': Case('td', {'distill.states': 'standardised', 'k': 2}),
  'td, held': Case('td', {'distill.interact_teaches': 'student'}),
  'ask, inputs': Case('ask', {'distill.questions': 'inputs'}),
  'td, low': Case('td', {'distill.student_encodes': 'low'}),
  'td, rich': Case('td', _RICH),
}
EVERY = pytest.mark.parametrize('case', CASES)


class _Program(NamedTuple):
  method: Any
  parts: dict[str, Any]
  run: Any  # The program: (state, fixed, rows) -> (state, metrics).
  parallel: Any
  step: Any  # (state, examples, ids [seeds, b]) -> (state, metrics [seeds])
  task: str


def _config(**changes):
  config = movielens_config.get_config()
  config.distill.hidden, config.distill.message = 8, 5
  config.optim.update(
    {
      'learning_rate': 0.02,
      'warmup': 0,
      'decay': 'constant',
      'weight_decay': 0.1,
    }
  )
  config.distill.weights.update(WEIGHTS)
  config.model.dropout = config.model.unknown_rate = 0.0
  config.update_from_flattened_dict(changes)
  return config


@functools.cache
def _examples(task='ratings'):
  rng = np.random.default_rng(0)

  def x():
    genres = rng.random((N, 4)).astype(np.float32)
    return {
      'user': rng.integers(0, 7, N),
      'movie': rng.integers(0, 6, N),
      'title': rng.integers(0, 5, (N, 3)),
      'genres': genres / genres.sum(axis=1, keepdims=True),
    }

  seen = x()
  y = 2.0 + (seen['user'] % 3) + 0.5 * seen['movie'] / 5
  y = y.astype(np.float32)
  other = seen | {'user': (seen['user'] + 1) % 7}
  if task != 'ratings':
    # Labels are the classes that the teacher predicts. Otherwise the minimum of
    # a term that follows the teacher is not a minimum of the task's loss, and
    # the two cannot both fall.
    variables = _teacher(task)['teacher']
    logits = TASKS[task].teacher.apply(variables, other, train=False)[-1]
    y = np.asarray(logits).argmax(axis=1).astype(np.int32)
  return types.Batch(
    x=seen,
    y=y,
    mask=np.ones(N, np.float32),
    teacher_x={'teacher': other},
  )


@functools.cache
def _teacher(task='ratings'):
  x = _examples().input_of('teacher')
  network = TASKS[task].teacher
  variables = network.init(
    jax.random.key(9), jax.tree.map(lambda leaf: leaf[:1], x), train=False
  )
  if task != 'ratings':
    # Standardised logits, so that it predicts all classes, some with confidence.
    logits = network.apply(variables, x, train=False)[-1]
    scale = 3 / logits.std(axis=0)
    head = variables['params']['head']
    head['kernel'] = head['kernel'] * scale[None]
    head['bias'] = -scale * logits.mean(axis=0)
  return {'teacher': jax.device_get(variables)}


def _teacher_sides(task, needs, variables, batch):
  if not needs:
    return {}  # As in a run: a method that declares no teacher sees none.
  x = batch.input_of('teacher')
  return {'teacher': split.side(TASKS[task].teacher, variables['teacher'], x)}


def _spy():
  """Stores the gradient as its state and passes it on."""
  return optax.GradientTransformation(
    init=lambda params: jax.tree.map(jnp.zeros_like, params),
    update=lambda grads, state, params: (grads, grads),
  )


def _parts(name, config, task='ratings'):
  rule = optim.build(config.optim, steps=config.steps, stages=config.stages)
  method = methods.build(
    name,
    config=config,
    task_loss=TASKS[task].loss,
    start=config.stages[0],
  )
  return {
    'model': TASKS[task].student(config),
    'method': method,
    'optimizer': optax.chain(_spy(), rule),
    'teacher_sides': functools.partial(_teacher_sides, task, method.needs),
  }


def _make(name, task='ratings', **changes):
  parts = _parts(name, _config(**changes), task)
  parallel = parallel_lib.Parallel('single', 1)
  run = parallel.compile(
    functools.partial(
      scan.train,
      step=functools.partial(step_lib.train_step, **parts),
      make_batch=feed.take,
    ),
    axis=2,
    updates=True,
  )

  def step(state, examples, ids):
    # A copy, because the program reuses the memory of the state it receives.
    state, fixed = parallel.replicate(
      (jax.device_get(state), (_teacher(task), examples))
    )
    state, metrics = run(state, fixed, np.asarray(ids)[None])
    metrics = {name: value[0] for name, value in metrics.items()}
    return jax.device_get((state, metrics))

  return _Program(parts['method'], parts, run, parallel, step, task)


@functools.cache
def _program(case):
  name, changes, task = CASES[case]
  return _make(name, task, **changes)


def _shapes(parts):
  task = parts['teacher_sides'].args[0]
  return jax.eval_shape(
    functools.partial(step_lib.init, **parts),
    jnp.int32(0),
    _examples(task).take(jnp.arange(1)),
    _teacher(task),
  )


def _state(parts):
  """The states of two seeds, from NumPy, so that nothing is compiled."""
  made = _shapes(parts)
  rng = np.random.default_rng(3)

  def draw(path, leaf):
    values = rng.normal(size=(SEEDS, *leaf.shape)).astype(np.float32)
    name = jax.tree_util.keystr(path)
    if len(leaf.shape) > 1 and 'mean' not in name:
      return values / np.sqrt(leaf.shape[0]).astype(np.float32)
    return 0.1 * values + ('scale' in name)

  # The student is drawn first, so that it is the same for every method.
  student = jax.tree_util.tree_map_with_path(draw, made.params['student'])
  method = jax.tree_util.tree_map_with_path(draw, made.params['method'])
  state = jax.tree.map(
    lambda leaf: np.zeros((SEEDS, *leaf.shape), leaf.dtype), made
  )
  return state._replace(
    rng=np.arange(2 * SEEDS, dtype=np.uint32).reshape(SEEDS, 2),
    params={'student': student, 'method': method},
  )


def _alone(tree):
  """The first seed's leaves: one seed compiles in half the time of two."""
  return jax.tree.map(lambda leaf: leaf[:1], tree)


def _ids(start=0, stop=1):
  """[steps, seeds, b]"""
  read = functools.partial(shuffle.batches, examples=N, batch_size=B)
  rows = [read(seed=seed, start=start, stop=stop) for seed in range(SEEDS)]
  return np.stack(rows, axis=1)


def _gradient(state):
  return state.opt_state[0]


@functools.cache
def _first(case):
  """(state before, state after, metrics) of the first step."""
  made = _program(case)
  before = _state(made.parts)
  return before, *made.step(before, _examples(made.task), _ids()[0])


_compilations = []
jax.monitoring.register_event_duration_secs_listener(
  lambda event, seconds, **_: (
    _compilations.append(event)
    if event == '/jax/core/compile/backend_compile_duration'
    else None
  )
)


@EVERY
def test_costs_are_one_float32_per_example(case):
  made = _program(case)
  parts = made.parts

  def loss(params, batch, teachers):
    lesson = methods.base.Lesson(
      student=split.side(parts['model'], params['student'], batch.x),
      teachers=parts['teacher_sides'](teachers, batch),
      batch=batch,
      step=jnp.int32(0),
      rng=jax.random.key(0),
    )
    return parts['method'].loss(params['method'], lesson)

  batch = _examples(made.task).take(jnp.arange(B))
  batch = jax.tree.map(jnp.asarray, batch)
  cost, terms = jax.eval_shape(
    loss, _shapes(parts).params, batch, _teacher(made.task)
  )
  for value in (cost, *terms.values()):
    assert (value.shape, value.dtype) == ((B,), jnp.float32)
  name = CASES[case].method
  assert {'task', *methods.METHODS[name]} <= terms.keys()


@pytest.mark.parametrize('case', METHOD_CASES)
def test_examples_without_labels(case):
  """Terms that need labels average over labelled examples, others over all."""
  parts = _program(case).parts
  task = CASES[case].task
  state = jax.tree.map(lambda leaf: leaf[0], _state(parts))
  labelled = np.array([1, 0, 0, 1, 1, 0, 0, 1], np.float32)
  masked = np.array([1, 1, 1, 1, 0, 0, 1, 1], np.float32)
  batch = _examples(task).take(np.arange(B))
  batch = batch._replace(labelled=labelled, mask=masked)

  step = jax.jit(functools.partial(step_lib.train_step, **parts))

  def run(batch):
    return step(state, batch, _teacher(task))

  after, metrics = run(batch)
  # Whatever stands in place of a missing label, nothing changes.
  y = np.where(labelled == 1, batch.y, 3 - batch.y).astype(batch.y.dtype)
  again = run(batch._replace(y=y))
  jax.tree.map(np.testing.assert_array_equal, (after, metrics), again)
  # A mask that leaves only labelled examples gives their mean.
  only, everything = (
    run(batch._replace(labelled=np.ones(B, np.float32), mask=mask))[1]
    for mask in (masked * labelled, masked)
  )
  name = CASES[case].method
  found = {'task': parts['method']} | {
    term: method
    for term, (_, method) in methods._terms(name, _config()).items()
  }
  for term, method in found.items():
    needs = methods.Need.LABELS in method.needs or term == 'task'
    for metric, value in metrics.items():
      if metric == term or metric.startswith(f'{term}/'):
        expected = (only if needs else everything)[metric]
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


@EVERY
def test_loss_is_the_weighted_sum_of_the_terms(case):
  _, _, metrics = _first(case)
  assert all(np.isfinite(value).all() for value in metrics.values())
  weighted = _weighted(metrics)
  assert bool(weighted) == bool(methods.METHODS[CASES[case].method])
  expected = metrics['task'] + sum(
    WEIGHTS[weight] * values for weight, values in weighted.items()
  )
  np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
  terms = list(weighted.values())
  if 'k=0' in case:
    assert np.all(metrics['talk/interact'] == 0)
    terms = [metrics['talk/message'], metrics['talk/state']]
  assert np.all(np.array([metrics['task'], *terms]) > 0)


@EVERY
def test_gradients_are_finite_and_reach_all_of_the_student(case):
  _, after, metrics = _first(case)
  grads = _gradient(after)
  for path, leaf in jax.tree_util.tree_leaves_with_path(grads['student']):
    assert np.isfinite(leaf).all(), path
    for seed in leaf:
      assert np.abs(seed).max() > 1e-7, path
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
  squares = sum(
    np.square(leaf.astype(np.float64)).reshape(SEEDS, -1).sum(axis=1)
    for leaf in jax.tree.leaves(grads)
  )
  np.testing.assert_allclose(metrics['grad_norm'], np.sqrt(squares), rtol=1e-5)


@EVERY
def test_learns_with_one_compilation_and_a_fixed_teacher(case):
  made = _program(case)
  state, examples = _state(made.parts), _examples(made.task)
  frozen = jax.tree.map(np.array, _teacher(made.task))
  _first(case)  # Compiles the program, unless another test has.
  compiled = len(_compilations)
  rows = []
  state, fixed = made.parallel.replicate((state, (frozen, examples)))
  # Long enough for classes: at first the terms of a method, which are larger,
  # outweigh cross-entropy.
  for ids in _ids(0, LEARN_STEPS):
    state, metrics = made.run(state, fixed, np.asarray(ids)[None])
    rows.append({name: value[0] for name, value in metrics.items()})
  rows = jax.device_get(rows)
  assert len(_compilations) == compiled
  jax.tree.map(np.testing.assert_array_equal, fixed[0], frozen)
  assert np.all(state.step == LEARN_STEPS)
  names = ['loss', 'task', *methods.METHODS[CASES[case].method]]
  for name in names:
    values = np.array([row[name] for row in rows])  # [steps, seeds]
    early, late = values[:6].mean(axis=0), values[-6:].mean(axis=0)
    assert np.all(late < 0.7 * early), (name, early, late)


@EVERY
def test_masked_rows_have_no_influence(case):
  made = _program(case)
  state, ids = _state(made.parts), _ids()[0]
  rng = np.random.default_rng(8)
  hidden = rng.permutation(N)[: N // 3]
  assert all(0 < np.isin(row, hidden).sum() < B for row in ids)
  clean = _examples(made.task)
  clean = clean._replace(mask=np.where(np.isin(np.arange(N), hidden), 0, 1.0))
  clean = clean._replace(mask=clean.mask.astype(np.float32))

  def spoilt(values):
    values = values.copy()
    if values.dtype == np.float32:
      values[hidden] = 50 * rng.normal(size=values[hidden].shape)
    else:
      values[hidden] = values[hidden][::-1]
    return values

  garbage = jax.tree.map(spoilt, clean._replace(mask=None))
  garbage = garbage._replace(mask=clean.mask)
  one, metrics = made.step(state, clean, ids)
  two, its_metrics = made.step(state, garbage, ids)
  whole = _first(case)[2]
  assert np.all(metrics['loss'] != whole['loss'])  # They count if unmasked.
  for name, value in metrics.items():
    if not name.endswith('spread'):
      np.testing.assert_allclose(
        its_metrics[name], value, rtol=1e-5, err_msg=name
      )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6),
    _gradient(one),
    _gradient(two),
  )


def test_classes_are_not_trivial_to_learn():
  """The teacher predicts every class, and none of them most of the time."""
  shares = np.bincount(_examples('classes').y, minlength=CLASSES) / N
  assert shares.min() > 0.1
  assert shares.max() < 0.5


def test_seeds_side_by_side_are_the_seeds_alone():
  made = _program('td, rich')  # The case with noise and dropout.
  alone = jax.jit(functools.partial(step_lib.train_step, **made.parts))
  together, examples = _state(made.parts), _examples()
  apart = [
    jax.tree.map(lambda leaf, seed=seed: leaf[seed], together)
    for seed in range(SEEDS)
  ]
  for ids in _ids(0, 3):
    together, metrics = made.step(together, examples, ids)
    for seed in range(SEEDS):
      batch = examples.take(jnp.asarray(ids[seed]))
      apart[seed], its_metrics = alone(apart[seed], batch, _teacher())
      for name, value in its_metrics.items():
        np.testing.assert_allclose(metrics[name][seed], value, rtol=2e-4)
  for seed in range(SEEDS):
    jax.tree.map(
      lambda a, b, seed=seed: np.testing.assert_allclose(
        a[seed], b, rtol=1e-3, atol=1e-4
      ),
      together.params,
      apart[seed].params,
    )


@pytest.mark.parametrize(
  'case', [case for case in METHOD_CASES if not case.startswith('scratch')]
)
def test_without_weights_a_method_is_scratch(case):
  name, _, task = CASES[case]
  made = _make(
    name, task, **{f'distill.weights.{weight}': 0.0 for weight in WEIGHTS}
  )
  after, metrics = made.step(
    _alone(_state(made.parts)), _examples(task), _alone(_ids()[0])
  )
  _, scratch, its_metrics = _alone(
    _first('scratch' if task == 'ratings' else f'scratch, {task}')
  )
  np.testing.assert_allclose(metrics['loss'], its_metrics['loss'], rtol=1e-6)
  grads = _gradient(after)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
    grads['student'],
    _gradient(scratch)['student'],
  )
  assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(grads['method']))


def test_weights_follow_their_schedules():
  made = _make(
    'td_ld',
    **{
      'k': 0,
      'distill.weights.logit': ((0, 0.0), (10, 1.0)),
      'distill.weights.state': ((0, 0.0), (5, 2.0), (10, 0.0)),
      'distill.weights.message': ((0, 0.0), (20, 4.0)),
      'distill.weights.interact': 0.0,
    },
  )
  start = _alone(_state(made.parts))
  by_hand = {0: (0, 0, 0), 4: (0.4, 1.6, 0.8), 8: (0.8, 0.8, 1.6)}
  by_hand[30] = (1, 0, 4)
  for step, (logit, state, message) in by_hand.items():
    now = start._replace(step=np.full(1, step, np.int32))
    after, metrics = made.step(now, _examples(), _alone(_ids()[0]))
    expected = (
      metrics['task']
      + logit * metrics['logit']
      + state * metrics['talk/state']
      + message * metrics['talk/message']
    )
    np.testing.assert_allclose(metrics['loss'], expected, rtol=1e-5)
    assert 'talk/interact' not in metrics
    if step == 0:
      jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        _gradient(after)['student'],
        _gradient(_alone(_first('scratch')[1]))['student'],
      )


def test_stages():
  """The student alone for 2 steps, the communication alone for 2, then both.

  Section 6.5.
  """
  sgd = {'optim.name': 'sgd', 'optim.learning_rate': 0.05}
  made = _make('td', k=0, stages=(2, 2), **sgd)
  states = [_alone(_state(made.parts))]
  for ids in _ids(0, 5):
    state, metrics = made.step(states[-1], _examples(), _alone(ids))
    states.append(state)
    on = len(states) > 3
    terms = metrics['talk'] if on else 0
    np.testing.assert_allclose(
      metrics['loss'], metrics['task'] + terms, rtol=1e-5
    )

  def moved(group, i):
    pairs = zip(
      jax.tree.leaves(states[i].params[group]),
      jax.tree.leaves(states[i + 1].params[group]),
      strict=True,
    )
    return [bool(np.any(a != b)) for a, b in pairs]

  for i, (student, method) in enumerate(
    [(True, False)] * 2 + [(False, True)] * 2 + [(True, True)]
  ):
    assert set(moved('student', i)) == {student}, i
    assert set(moved('method', i)) == {method}, i
  # In stage 1 the task alone moves the student.
  scratch = _gradient(_alone(_first('scratch')[1]))['student']
  before = states[0].params['student']

  def by_hand(p, g):
    decay = 0.1 * p if p.ndim > 2 else 0  # The first axis is that of seeds.
    return p - 0.05 * (g + decay)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    states[1].params['student'],
    jax.tree.map(by_hand, before, scratch),
  )


def test_init_draws_student_and_method_by_seed():
  parts = _program('td').parts
  batch = _examples().take(jnp.arange(1))
  one, two, again = (
    jax.device_get(_init(parts)(np.int32(seed), batch, _teacher()))
    for seed in (0, 1, 0)
  )
  jax.tree.map(np.testing.assert_array_equal, one, again)
  assert one.params.keys() == {'student', 'method'}
  for a, b in zip(
    jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True
  ):
    assert a.ndim < 2 or np.any(a != b)
  assert np.any(one.rng != two.rng)
  jax.tree.map(
    np.testing.assert_array_equal, one.best.student, one.params['student']
  )
  assert np.isinf(one.best.loss)
  encoders = one.params['method']['talk']
  a, b = (
    encoders[f'{side}_encoder']['params']['Dense_1']['kernel']
    for side in ('student', 'teacher')
  )
  assert np.any(a != b)


@functools.cache
def _jitted_init():
  return jax.jit(functools.partial(step_lib.init, **_program('td').parts))


def _init(parts):
  del parts  # They are those of 'td', which is compiled once.
  return _jitted_init()


def test_every_step_draws_its_own_noise():
  made = _program('td, rich')
  state, ids = _state(made.parts), _ids()[0]
  costs = []
  for step in (0, 1):
    now = state._replace(step=np.full(SEEDS, step, np.int32))
    costs.append(made.step(now, _examples(), ids)[1]['talk/interact_0'])
  assert np.all(costs[0] != costs[1])


def test_a_fixed_teacher_encoder_stays_as_it_was_initialised():
  before, after, _ = _first('fd, teacher')
  jax.tree.map(
    np.testing.assert_array_equal,
    after.params['method']['feature']['fixed'],
    before.params['method']['feature']['fixed'],
  )


def test_interact_of_weight_0_is_not_computed():
  parts = _parts('td', _config(**{'distill.weights.interact': 0.0}))
  state = jax.tree.map(lambda leaf: leaf[0], _state(parts))
  _, metrics = jax.eval_shape(
    functools.partial(step_lib.train_step, **parts),
    state,
    _examples().take(jnp.arange(B)),
    _teacher(),
  )
  assert {'talk/message', 'talk/state'} <= metrics.keys()
  assert not [name for name in metrics if 'interact' in name]


def test_spread_does_not_see_masked_rows():
  made = _program('fd')
  state, ids, clean = _state(made.parts), _ids()[0], _examples()
  mask = np.ones(N, np.float32)
  mask[ids[:, :3]] = 0
  clean = clean._replace(mask=mask)
  genres = clean.teacher_x['teacher']['genres'].copy()
  genres[mask == 0] += 50
  garbage = clean._replace(
    teacher_x={'teacher': clean.teacher_x['teacher'] | {'genres': genres}}
  )
  one, two = (made.step(state, rows, ids)[1] for rows in (clean, garbage))
  np.testing.assert_allclose(
    one['feature/spread'], two['feature/spread'], rtol=1e-5
  )


def test_needs_are_what_a_method_looks_at():
  need = methods.Need
  states = {need.TEACHER, need.TEACHER_STATES, need.SAME_TOKENS}
  expected = {
    'scratch': set(),
    'ld': {need.TEACHER, need.TEACHER_OUTPUT},
    'fd': states,
    'td': states | {need.ROUNDS, need.TEACHER_LAYERS},
    'td_ld': states | {need.ROUNDS, need.TEACHER_LAYERS, need.TEACHER_OUTPUT},
  }
  for name, needs in expected.items():
    assert (
      methods.build(name, config=_config(), task_loss='squared_error').needs
      == needs
    )
  # Without consistency losses the teacher never sees x.
  weights = {'distill.weights.message': 0.0, 'distill.weights.state': 0.0}
  alone = methods.build(
    'td', config=_config(**weights), task_loss='squared_error'
  )
  assert need.TEACHER in alone.needs
  assert need.TEACHER_STATES not in alone.needs
  # A term that is off needs nothing.
  off = methods.build(
    'ld',
    config=_config(**{'distill.weights.logit': 0.0}),
    task_loss='squared_error',
  )
  assert off.needs == set()


def test_methods_for_classes_are_refused_on_ratings():
  refused = _needing(methods.Need.CLASS_LABELS)
  assert 'dkd' in refused
  for name in refused:
    config = movielens_config.get_config(f'method={name}')
    with pytest.raises(errors.ConfigError, match='needs labels that are') as e:
      methods.check(config, task_loss='squared_error')
    assert '\n' not in str(e.value)
    methods.check(config, task_loss='cross_entropy')


@pytest.mark.parametrize('name', methods.METHODS)
def test_a_teacher_without_outputs_is_refused_where_they_are_needed(name):
  config = movielens_config.get_config(f'method={name}')
  config.teacher.head = 'none'
  needs = methods.needs(config, task_loss='cross_entropy')
  if methods.Need.TEACHER_OUTPUT not in needs:
    methods.check(config, task_loss='cross_entropy')
    return
  with pytest.raises(errors.ConfigError, match=r"head is 'none'.*outputs") as e:
    methods.check(config, task_loss='cross_entropy')
  assert '\n' not in str(e.value)


def _lesson(student, teacher):
  """A lesson with states of these (low, high) shapes, without the batch axis."""

  def side(shapes):
    states = types.States(*(jnp.ones((B, *shape)) for shape in shapes))
    return split.Side(states, jnp.ones(B), *[lambda state, key: state] * 2)

  return methods.Lesson(
    student=side(student),
    teachers={'teacher': side(teacher)},
    batch=_examples().take(jnp.arange(B)),
    step=jnp.int32(0),
    rng=jax.random.key(0),
  )


def _needing(*needs):
  """The methods with all of these needs on classes, where all can run."""
  return [
    name
    for name in methods.METHODS
    if set(needs)
    <= methods.needs(
      movielens_config.get_config(f'method={name}'), task_loss='cross_entropy'
    )
  ]


def test_distances_of_distributions_are_refused_on_ratings():
  for name in _needing(methods.Need.TEACHER_OUTPUT):
    if not _allows('ratings', name):
      continue
    config = movielens_config.get_config(f'method={name}')
    methods.check(config, task_loss='squared_error')
    config.distill.logit_distance = 'kl'
    with pytest.raises(errors.ConfigError, match="it must be 'l2'") as e:
      methods.check(config, task_loss='squared_error')
    assert '\n' not in str(e.value)
    methods.check(config, task_loss='cross_entropy')


def test_weights_inside_dkd_are_checked():
  config = movielens_config.get_config('method=dkd')
  config.distill.dkd_beta = -1.0
  with pytest.raises(
    errors.ConfigError, match=r'config\.distill\.dkd_beta is -1'
  ):
    config_keys.check(config)


@pytest.mark.parametrize('name', _needing(methods.Need.SAME_TOKENS))
@pytest.mark.parametrize(
  ('student', 'teacher', 'message'),
  [
    # Another token grid than the teacher's.
    ([(4, 3), (4, 3)], [(9, 5), (9, 5)], 'states have tokens (4,)'),
    # Pooling between the two splits of the student, or of the teacher.
    ([(4, 3), (1, 3)], [(4, 5), (4, 5)], 'low states with tokens (4,)'),
    ([(4, 3), (4, 3)], [(4, 5), (5,)], 'high states with tokens ()'),
    # A convolutional network, whose grid shrinks with depth.
    ([(8, 8, 3), (4, 4, 6)], [(8, 8, 3), (8, 8, 3)], 'tokens (8, 8)'),
  ],
)
def test_states_without_common_tokens_are_one_line(
  name, student, teacher, message
):
  method = methods.build(name, config=_config(), task_loss='cross_entropy')
  with pytest.raises(errors.ConfigError) as e:
    method.init(jax.random.key(0), _lesson(student, teacher))
  assert message in str(e.value)
  assert '\n' not in str(e.value)


@pytest.mark.parametrize(
  ('returned', 'message'),
  [
    (jnp.float32(1), 'must return \\(cost, terms\\)'),
    ((jnp.float32(1), {}), "'bad' with shape \\(\\)"),
    ((jnp.zeros(3), {'part': jnp.zeros(2)}), "'part' with shape \\(2,\\)"),
  ],
)
def test_a_loss_of_the_wrong_form_is_named(returned, message):
  term = methods.base.Method(lambda rng, lesson: {}, lambda p, lesson: returned)
  lesson = conftest.lesson(jnp.zeros(3), jnp.zeros(3), jnp.zeros(3))
  with pytest.raises(errors.ConfigError, match=message):
    methods.base.combine(bad=(1.0, term)).loss({}, lesson)


def test_needs_of_a_teacher_imply_one():
  for need in (methods.Need.TEACHER_OUTPUT, methods.Need.TEACHER_STATES):
    term = methods.base.stateless(lambda lesson: (lesson, {}), needs={need})
    needs = methods.base.combine(term=(1.0, term)).needs
    assert needs == {need, methods.Need.TEACHER}


def test_a_lesson_of_several_teachers_has_no_single_one():
  lesson = _lesson([(3,), (3,)], [(3,), (3,)])
  for teachers, names in (({}, 'none'), ({'a': 1, 'b': 2}, 'a, b')):
    with pytest.raises(errors.ConfigError, match=f'teachers are: {names}'):
      _ = lesson._replace(teachers=teachers).teacher


@pytest.mark.parametrize('case', ['fd', 'td', 'td, low', 'fd, teacher'])
def test_messages_are_those_of_the_loss(case):
  """The messages that a method offers are at the distance of its own term."""
  made = _program(case)
  before, _, metrics = _first(case)
  batch = _examples().take(jnp.asarray(_ids()[0][0]))
  params = jax.tree.map(lambda leaf: leaf[0], before.params)
  lesson = methods.Lesson(
    student=split.side(made.parts['model'], params['student'], batch.x),
    teachers=made.parts['teacher_sides'](_teacher(), batch),
    batch=batch,
    step=jnp.int32(0),
    rng=jax.random.key(0),
  )
  ours, theirs = made.method.messages(params['method'], lesson)
  name = 'feature' if case.startswith('fd') else 'talk/message'
  expected = np.mean(np.square(ours - theirs))
  np.testing.assert_allclose(metrics[name][0], expected, rtol=1e-5)


def test_methods_without_messages():
  for name in ('scratch', 'ld', 'fitnet'):
    method = methods.build(name, config=_config(), task_loss='squared_error')
    assert method.messages is None
