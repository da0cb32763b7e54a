"""The cost of a compiled step, with CPU devices in the place of TPUs."""

import functools
import importlib.util
import json

import conftest
import jax
from jax import lax
from jax import numpy as jnp
import numpy as np
import optax
import pytest
import test_topology

from td_jax import data
from td_jax import errors
from td_jax import methods
from td_jax import models
from td_jax.devices import sharding
from td_jax.models import split
from td_jax.tpu_cost import chips
from td_jax.tpu_cost import cost_table
from td_jax.tpu_cost import step_cost
from td_jax.tpu_cost import topology
from td_jax.training import step as step_lib

P = jax.sharding.PartitionSpec
CHIP = chips.CHIPS['v4']


def _topology():
  """8 CPU devices that pose as a v4:2x2x2."""
  return topology.Topology('v4:2x2x2', CHIP, (2, 2, 2), jax.devices())


def _mesh(devices):
  return jax.sharding.Mesh(np.asarray(devices).reshape(-1, 2), ('data', 'fsdp'))


def _arg(mesh, shape, *spec):
  named = jax.sharding.NamedSharding(mesh, P(*spec))
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=named)


def _loss(kernels, x):
  body = jax.checkpoint(lambda x, kernel: jnp.tanh(x @ kernel))
  x, _ = lax.scan(lambda x, k: (body(x, k), None), x, kernels)
  return jnp.mean(x**2)


def _step(kernels, x):
  grads = jax.grad(_loss)(kernels, x)
  return jax.tree.map(lambda old, grad: old - 0.1 * grad, kernels, grads)


LAYERS, WIDTH, BATCH = 6, 256, 64


def _report(step=None, **options):
  mesh = _mesh(jax.devices())
  kernels = _arg(mesh, (LAYERS, WIDTH, WIDTH), None, 'fsdp')
  x = _arg(mesh, (BATCH, WIDTH), ('data', 'fsdp'))
  given = {'steps': 1000, 'mfu': 0.001} | options
  return step_cost.report(
    step or jax.jit(_step, donate_argnums=0),
    (kernels, x),
    topology=_topology(),
    parameters=kernels,
    **given,
  )


@pytest.fixture(scope='module')
def report():
  return _report()


