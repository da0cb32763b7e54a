"""A process that is asked to stop, and does not get to look."""

import subprocess
import sys
import textwrap
import time

from jax import numpy as jnp
import pytest

from td_jax.run import loop

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


@pytest.mark.parametrize(
  ('source', 'code'),
  [
    # The results are out: nothing may turn that into a failure.
    ('watch.finish(); os.kill(os.getpid(), signal.SIGTERM)', 0),
    ('os.kill(os.getpid(), signal.SIGTERM); watch.finish()', 0),
    ('os.kill(os.getpid(), signal.SIGHUP); watch.check("nothing to save")', 75),
    # As under nohup.
    ('os.kill(os.getpid(), signal.SIGHUP); watch.check("nothing to save")', 0),
    # Whoever started the process ignored it; the machine's notice counts.
    (
      'os.kill(os.getpid(), signal.SIGTERM); watch.check("nothing to save")',
      75,
    ),
  ],
  ids=['finished', 'before', 'SIGHUP', 'nohup', 'ignored'],
)
def test_signals_at_the_end_and_of_a_terminal(source, code, request):
  ignored = request.node.callspec.id in ('nohup', 'ignored')
  handler = 'SIG_IGN' if ignored else 'SIG_DFL'
  script = f"""
  import os, signal, sys
  from td_jax import errors
  from td_jax.run import preemption

  # The tests themselves may run under nohup.
  for number in (signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.{handler})
  watch = preemption.Watch(patience=0.2)
  try:
    {source}
  except errors.PreemptedError as e:
    print(e, file=sys.stderr)
    sys.exit(e.exit_code)
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(script)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == code, done.stderr
  assert (': nothing to save' in done.stderr) == (code == 75)


def test_a_signal_while_the_config_is_read(tmp_path):
  """Nothing has been done yet, so the process ends with 75 at once."""
  config = tmp_path / 'slow.py'
  config.write_text(
    'import sys, time\nprint("reading", flush=True)\ntime.sleep(60)\n'
  )
  process = subprocess.Popen(
    [sys.executable, '-m', 'td_jax.main', f'--config={config}'],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'reading\n'
  began = time.monotonic()
  process.terminate()
  _, err = process.communicate(timeout=20)
  assert process.returncode == 75, err
  assert 'SIGTERM: nothing to save yet' in err
  assert time.monotonic() - began < 10


@pytest.mark.parametrize(
  ('streams', 'code'),
  [('2>/dev/full', 0), ('2>&-', 0), ('>&-', 0), ('>/dev/full', 74)],
)
def test_streams_that_cannot_be_written(streams, code):
  script = (
    'from td_jax.run import command; '
    "command.run(lambda: (command.say('a line'), print('a result')))"
  )
  done = subprocess.run(
    ['bash', '-c', f'{sys.executable} -c "$0" {streams}', script],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == code, done.stderr
  assert 'Traceback' not in done.stderr
  if code:
    assert done.stderr.splitlines()[-1].startswith('error: stdout cannot be')
  elif '2>' in streams:
    assert done.stdout == 'a result\n'


def test_devices_are_only_a_few_dispatches_ahead(monkeypatch):
  """Else a signal would wait until they have done all that was asked of them."""
  waited = []
  monkeypatch.setattr(
    loop.jax,
    'block_until_ready',
    lambda metrics: waited.append(int(metrics['n'][0])),
  )
  history = loop._History({}, lambda: None)
  for n in range(8):
    history.add({'n': jnp.full(1, n)})
  assert waited == [0, 1, 2, 3, 4, 5]
