"""Training gives the same result on one device or many, by pmap or mesh."""

import pathlib

import conftest
import jax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax import data
from td_jax import errors
from td_jax import methods
from td_jax import types
from td_jax.data import feed
from td_jax.devices import parallel as parallel_lib
from td_jax.methods import base
from td_jax.run import pipeline
from td_jax.run import plan
from td_jax.run import saved
from td_jax.training import evaluate
from td_jax.training import metrics
from td_jax.training import scan

# A program takes seconds to compile, so only one method runs on two devices, and
# with two seeds. The others have its term too.
CASES = [
  (method, kind, 2 if method == 'scratch' else 8)
  for method in ('scratch', 'td', 'hybrid')
  for kind in ('pmap', 'mesh')
]


pytestmark = [
  pytest.mark.usefixtures('small_movielens'),
  pytest.mark.long,  # `.ci/run` runs it on one Python.
]


@pytest.fixture(scope='module')
def teacher(tmp_path_factory, small_movielens):
  """The folder of a teacher."""
  path = tmp_path_factory.mktemp('teacher')
  config = _config('teacher', 'single', 1)
  pipeline.run(config, path, watch=conftest.Watch(), log=types.no_log)
  return str(path)


def _config(method, kind, devices, **overrides):
  """A config without noise and with plain SGD.

  Only the order of sums over devices can then change the result.
  """
  config = conftest.small_config(
    f'method={method}',
    **{
      'parallel.kind': kind,
      'parallel.devices': devices,
      'seeds': 2 if method == 'scratch' else 1,
      'model.dropout': 0.0,
      'model.unknown_rate': 0.0,
      'optim.name': 'sgd',
      'optim.learning_rate': 0.02,
      'optim.warmup': 0,
    }
    | overrides,
  )
  config.distill.hidden, config.distill.message = 6, 5
  if method == 'hybrid':
    # The labelled half of a batch lies on half of the devices.
    config.data.labels.share, config.data.unlabelled.source = 0.5, 'rest'
  return config


def _hide(fixed, ids, rows):
  """`fixed` with mask 0 for the examples at positions `rows` of each batch."""
  variables, examples = fixed
  mask = np.array(examples.mask)
  mask[ids[:, :, rows].ravel()] = 0
  new = jax.device_put(mask, examples.mask.sharding)
  return variables, examples._replace(mask=new)


def _train(config, steps=4, rows=None):
  """(state, metrics) after `steps`, in two dispatches."""
  run, fixed, state, ids, *_ = pipeline.prepare(config)
  if rows is not None:
    fixed = _hide(fixed, ids(0, steps), rows)
  half = steps // 2
  state, first = run(state, fixed, ids(0, half))
  state, last = run(state, fixed, ids(half, steps))
  measured = jax.tree.map(
    lambda *parts: np.concatenate(parts), *jax.device_get((first, last))
  )
  return jax.device_get(state), measured


# The first mask hides 8 of 16 examples: all those of one device of two, or of
# four devices of eight. The second leaves a different number on each device.
MASKS = [list(range(8)), [0, 1, 2, 4, 9, 10]]


@pytest.fixture(scope='module')
def single(teacher):
  """For each method, the results of one device for each mask."""
  results = {}

  def get(method):
    if method not in results:
      config = _config(method, 'single', 1, **{'teacher.checkpoint': teacher})
      results[method] = [_train(config, rows=rows) for rows in (None, *MASKS)]
    return results[method]

  return get


@pytest.mark.parametrize(('method', 'kind', 'devices'), CASES)
def test_many_devices_train_like_one(teacher, single, method, kind, devices):
  config = _config(method, kind, devices, **{'teacher.checkpoint': teacher})
  assert config.batch_size == 16
  run, fixed, start, ids, *_ = pipeline.prepare(config)
  start = jax.device_get(start)
  for rows, (state, measured) in zip(
    (None, *MASKS), single(method), strict=True
  ):
    given = fixed if rows is None else _hide(fixed, ids(0, 4), rows)
    first = jax.device_put(start)
    ours, early = run(first, given, ids(0, 2))
    ours, late = run(ours, given, ids(2, 4))
    for name, values in measured.items():
      if name.endswith('spread') and kind == 'pmap':
        continue  # Under pmap it is computed within each device's examples.
      got = np.concatenate([jax.device_get(early[name]), late[name]])
      np.testing.assert_allclose(got, values, rtol=2e-5, atol=1e-6)
    _assert_close(ours.params, state.params)
    _assert_close(ours.opt_state, state.opt_state, rtol=1e-4, atol=1e-4)
    moved = [
      np.abs(np.asarray(new) - old).max()
      for new, old in zip(
        jax.tree.leaves(ours.params), jax.tree.leaves(start.params), strict=True
      )
    ]
    assert max(moved) > 1e-3  # At least a hundred tolerances.


def _assert_close(ours, theirs, rtol=1e-5, atol=1e-5):
  for (path, mine), other in zip(
    jax.tree_util.tree_flatten_with_path(jax.device_get(ours))[0],
    jax.tree.leaves(theirs),
    strict=True,
  ):
    np.testing.assert_allclose(
      mine, other, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path)
    )


def test_masks_matter(single):
  """Without this the test above would compare equal runs."""
  losses = [measured['loss'] for _, measured in single('scratch')]
  assert np.abs(losses[0] - losses[1]).max() > 1e-2
  assert np.abs(losses[1] - losses[2]).max() > 1e-2


