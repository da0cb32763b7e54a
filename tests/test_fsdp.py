"""Parameters in pieces: what is gathered is parameters, never activations.

The share of a device is a prime number of examples that divides the size of no
parameter, so a collective's array has examples if its size is a multiple.
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
from td_jax.tpu_cost import hlo

# ml_collections loads configs by a function that Python has deprecated.
pytestmark = pytest.mark.filterwarnings('ignore:the load_module')
DEVICES, EXAMPLES, WIDTH, DEPTH, FSDP = 8, 11, 256, 3, 4
_KERNEL = WIDTH * WIDTH  # Elements: the least that is cut into pieces.
_CALL = re.compile(rf' = (.*?) (?:{"|".join(hlo.KINDS)})(?:-start)?\(')
_SIZES = re.compile(r'\w+\[([\d,]*)\]')


def _step(*, fsdp, scan):
  """The TD step of small ViTs, as it is compiled for TPUs, and its arguments.

  Seeds are side by side there (`apart=False`).
  """
  config = tiny_vision.get_config('method=td,teacher=/nowhere')
  for model in (config.model, config.teacher.model):
    model.update({'width': WIDTH, 'mlp_width': WIDTH, 'remat': True})
    model.scan = scan
  config.teacher.model.update({'depth': DEPTH, 'split': (1, 3)})
  config.batch_size, config.parallel.fsdp = DEVICES * EXAMPLES, fsdp
  parallel = parallel_lib.Parallel(
    'mesh', DEVICES, fsdp=fsdp, batch_size=config.batch_size
  )
  parallel.platform = 'tpu'
  task = data.DOMAINS['images'].shapes(config)
  return experiment.abstract(config, parallel, task)


def _compiled(*, fsdp, scan):
  step, arguments = _step(fsdp=fsdp, scan=scan)
  return step.lower(*arguments).compile(), arguments


@pytest.fixture(scope='module', params=[True, False], ids=['scan', 'blocks'])
def in_pieces(request):
  compiled, arguments = _compiled(fsdp=FSDP, scan=request.param)
  return request.param, compiled, arguments


def _sizes(text):
  """Elements of each array that comes out of a collective."""
  return [
    math.prod(int(size) for size in sizes.split(',') if size)
    for shapes in _CALL.findall(text)
    for sizes in _SIZES.findall(shapes)
  ]


def test_no_examples_are_gathered(in_pieces):
  scan, compiled, (state, (teacher, _), _) = in_pieces
  for leaf in jax.tree.leaves((state.params, teacher)):
    assert leaf.size % EXAMPLES
  text = compiled.as_text()
  assert [size for size in _sizes(text) if size % EXAMPLES == 0] == []
  found = hlo.collectives(text)
  kinds = {one.kind for one in found}
  assert kinds <= {'all-gather', 'all-reduce', 'reduce-scatter'}
  gathers = [one for one in found if one.kind == 'all-gather']
  kernels = [one for one in gathers if one.bytes == 4 * _KERNEL]
  # The 6 of each teacher's block, twice at the least: on the images, and
  # when it interprets what it heard.
  assert sum(one.times for one in kernels) >= 2 * 6 * (DEPTH - 1)
  if scan:
    # A block's at a time, never the stack.
    assert {one.bytes for one in gathers if one.in_loop} == {4 * _KERNEL}


def test_left_to_itself_xla_gathers_examples(monkeypatch):
  """Else the test above would prove nothing."""
  monkeypatch.setattr(
    gathering, 'gathered_params', lambda gather: contextlib.nullcontext()
  )
  compiled, _ = _compiled(fsdp=FSDP, scan=True)
  sizes = _sizes(compiled.as_text())
  assert any(size and size % EXAMPLES == 0 for size in sizes)


def _filled(leaf):
  """An array of such a shape, of small random numbers."""
  rng = np.random.default_rng(leaf.size)
  if np.issubdtype(leaf.dtype, np.floating):
    values = 0.05 * rng.normal(size=leaf.shape)
  elif leaf.dtype == np.uint8:
    values = rng.integers(0, 256, leaf.shape)
  else:
    values = rng.integers(0, 3, leaf.shape)
  return jax.device_put(values.astype(leaf.dtype), leaf.sharding)


def test_pieces_train_as_the_whole(in_pieces):
  scan, *pieces = in_pieces
  found = []
  for compiled, arguments in (pieces, _compiled(fsdp=1, scan=scan)):
    state, fixed, rows = jax.tree.map(_filled, arguments)
    rows = rows._replace(mask=jax.tree.map(abs, rows.mask))
    before = jax.device_get(state.params)
    state, metrics = compiled(state, fixed, rows)
    found.append(jax.device_get((state.params, metrics)))
  (ours, measured), (theirs, expected) = found
  for name, values in expected.items():
    np.testing.assert_allclose(measured[name], values, rtol=2e-5, err_msg=name)
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(one, other, atol=2e-6),
    ours,
    theirs,
  )
  moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), ours, before)
  assert max(jax.tree.leaves(moved)) > 1e-3  # Hundreds of the tolerance.


def test_each_device_has_a_piece(in_pieces):
  _, _, (_, (teacher, _), _) = in_pieces
  for leaf in jax.tree.leaves(teacher):
    share = math.prod(leaf.sharding.shard_shape(leaf.shape))
    assert share == leaf.size // (FSDP if leaf.size >= sharding.LEAST else 1)


def test_a_gradient_is_what_it_was():
  one = jnp.float32(1)
  with gathering.gathered_params(lambda param: 2 * param):
    value, grad = jax.value_and_grad(
      lambda param: 3 * gathering.all_gather_param(param)
    )(one)
  assert (value, grad) == (6, 3)  # The gradient ignores `gather`.
  assert gathering.all_gather_param(one) is one
