"""A run on images, from the command to its results."""

import json
import subprocess
import sys

import conftest
import jax
import numpy as np
import PIL.Image
import pytest
import test_distributed
import test_resume
import tiny_images
import tiny_vision

from td_jax import errors
from td_jax.configs import vit_imagenet
from td_jax.data import classification
from td_jax.devices import sharding
from td_jax.paper import cka
from td_jax.run import pipeline
from td_jax.run import saved
from td_jax.run import teachers
from td_jax.training import evaluate

tf = pytest.importorskip('tensorflow')

# ml_collections loads configs by a function that Python has deprecated.
pytestmark = [
  pytest.mark.filterwarnings('ignore:the load_module'),
  pytest.mark.long,  # `.ci/run` runs it on one Python.
]


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  """A data folder of TFDS, with the dataset `tiny`."""
  root = tmp_path_factory.mktemp('tfds')
  tiny_images.prepare(
    root, file_format='array_record', examples=tiny_vision.examples()
  )
  return root


@pytest.fixture(scope='module')
def config(vision_data, vision_teacher):
  """(method, **overrides) -> a config of the tiny images."""

  def make(method, **overrides):
    made = tiny_vision.get_config(f'method={method},teacher={vision_teacher}')
    made.data.dir = str(vision_data)
    made.update_from_flattened_dict(overrides)
    return made

  return make


def _args(method, data, teacher, path, *more):
  return (
    f'--config={tiny_vision.FILE}:method={method},teacher={teacher}',
    f'--config.data.dir={data}',
    f'--workdir={path}',
    *more,
  )


def _shown(split):
  """What networks see of a split, and its labels, by TensorFlow."""
  first = {'validation': 24, 'test': 33}[split]  # In `tiny_vision.examples`.
  pictures, labels = zip(
    *map(tiny_vision.picture, range(first, first + tiny_vision.SIZES[split])),
    strict=True,
  )
  size = tiny_vision.SIZE
  resized = tf.image.resize(np.stack(pictures), (size, size)).numpy()
  mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
  return ((resized - mean) / std).astype(np.float32), np.array(labels)


def _accuracy(model, variables, split):
  x, labels = _shown(split)
  *_, logits = jax.jit(lambda x: model.apply(variables, x, train=False))(x)
  return float(np.mean(np.argmax(np.asarray(logits), axis=1) == labels))


