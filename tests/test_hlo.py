"""Collectives and memory traffic, read from compiled programs."""

import functools
import textwrap

import jax
from jax import lax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax.tpu_cost import hlo

P = jax.sharding.PartitionSpec
ROWS_APART = P('data')


@pytest.fixture(autouse=True, scope='module')
def _optimised():
  """Fusions are what is read here."""
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', True)


def _mesh():
  return jax.sharding.Mesh(
    np.asarray(jax.devices()).reshape(4, 2), ('data', 'fsdp')
  )


def _mapped(fn, x, *, outside=ROWS_APART):
  """The collectives of `fn`, mapped over a mesh of 4 by 2."""
  mapped = jax.shard_map(
    fn,
    mesh=_mesh(),
    in_specs=ROWS_APART,
    out_specs=outside,
    check_vma=False,
  )
  return hlo.collectives(jax.jit(mapped).lower(x).compile().as_text())


def _one(kind, size, group, *, times=1, known=True, in_loop=False):
  return hlo.Collective(kind, size, group, times, known, in_loop)


def _looped(kind, size, group, *, times, known=True):
  return _one(kind, size, group, times=times, known=known, in_loop=True)


ROWS = jnp.zeros((32, 16))  # A share of 8 rows is 512 bytes.


@pytest.mark.parametrize(
  ('axes', 'group'), [('data', 4), ('fsdp', 2), (('data', 'fsdp'), 8)]
)
def test_all_reduce(axes, group):
  found = _mapped(lambda x: lax.psum(x, axes), ROWS)
  assert found == [_one('all-reduce', 512, group)]
  assert found[0].sent == 2 * 512 * (group - 1) / group


def test_all_gather():
  found = _mapped(lambda x: lax.all_gather(x, 'data'), ROWS, outside=P(None))
  assert found == [_one('all-gather', 4 * 512, 4)]
  assert found[0].sent == 3 * 512


def test_reduce_scatter():
  found = _mapped(lambda x: lax.psum_scatter(x, 'data', tiled=True), ROWS)
  assert found == [_one('reduce-scatter', 512, 4)]
  assert found[0].sent == 3 * 512 / 4


def test_permute_and_all_to_all():
  ring = [(i, (i + 1) % 4) for i in range(4)]
  found = _mapped(lambda x: lax.ppermute(x, 'data', ring), ROWS)
  assert [(one.kind, one.bytes, one.sent) for one in found] == [
    ('collective-permute', 512, 512)
  ]
  found = _mapped(lambda x: lax.all_to_all(x, 'data', 0, 1, tiled=True), ROWS)
  assert [(one.kind, one.bytes, one.group) for one in found] == [
    ('all-to-all', 512, 4)
  ]
  assert found[0].sent == 3 * 512 / 4


@pytest.mark.parametrize(('dtype', 'width'), [('int8', 1), ('float32', 4)])
def test_width_of_elements(dtype, width):
  (found,) = _mapped(lambda x: lax.psum(x, 'data'), ROWS.astype(dtype))
  assert found.bytes == 8 * 16 * width


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


def test_a_known_loop_in_an_unknown_one():
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

  assert _mapped(fn, ROWS) == [_one('all-reduce', 512, 4)]


