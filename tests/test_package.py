"""The built wheel works on its own: in any folder, without the checkout."""

import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import conftest
import PIL.Image
import pytest

import td_jax
from td_jax import configs

ROOT = pathlib.Path(__file__).resolve().parents[1]
# What building needs. Copied, because setuptools leaves a build/ folder whose
# stale modules would end up in the next wheel.
SOURCES = ('LICENSE', 'MANIFEST.in', 'README.md', 'pyproject.toml', 'setup.py')


def _checked(*args, **kwargs):
  """Runs a command that must succeed; returns its stdout."""
  process = subprocess.run(
    args, capture_output=True, text=True, timeout=300, check=False, **kwargs
  )
  assert process.returncode == 0, process.stderr
  return process.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """The wheel of the working tree, built without the network."""
  source = tmp_path_factory.mktemp('source')
  for name in SOURCES:
    shutil.copy(ROOT / name, source)
  shutil.copytree(
    ROOT / 'td_jax',
    source / 'td_jax',
    ignore=shutil.ignore_patterns('__pycache__'),
  )
  out = tmp_path_factory.mktemp('wheel')
  _checked(
    *(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps'),
    *('--no-index', '--no-build-isolation', '--wheel-dir', str(out), '.'),
    cwd=source,
  )
  (file,) = out.glob('td_jax-*.whl')
  return file


@pytest.fixture(scope='module')
def installed(tmp_path_factory, wheel):
  """The folder of the commands of an environment that has only the wheel.

  The environment sees the packages that td_jax requires, but no editable
  installation of td_jax: a .pth file adds the folder of those packages to the
  path without reading the .pth files inside it.
  """
  path = tmp_path_factory.mktemp('environment')
  _checked(sys.executable, '-m', 'venv', '--without-pip', str(path))
  python = path / 'bin' / 'python'
  _checked(
    *(sys.executable, '-m', 'pip', '--python', str(python), 'install'),
    *('--quiet', '--no-deps', '--no-index', str(wheel)),
  )
  (packages,) = path.glob('lib/python*/site-packages')
  required = [entry for entry in sys.path if entry.endswith('-packages')]
  (packages / 'required.pth').write_text('\n'.join(required) + '\n')
  return path / 'bin'


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
  """Variables of a shell in which nobody has heard of the checkout."""
  data_dir = conftest.small_data(tmp_path_factory.mktemp('data'))
  variables = {
    name: value for name, value in os.environ.items() if name != 'PYTHONPATH'
  }
  return variables | {
    'TFDS_DATA_DIR': str(data_dir),
    'XLA_FLAGS': conftest.FAST_COMPILE,
  }


@pytest.fixture
def run(installed, environment, tmp_path):
  """(command, *args) -> (exit code, stdout, stderr), in an empty folder."""

  def run(name, *args):
    process = subprocess.run(
      [str(installed / name), *args],
      cwd=tmp_path,
      env=environment,
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )
    return process.returncode, process.stdout, process.stderr

  return run


def test_metadata(wheel, tmp_path):
  shutil.unpack_archive(wheel, tmp_path, format='zip')
  (folder,) = tmp_path.glob('td_jax-*.dist-info')
  metadata = importlib.metadata.PathDistribution(folder).metadata
  assert metadata['Name'].replace('-', '_') == 'td_jax'
  assert metadata['Version'] == td_jax.__version__
  assert metadata['License-Expression'] == 'Apache-2.0'
  assert metadata['Author'] == 'The td_jax authors'
  assert metadata['Requires-Python'] == '>=3.11'
  assert '# td_jax' in metadata.get_payload()
  (license_file,) = folder.rglob('LICENSE')
  assert license_file.read_text() == (ROOT / 'LICENSE').read_text()


def test_the_wheel_has_every_module(wheel, tmp_path):
  shutil.unpack_archive(wheel, tmp_path, format='zip')
  packaged, checkout = (
    {
      str(file.relative_to(root))
      for file in (root / 'td_jax').rglob('*')
      if file.is_file() and file.suffix != '.pyc'
    }
    for root in (tmp_path, ROOT)
  )
  assert packaged == checkout
  assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
    'td_jax',
    f'td_jax-{td_jax.__version__}.dist-info',
  }


def test_the_version_is_the_same_everywhere():
  citation = (ROOT / 'CITATION.cff').read_text()
  assert f'\nversion: {td_jax.__version__}\n' in citation
  changelog = (ROOT / 'CHANGELOG.md').read_text()
  released = re.search(r'^## ([\d.]+) \(([\d-]+)\)$', changelog, re.MULTILINE)
  assert released is not None
  assert released[1] == td_jax.__version__
  assert f"\ndate-released: '{released[2]}'\n" in citation


def test_a_whole_run(run, installed, tmp_path):
  # A refit and a second seed would each double the time of compiling.
  code, out, err = run(
    'td_jax',
    '--config=movielens:runlocal',
    conftest.SMALL_DATA,
    '--config.refit_on_validation=False',
    '--config.seeds=1',
  )
  assert code == 0, err
  assert 'Traceback' not in err
  # The scores on validation and test.
  scores = r' +\d\.\d+ +\d\.\d+$'
  assert re.search(rf'^student \(td, k=1\){scores}', out, re.MULTILINE)
  (folder,) = (tmp_path / 'runs').iterdir()
  assert (folder / 'results.json').exists()
  # It was the installed package that ran.
  code, out, _ = run('python', '-c', 'import td_jax; print(td_jax.__file__)')
  assert code == 0
  assert out.startswith(str(installed.parent))


