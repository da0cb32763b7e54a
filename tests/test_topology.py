"""Named topologies: what they are, and what is said of wrong names."""

import importlib.util
import os
import pathlib
import subprocess
import sys

from jax.experimental.pallas import tpu as pltpu
import pytest

from td_jax import errors
from td_jax.tpu_cost import topology

ROOT = pathlib.Path(__file__).parents[1]

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None,
  reason='needs libtpu: pip install libtpu',
)


def apart(code: str, **environment: str) -> subprocess.Popen:
  """Runs `code` in a process of its own: libtpu stays loaded for good."""
  inherited = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('TPU_', 'XLA_', 'ALLOW_MULTIPLE'))
  }
  return subprocess.Popen(
    [sys.executable, '-W', 'error', '-c', code],
    cwd=ROOT,
    env=inherited | {'JAX_PLATFORMS': 'cpu'} | environment,
    stdin=subprocess.PIPE,  # Open, so that `input()` waits.
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.mark.parametrize('name', topology.CHIPS)
def test_chips_are_about_what_jax_has_of_them(name):
  """JAX's table is by core, and differs by up to 12% from Google's pages."""
  chip = topology.CHIPS[name]
  cores = 2 if name in ('v4', 'v5p') else 1
  theirs = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion(name), 1)
  for ours, core in (
    (chip.peak_flops, theirs.bf16_ops_per_second),
    (chip.hbm_bytes, theirs.hbm_capacity_bytes),
    (chip.hbm_bandwidth, theirs.mem_bw_bytes_per_second),
  ):
    assert ours == pytest.approx(cores * core, rel=0.13)


def test_facts_of_chips():
  chips = topology.CHIPS
  assert [chip.peak_flops / 1e12 for chip in chips.values()] == [
    275,
    197,
    459,
    918,
  ]
  for name, chip in chips.items():
    assert name == chip.name
    assert '20' in chip.price_source  # The year.
    assert 0.5 < chip.price < 10
    assert chip.axes == (2 if name.endswith('e') else 3)
    # One device a chip, and not one a core.
    assert bool(chip.options) == (chip.axes == 3)
  assert chips['v4'].price == 3.22
  assert chips['v6e'].price == 2.70


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
  made = topology.Topology(name, topology.CHIPS[kind], shape, [])
  assert made.links == links


@pytest.mark.parametrize(
  ('name', 'said'),
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
    ('v5e:16x32', 'of 512 chips; a pod of v5e has 256'),
    ('v4:1000x1000x1000', 'a pod of v4 has 4096'),
  ],
)
def test_wrong_names(name, said):
  with pytest.raises(errors.ConfigError, match=said) as e:
    topology.describe(name)
  assert '\n' not in str(e.value)
  assert e.value.exit_code == 2


def test_without_libtpu(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(errors.ConfigError, match='pip install libtpu'):
    topology.describe('v4:2x2x1')


@needs_libtpu
def test_a_device_a_chip_at_once_and_quietly():
  """All that are offered, in seconds and without a word."""
  process = apart("""if True:
    import math
    import time
    import jax
    from td_jax import errors
    from td_jax.tpu_cost import topology
    began = time.monotonic()
    for chip in topology.CHIPS.values():
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
      raise AssertionError('3x3 was taken')
  """)
  said, _ = process.communicate(timeout=120)
  assert (process.returncode, said) == (0, '')


@needs_libtpu
def test_two_processes_at_once():
  code = (
    'from td_jax import topology\n'
    "print(len(topology.describe('v5e:2x2').devices), flush=True)\n"
    'input()'
  )
  processes = []
  try:
    for _ in range(2):
      processes.append(apart(code))
      assert processes[-1].stdout.readline() == '4\n'  # The others go on.
  finally:
    for process in processes:
      process.kill()
      process.communicate()
