"""Collectives and memory traffic are read from compiled programs."""

import functools
import textwrap

import jax
from jax import lax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax.tpu_cost import collectives
from td_jax.tpu_cost import hlo
from td_jax.tpu_cost import traffic as traffic_lib

P = jax.sharding.PartitionSpec
SHARDED_ROWS = P('data')


@pytest.fixture(autouse=True, scope='module')
def _optimised():
  """Compiles with fusions, as conftest.py turns optimisation off."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


def _collectives(text):
  return collectives.read(hlo.parse(text))


def _traffic(text):
  return traffic_lib.read(hlo.parse(text))


def _mesh():
  return jax.sharding.Mesh(
    np.asarray(jax.devices()).reshape(4, 2), ('data', 'fsdp')
  )


def _mapped(fn, x, *, out_specs=SHARDED_ROWS):
  """The collectives of `fn`, mapped over a mesh of 4 by 2."""
  mapped = jax.shard_map(
    fn,
    mesh=_mesh(),
    in_specs=SHARDED_ROWS,
    out_specs=out_specs,
    check_vma=False,
  )
  return _collectives(jax.jit(mapped).lower(x).compile().as_text())


def _collective(kind, size, group, *, times=1, known=True, in_loop=False):
  return collectives.Collective(kind, size, group, times, known, in_loop)


def _looped(kind, size, group, *, times, known=True):
  return _collective(kind, size, group, times=times, known=known, in_loop=True)


ROWS = jnp.zeros((32, 16))  # A shard of 8 rows is 512 bytes.


@pytest.mark.parametrize(
  ('axes', 'group'), [('data', 4), ('fsdp', 2), (('data', 'fsdp'), 8)]
)
def test_all_reduce(axes, group):
  result = _mapped(lambda x: lax.psum(x, axes), ROWS)
  assert result == [_collective('all-reduce', 512, group)]
  assert result[0].sent == 2 * 512 * (group - 1) / group


def test_all_gather():
  result = _mapped(lambda x: lax.all_gather(x, 'data'), ROWS, out_specs=P(None))
  assert result == [_collective('all-gather', 4 * 512, 4)]
  assert result[0].sent == 3 * 512


def test_reduce_scatter():
  result = _mapped(lambda x: lax.psum_scatter(x, 'data', tiled=True), ROWS)
  assert result == [_collective('reduce-scatter', 512, 4)]
  assert result[0].sent == 3 * 512 / 4


def test_permute_and_all_to_all():
  ring = [(i, (i + 1) % 4) for i in range(4)]
  result = _mapped(lambda x: lax.ppermute(x, 'data', ring), ROWS)
  assert [(each.kind, each.bytes, each.sent) for each in result] == [
    ('collective-permute', 512, 512)
  ]
  result = _mapped(lambda x: lax.all_to_all(x, 'data', 0, 1, tiled=True), ROWS)
  assert [(each.kind, each.bytes, each.group) for each in result] == [
    ('all-to-all', 512, 4)
  ]
  assert result[0].sent == 3 * 512 / 4


@pytest.mark.parametrize(('dtype', 'width'), [('int8', 1), ('float32', 4)])
def test_width_of_elements(dtype, width):
  (result,) = _mapped(lambda x: lax.psum(x, 'data'), ROWS.astype(dtype))
  assert result.bytes == 8 * 16 * width


def test_in_a_loop():
  def scan(x):
    return lax.scan(lambda x, _: (lax.psum(x, 'data'), None), x, length=6)[0]

  assert _mapped(scan, ROWS) == [_looped('all-reduce', 512, 4, times=6)]

  def nested(x):
    return lax.scan(lambda x, _: (scan(x), None), x, length=5)[0]

  assert _mapped(nested, ROWS) == [_looped('all-reduce', 512, 4, times=30)]


def test_in_a_loop_of_unknown_length():
  def fn(x):
    return lax.while_loop(
      lambda x: x[0, 0] < 3, lambda x: lax.psum(x, 'data'), x
    )

  assert _mapped(fn, ROWS) == [
    _looped('all-reduce', 512, 4, times=1, known=False)
  ]


def test_a_known_loop_in_an_unknown_collective():
  def scan(x):
    return lax.scan(lambda x, _: (lax.psum(x, 'data'), None), x, length=6)[0]

  def fn(x):
    return lax.while_loop(lambda x: x[0, 0] < 3, scan, x)

  assert _mapped(fn, ROWS) == [
    _looped('all-reduce', 512, 4, times=6, known=False)
  ]


def test_in_a_branch():
  def fn(x):
    return lax.cond(x[0, 0] > 0, lambda x: lax.psum(x, 'data'), jnp.sin, x)

  assert _mapped(fn, ROWS) == [_collective('all-reduce', 512, 4)]


def _fsdp(*, layers):
  """A step with parameters sharded over `fsdp`, its batch over both axes."""
  mesh = _mesh()

  def arg(shape, *spec):
    sharding = jax.sharding.NamedSharding(mesh, P(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

  def step(kernels, x):
    def loss(kernels):
      def body(x, kernel):
        return jnp.tanh(x @ kernel), None

      return jnp.sum(lax.scan(body, x, kernels)[0] ** 2)

    return jax.tree.map(jnp.subtract, kernels, jax.grad(loss)(kernels))

  args = (
    arg((layers, 64, 64), None, 'fsdp'),
    arg((128, 64), ('data', 'fsdp')),
  )
  return jax.jit(step, donate_argnums=0).lower(*args).compile().as_text()


def test_fsdp_gathers_and_reduces_each_layer():
  result = _collectives(_fsdp(layers=6))
  kernel = 64 * 64 * 4
  gathers = [each for each in result if each.kind == 'all-gather']
  # Each kernel is gathered in the forward pass and again in the backward pass.
  assert gathers == 2 * [_looped('all-gather', kernel, 2, times=6)]
  reduces = [each for each in result if each.kind == 'all-reduce']
  assert sum(each.times for each in reduces) == len(reduces) * 6
  assert {(each.bytes, each.group) for each in reduces} <= {
    (kernel, 2),
    (kernel, 8),
    (kernel // 2, 4),
  }
  assert len(result) == len(gathers) + len(reduces)


TPU = textwrap.dedent("""\
  HloModule jit_step, is_scheduled=true, num_partitions=8

  %add (a: f32[], b: f32[]) -> f32[] {
    %a = f32[]{:T(128)} parameter(0)
    %b = f32[]{:T(128)} parameter(1)
    ROOT %sum = f32[]{:T(128)} add(%a, %b)
  }

  %all-reduce-scatter.3 (p: bf16[16,8]) -> bf16[4,8] {
    %p = bf16[16,8]{1,0:T(8,128)(2,1)} parameter(0)
    %inner = bf16[16,8]{1,0:T(8,128)(2,1)} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
    %zero = s32[]{:T(128)} constant(0)
    ROOT %part = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%inner, %zero, %zero), dynamic_slice_sizes={4,8}
  }

  %limit (l: (s32[], f32[16,8])) -> pred[] {
    %l = (s32[]{:T(128)}, f32[16,8]{1,0:T(8,128)}) parameter(0)
    %i = s32[]{:T(128)} get-tuple-element(%l), index=0
    %end = s32[]{:T(128)} constant(7)
    ROOT %less = pred[]{:T(512)} compare(%i, %end), direction=LT
  }

  %body (l.1: (s32[], f32[16,8])) -> (s32[], f32[16,8]) {
    %l.1 = (s32[]{:T(128)}, f32[16,8]{1,0:T(8,128)}) parameter(0)
    %i.1 = s32[]{:T(128)} get-tuple-element(%l.1), index=0
    %x.1 = f32[16,8]{1,0:T(8,128)} get-tuple-element(%l.1), index=1
    %gather = (f32[2,8]{1,0:T(8,128)S(1)}, f32[16,8]{1,0:T(8,128)}) all-gather-start(%scattered), channel_id=2, replica_groups=mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'x','y'}, dimensions={0}, use_global_device_ids=true
    %scattered = f32[2,8]{1,0:T(8,128)S(1)} negate(%x.1)
    %gathered = f32[16,8]{1,0:T(8,128)} all-gather-done(%gather)
    ROOT %l.2 = (s32[]{:T(128)}, f32[16,8]{1,0:T(8,128)}) tuple(%i.1, %gathered)
  }

  ENTRY %main (w: bf16[16,8], x: f32[16,8], /*index=2*/y: f32[4]) -> f32[16,8] {
    %w = bf16[16,8]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="all-reduce(%w)"}
    %x = f32[16,8]{1,0:T(8,128)} parameter(1)
    %y = f32[4]{0:T(128)} parameter(2)
    %part.1 = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} fusion(%w), kind=kCustom, calls=%all-reduce-scatter.3
    %zero.1 = s32[]{:T(128)} constant(0)
    %pair = (f32[16,8]{1,0:T(8,128)}, /*index=1*/f32[4]{0:T(128)}) all-reduce(%x, %y), replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%add
    %both = f32[16,8]{1,0:T(8,128)} get-tuple-element(%pair), index=0
    %moved = (f32[16,8]{1,0:T(8,128)}, f32[16,8]{1,0:T(8,128)}, u32[], u32[]) collective-permute-start(%both), channel_id=4, source_target_pairs={{0,1},{1,0}}
    %arrived = f32[16,8]{1,0:T(8,128)} collective-permute-done(%moved)
    %l.3 = (s32[]{:T(128)}, f32[16,8]{1,0:T(8,128)}) tuple(%zero.1, %arrived)
    %loop = (s32[]{:T(128)}, f32[16,8]{1,0:T(8,128)}) while(%l.3), condition=%limit, body=%body
    %last = f32[16,8]{1,0:T(8,128)} get-tuple-element(%loop), index=1
    ROOT %all = f32[16,8]{1,0:T(8,128)} all-reduce(%last), replica_groups={}, to_apply=%add
  }