def test_td_from_the_command_to_its_figure(
  command, prepared, vision_teacher, tmp_path, monkeypatch
):
  """Views, a cached teacher and a probe; then --mode=eval, --mode=cka."""
  args = _args(
    'td_ld',
    prepared,
    vision_teacher,
    tmp_path,
    *('--config.data.dataset=tiny', '--config.teacher.head=probe'),
    *('--config.data.fixed_crops=2', '--config.teacher.cache=True'),
    *('--config.steps=48', '--config.eval_every=48'),
    *('--config.steps_per_dispatch=12', '--config.log_every=12'),
  )
  code, table, err = command(*args)
  assert code == 0, err
  assert err.count('fitting a linear head') == 1
  results = json.loads((tmp_path / 'results.json').read_text())
  assert results['metric'] == 'accuracy'
  assert results['train_examples'] == tiny_vision.SIZES['train']
  assert results['best_step'] == [48]
  rows = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  last = json.loads(rows[-1])
  assert {'task', 'logit', 'talk', 'talk/message', 'talk/state'} <= last.keys()
  assert last['validation_accuracy'] == results['validation']['per_seed']

  # The scores are those of the networks that were kept, by another way.
  config = saved.config_of(tmp_path)
  task = classification.load(config, log=print)
  found = saved.load(tmp_path, task)
  student = jax.tree.map(lambda leaf: leaf[0], found.variables)
  teacher = teachers.load(
    config, task, path=tmp_path, folder=str(vision_teacher)
  )
  for split in ('validation', 'test'):
    own = _accuracy(found.model, student, split)
    assert results[split]['per_seed'] == pytest.approx([own])
    its = _accuracy(teacher.model, teacher.variables, split)
    assert results['teachers']['teacher'][split] == pytest.approx(its)
    assert results['baselines']['most frequent class'][split] == 1 / 3
  assert results['test']['mean'] not in (0, 1 / 3, 1)
  assert results['teachers']['teacher']['test'] > 0.5  # Chance is 1/3.

  code, again, err = command(*args, '--mode=eval')
  assert code == 0, err
  assert again == table
  assert 'fitting' not in err  # The probe was kept.

  batches, sizes = evaluate.batches, []
  monkeypatch.setattr(
    evaluate, 'batches', lambda feed, b: sizes.append(b) or batches(feed, b)
  )
  code, out, err = command(*args, '--mode=cka', '--config.eval_batch=32')
  assert sizes == [32]
  assert (code, out) == (0, ''), err
  assert (tmp_path / 'cka.png').read_bytes().startswith(b'\x89PNG')
  panels = json.loads((tmp_path / 'cka.json').read_text())['teacher']
  assert list(panels) == ['low', 'high', 'message']
  x, labels = _shown('test')
  states = [
    jax.jit(lambda x, m=model, v=variables: m.apply(v, x, train=False))(x)[:2]
    for model, variables in (
      (found.model, student),
      (teacher.model, teacher.variables),
    )
  ]
  for name, ours, theirs in zip(('low', 'high'), *states, strict=True):
    expected = cka.per_class(
      *(np.asarray(s).reshape(len(x), -1) for s in (ours, theirs)),
      labels,
      classes=3,
    )
    np.testing.assert_allclose(
      np.diag(panels[name]['cka']), np.diag(expected), atol=1e-3
    )


@pytest.fixture(scope='module')
def many_classes(tmp_path_factory):
  """A stand-in for ImageNet: 300 classes of one image, and no test split."""
  root = tmp_path_factory.mktemp('many')
  rng = np.random.default_rng(0)
  for number in range(300):
    label = root / 'train' / f'{number:03}'
    label.mkdir(parents=True)
    pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(label / '0.png')
  return root


@pytest.mark.parametrize('arg', ['runlocal', 'laptop'])
def test_imagenet_on_a_laptop_has_more_classes_than_its_head_sees(
  many_classes, vision_teacher, tmp_path, arg
):
  config = vit_imagenet.get_config(f'{arg},method=ld,teacher={vision_teacher}')
  small = {'width': 8, 'heads': 2, 'mlp_width': 12, 'patch': 8, 'depth': 2}
  for model in (config.model, config.teacher.model):
    model.update({**small, 'layer_scale': 0.0, 'split': (1, 2)})
  config.update({'steps': 2, 'batch_size': 8, 'test': False})
  config.update({'steps_per_dispatch': 2, 'log_every': 2, 'eval_every': 2})
  config.data.update({'dataset': 'image_folder', 'dir': str(many_classes)})
  config.data.update({'classes': 300, 'size': 16})
  if arg == 'laptop':
    config.data.train = 'train[:250]'  # Of so few images 20,000 are all.
  lines = []
  results = pipeline.run(
    config, tmp_path, watch=conftest.Watch(), log=lines.append
  )
  assert 'test' not in results
  lacking = '100' if arg == 'runlocal' else '50'
  warnings = [line for line in lines if 'no example to fit' in line]
  # Of the teacher, and of the blocks that the student has copied.
  assert len(warnings) == 2 and f'{lacking} of 300' in warnings[0]
  assert any('the test split is left out' in line for line in lines)


# Without teacher and test split: each compiles programs of its own.
_RUNS = {
  memory: {
    'method': 'scratch',
    'student_init': 'random',
    'test': False,
    'data.memory': memory,
  }
  for memory in ('device', 'stream')
}


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory):
  """{memory: folder} of runs that nothing disturbed."""
  found = {}
  for memory, own in _RUNS.items():
    found[memory] = tmp_path_factory.mktemp(memory)
    test_resume._run(found[memory], config(**own))
  return found


