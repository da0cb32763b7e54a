"""Rows survive crashes; a lock has one holder and is released when it dies."""

import subprocess
import sys

from td_jax.storage import results_log

ROWS = [{'row': 'td', 'mean': 0.1}, {'row': 'ld', 'mean': 2e-9}]


def test_rows_come_back(tmp_path):
  file = tmp_path / 'rows.jsonl'
  assert results_log.read(file) == []
  for row in ROWS:
    results_log.append(file, row)
  assert results_log.read(file) == ROWS


def test_truncated_lines_are_not_rows(tmp_path):
  file = tmp_path / 'rows.jsonl'
  results_log.append(file, ROWS[0])
  whole = file.read_text()
  for length in range(1, len(whole)):
    file.write_text(whole + whole[:length].rstrip('\n'))
    assert results_log.read(file)[0] == ROWS[0]
    results_log.append(file, ROWS[1])
    assert results_log.read(file)[-1] == ROWS[1]


def test_a_lock_is_held_once_and_dies_with_its_process(tmp_path):
  file = tmp_path / 'lock'
  with results_log.lock(file) as ours, results_log.lock(file) as theirs:
    assert (ours, theirs) == (True, False)
  code = (
    'import os, pathlib; from td_jax.storage import results_log\n'
    f'with results_log.lock(pathlib.Path({str(file)!r})) as ours:\n'
    '  print(ours, flush=True); os.kill(os.getpid(), 9)'
  )
  killed = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert killed.stdout == 'True\n'
  with results_log.lock(file) as ours:
    assert ours