def _fsdp(*, layers):
  """A step whose parameters are shared over `fsdp`, its batch over both."""
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
  found = hlo.collectives(_fsdp(layers=6))
  kernel = 64 * 64 * 4
  gathers = [one for one in found if one.kind == 'all-gather']
  # A layer's kernel is gathered forward and once more backward.
  assert gathers == 2 * [_looped('all-gather', kernel, 2, times=6)]
  reduces = [one for one in found if one.kind == 'all-reduce']
  assert sum(one.times for one in reduces) == len(reduces) * 6
  assert {(one.bytes, one.group) for one in reduces} <= {
    (kernel, 2),
    (kernel, 8),
    (kernel // 2, 4),
  }
  assert len(found) == len(gathers) + len(reduces)


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


def test_as_tpus_write_it():
  """Halves, tuples, meshes, and a reduce-scatter that is a fusion."""
  found = hlo.collectives(TPU)
  assert sorted(found, key=lambda one: (one.kind, one.bytes)) == [
    _looped('all-gather', 16 * 8 * 4, 8, times=7),
    _one('all-reduce', 16 * 8 * 4, 8),
    _one('all-reduce', 16 * 8 * 4 + 16, 4),
    _one('collective-permute', 16 * 8 * 4, 8),
    _one('reduce-scatter', 16 * 8 * 2, 4),
  ]


@pytest.mark.parametrize(
  ('said', 'group'),
  [
    ('{{0,4},{1,5},{2,6},{3,7}}', 2),
    ('[1,8]<=[8]', 8),
    ('[4,2]<=[2,4]T(1,0)', 2),
    ("mesh['x'=2,'y'=4] {'x'}", 2),
    ("mesh['x'=2,'y'=4], device_ids=([4,2]T(1,0)) {'y'}", 4),
    ("mesh['x'=8] {'x':(2)4}", 4),
  ],
)
def test_groups(said, group):
  text = TPU.replace('replica_groups={}', f'replica_groups={said}')
  (found,) = [
    one
    for one in hlo.collectives(text)
    if one.kind == 'all-reduce' and one.bytes == 16 * 8 * 4
  ]
  assert found.group == group


def test_loops_that_do_not_tell_their_length():
  for old, new in (('LT', 'GT'), ('s32[]{:T(128)} constant(7)', 'f()')):
    found = hlo.collectives(TPU.replace(old, new))
    (gather,) = [one for one in found if one.kind == 'all-gather']
    assert (gather.times, gather.known) == (1, False)
    assert hlo.traffic(TPU.replace(old, new)).unknown == 1


def test_a_length_that_the_compiler_tells():
  text = TPU.replace('LT', 'GT').replace(
    'body=%body', 'body=%body, backend_config={"known_trip_count":{"n":"9"}}'
  )
  (gather,) = [one for one in hlo.collectives(text) if one.kind == 'all-gather']
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
  assert hlo.collectives(text) == [_one('all-reduce', 16, 2)]
  # The row and its index are read, the row is written; then it is reduced.
  assert hlo.traffic(text).bytes == (16 + 4 + 16) + (16 + 16)


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


def test_the_pieces_of_a_chain_are_one():
  """A gather that goes on while two other things are computed."""
  assert hlo.collectives(CHAIN) == [_one('all-gather', 256, 4)]
  assert hlo.traffic(CHAIN).bytes == 64 + 256
  apart = CHAIN.replace(', frontend_attributes={chain_id="5"}', '')
  assert hlo.collectives(apart) == 2 * [_one('all-gather', 256, 4)]
  assert hlo.traffic(apart).bytes == 2 * (64 + 256)


def test_memory_on_the_chip_is_no_traffic():
  whole = 16 * 8 * 4
  body = whole + whole  # Read by negate, written by the gather.
  entry = 16 * 8 * 2  # The fusion's result stays on the chip.
  entry += 2 * (whole + 16) + 2 * whole + 2 * whole
  scalars = 7 * (4 + 4 + 1)  # Of the loop's condition.
  traffic = hlo.traffic(TPU)
  assert traffic.bytes == 7 * body + entry + scalars
  assert (traffic.loops, traffic.unknown) == (1, 0)


def _compiled(fn, *args):
  compiled = jax.jit(fn).lower(*args).compile()
  costs = compiled.cost_analysis()
  return hlo.traffic(compiled.as_text()), costs['bytes accessed']


def _mlp(x, first, second):
  return jnp.sum((jnp.tanh(x @ first) @ second) ** 2)


@pytest.mark.parametrize('backward', [False, True])
def test_traffic_without_loops_as_the_compiler_counts_it(backward):
  fn = jax.grad(_mlp, argnums=(1, 2)) if backward else _mlp
  args = jnp.zeros((128, 64)), jnp.zeros((64, 256)), jnp.zeros((256, 32))
  traffic, expected = _compiled(fn, *args)
  assert traffic.loops == 0
  assert traffic.bytes == pytest.approx(expected, rel=1e-3)
  assert traffic.bytes > 128 * 64 * 4 + 64 * 256 * 4


def test_traffic_of_a_loop_is_of_all_its_rounds():
  def fn(x, kernels):
    return lax.scan(lambda x, k: (jnp.tanh(x @ k), None), x, kernels)[0]

  x = jnp.zeros((8, 64))
  sizes = {}
  for layers in (10, 20):
    traffic, once = _compiled(fn, x, jnp.zeros((layers, 64, 64)))
    sizes[layers] = traffic.bytes
    assert (traffic.loops, traffic.unknown) == (1, 0)
    assert traffic.bytes > 3 * once / 2
  # A round slices its kernel out (read, write), reads it, and x in and out.
  kernel, hidden = 64 * 64 * 4, 8 * 64 * 4
  one = (sizes[20] - sizes[10]) / 10
  assert 3 * kernel < one < 3 * kernel + 6 * hidden


def test_of_a_slice_only_the_slice_is_touched():
  table, ids = jnp.zeros((10_000, 16)), jnp.arange(8)
  traffic, _ = _compiled(lambda table, ids: 2 * table[ids], table, ids)
  assert 2 * 8 * 16 * 4 <= traffic.bytes < 8 * 8 * 16 * 4

  def update(table, row, i):
    return lax.dynamic_update_slice(table, row, (i, 0))

  fn = jax.jit(update, donate_argnums=0)
  text = fn.lower(table, jnp.ones((1, 16)), 3).compile().as_text()
  assert 2 * 16 * 4 <= hlo.traffic(text).bytes < 8 * 16 * 4


def test_a_program_without_collectives():
  text = jax.jit(functools.partial(_mlp, jnp.zeros((4, 4)))).lower(
    jnp.zeros((4, 4)), jnp.zeros((4, 4))
  )
  assert hlo.collectives(text.compile().as_text()) == []