@pytest.mark.parametrize('memory', ['device', 'stream'])
def test_interrupted_it_ends_the_same(config, whole, tmp_path, memory):
  """Random crops and an end of an epoch on the way."""
  own = config(**_RUNS[memory])
  assert own.steps * own.batch_size == 2 * tiny_vision.SIZES['train']
  with pytest.raises(errors.PreemptedError, match='saved step 3'):
    test_resume._run(tmp_path, own, test_resume._stop_at(tmp_path, 3))
  test_resume._run(tmp_path, own)
  test_resume._assert_same(tmp_path, whole[memory])
  # A step later the crops are others.
  rows = [
    json.loads(row)['loss']
    for row in (tmp_path / 'metrics.jsonl').read_text().splitlines()
  ]
  assert rows[0] != rows[1]


def _numbers(path):
  """Parameters at the end, rows and scores of a run."""
  items, _ = test_resume._restored(path)
  rows = (path / 'metrics.jsonl').read_text().splitlines()
  results = json.loads((path / 'results.json').read_text())
  return {
    'params': {
      leaf: value
      for leaf, value in items['state'].items()
      if leaf.startswith('params')
    },
    'rows': [json.loads(row) for row in rows],
    'scores': results['validation']['per_seed'],
  }


def test_devices_and_processes_change_nothing(
  config, whole, vision_data, vision_teacher, tmp_path
):
  """1 device, 4 devices, and 2 processes of 2 devices."""
  shared = _RUNS['device'] | {'parallel.kind': 'mesh', 'parallel.devices': 4}
  test_resume._run(tmp_path / 'four', config(**shared))
  args = _args('scratch', vision_data, vision_teacher, tmp_path / 'two')
  said = subprocess.run(
    [
      *(sys.executable, str(test_distributed.ROOT / 'launch/local.py'), '2'),
      *('--devices_per_process=2', '--'),
      *(sys.executable, '-m', 'td_jax.main', '--distributed=on', *args),
      *('--config.parallel.kind=mesh', '--config.parallel.devices=0'),
      *('--config.test=False', '--config.student_init=random'),
    ],
    env=tiny_vision.environment(),
    check=False,
    timeout=300,
    capture_output=True,
    text=True,
  )
  assert said.returncode == 0, said.stdout + said.stderr
  expected = _numbers(whole['device'])
  for name in ('four', 'two'):
    jax.tree.map(
      lambda one, other: np.testing.assert_allclose(
        one, other, rtol=1e-4, atol=1e-5
      ),
      _numbers(tmp_path / name),
      expected,
    )


def test_in_pieces_from_the_command_to_the_scores(
  command, vision_data, vision_teacher, tmp_path, monkeypatch
):
  """4 devices with 2 pieces each; then its scores on one device."""
  alone, cut = sharding.shard_largest_axis, []

  def small_ones_too(*args, **more):
    specs = alone(*args, **more, min_size=8)
    cut.extend(spec for spec in jax.tree.leaves(specs) if spec)
    return specs

  monkeypatch.setattr(sharding, 'shard_largest_axis', small_ones_too)
  # A method with parameters of its own; test_fsdp.py has a conversation.
  shared = (
    *('--config.parallel.kind=mesh', '--config.parallel.devices=4'),
    '--config.distill.weights.feature=1e-3',
  )
  numbers = []
  for pieces in (1, 2):
    cut.clear()
    path = tmp_path / str(pieces)
    args = _args('fd', vision_data, vision_teacher, path)
    fsdp = f'--config.parallel.fsdp={pieces}'
    code, table, err = command(*args, *shared, fsdp)
    assert code == 0, err
    assert bool(cut) == (pieces > 1)
    numbers.append(_numbers(path))
    code, again, err = command(
      *args, '--mode=eval', '--config.parallel.devices=1'
    )
    assert (code, again) == (0, table), err
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(
      one, other, rtol=1e-4, atol=1e-5
    ),
    *numbers,
  )


