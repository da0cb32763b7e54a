"""A process that is asked to stop, and does not get to look."""

import subprocess
import sys
import textwrap
import time

import pytest

_SLOW = """
  import hashlib, sys, time
  from td_jax.run import preemption

  watch = preemption.Watch(patience=0.8)
  watch.workdir, watch.state = 'runs/x', 'the last save is of step 7'

  def work(rounds):
    # No Python runs in this thread meanwhile, as in a compilation.
    hashlib.pbkdf2_hmac('sha256', b'', b'', int(rounds))

  print('ready', flush=True)
"""
_ENDS = {
  # Nobody looks: the process ends.
  'work(1e9)': (75, 'error: SIGTERM: the last save is of step 7. Run the same'),
  # A save is finished first, and the loop then answers itself.
  """
  with watch.saving():
    work(8e6)
    print('saved', flush=True)
  time.sleep(0.1)
  try:
    watch.check('saved step 8')
  except Exception as e:
    print(e, file=sys.stderr)
    sys.exit(9)
  """: (9, 'SIGTERM: saved step 8. Run the same command with --workdir=runs/x'),
  # After a save the loop has to see the signal.
  """
  with watch.saving():
    work(6e6)
  work(1e9)
  """: (75, 'error: SIGTERM: the last save is of step 7'),
}


@pytest.mark.parametrize('ending', _ENDS)
def test_a_process_that_is_busy_ends_in_time(ending):
  code, message = _ENDS[ending]
  source = textwrap.dedent(_SLOW) + textwrap.dedent(ending)
  process = subprocess.Popen(
    [sys.executable, '-c', source],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  start = time.monotonic()
  process.terminate()
  out, err = process.communicate(timeout=20)
  assert process.returncode == code, err
  assert message in err and len(err.splitlines()) == 1
  assert time.monotonic() - start < 15
  assert ('saved' in out) == (code == 9)
