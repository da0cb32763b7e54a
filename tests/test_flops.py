"""FLOP counts agree with hand counts and with the compiler's."""

import functools

import jax
from jax import lax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax.tpu_cost import flops

P = jax.sharding.PartitionSpec


def _zeros(*shapes):
  return [jnp.zeros(shape) for shape in shapes]


def _count(fn, *args):
  return flops.count(jax.make_jaxpr(fn)(*args))


def _by_xla(fn, *args):
  """The compiler's own count, before it optimises."""
  return jax.jit(fn).lower(*args).cost_analysis()['flops']


def _mlp(params, x):
  first, second = params
  return jax.nn.relu(x @ first) @ second


def _layer(x, kernel):
  return jnp.tanh(x @ kernel)


def test_mlp_by_hand():
  args = (_zeros((3, 5), (5, 2)), jnp.zeros((7, 3)))
  forward = 2 * 7 * 3 * 5 + 2 * 7 * 5 * 2
  counted = _count(_mlp, *args)
  assert counted == flops.Flops(forward, forward)
  grad = jax.value_and_grad(lambda *args: jnp.sum(_mlp(*args) ** 2))
  # A product for each weight's gradient, and one for the gradient of the second
  # layer's input. The first layer's input needs none.
  expected = 2 * forward + 2 * 7 * 5 * 2
  assert _count(grad, *args) == flops.Flops(expected, expected)


def test_dead_code_is_not_counted():
  x, kernel = _zeros((4, 4), (4, 4))

  def both(x, kernel):
    return x @ kernel, _layer(x, kernel) @ kernel

  def one(x, kernel):
    return jax.jit(both)(x, kernel)[0]

  assert _count(both, x, kernel).hardware == 3 * 2 * 4**3
  assert _count(one, x, kernel).hardware == 2 * 4**3


@pytest.mark.parametrize(
  ('equation', 'shapes', 'expected'),
  [
    ('ij,jk->ik', [(2, 3), (3, 5)], 2 * 2 * 3 * 5),
    ('bij,bkj->bik', [(4, 2, 3), (4, 5, 3)], 4 * 2 * 2 * 3 * 5),
    ('bthd,bshd->bhts', [(2, 5, 3, 4), (2, 6, 3, 4)], 2 * 2 * 3 * 5 * 6 * 4),
    ('i,i->', [(7,), (7,)], 2 * 7),
    ('ijk,jkl->il', [(2, 3, 4), (3, 4, 5)], 2 * 2 * 12 * 5),
  ],
)
def test_dot_general(equation, shapes, expected):
  fn = functools.partial(jnp.einsum, equation)
  assert _count(fn, *_zeros(*shapes)).hardware == expected


CONVOLUTIONS = [
  {'window_strides': (1, 1), 'padding': 'VALID'},
  {'window_strides': (1, 1), 'padding': 'SAME'},
  {'window_strides': (2, 3), 'padding': 'SAME'},
  {'window_strides': (2, 1), 'padding': 'SAME', 'rhs_dilation': (2, 3)},
  {
    'window_strides': (1, 2),
    'padding': [(2, 1), (0, 3)],
    'lhs_dilation': (2, 3),
  },
]