def test_version_is_quick(run):
  began = time.monotonic()
  assert run('td_jax', '--version') == (0, f'td_jax {td_jax.__version__}\n', '')
  assert time.monotonic() - began < 3


def test_python_dash_m(run):
  for module in ('td_jax', 'td_jax.main'):
    code, out, err = run('python', '-m', module, '--version')
    assert (code, out) == (0, f'td_jax {td_jax.__version__}\n'), err


@pytest.mark.parametrize(
  ('value', 'message'),
  [
    ('movielense', "Did you mean 'movielens'?"),
    ('xyzzy:runlocal', f'choose one of: {", ".join(configs.NAMES)}'),
    ('configs/movielens.py', 'configs/movielens.py'),
  ],
)
def test_an_unknown_config_is_one_line(run, tmp_path, value, message):
  code, out, err = run('td_jax', f'--config={value}')
  assert code == 2
  assert err.startswith('error: ')
  assert err.count('\n') == 1
  assert message in err
  assert out == ''
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', ['tables', 'tune', 'check'])
def test_commands_of_the_paper_start(run, name):
  code, out, err = run('python', '-m', f'td_jax.paper.{name}', '--help')
  assert code == 0, err
  assert out.startswith('usage: ')


def test_every_config_of_the_package_has_a_name():
  folder = pathlib.Path(configs.__file__).parent
  experiments = {
    file.stem
    for file in folder.glob('*.py')
    if 'def get_config(' in file.read_text()
  }
  assert experiments == set(configs.NAMES)
  # `--config=configs/NAME.py` names the same files in a checkout.
  assert (ROOT / 'configs').resolve() == folder.resolve()


def test_the_library_face_is_light():
  """Importing td_jax is quick; its parts are imported when they are used."""
  probe = (
    'import sys, td_jax; '
    "light = 'jax' not in sys.modules; "
    'print(light, td_jax.talk.__name__, td_jax.losses.__name__, '
    'td_jax.methods.__name__, td_jax.models.__name__)'
  )
  out = _checked(
    sys.executable, '-c', probe, env=os.environ | {'PYTHONPATH': str(ROOT)}
  )
  assert out.split() == [
    'True',
    'td_jax.methods.talk',
    'td_jax.methods.losses',
    'td_jax.methods',
    'td_jax.models',
  ]
  with pytest.raises(AttributeError, match="no attribute 'nothing'"):
    td_jax.nothing  # noqa: B018


def test_tensorflow_is_not_needed(run, tmp_path):
  """Everything can be imported without it, and ratings, tables and folders of
  images be read, streamed ones too."""
  (tmp_path / 'rows.csv').write_text('a,b\n' + '1,x\n2,y\n3,x\n' * 20)
  for name in ('cat/1.png', 'dog/2.png'):
    (tmp_path / 'photos' / name).parent.mkdir(parents=True)
    PIL.Image.new('RGB', (6, 4), 'red').save(tmp_path / 'photos' / name)
  script = """
import importlib, pkgutil, sys
for name in ('tensorflow', 'tensorflow_datasets', 'array_record'):
  sys.modules[name] = None
import td_jax
for module in pkgutil.walk_packages(td_jax.__path__, 'td_jax.'):
  if not module.name.endswith('__main__'):
    importlib.import_module(module.name)
from td_jax import data, errors
from td_jax.configs import movielens, table
from td_jax.run import completion
for config in (
  movielens.get_config(), table.get_config('data=rows.csv,target=b')
):
  config = completion.complete(config, log=print)
  print(len(data.load(config, log=print).test.y))
from td_jax.data import host_pipeline, records
photos = records.load('image_folder', 'photos').records('train')
for run in (
  host_pipeline.training(photos, seed=0, batch_size=2, size=4),
  host_pipeline.evaluation(photos, batch_size=2, size=4),
):
  assert run.batch(0)['image'].tolist() == [[[[255, 0, 0]] * 4] * 4] * 2
  run.close()
try:
  importlib.import_module("td_jax.data.tfds").module()
except errors.DataError as e:
  print(e)
"""
  code, out, err = run('python', '-c', script)
  assert code == 0, err
  assert "pip install 'td_jax[tfds]'" in out.splitlines()[-1]


@pytest.mark.long
@pytest.mark.parametrize(
  'platforms',
  [
    ('macosx_14_0_arm64',),
    tuple(
      f'manylinux{version}_aarch64'
      for version in ('_2_28', '_2_27', '_2_17', '2014')
    ),
  ],
  ids=['mac', 'linux'],
)
def test_pip_finds_all_that_is_required_on_arm(wheel, tmp_path, platforms):
  def dry_run(*words):
    return subprocess.run(
      [
        *(sys.executable, '-m', 'pip', 'install', '--dry-run', '--quiet'),
        *('--ignore-installed', '--target', str(tmp_path / 'target')),
        *('--only-binary=:all:', '--python-version=3.11'),
        *(f'--platform={name}' for name in platforms),
        *words,
      ],
      capture_output=True,
      text=True,
      check=False,
    )

  if dry_run('--no-deps', 'absl-py').returncode:
    pytest.skip('there is no package index within reach')
  shutil.unpack_archive(wheel, tmp_path, format='zip')
  (folder,) = tmp_path.glob('td_jax-*.dist-info')
  required = [
    line
    for line in importlib.metadata.PathDistribution(folder).requires or ()
    if 'extra ==' not in line
  ]
  assert any(line.startswith('jax>=') for line in required)
  found = dry_run(*required)
  assert found.returncode == 0, found.stderr