def test_a_mesh_draws_the_same_noise_as_one_device():
  noisy = {'model.dropout': 0.3, 'model.unknown_rate': 0.3}
  theirs, measured = _train(_config('scratch', 'single', 1, **noisy))
  ours, got = _train(_config('scratch', 'mesh', 8, **noisy))
  np.testing.assert_allclose(got['loss'], measured['loss'], rtol=2e-5)
  _assert_close(ours.params, theirs.params)


def _noise_method():
  """A method whose cost is one random number for each device.

  It also reports the square.
  """

  def loss(lesson):
    drawn = jax.random.uniform(lesson.rng) + 0 * lesson.student.output
    return drawn, {'square': drawn**2}

  return base.stateless(loss)


@pytest.mark.parametrize(('kind', 'devices'), [('single', 1), ('pmap', 8)])
def test_every_device_draws_its_own_noise(monkeypatch, kind, devices):
  monkeypatch.setattr(
    methods, 'build', lambda *a, **k: base.combine(u=(1.0, _noise_method()))
  )
  _, measured = _train(_config('scratch', kind, devices))
  spread = measured['u/square'] - measured['u'] ** 2  # [steps, seeds]
  if kind == 'pmap':
    # The variance of 8 uniform numbers is about 0.08; of equal ones it is 0.
    assert spread.min() > 0.01
    assert 0.3 < measured['u'].mean() < 0.7
  else:  # One program draws one number.
    np.testing.assert_allclose(spread, 0, atol=1e-6)
  # A new number at each of 4 steps, for each of 2 seeds.
  assert len(np.unique(measured['u'])) == 8


@pytest.mark.parametrize(
  ('kind', 'devices'), [('single', 1), ('pmap', 8), ('mesh', 8)]
)
def test_dispatches(monkeypatch, kind, devices):
  """The state is replicated and donated, and the program compiled once."""
  traces = []
  compiled = []
  inner = scan.train

  def counted(*args, **kwargs):
    traces.append(1)
    return inner(*args, **kwargs)

  def listen(event, duration, **kwargs):
    if event.endswith('backend_compile_duration'):
      compiled.append(kwargs)

  monkeypatch.setattr(scan, 'train', counted)
  run, fixed, state, ids, *_ = pipeline.prepare(
    _config('scratch', kind, devices)
  )
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    for step in range(0, 6, 2):
      before, shapes = state, jax.tree.map(jnp.shape, state)
      state, measured = run(state, fixed, ids(step, step + 2))
      assert jax.tree.map(jnp.shape, state) == shapes
      assert measured['loss'].shape == (2, 2)  # [steps, seeds]
      for leaf in jax.tree.leaves((state, measured)):
        assert leaf.sharding.is_fully_replicated
        assert len(leaf.sharding.device_set) == devices
      if kind != 'pmap':  # pmap does not delete what it is given.
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
      if step == 0:
        first = len(compiled)
        assert first >= 1
    assert len(traces) == 1
    assert len(compiled) == first
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(fixed))
  assert int(state.step[0]) == 6


@pytest.mark.parametrize('kind', ['pmap', 'mesh', 'auto'])
@pytest.mark.parametrize(
  ('devices', 'batch', 'message'),
  [
    (3, 16, r'batch_size is 16, which 3 devices .* multiple of 3'),
    (0, 12, r'batch_size is 12, which 8 devices .* multiple of 8'),
    (9, 18, r'devices is 9; there are 8 cpu devices'),
    (-1, 16, r'devices is -1; '),
  ],
)
def test_impossible_devices(kind, devices, batch, message):
  with pytest.raises(errors.ConfigError, match=message) as e:
    plan.make(
      conftest.small_config(
        **{
          'parallel.kind': kind,
          'parallel.devices': devices,
          'batch_size': batch,
        }
      ),
      pathlib.Path('unused'),
    )
  assert e.value.exit_code == 2
  assert '\n' not in str(e.value)


def test_kinds():
  def kind(name, devices):
    parallel = parallel_lib.Parallel(name, devices)
    return parallel.kind, parallel.count

  assert kind('auto', 1) == ('single', 1)
  assert kind('auto', 0) == ('pmap', 8)
  assert kind('single', 0) == ('single', 1)
  assert kind('mesh', 4) == ('mesh', 4)
  with pytest.raises(errors.ConfigError, match="mean 'mesh'"):
    kind('mash', 1)


@pytest.mark.parametrize(
  ('kind', 'devices'), [('pmap', 4), ('pmap', 8), ('mesh', 4), ('mesh', 8)]
)
def test_evaluation_on_any_number_of_devices(teacher, kind, devices):
  config = _config('teacher', 'single', 1)
  task = data.load(config, log=types.no_log)
  run = saved.load(pathlib.Path(teacher), task)
  assert len(task.test.mask) % devices
  scores = [
    evaluate.scorer(
      feed.feed(task.test, task.make_batch),
      model=run.model,
      metric=metrics.METRICS['rmse'],
      parallel=parallel_lib.Parallel(*how),
      batch=16,
    )(run.variables)
    for how in (('single', 1), (kind, devices))
  ]
  np.testing.assert_allclose(scores[1], scores[0], rtol=1e-6)


def test_a_cached_teacher_gives_the_same_result(teacher):
  runs = [
    _train(
      _config(
        'hybrid',
        'single',
        1,
        **{'teacher.checkpoint': teacher, 'teacher.cache': cache},
      )
    )
    for cache in (True, False)
  ]
  (cached, expected), (fresh, measured) = runs
  for name in expected:
    np.testing.assert_allclose(
      expected[name], measured[name], rtol=2e-5, atol=1e-6
    )
  _assert_close(cached.params, fresh.params)
