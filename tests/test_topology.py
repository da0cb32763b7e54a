"""Named topologies, and the messages for wrong names."""

import importlib.util
import os
import pathlib
import subprocess
import sys

from jax.experimental.pallas import tpu as pltpu
import pytest

from td_jax import errors
from td_jax.tpu_cost import chips
from td_jax.tpu_cost import topology

ROOT = pathlib.Path(__file__).parents[1]

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='needs libtpu: pip install libtpu',
)


def start(code: str, **environment: str) -> subprocess.Popen:
  """Runs `code` in its own process, because libtpu cannot be unloaded."""
  inherited = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('TPU_', 'XLA_', 'ALLOW_MULTIPLE'))
  }
  return subprocess.Popen(
    [sys.executable, '-W', 'error', '-c', code],
    cwd=ROOT,
    env=inherited | {'JAX_PLATFORMS': 'cpu'} | environment,
    stdin=subprocess.PIPE,  # Stays open, so that `input()` waits.
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.mark.parametrize('name', chips.CHIPS)
def test_chips_agree_with_jax(name):
  """JAX's table is for one core; it differs by up to 12% from Google's."""
  chip = chips.CHIPS[name]
  cores = 2 if name in ('v4', 'v5p') else 1
  theirs = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion(name), 1)
  for ours, core in (
    (chip.peak_flops, theirs.bf16_ops_per_second),
    (chip.hbm_bytes, theirs.hbm_capacity_bytes),
    (chip.hbm_bandwidth, theirs.mem_bw_bytes_per_second),
  ):
    assert ours == pytest.approx(cores * core, rel=0.13)


def test_published_figures():
  assert [chip.peak_flops / 1e12 for chip in chips.CHIPS.values()] == [
    275,
    197,
    459,
    918,
  ]
  for name, chip in chips.CHIPS.items():
    assert name == chip.name
    assert '20' in chip.price_source  # It names a year.
    assert 0.5 < chip.price < 10
    assert chip.axes == (2 if name.endswith('e') else 3)
    # Chips of two cores need an option to be a single device.
    assert bool(chip.options) == (chip.axes == 3)
  assert chips.CHIPS['v4'].price == 3.22
  assert chips.CHIPS['v6e'].price == 2.70


@pytest.mark.parametrize(
  ('name', 'links'),
  [
    ('v5e:1x1', 0),
    ('v5e:2x2', 2),
    ('v5e:8x16', 3),
    ('v5e:16x16', 4),
    ('v4:2x2x1', 2),
    ('v4:2x4x4', 3),
    ('v5p:4x4x8', 6),
  ],
)
def test_links_of_the_chip_with_the_fewest(name, links):
  kind, _, sizes = name.partition(':')
  shape = tuple(map(int, sizes.split('x')))
  described = topology.Topology(name, chips.CHIPS[kind], shape, [])
  assert described.links == links


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('v7:2x2', r"'v7'; choose one of: v4, v5e, v5p, v6e\. Did you mean"),
    ('', 'one of: v4, v5e, v5p, v6e'),
    ('2x2', 'one of: v4'),
    ('v5:2x2', "mean 'v5p'"),
    ('v5e', 'takes 2 sizes, as in: v5e:1x1, v5e:2x2'),
    ('v5e:', 'takes 2 sizes'),
    ('v5e:2x', 'takes 2 sizes'),
    ('v5e:2x2x1', 'takes 2 sizes'),
    ('v5e:2x0', 'takes 2 sizes'),
    ('v5e:2x-2', 'takes 2 sizes'),
    ('v4:2x2', 'v4 takes 3 sizes, as in: v4:2x2x1'),
    ('v4:2x2x1x1', 'takes 3 sizes'),
    ('v5e:16x32', 'has 512 chips, but a pod of v5e has 256'),
    ('v4:1000x1000x1000', 'a pod of v4 has 4096'),
  ],
)
def test_wrong_names(name, message):
  with pytest.raises(errors.ConfigError, match=message) as e:
    topology.describe(name)
  assert '\n' not in str(e.value)
  assert e.value.exit_code == 2


def test_without_libtpu(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.ConfigError, match='pip install libtpu'):
    topology.describe('v4:2x2x1')


@needs_libtpu
def test_each_chip_is_one_device():
  """For every shape on offer, within seconds and without output."""
  process = start("""if True:
    import math
    import time
    import jax
    from td_jax import errors
    from td_jax.tpu_cost import chips
    from td_jax.tpu_cost import topology
    began = time.monotonic()
    for chip in chips.CHIPS.values():
      for shape in chip.shapes:
        made = topology.describe(f'{chip.name}:{shape}')
        assert len(made.devices) == math.prod(made.shape), made.name
        assert len({tuple(d.coords) for d in made.devices}) == len(made.devices)
        assert made.devices[0].platform == 'tpu'
    assert time.monotonic() - began < 20, time.monotonic() - began
    assert jax.devices()[0].platform == 'cpu'
    try:
      topology.describe('v5e:3x3')
    except errors.ConfigError as e:
      assert 'refused by libtpu' in str(e) and 'v5e:4x4' in str(e), e
    else:
      raise AssertionError('3x3 was accepted')
  """)
  output, _ = process.communicate(timeout=120)
  assert (process.returncode, output) == (0, '')


@needs_libtpu
def test_two_processes_at_once():
  code = (
    'from td_jax.tpu_cost import topology\n'
    "print(len(topology.describe('v5e:2x2').devices), flush=True)\n"
    'input()'
  )
  processes = []
  try:
    for _ in range(2):
      processes.append(start(code))
      # The earlier processes are still alive.
      assert processes[-1].stdout.readline() == '4\n'
  finally:
    for process in processes:
      process.kill()
      process.communicate()