""")


def test_text_of_a_tpu_program():
  """Asynchronous halves, tuples, meshes, and a reduce-scatter as a fusion."""
  result = _collectives(TPU)
  assert sorted(result, key=lambda each: (each.kind, each.bytes)) == [
    _looped('all-gather', 16 * 8 * 4, 8, times=7),
    _collective('all-reduce', 16 * 8 * 4, 8),
    _collective('all-reduce', 16 * 8 * 4 + 16, 4),
    _collective('collective-permute', 16 * 8 * 4, 8),
    _collective('reduce-scatter', 16 * 8 * 2, 4),
  ]


@pytest.mark.parametrize(
  ('groups', 'group'),
  [
    ('{{0,4},{1,5},{2,6},{3,7}}', 2),
    ('[1,8]<=[8]', 8),
    ('[4,2]<=[2,4]T(1,0)', 2),
    ("mesh['x'=2,'y'=4] {'x'}", 2),
    ("mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}", 4),
    ("mesh['x'=8] {'x':(2)4}", 4),
  ],
)
def test_groups(groups, group):
  text = TPU.replace('replica_groups={}', f'replica_groups={groups}')
  (reduce,) = [
    each
    for each in _collectives(text)
    if each.kind == 'all-reduce' and each.bytes == 16 * 8 * 4
  ]
  assert reduce.group == group


def test_loops_of_unknown_length():
  for old, new in (('LT', 'GT'), ('s32[]{:T(128)} constant(7)', 'f()')):
    result = _collectives(TPU.replace(old, new))
    (gather,) = [each for each in result if each.kind == 'all-gather']
    assert (gather.times, gather.known) == (1, False)
    assert _traffic(TPU.replace(old, new)).unknown == 1


def test_a_trip_count_from_the_compiler():
  text = TPU.replace('LT', 'GT').replace(
    'body=%body', 'body=%body, backend_config={"known_trip_count":{"n":"9"}}'
  )
  (gather,) = [each for each in _collectives(text) if each.kind == 'all-gather']
  assert (gather.times, gather.known) == (9, True)


def test_called_and_sliced_through_a_bitcast():
  text = textwrap.dedent("""\
    HloModule jit_f, num_partitions=2

    %pick (p: f32[9,4], i: s32[]) -> f32[4] {
      %p = f32[9,4]{1,0} parameter(0)
      %i = s32[] parameter(1)
      %same = f32[9,1,4]{2,1,0} bitcast(%p)
      %zero = s32[] constant(0)
      %row = f32[1,1,4]{2,1,0} dynamic-slice(%same, %i, %zero, %zero), dynamic_slice_sizes={1,1,4}
      ROOT %flat = f32[4]{0} bitcast(%row)
    }

    %apart (q: f32[9,4], j: s32[]) -> f32[4] {
      %q = f32[9,4]{1,0} parameter(0)
      %j = s32[] parameter(1)
      %one = f32[4]{0} fusion(%q, %j), kind=kLoop, calls=%pick
      ROOT %sum = f32[4]{0} all-reduce(%one), replica_groups={{0,1}}, to_apply=%add
    }

    ENTRY %main (x: f32[9,4], k: s32[]) -> f32[4] {
      %x = f32[9,4]{1,0} parameter(0)
      %k = s32[] parameter(1)
      ROOT %called = f32[4]{0} call(%x, %k), to_apply=%apart
    }
  """)
  assert _collectives(text) == [_collective('all-reduce', 16, 2)]
  # The fusion reads the row and its index and writes the row; the all-reduce
  # reads and writes it again.
  assert _traffic(text).bytes == (16 + 4 + 16) + (16 + 16)


PIECE = """
%piece{n} (p{n}: f32[2,8], d{n}: f32[8,8]) -> (f32[4,4], f32[8,8]) {{
  %p{n} = f32[2,8]{{1,0}} parameter(0)
  %d{n} = f32[8,8]{{1,0}} parameter(1)
  %g{n} = f32[8,8]{{1,0}} all-gather(%p{n}), replica_groups={{{{0,1,2,3}}}}, frontend_attributes={{chain_id="5"}}
  %x{n} = f32[4,4]{{1,0:S(1)}} iota(), iota_dimension=0
  ROOT %t{n} = (f32[4,4]{{1,0:S(1)}}, f32[8,8]{{1,0}}) tuple(%x{n}, %g{n})
}}
"""
CHAIN = f"""\
HloModule jit_f, num_partitions=4
{PIECE.format(n=1)}{PIECE.format(n=2)}
ENTRY %main (x: f32[2,8]) -> f32[8,8] {{
  %x = f32[2,8]{{1,0}} parameter(0)
  %new = f32[8,8]{{1,0}} custom-call(), custom_call_target="AllocateBuffer"
  %one = (f32[4,4]{{1,0:S(1)}}, f32[8,8]{{1,0}}) fusion(%x, %new), kind=kCustom, calls=%piece1
  %some = f32[8,8]{{1,0}} get-tuple-element(%one), index=1
  %two = (f32[4,4]{{1,0:S(1)}}, f32[8,8]{{1,0}}) fusion(%x, %some), kind=kCustom, calls=%piece2
  ROOT %all = f32[8,8]{{1,0}} get-tuple-element(%two), index=1
}}
"""


def test_the_pieces_of_a_chain_count_as_one_collective():
  """A gather that overlaps with two other computations."""
  assert _collectives(CHAIN) == [_collective('all-gather', 256, 4)]
  assert _traffic(CHAIN).bytes == 64 + 256
  apart = CHAIN.replace(', frontend_attributes={chain_id="5"}', '')
  assert _collectives(apart) == 2 * [_collective('all-gather', 256, 4)]
  assert _traffic(apart).bytes == 2 * (64 + 256)


def test_on_chip_memory_is_no_traffic():
  whole = 16 * 8 * 4
  body = whole + whole  # `negate` reads it, the gather writes it.
  entry = 16 * 8 * 2  # The fusion reads; its result stays on the chip.
  entry += 2 * (whole + 16) + 2 * whole + 2 * whole
  scalars = 7 * (4 + 4 + 1)  # The loop's condition reads and writes these.
  traffic = _traffic(TPU)
  assert traffic.bytes == 7 * body + entry + scalars
  assert (traffic.loops, traffic.unknown) == (1, 0)


def _compiled(fn, *args):
  compiled = jax.jit(fn).lower(*args).compile()
  costs = compiled.cost_analysis()
  return _traffic(compiled.as_text()), costs['bytes accessed']


def _mlp(x, first, second):
  return jnp.sum((jnp.tanh(x @ first) @ second) ** 2)


@pytest.mark.parametrize('backward', [False, True])
def test_traffic_without_loops_agrees_with_the_compiler(backward):
  fn = jax.grad(_mlp, argnums=(1, 2)) if backward else _mlp
  args = jnp.zeros((128, 64)), jnp.zeros((64, 256)), jnp.zeros((256, 32))
  traffic, expected = _compiled(fn, *args)
  assert traffic.loops == 0
  assert traffic.bytes == pytest.approx(expected, rel=1e-3)
  assert traffic.bytes > 128 * 64 * 4 + 64 * 256 * 4


def test_traffic_of_a_loop_counts_every_iteration():
  def fn(x, kernels):
    return lax.scan(lambda x, k: (jnp.tanh(x @ k), None), x, kernels)[0]

  x = jnp.zeros((8, 64))
  sizes = {}
  for layers in (10, 20):
    traffic, once = _compiled(fn, x, jnp.zeros((layers, 64, 64)))
    sizes[layers] = traffic.bytes
    assert (traffic.loops, traffic.unknown) == (1, 0)
    assert traffic.bytes > 3 * once / 2
  # An iteration copies a slice of the kernels (read, write), reads the copy,
  # and reads and writes x.
  kernel, hidden = 64 * 64 * 4, 8 * 64 * 4
  iteration = (sizes[20] - sizes[10]) / 10
  assert 3 * kernel < iteration < 3 * kernel + 6 * hidden


def test_slicing_touches_only_the_slice():
  table, ids = jnp.zeros((10_000, 16)), jnp.arange(8)
  traffic, _ = _compiled(lambda table, ids: 2 * table[ids], table, ids)
  assert 2 * 8 * 16 * 4 <= traffic.bytes < 8 * 8 * 16 * 4

  def update(table, row, i):
    return lax.dynamic_update_slice(table, row, (i, 0))

  fn = jax.jit(update, donate_argnums=0)
  text = fn.lower(table, jnp.ones((1, 16)), 3).compile().as_text()
  assert 2 * 16 * 4 <= _traffic(text).bytes < 8 * 16 * 4


def test_a_program_without_collectives():
  text = jax.jit(functools.partial(_mlp, jnp.zeros((4, 4)))).lower(
    jnp.zeros((4, 4)), jnp.zeros((4, 4))
  )
  assert _collectives(text.compile().as_text()) == []