def test_parameters_and_memory(report):
  parameters = LAYERS * WIDTH**2
  assert report.chips == 8
  assert report.parameters == parameters
  assert report.parameters_per_chip == parameters // 2
  memory = report.memory
  assert memory.arguments == 4 * (parameters // 2 + BATCH // 8 * WIDTH)
  # The output reuses the memory of the donated parameters.
  assert memory.outputs == memory.aliased == 4 * parameters // 2
  assert memory.used == memory.arguments + memory.temporaries + memory.program
  assert memory.temporaries > 0
  assert memory.size == 32 * 2**30


def test_outputs_need_memory_without_donation():
  memory = _report(_step).memory
  assert memory.aliased == 0
  assert memory.used >= memory.arguments + memory.outputs


def test_work(report):
  layer = 2 * BATCH * WIDTH**2  # FLOPs of one layer, forward.
  # One product forward and two backward. The first layer's input needs no
  # gradient, but the scan computes it. Rematerialisation adds one more.
  assert report.work.model_flops == 3 * LAYERS * layer / 8
  assert report.work.hardware_flops == 4 * LAYERS * layer / 8
  assert report.work.compiler_flops < report.work.model_flops
  kernel = 4 * WIDTH**2
  kinds = {total.kind: total for total in report.collectives}
  gathers = kinds['all-gather']
  assert (gathers.count, gathers.in_loops) == (2 * LAYERS, 2 * LAYERS)
  assert gathers.bytes == 2 * LAYERS * kernel
  assert gathers.sent_bytes == gathers.bytes / 2
  assert gathers.exact
  assert report.work.sent_bytes == sum(
    total.sent_bytes for total in report.collectives
  )
  # Every gathered kernel is at least written once and read once.
  assert report.work.hbm_bytes > 2 * 2 * LAYERS * kernel
  assert report.work.hbm_bytes > 2 * report.work.compiler_bytes
  assert report.notes == []


def test_times(report):
  work, times = report.work, report.times
  assert times.products == pytest.approx(work.hardware_flops / 275e12)
  assert times.memory == pytest.approx(work.hbm_bytes / 1.2e12)
  assert times.links == pytest.approx(work.sent_bytes / (3 * 45e9))
  assert times.roofline == max(times.products, times.memory, times.links)
  assert getattr(times, times.bound) == times.roofline


def test_estimate(report):
  estimate = report.estimate
  ideal = report.work.model_flops / 275e12
  assert estimate.mfu_needed == pytest.approx(1000 * ideal / (12 * 3600))
  assert estimate.mfu_possible == pytest.approx(ideal / report.times.roofline)
  assert estimate.hours * 3600 == pytest.approx(1000 * ideal / 0.001)
  assert estimate.dollars == pytest.approx(estimate.hours * 8 * 3.22)
  assert estimate.price_source.startswith('list price: Google')


def test_an_estimate_by_hand():
  work = step_cost.Work(
    model_flops=27.5e12,
    hardware_flops=55e12,
    compiler_flops=0.0,
    hbm_bytes=120e9,
    compiler_bytes=0.0,
    sent_bytes=0.0,
  )
  times = step_cost.Times(products=0.2, memory=0.1, links=0.0)
  estimate = step_cost._estimate(
    work, times, _topology(), steps=20_000, mfu=0.4, hours=12.0, price=2.0
  )
  # 0.1 s a step at the peak: 2000 s of 43,200.
  assert estimate.mfu_needed == pytest.approx(2000 / 43_200)
  assert estimate.mfu_possible == pytest.approx(0.5)
  assert estimate.hours == pytest.approx(5000 / 3600)
  assert estimate.dollars == pytest.approx(5000 / 3600 * 8 * 2)
  assert estimate.price_source == 'as given'
  assert (times.bound, times.roofline) == ('products', 0.2)


def test_as_json(report):
  values = json.loads(cost_table.as_json(report))
  assert values['topology'] == 'v4:2x2x2'
  assert values['chip']['peak_flops'] == 275e12
  assert values['memory']['used'] == report.memory.used
  assert values['times']['roofline'] == report.times.roofline
  assert values['times']['bound'] == report.times.bound
  assert values['plan']['mfu_needed'] == report.estimate.mfu_needed
  assert values['collectives'][0]['kind'] == report.collectives[0].kind
  assert set(values['versions']) == {'jax', 'jaxlib', 'libtpu'}


def test_table(report):
  text = cost_table.table(report)
  for part in (
    'v4:2x2x2: compiled for 8 chips',
    'per chip of 275 TFLOP/s in bf16, 1.2 TB/s',
    '196,608 of 393,216',
    'of 32 GiB',
    '18.9 M model, 25.2 M with recomputation',
    'all-gather a step',
    '12, 12 of them in loops: 3.15 MB, 1.57 MB sent',
    'needed for 1,000 steps',
    'an MFU of 0.1% (stated, not measured)',
    '$3.22 a chip-hour (list price: Google',
  ):
    assert part in text, text
  assert 'note' not in text


def test_notes():
  def step(kernels, x):
    grads = jax.grad(_loss)(kernels, x)
    steps = lax.while_loop(lambda s: s < x.sum(), lambda s: s * 2, 1.0)
    more = lax.while_loop(lambda k: k.sum() < 1, lambda k: k @ k, kernels[0])
    return kernels - steps * grads + more.sum()

  report = _report(step, mfu=1.0)
  notes = '\n'.join(report.notes)
  assert '1 loops of unknown length contain matrix products' in notes
  assert '2 of 4 compiled loops are of unknown length' in notes
  assert 'an MFU of 100% is more than the roofline allows' in notes
  assert ', at least: ' in cost_table.table(report)


def test_redundant_work_is_noted():
  mesh = _mesh(jax.devices())
  kernel, x = _arg(mesh, (WIDTH, WIDTH)), _arg(mesh, (BATCH, WIDTH))
  report = step_cost.report(
    jnp.matmul,
    (x, kernel),
    topology=_topology(),
    parameters=kernel,
    steps=1,
    mfu=0.001,
  )
  assert [
    'chips repeat the work of others' in note for note in report.notes
  ] == [True]
  assert report.collectives == []
  assert report.parameters_per_chip == report.parameters
  assert 'collectives a step' in cost_table.table(report)


@pytest.mark.parametrize('mfu', [0.0, -0.1, 1.5, float('nan')])
def test_a_stated_mfu_must_be_a_share(mfu):
  with pytest.raises(errors.ConfigError, match='stated MFU is'):
    _report(mfu=mfu)


@pytest.mark.parametrize(
  'options', [{'steps': 0}, {'hours': 0.0}, {'price': -1.0}]
)
def test_impossible_runs(options):
  with pytest.raises(
    errors.ConfigError,
    match='cannot be estimated; steps and hours must be above 0',
  ):
    _report(_Huge('never compiled'), **options)


def test_logs_before_it_compiles():
  lines = []
  with pytest.raises(errors.ConfigError):
    _report(_Huge('RESOURCE_EXHAUSTED: 2G.'), log=lines.append)
  assert lines == [
    'compiling 4.1 kFLOPs for v4:2x2x2; a large step takes minutes'
  ]


class _Huge:
  """A step that the compiler refuses."""

  def __init__(self, message):
    self.message = message

  def __call__(self, *args):
    raise AssertionError('nothing should run')

  @property
  def jaxpr(self):
    return jax.make_jaxpr(jnp.matmul)(jnp.zeros((8, 8)), jnp.zeros((8, 32)))

  def trace(self, *args):
    return self

  def lower(self):
    return self

  def compile(self):
    raise jax.errors.JaxRuntimeError(self.message)


def test_a_step_that_does_not_fit():
  with pytest.raises(errors.ConfigError, match='does not fit on v4:2x2x2') as e:
    _report(_Huge('RESOURCE_EXHAUSTED: 40G exceeds 30.75G.\nSee this.'))
  assert '40G exceeds 30.75G. Choose a smaller batch_size' in str(e.value)
  assert '\n' not in str(e.value)
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
    _report(_Huge('INTERNAL: a bug'))


def test_the_movielens_step(small_movielens):
  """The real training step, with its state sharded over `fsdp`."""
  config = conftest.small_config('method=td')
  task = data.load(config, log=lambda line: None)
  model = models.build(config.model, task.model_args)
  teacher = models.build(config.teacher.model, task.model_args)
  batch = task.examples(task.train, np.arange(16))
  x = batch.input_of('teacher')
  variables = jax.eval_shape(
    lambda: teacher.init(jax.random.key(0), x, train=False)
  )
  parts = {
    'model': model,
    'method': methods.build('td', config=config, task_loss=task.task_loss),
    'optimizer': optax.sgd(0.1),
    'teacher_sides': lambda variables, batch: {
      'teacher': split.side(teacher, variables, x)
    },
  }
  state = jax.eval_shape(
    functools.partial(step_lib.init, **parts), jnp.int32(0), batch, variables
  )
  mesh = _mesh(jax.devices())
  specs = sharding.shard_largest_axis((state, variables), mesh, min_size=64)
  rows = jax.tree.map(lambda _: P(('data', 'fsdp')), batch)
  state, variables, batch = jax.tree.map(
    lambda leaf, spec: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=jax.sharding.NamedSharding(mesh, spec)
    ),
    (state, variables, batch),
    (*specs, rows),
  )
  report = step_cost.report(
    jax.jit(functools.partial(step_lib.train_step, **parts), donate_argnums=0),
    (state, batch, variables),
    topology=_topology(),
    parameters=state.params,
    steps=20_000,
    mfu=0.4,
  )
  leaves = jax.tree.leaves(state.params)
  assert report.parameters == sum(leaf.size for leaf in leaves)
  assert report.parameters / 2 <= report.parameters_per_chip
  assert report.parameters_per_chip < 0.7 * report.parameters
  assert report.work.model_flops == report.work.hardware_flops > 0
  assert {total.kind for total in report.collectives} >= {
    'all-gather',
    'all-reduce',
  }
  assert all(total.exact for total in report.collectives)


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='needs libtpu: pip install libtpu',
)
def test_real_topologies():
  process = test_topology.start(
    """if True:
    import jax
    from td_jax import errors
    from td_jax.tpu_cost import cost_table
    from td_jax.tpu_cost import step_cost
    from td_jax.tpu_cost import topology
    import test_step_cost

    def report(name, batch):
      top = topology.describe(name)
      mesh = test_step_cost._mesh(top.devices)
      kernels = test_step_cost._arg(mesh, (6, 1024, 1024), None, 'fsdp')
      x = test_step_cost._arg(mesh, (batch, 1024), ('data', 'fsdp'))
      return step_cost.report(
        jax.jit(test_step_cost._step, donate_argnums=0), (kernels, x),
        topology=top, parameters=kernels, steps=20_000, mfu=0.05)

    for name in ('v4:2x2x1', 'v5e:2x2'):
      made = report(name, 1024)
      print(cost_table.table(made))
      assert made.memory.arguments == 4 * (6 * 1024**2 // 2 + 1024**2 // 4)
      assert made.memory.aliased == 4 * 6 * 1024**2 // 2
      assert made.work.model_flops == 3 * 6 * 2 * 1024**3 / 4
      kinds = {total.kind: total for total in made.collectives}
      assert kinds['all-gather'].count == 12, kinds
      # Each layer's gradient is reduced over fsdp and then over data.
      assert kinds['reduce-scatter'].count == 6, kinds
      assert made.notes == [], made.notes
    try:
      report('v5e:2x2', 20_000_000)
    except errors.ConfigError as e:
      assert 'does not fit on v5e:2x2' in str(e), e
      assert '15.75G' in str(e), e
    else:
      raise AssertionError('it should not fit')
  """,
    PYTHONPATH='tests',
  )
  output, _ = process.communicate(timeout=400)
  assert process.returncode == 0, output