def test_a_run_of_ours_is_a_teacher_too(config, whole):
  """Its best student."""
  own = config('td', **{'teacher.checkpoint': str(whole['device'])})
  task = classification.load(own, log=print)
  teacher = teachers.load(own, task, path=None, folder=own.teacher.checkpoint)
  assert teacher.model.depth == own.model.depth
  items, _ = test_resume._restored(whole['device'])
  kept = {
    leaf.removeprefix('student/'): value[0]
    for leaf, value in items['best'].items()
    if leaf.startswith('student')
  }
  leaves = jax.tree_util.tree_leaves_with_path(teacher.variables)
  assert len(leaves) == len(kept)
  for value, stored in zip(
    (leaf for _, leaf in leaves), kept.values(), strict=True
  ):
    np.testing.assert_array_equal(value, stored)


def test_what_has_no_teacher_is_not_compared(
  command, whole, vision_data, vision_teacher
):
  path = whole['stream']
  code, out, err = command(
    *_args('td', vision_data, vision_teacher, path), '--mode=cka'
  )
  assert (code, out) == (2, ''), err
  assert f'{path} has no teacher' in err.splitlines()[-1]
  assert not (path / 'cka.json').exists()


def test_a_wrong_teacher_leaves_nothing_that_stops_a_good_one(
  command, vision_data, vision_teacher, tmp_path
):
  args = _args('td', vision_data, vision_teacher, tmp_path / 'run')
  code, _, err = command(*args, '--config.teacher.checkpoint=nowhere')
  assert code == 65, err
  # It is the next fault that is told, not the last command.
  code, _, err = command(*args, '--config.model.patch=4')
  assert 'the same tokens, or choose' in err
  assert 'another config' not in err


_WRONG = pytest.mark.parametrize(
  ('args', 'code', 'said'),
  [
    (
      ('--config.data.size=20',),
      2,
      'config.model.patch is 8, which does not divide config.data.size, 20;',
    ),
    (('--config.data.classes=10',), 2, 'config.data.classes is 10'),
    (('--config.data.dataset=cifar10',), 65, 'To prepare it, run: python -c'),
    (('--config.data.dataset=cifar 10',), 2, "dataset 'cifar 10'"),
    (('--config.data.test=tset',), 2, "Did you mean 'test'?"),
    (('--config.data.memory=disk',), 2, 'one of: device, stream'),
    (
      ('--config.data.memory=stream', '--config.data.fixed_crops=2'),
      2,
      'config.data.fixed_crops is 2',
    ),
    (('--config.teacher.cache=True',), 2, 'config.teacher.cache is True'),
    (('--config.teacher.checkpoint=nowhere',), 65, 'nowhere'),
    (('--config.teacher.head=stord',), 2, "Did you mean 'stored'?"),
    (('--config.teacher.model.split=(2,3)',), 2, 'teacher.model.split is'),
    (('--config.model.patch=4',), 2, 'the same tokens, or choose'),
    (('--config.method=teacher',), 2, 'its teacher is published'),
    (('--config.data.limit=25',), 2, 'config.data.limit is 25'),
  ],
)


@_WRONG
def test_what_is_wrong_is_one_line(
  command, vision_data, vision_teacher, tmp_path, *, args, code, said
):
  run = tmp_path / 'run'
  got, out, err = command(*_args('td', vision_data, vision_teacher, run), *args)
  assert (got, out) == (code, ''), err
  *before, last = err.splitlines()
  assert last.startswith('error: ')
  assert said in last
  assert not [line for line in before if line.startswith('error')]
  assert 'Traceback' not in err
  assert not (run / 'checkpoints').exists()
