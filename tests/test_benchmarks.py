"""Committed tables and pages agree with the committed rows."""

import json
import pathlib
import re
import signal
import subprocess
import sys

import pytest

from benchmarks import reliability
from benchmarks import soak
from benchmarks import speed
from benchmarks import topologies
from td_jax.storage import results_log

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize('task', speed.SETTINGS)
def test_the_page_on_speed_agrees_with_its_rows(task):
  rows = json.loads((ROOT / f'results/speed_{task}.json').read_text())['rows']
  assert {row['setting'] for row in rows} <= set(speed.SETTINGS[task])
  mark = f'speed_{task}'
  table = f'<!-- {mark} -->\n{speed.table(rows)}<!-- end of {mark} -->\n'
  assert table in (ROOT / 'docs/speed.md').read_text()


def test_a_row_with_and_without_a_peer():
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


def test_the_table_of_topologies_agrees_with_its_rows():
  file = ROOT / 'results/compile_imagenet.jsonl'
  rows = results_log.read(file)
  cases = {(r['teacher'], r['topology'], r['batch_size']) for r in rows}
  assert cases == set(topologies.CASES)
  assert topologies.render(rows) == file.with_suffix('.md').read_text()
  # The step fits into a chip, and the conversation needs no collectives.
  for row in rows:
    memory = row['memory']
    assert memory['used'] < memory['size']
    if row['teacher'] == 'B/32':
      assert {c['kind'] for c in row['collectives']} == {'all-reduce'}
      assert not any(c['in_loops'] for c in row['collectives'])


def test_rendering_writes_to_the_page_on_speed(tmp_path):
  page = tmp_path / 'docs' / 'speed.md'
  out = tmp_path / 'results' / 'speed_movielens.json'
  for path in (page, out):
    path.parent.mkdir()
  rows = json.loads((ROOT / 'results/speed_movielens.json').read_text())['rows']
  out.write_text(json.dumps({'rows': rows[:1]}))
  marks = '<!-- speed_movielens -->\n', '<!-- end of speed_movielens -->\n'
  page.write_text(f'before\n{marks[0]}old\n{marks[1]}after\n')
  speed._write_page(out)
  assert page.read_text() == (
    f'before\n{marks[0]}{speed.table(rows[:1])}{marks[1]}after\n'
  )


@pytest.mark.parametrize(
  ('flag', 'message'),
  [('--settings=td k=9', "'td k=9'"), ('--render', '--render needs --out')],
)
def test_mistakes_are_one_line(flag, message):
  done = subprocess.run(
    [sys.executable, 'benchmarks/speed.py', flag],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert done.stdout == ''
  assert done.stderr.startswith('error: ')
  assert message in done.stderr
  assert done.stderr.count('\n') == 1


@pytest.mark.parametrize(
  ('name', 'code', 'seconds', 'expected'),
  [
    ('', 0, 60.0, ''),
    ('', 75, 60.0, 'exit code 75 after no signal'),
    ('SIGKILL', -signal.SIGKILL, 0.1, ''),
    ('SIGKILL', 0, 0.1, ''),
    ('SIGTERM', 75, 9.0, ''),
    ('SIGTERM', -signal.SIGTERM, 0.1, 'exit code -15 after SIGTERM'),
    ('SIGTERM', 75, 11.0, 'SIGTERM was answered after 11 s'),
  ],
)
def test_what_a_soak_calls_a_fault(name, code, seconds, expected):
  assert soak.fault(soak.Launch(name, code, seconds), latest=10) == expected


@pytest.mark.long
def test_a_soak(tmp_path):
  """Two minutes of what it does for hours."""
  pytest.importorskip('tensorflow')
  done = subprocess.run(
    [
      sys.executable,
      'benchmarks/soak.py',
      '--minutes=0.2',
      '--tasks=images',
      '--gaps=2,12',
      '--latest=30',  # Other tests run beside it.
      f'--out={tmp_path / "soak.json"}',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  report = json.loads((tmp_path / 'soak.json').read_text())
  assert report['faults'] == []
  assert report['SIGKILL'] + report['SIGTERM'] >= 2
  assert all(run['equal_to_the_bit'] for run in report['runs'])


def test_every_fault_is_provoked_by_tests_that_exist():
  assert len(reliability.ROWS) == 34
  for row in reliability.ROWS:
    assert row.tests and not reliability.absent(row.tests)


def test_the_page_of_faults_agrees_with_its_counts():
  text = (ROOT / 'results/reliability.json').read_text()
  page = (ROOT / reliability.PAGE).read_text()
  assert page == reliability.page(json.loads(text))
  # They are of no machine in particular.
  assert not re.search(r'/(tmp|root|home|work)/', text + page)
