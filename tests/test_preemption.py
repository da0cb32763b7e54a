"""A process that is asked to stop, and does not get to look."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
import types

from jax import numpy as jnp
import pytest

from td_jax.run import loop

_ROOT = pathlib.Path(__file__).resolve().parents[1]

_SLOW = """
  import hashlib, sys, time
  from td_jax import errors
  from td_jax.run import preemption

  watch = preemption.Watch(patience=0.8)
  watch.will_save()
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
  watch.state = 'saved step 8'
  try:
    watch.check()
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
  # What is being saved in the background is finished first.
  """
  def settle():
    time.sleep(0.2)
    return 'the last save is of step 9'

  with watch.settling(settle):
    work(1e9)
  """: (75, 'error: SIGTERM: the last save is of step 9'),
  """
  def settle():
    raise errors.IOFailedError('could not save step 9')

  with watch.settling(settle):
    work(1e9)
  """: (74, 'error: could not save step 9'),
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
    ('with watch: sys.exit(3)', 3),
    ('os.kill(os.getpid(), signal.SIGHUP); watch.check()', 75),
    # As under nohup.
    ('os.kill(os.getpid(), signal.SIGHUP); watch.check()', 0),
    # Whoever started the process ignored it; the machine's notice counts.
    ('os.kill(os.getpid(), signal.SIGTERM); watch.check()', 75),
  ],
  ids=['finished', 'before', 'failed', 'SIGHUP', 'nohup', 'ignored'],
)
def test_signals_at_the_end_and_of_a_terminal(source, code, request):
  ignored = request.node.callspec.id in ('nohup', 'ignored')
  handler = 'SIG_IGN' if ignored else 'SIG_DFL'
  script = f"""
  import atexit, os, signal, sys
  from td_jax import errors
  from td_jax.run import preemption

  # The tests themselves may run under nohup.
  for number in (signal.SIGHUP, signal.SIGTERM):
    signal.signal(number, signal.{handler})
  watch = preemption.Watch(patience=0.2)
  if {code} == 3:  # After the end, before Python has shut down.
    atexit.register(os.kill, os.getpid(), signal.SIGTERM)
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


_COMMANDS = (
  'td_jax',
  'td_jax predict RUN 1,2',
  'td_jax export RUN',
  'td_jax inspect RUN',
  'td_jax teacher',
  'td_jax compare --config=movielens',
  'td_jax.main',
  'td_jax.paper.check',
  'td_jax.paper.tables',
  'td_jax.paper.tune',
  'td_jax.study.conversation',
  'td_jax.study.curves',
  'td_jax.study.few_labels',
)


def test_each_command_hears_signals_before_its_imports(tmp_path):
  """The libraries below take seconds to import; here each takes a minute."""
  for name in ('absl', 'jax', 'numpy'):
    (tmp_path / f'{name}.py').write_text(
      'import time\nprint("importing", flush=True)\ntime.sleep(60)\n'
    )
  processes = {
    command: subprocess.Popen(
      [sys.executable, '-m', *command.split()],
      env=os.environ | {'PYTHONPATH': f'{tmp_path}:{_ROOT}'},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for command in _COMMANDS
  }
  signals = itertools.cycle((signal.SIGTERM, signal.SIGINT))
  sent = dict(zip(processes, signals, strict=False))
  for command, process in processes.items():
    assert process.stdout.readline() == 'importing\n', command
    process.send_signal(sent[command])
  for command, process in processes.items():
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75, (command, err)
    assert err == (
      f'error: {sent[command].name}: nothing to save. Run the same command again.\n'
    )


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
  assert 'SIGTERM: nothing to save' in err
  assert time.monotonic() - began < 5


@pytest.mark.parametrize(('seconds', 'running'), [(0.1, 3), (2.0, 1)])
def test_devices_are_only_a_few_dispatches_ahead(monkeypatch, seconds, running):
  """Else a signal would wait until they have done all that was asked of them."""
  now, waited = [0.0], []
  clock = types.SimpleNamespace(monotonic=lambda: now[0])
  monkeypatch.setattr(loop, 'time', clock)
  monkeypatch.setattr(
    loop.jax,
    'block_until_ready',
    lambda metrics: waited.append(int(metrics['n'][0])),
  )
  history = loop._History({}, lambda: None)
  for n in range(8):
    now[0] += seconds
    history.add({'n': jnp.full(1, n)})
  assert waited == list(range(9 - running))