@pytest.mark.parametrize('options', CONVOLUTIONS)
@pytest.mark.parametrize('groups', [1, 2])
def test_convolutions_agree_with_the_compiler(options, groups):
  fn = functools.partial(
    lax.conv_general_dilated,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
    **options,
  )
  args = _zeros((2, 9, 10, 8), (3, 2, 8 // groups, 6))
  assert _count(fn, *args).hardware == _by_xla(fn, *args)

  def backward(x, kernel, cotangent):
    return jax.linear_transpose(lambda kernel: fn(x, kernel), kernel)(cotangent)

  args += _zeros(jax.eval_shape(fn, *args).shape)
  assert _count(backward, *args).hardware == _by_xla(backward, *args)


def test_a_convolution_by_hand():
  x, kernel = _zeros((1, 4, 4, 3), (3, 3, 3, 5))
  fn = functools.partial(
    lax.conv_general_dilated,
    window_strides=(1, 1),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  valid = _count(functools.partial(fn, padding='VALID'), x, kernel)
  assert valid.hardware == 2 * (2 * 2) * (3 * 3) * 3 * 5
  # Along an axis of length 4, 2 + 3 + 3 + 2 of the 12 taps meet the image.
  same = _count(functools.partial(fn, padding='SAME'), x, kernel)
  assert same.hardware == 2 * 10 * 10 * 3 * 5


def test_products_without_loops_agree_with_the_compiler():
  x, first, second, cotangent = _zeros((8, 16), (16, 32), (32, 4), (8, 4))

  # Without elementwise operations, which the compiler counts as well.
  def forward(x, first, second):
    return (x @ first) @ second

  def backward(x, first, second, cotangent):
    return jax.vjp(forward, x, first, second)[1](cotangent)

  assert _count(forward, x, first, second).hardware == _by_xla(
    forward, x, first, second
  )
  args = (x, first, second, cotangent)
  assert _count(backward, *args).hardware == _by_xla(backward, *args)


def test_loops_count_as_often_as_they_run():
  x, kernels = _zeros((8, 4), (6, 4, 4))
  layer = 2 * 8 * 4 * 4

  def scan(x, kernels):
    return lax.scan(lambda x, kernel: (_layer(x, kernel), None), x, kernels)[0]

  def nested(x, kernels):
    return lax.scan(lambda x, _: (scan(x, kernels), None), x, None, length=5)

  def fori(x, kernels):
    return lax.fori_loop(1, 4, lambda i, x: _layer(x, kernels[0]), x)

  assert _count(scan, x, kernels).hardware == 6 * layer
  assert _count(nested, x, kernels).hardware == 5 * 6 * layer
  assert _count(fori, x, kernels) == flops.Flops(3 * layer, 3 * layer)
  assert _by_xla(scan, x, kernels) < 2 * layer  # This is why td_jax counts.
  total = jax.value_and_grad(lambda *args: scan(*args).sum(), argnums=(0, 1))
  assert _count(total, x, kernels).hardware == 3 * 6 * layer


def test_loops_of_unknown_length_are_reported():
  def fn(x):
    return lax.while_loop(lambda x: x[0, 0] < 3, lambda x: x @ x, x)

  counted = _count(fn, jnp.zeros((4, 4)))
  assert counted == flops.Flops(128, 128, unbounded=1)

  def idle(x):
    return lax.while_loop(lambda x: x[0, 0] < 3, lambda x: x + 1, x) @ x

  assert _count(idle, jnp.zeros((4, 4))).unbounded == 0


def test_a_cond_counts_as_its_largest_branch():
  def fn(i, x):
    return lax.switch(i, [lambda x: x, lambda x: x @ x, lambda x: x @ x @ x], x)

  assert _count(fn, 0, jnp.zeros((4, 4))).hardware == 2 * 128


def test_inside_custom_derivatives():
  @jax.custom_vjp
  def double(x, kernel):
    return 2 * (x @ kernel)

  def forward(x, kernel):
    return double(x, kernel), (x, kernel)

  def backward(residuals, cotangent):
    x, kernel = residuals
    return cotangent @ kernel.T, x.T @ cotangent

  double.defvjp(forward, backward)
  x, kernel = _zeros((3, 4), (4, 5))
  product = 2 * 3 * 4 * 5
  assert _count(double, x, kernel).hardware == product
  grad = jax.value_and_grad(lambda *args: double(*args).sum(), argnums=(0, 1))
  assert _count(grad, x, kernel).hardware == 3 * product


def test_a_shard_map_counts_on_each_device():
  mesh = jax.sharding.Mesh(
    np.asarray(jax.devices()).reshape(4, 2), ('data', 'fsdp')
  )
  x, kernel = _zeros((16, 4), (4, 4))
  whole = 2 * 16 * 4 * 4
  for spec, copies in ((P(('data', 'fsdp')), 1), (P('data'), 2), (P(), 8)):
    fn = jax.shard_map(
      jnp.matmul,
      mesh=mesh,
      in_specs=(spec, P()),
      out_specs=spec,
      check_vma=False,
    )
    assert _count(fn, x, kernel).hardware == copies * whole


def _chain(wrap):
  def fn(x, kernels):
    for kernel in kernels:
      x = wrap(_layer)(x, kernel)
    return jnp.sum(x**2)

  return fn


def _scanned(wrap):
  def fn(x, kernels):
    def body(x, kernel):
      return wrap(_layer)(x, kernel), None

    return jnp.sum(lax.scan(body, x, kernels)[0] ** 2)

  return fn


def _remat_of_a_scan(wrap):
  def fn(x, kernels):
    def run(x, kernels):
      return lax.scan(lambda x, k: (_layer(x, k), None), x, kernels)[0]

    return jnp.sum(wrap(run)(x, kernels) ** 2)

  return fn


@pytest.mark.parametrize('make', [_chain, _scanned, _remat_of_a_scan])
def test_recomputation_counts_as_hardware_flops_only(make):
  x, kernels = _zeros((8, 4), (3, 4, 4))
  layer = 2 * 8 * 4 * 4
  plain, remat = (
    _count(jax.grad(make(wrap), argnums=(0, 1)), x, kernels)
    for wrap in (lambda fn: fn, jax.checkpoint)
  )
  assert plain == flops.Flops(9 * layer, 9 * layer)
  # The derivative of tanh needs its output, so each layer is recomputed once.
  assert remat == flops.Flops(model=9 * layer, hardware=12 * layer)


def test_nested_remat():
  x, kernels = _zeros((8, 4), (2, 4, 4))
  layer = 2 * 8 * 4 * 4

  def pair(x, kernels):
    x = jax.checkpoint(_layer)(x, kernels[0])
    return jax.checkpoint(jax.jit(_layer))(x, kernels[1])

  def fn(x, kernels):
    return jnp.sum(jax.checkpoint(pair)(x, kernels) ** 2)

  counted = _count(jax.grad(fn, argnums=(0, 1)), x, kernels)
  # The outer checkpoint recomputes the first layer, the inner ones both.
  assert counted == flops.Flops(model=6 * layer, hardware=9 * layer)


def test_a_policy_that_saves_matrix_products():
  x, kernels = _zeros((8, 4), (3, 4, 4))
  saving = functools.partial(
    jax.checkpoint, policy=jax.checkpoint_policies.dots_saveable
  )
  counted = _count(jax.grad(_chain(saving), argnums=(0, 1)), x, kernels)
  assert counted.model == counted.hardware == 9 * 2 * 8 * 4 * 4
