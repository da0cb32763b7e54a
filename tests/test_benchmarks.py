"""What benchmarks wrote is what their rows say."""

import json
import pathlib

import pytest

from benchmarks import speed
from benchmarks import topologies
from td_jax.storage import results_log

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize('task', speed.SETTINGS)
def test_speed_in_the_readme_is_of_its_rows(task):
  rows = json.loads((ROOT / f'results/speed_{task}.json').read_text())['rows']
  assert {row['setting'] for row in rows} <= set(speed.SETTINGS[task])
  assert speed.table(rows) in (ROOT / 'README.md').read_text()


def test_a_row_beside_its_peer():
  row = {
    'setting': 'td k=1',
    'ms': 2.0,
    'peer_ms': 3.0,
    'ratio': 1.5,
    'gflop': 0.25,
    'of_ceiling': 0.5,
    'ceiling_gflop_per_s': 250.0,
  }
  shown = speed.table([row]).splitlines()[-1]
  assert shown == '| td k=1 | 2 | 3 | 1.50 | 0.25 | 50% of 250 GFLOP/s |'
  del row['ratio']
  shown = speed.table([row]).splitlines()[-1]
  assert shown == '| td k=1 | 2 |  |  | 0.25 | 50% of 250 GFLOP/s |'


def test_compiled_topologies_are_of_their_rows():
  file = ROOT / 'results/compile_imagenet.jsonl'
  rows = results_log.read(file)
  ran = {(r['teacher'], r['topology'], r['batch_size']) for r in rows}
  assert ran == set(topologies.CASES)
  assert topologies.render(rows) == file.with_suffix('.md').read_text()
  # Held to: no collective in the conversation, and less than the chip has.
  for row in rows:
    memory = row['memory']
    assert memory['used'] < memory['size']
    if row['teacher'] == 'B/32':
      assert {c['kind'] for c in row['collectives']} == {'all-reduce'}
      assert not any(c['in_loops'] for c in row['collectives'])
