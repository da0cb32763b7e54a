"""FSDP gathers sharded parameters, never activations.

Each device has a prime number of examples that divides the size of no
parameter. So an array in a collective has an axis of examples exactly if its
size is a multiple of that number.
"""

import contextlib
import math
import re

import jax
from jax import numpy as jnp
import numpy as np
import pytest
import tiny_vision

from td_jax import data
from td_jax.devices import gathering
from td_jax.devices import parallel as parallel_lib
from td_jax.devices import sharding
from td_jax.run import experiment
from td_jax.tpu_cost import collectives as collectives_lib
from td_jax.tpu_cost import hlo

# ml_collections loads configs by a function that Python has deprecated.
pytestmark = [
  pytest.mark.filterwarnings('ignore:the load_module'),
  pytest.mark.long,  # `.ci/run` runs it on one Python.
]
DEVICES, EXAMPLES, WIDTH, DEPTH, FSDP = 8, 11, 256, 3, 4
_KERNEL = WIDTH * WIDTH  # Elements; the smallest leaf that is sharded.
_CALL = re.compile(rf' = (.*?) (?:{"|".join(hlo.COLLECTIVES)})(?:-start)?\(')
_SIZES = re.compile(r'\w+\[([\d,]*)\]')


def _step(*, fsdp, scan):
  """The TD step of small ViTs and its arguments, compiled as for TPUs.

  There seeds share matrix products (`unroll_seeds=False`).
  """
  config = tiny_vision.get_config('method=td,teacher=/nowhere')
  for model in (config.model, config.teacher.model):
    model.update({'width': WIDTH, 'mlp_width': WIDTH, 'remat': True})
    model.scan = scan
  config.teacher.model.update({'depth': DEPTH, 'split': (1, 3)})
  config.batch_size, config.parallel.fsdp = DEVICES * EXAMPLES, fsdp
  parallel = parallel_lib.Parallel('mesh', DEVICES, fsdp=fsdp)
  parallel.platform = 'tpu'
  task = data.DOMAINS['images'].shapes(config)
  return experiment.abstract(config, parallel, task)


def _compiled(*, fsdp, scan):
  step, arguments = _step(fsdp=fsdp, scan=scan)
  return step.lower(*arguments).compile(), arguments


@pytest.fixture(scope='module', params=[True, False], ids=['scan', 'blocks'])
def sharded(request):
  compiled, arguments = _compiled(fsdp=FSDP, scan=request.param)
  return request.param, compiled, arguments


def _sizes(text):
  """The number of elements of each array that a collective returns."""
  return [
    math.prod(int(size) for size in sizes.split(',') if size)
    for shapes in _CALL.findall(text)
    for sizes in _SIZES.findall(shapes)
  ]


def test_no_examples_are_gathered(sharded):
  scan, compiled, (state, (teacher, _), _) = sharded
  for leaf in jax.tree.leaves((state.params, teacher)):
    assert leaf.size % EXAMPLES
  text = compiled.as_text()
  assert [size for size in _sizes(text) if size % EXAMPLES == 0] == []
  collectives = collectives_lib.read(hlo.parse(text))
  kinds = {each.kind for each in collectives}
  assert kinds <= {'all-gather', 'all-reduce', 'reduce-scatter'}
  gathers = [each for each in collectives if each.kind == 'all-gather']
  kernels = [each for each in gathers if each.bytes == 4 * _KERNEL]
  # The teacher's blocks have 6 kernels each and run at least twice: on the
  # images, and on the student's message.
  assert sum(each.times for each in kernels) >= 2 * 6 * (DEPTH - 1)
  if scan:
    # One block is gathered at a time, never the whole stack.
    assert {each.bytes for each in gathers if each.in_loop} == {4 * _KERNEL}


def test_xla_alone_gathers_examples(monkeypatch):
  """Without this the test above would prove nothing."""
  monkeypatch.setattr(
    gathering, 'gathered_params', lambda gather: contextlib.nullcontext()
  )
  compiled, _ = _compiled(fsdp=FSDP, scan=True)
  sizes = _sizes(compiled.as_text())
  assert any(size and size % EXAMPLES == 0 for size in sizes)


def _filled(leaf):
  """An array of this shape filled with small random numbers."""
  rng = np.random.default_rng(leaf.size)
  if np.issubdtype(leaf.dtype, np.floating):
    values = 0.05 * rng.normal(size=leaf.shape)
  elif leaf.dtype == np.uint8:
    values = rng.integers(0, 256, leaf.shape)
  else:
    values = rng.integers(0, 3, leaf.shape)
  return jax.device_put(values.astype(leaf.dtype), leaf.sharding)


def test_shards_train_like_the_whole(sharded):
  scan, *fsdp = sharded
  results = []
  for compiled, arguments in (fsdp, _compiled(fsdp=1, scan=scan)):
    state, fixed, rows = jax.tree.map(_filled, arguments)
    rows = rows._replace(mask=jax.tree.map(abs, rows.mask))
    before = jax.device_get(state.params)
    state, metrics = compiled(state, fixed, rows)
    results.append(jax.device_get((state.params, metrics)))
  (ours, measured), (theirs, expected) = results
  for name, values in expected.items():
    np.testing.assert_allclose(measured[name], values, rtol=2e-5, err_msg=name)
  jax.tree.map(
    lambda mine, other: np.testing.assert_allclose(mine, other, atol=2e-6),
    ours,
    theirs,
  )
  moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), ours, before)
  assert max(jax.tree.leaves(moved)) > 1e-3  # Hundreds of tolerances.


def test_each_device_holds_one_shard(sharded):
  _, _, (_, (teacher, _), _) = sharded
  for leaf in jax.tree.leaves(teacher):
    share = math.prod(leaf.sharding.shard_shape(leaf.shape))
    assert share == leaf.size // (FSDP if leaf.size >= sharding.MIN_SIZE else 1)


def test_gathering_leaves_the_gradient_alone():
  one = jnp.float32(1)
  with gathering.gathered_params(lambda param: 2 * param):
    value, grad = jax.value_and_grad(
      lambda p: 3 * gathering.all_gather_param(p)
    )(one)
  assert (value, grad) == (6, 3)  # The gradient does not see the doubling.
  assert gathering.all_gather_param(one) is one
