"""The files in examples/ run, with fewer steps than they say."""

import json
import os
import pathlib
import runpy
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import PIL.Image
import pytest
import tiny_vision

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

_ROOT = pathlib.Path(__file__).parents[1]
_EXAMPLES = _ROOT / 'examples'


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """24 photos of three classes, 4 without a class."""
  root = tmp_path_factory.mktemp('photos')
  for number in range(28):
    pixels, label = tiny_vision.picture(number)
    folder = root / (f'{label}' if number < 24 else 'unlabelled')
    folder.mkdir(exist_ok=True)
    PIL.Image.fromarray(pixels).save(folder / f'{number}.png')
  return root


@pytest.mark.parametrize('name', ['library', 'custom_method'])
def test_a_script(name, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', [name, '4'])
  runpy.run_path(str(_EXAMPLES / f'{name}.py'), run_name='__main__')
  lines = capsys.readouterr().out.splitlines()
  assert len(lines) == 3 and all(' +- ' in line for line in lines)


def test_the_notebook(monkeypatch):
  mpl.use('agg')
  notebook = json.loads((_EXAMPLES / 'few_labels.ipynb').read_text())
  cells = [
    ''.join(cell['source'])
    for cell in notebook['cells']
    if cell['cell_type'] == 'code'
  ]
  scope = {}
  for cell in cells:
    exec(cell.replace('STEPS = 500', 'STEPS = 4'), scope)
  assert set(scope['students']) == {'scratch', 'ld'}
  mpl.pyplot.close('all')


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
def test_a_cnn_teaches(photos, tmp_path, monkeypatch, command):
  script = tmp_path / 'cnn_teacher.py'
  script.write_text((_EXAMPLES / 'cnn_teacher.py').read_text())
  monkeypatch.setattr(sys, 'argv', ['cnn_teacher.py', str(photos), '3'])
  runpy.run_path(str(script), run_name='__main__')
  code, _, err = command(
    f'--config=image_folder:data={photos},teacher={script}:teacher,runlocal',
    '--config.model.width=24',
    '--config.model.mlp_width=8',
    '--config.teacher.head=stored',
    f'--workdir={tmp_path}/run',
  )
  assert code == 0, err
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert results['teachers']['teacher']['folder'] == f'{script}:teacher'
  assert results['label'] == 'td_ld, k=1'


def _bash(script, *args, path, cwd):
  """Runs a script with a `td_jax` and a `pip` of this test."""
  tools = path / 'tools'
  tools.mkdir()
  (tools / 'pip').write_text('#!/bin/sh\n')
  (tools / 'td_jax').write_text(
    f'#!/bin/sh\nexec {sys.executable} -m td_jax "$@"\n'
  )
  for tool in tools.iterdir():
    tool.chmod(0o755)
  return subprocess.run(
    ['bash', str(_EXAMPLES / script), *map(str, args)],
    cwd=cwd,
    env=os.environ
    | {
      'PATH': f'{tools}:{os.environ["PATH"]}',
      'PYTHONPATH': str(_ROOT),
      'XLA_FLAGS': '',
    },
    capture_output=True,
    text=True,
    check=False,
  )


def test_photos_to_predictions_and_an_export(photos, tmp_path):
  tiny_vision.teacher(tmp_path / 'teacher')
  done = _bash(
    'own_images.sh',
    photos,
    photos / 'unlabelled',
    '--config.steps=2',
    '--config.eval_every=2',
    '--config.log_every=2',
    '--config.steps_per_dispatch=1',
    '--config.optim.warmup=0',
    '--config.batch_size=8',
    '--config.model.depth=2',
    '--config.model.pooling=token',  # The format takes no other MLP of 12.
    path=tmp_path,
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'photos_hf' / 'model.safetensors').exists()
  assert len(done.stdout.splitlines()) >= 4


def test_ratings_to_predictions(tmp_path):
  rng = np.random.default_rng(0)
  rows = [
    f'{rng.integers(20)},{rng.integers(15)},{rng.integers(1, 6)},{time}'
    for time in range(300)
  ]
  header = 'userId,movieId,rating,timestamp'
  (tmp_path / 'ratings.csv').write_text('\n'.join([header, *rows]) + '\n')
  (tmp_path / 'questions.csv').write_text('userId,movieId\n3,4\n5,6\n')
  done = _bash(
    'own_ratings.sh',
    'ratings.csv',
    'questions.csv',
    '--config.seeds=1',
    '--config.method=scratch',
    '--config.steps=20',
    '--config.eval_every=20',
    '--config.log_every=20',
    '--config.steps_per_dispatch=20',
    '--config.optim.warmup=0',
    path=tmp_path,
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  lines = (tmp_path / 'predicted.csv').read_text().splitlines()
  assert len(lines) == 3
