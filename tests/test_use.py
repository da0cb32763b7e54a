"""The student of a finished run: loaded and asked, without its training data."""

import csv
import json
import shutil

import conftest
from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np
import PIL.Image
import pytest
from safetensors import numpy as safetensors
import tiny_vision

import td_jax
from td_jax import errors
from td_jax import main
from td_jax import models
from td_jax import types
from td_jax.data import movielens
from td_jax.data import preprocess
from td_jax.data import tensorflow_decoding
from td_jax.models import pretrained
from td_jax.models import published_export
from td_jax.models import vit
from td_jax.run import pipeline
from td_jax.use import cost
from td_jax.use import export
from td_jax.use import inspect
from td_jax.use import predict

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

TEST = sum(tiny_vision.SIZES[split] for split in ('train', 'validation'))


@pytest.fixture(scope='module')
def images(vision_data, vision_teacher, tmp_path_factory):
  """The folder of a finished run on images, of two seeds."""
  config = tiny_vision.get_config(f'method=ld,teacher={vision_teacher}')
  config.data.dir, config.data.augment, config.seeds = (
    str(vision_data),
    'none',
    2,
  )
  folder = tmp_path_factory.mktemp('images') / 'run'
  pipeline.run(config, folder, watch=conftest.Watch(), log=types.no_log)
  return folder


@pytest.fixture(scope='module')
def ratings(small_movielens, tmp_path_factory):
  """The folder of a finished run on ratings, of two seeds."""
  folder = tmp_path_factory.mktemp('ratings') / 'run'
  pipeline.run(
    # Scores of several devices are compared with predictions of one. The second
    # half of War's padded splits is padding, and so are two of four devices.
    conftest.small_config(
      'genre=War,method=scratch', **{'parallel.devices': 4}
    ),
    folder,
    watch=conftest.Watch(),
    log=types.no_log,
  )
  return folder


def _results(run):
  return json.loads((run / 'results.json').read_text())


def _command(capfd, *words):
  """(exit code, stdout, stderr) of `td_jax predict`."""
  code = 0
  try:
    predict.main([str(word) for word in words])
  except SystemExit as e:
    code = e.code
  return code, *capfd.readouterr()


@pytest.mark.parametrize('seed', [0, 1])
def test_images_score_what_the_run_has_scored(images, vision_data, seed):
  """From files, PIL images and arrays alike."""
  student = td_jax.load(images, seed=seed)
  assert student.class_names == ('0', '1', '2')
  pictures, labels = zip(
    *(tiny_vision.picture(TEST + i) for i in range(60)), strict=True
  )
  # Accuracy alone would hardly notice grey levels that are not normalised.
  resized = preprocess.resize(jnp.asarray(np.stack(pictures)), tiny_vision.SIZE)
  mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
  np.testing.assert_allclose(
    student.preprocess(pictures),
    (np.asarray(resized) - mean) / std,
    rtol=1e-4,
    atol=1e-4,
  )
  found = student.predict(pictures, batch=7)
  assert found.shape == (60, 3)
  np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
  accuracy = np.mean(found.argmax(axis=1) == labels)
  assert accuracy == pytest.approx(_results(images)['test']['per_seed'][seed])
  files = sorted(vision_data.glob('test/*/*.png'), key=lambda file: file.name)
  np.testing.assert_array_equal(
    student.predict(files), student.predict(pictures)
  )
  whole = [PIL.Image.fromarray(picture) for picture in pictures]
  np.testing.assert_array_equal(
    student.predict(whole), student.predict(pictures)
  )
  assert not len(student.predict([]))


@pytest.mark.parametrize('seed', [0, 1])
def test_ratings_score_what_the_run_has_scored(ratings, seed):
  student = td_jax.load(ratings, seed=seed)
  table = conftest.small_ratings()
  rows = movielens.parts(table, 'War').test
  pairs = list(zip(table.user_id[rows], table.movie_id[rows], strict=True))
  error = student.predict(pairs) - table.rating[rows]
  assert np.sqrt(np.mean(error**2)) == pytest.approx(
    _results(ratings)['test']['per_seed'][seed], rel=1e-6
  )
  # Ids may be text. Unknown ones share a row, but a movie keeps its title.
  as_text = [(str(user), str(movie)) for user, movie in pairs]
  np.testing.assert_array_equal(
    student.predict(as_text), student.predict(pairs)
  )
  one, other, nobody = student.predict([('?', '3'), ('-', '3'), ('?', '?')])
  assert one == other != nobody
  encoder = student.preprocess
  assert encoder.title(3) == 'The Film No 3 (1995)'
  assert encoder.title('?') == ''
  assert encoder.unknown(('?', '?')) == ['user', 'movie']
  seen = movielens.parts(table, 'War').train[0]
  known = table.user_id[seen], table.movie_id[seen]
  assert encoder.unknown(known) == []
  assert encoder.unknown((known[0], 999)) == ['movie']


def test_the_best_seed_by_validation_is_taken(images, ratings):
  for run, best in ((images, np.argmax), (ratings, np.argmin)):
    scores = _results(run)['validation']['per_seed']
    assert td_jax.load(run).seed == best(scores)
  with pytest.raises(errors.ConfigError, match='no seed 2; its seeds are 0, 1'):
    td_jax.load(images, seed=2)


def test_a_folder_that_lacks_what_is_needed(images, tmp_path):
  with pytest.raises(errors.DataError, match=r'is .* the folder of a run'):
    td_jax.load(tmp_path)
  run = shutil.copytree(images, tmp_path / 'run')
  (run / 'inputs.npz').write_bytes(b'PK')
  with pytest.raises(errors.DataError, match=r'cannot be read .* once more'):
    td_jax.load(run)
  (run / 'inputs.npz').unlink()
  with pytest.raises(
    errors.DataError, match='adds the file and trains nothing'
  ):
    td_jax.load(run)
  # As the message says.
  config = tiny_vision.get_config()
  config.update(json.loads((run / 'config.json').read_text()))
  pipeline.run(config, run, watch=conftest.Watch(), log=types.no_log)
  assert td_jax.load(run).class_names == ('0', '1', '2')


@pytest.mark.parametrize('example', [3, np.zeros((2, 2)), np.zeros((2, 2, 4))])
def test_an_image_that_is_none(images, example):
  with pytest.raises(errors.DataError, match='uint8'):
    td_jax.load(images).predict([example])


def test_pairs_that_are_none(ratings):
  for example in ('12', (1, 2, 3)):
    with pytest.raises(errors.DataError, match='pair such as'):
      td_jax.load(ratings).predict([example])


def test_predict_a_folder_with_a_damaged_image(
  images, vision_data, tmp_path, capfd
):
  folder = shutil.copytree(vision_data / 'test', tmp_path / 'photos')
  (folder / '0' / 'bad.png').write_bytes(b'no image')
  code, out, err = _command(capfd, images, folder, '--top=2', '--batch=16')
  assert code == 65
  first, last = err.splitlines()
  assert first.startswith('warning: ')
  assert 'bad.png cannot be read as an image' in first
  assert last.startswith('error: 1 of 61 examples could not be read')
  rows = [json.loads(line) for line in out.splitlines()]
  student = td_jax.load(images)
  assert len(rows) == 60
  for row in (rows[0], rows[-1]):
    (expected,) = student.predict([row['file']])
    top = [(each['class'], each['probability']) for each in row['top']]
    order = np.argsort(-expected, kind='stable')[:2]
    assert top == [
      (student.class_names[i], pytest.approx(expected[i], abs=1e-6))
      for i in order
    ]
    assert (row['class'], row['probability']) == top[0]


def test_predict_to_csv(images, ratings, vision_data, tmp_path, capfd):
  out = tmp_path / 'out.csv'
  file = next(vision_data.glob('test/1/*.png'))
  code, shown, err = _command(capfd, images, file, f'--out={out}', '--top=2')
  assert (code, shown) == (0, '')
  assert err == f'predictions are in {out}\n'
  (row,) = csv.DictReader(out.read_text().splitlines())
  assert list(row) == [
    'file', 'class', 'probability', 'class_2', 'probability_2'
  ]  # fmt: skip
  pairs = tmp_path / 'pairs.csv'
  pairs.write_text('rating,user_id,item\n4,1,2\n5,?,3\n')
  code, *_ = _command(capfd, ratings, pairs, '1,2', f'--out={out}')
  assert code == 0
  rows = list(csv.DictReader(out.read_text().splitlines()))
  assert [row['user'] for row in rows] == ['1', '?', '1']
  assert rows[1]['unknown'].startswith('user')
  assert rows[0] == rows[2]


@pytest.mark.parametrize(
  ('which', 'words', 'said'),
  [
    ('images', ['nowhere.png'], (65, 'nowhere.png does not exist')),
    ('ratings', ['nowhere.csv'], (65, 'neither a file nor USER,ITEM')),
    ('images', [], (2, 'required: input')),
    ('images', ['x', '--seed=a'], (2, 'invalid int value')),
    ('images', ['x', '--top=0'], (2, '0 is not at least 1')),
    ('ratings', ['1,2', '--batch=-1'], (2, '-1 is not at least 1')),
  ],
)
def test_predict_refuses(request, capfd, which, words, said):
  code, out, err = _command(capfd, request.getfixturevalue(which), *words)
  assert (code, out, err.count('\n')) == (said[0], '', 1)
  assert said[1] in err


def test_a_csv_without_the_columns(ratings, tmp_path, capfd):
  file = tmp_path / 'pairs.csv'
  file.write_text('who,what\n1,2\n')
  code, _, err = _command(capfd, ratings, file)
  assert code == 65
  assert 'has the columns who, what; it lacks user, movie' in err


def test_a_row_without_a_movie(ratings, tmp_path, capfd):
  file = tmp_path / 'pairs.csv'
  file.write_text('user,movie\n1,2\n3\n')
  code, out, err = _command(capfd, ratings, file)
  assert (code, out) == (65, '')
  assert f'{file}, line 3 has 1 values, but the first line names 2' in err


def test_a_wrong_input_leaves_old_predictions(images, tmp_path, capfd):
  out = tmp_path / 'out.csv'
  out.write_text('old')
  (tmp_path / 'broken.png').symlink_to('gone')
  for word, said in (
    ('nowhere', 'does not exist'),
    (tmp_path, 'cannot be read'),
  ):
    code, _, err = _command(capfd, images, word, f'--out={out}')
    assert code == 65
    assert said in err
  assert out.read_text() == 'old'


def test_the_command_is_found(monkeypatch, capsys):
  monkeypatch.setattr('sys.argv', ['td_jax', 'predict', '--help'])
  with pytest.raises(SystemExit) as e:
    main.run()
  assert e.value.code == 0
  assert 'usage: td_jax predict' in capsys.readouterr().out


@pytest.mark.parametrize('smaller_side', [0, 9])
@pytest.mark.parametrize('shape', [(24, 32), (9, 40), (7, 5)])
def test_whole_images_are_those_of_an_evaluation(shape, smaller_side):
  tf = pytest.importorskip('tensorflow')
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  expected = tensorflow_decoding._whole_image(
    tf.io.encode_png(image), size=8, smaller_side=smaller_side
  )
  found = preprocess.whole_image(image, size=8, smaller_side=smaller_side)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
  if not smaller_side:
    np.testing.assert_allclose(
      found,
      preprocess.resize(jnp.asarray(image[None]), 8)[0],
      rtol=1e-5,
      atol=1e-3,
    )


# Exports.


def _examples(student):
  """Five examples, the shortest and the longest pictures among them."""
  if student.class_names:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (9 + i, 30, 3), np.uint8) for i in range(5)]
  return [('1', '2'), ('3', '4'), ('?', '5'), ('6', '?'), ('?', '?')]


@pytest.fixture(params=['images', 'ratings'])
def run(request):
  """The folder of a finished run, of either kind."""
  return request.getfixturevalue(request.param)


def test_stablehlo_takes_any_batch_size(run, tmp_path):
  student = td_jax.load(run)
  export.export(student, 'stablehlo', tmp_path / 'out')
  data = (tmp_path / 'out/model.stablehlo').read_bytes()
  program = jax.export.deserialize(bytearray(data))
  for examples in (_examples(student), _examples(student)[:1]):
    np.testing.assert_allclose(
      program.call(student.preprocess.arrays(examples)),
      student.outputs(student.preprocess(examples)),
      rtol=1e-5,
      atol=1e-5,
    )


def test_the_numbers_of_ids_are_written(ratings, tmp_path):
  student = td_jax.load(ratings)
  export.export(student, 'stablehlo', tmp_path)
  numbers = json.loads((tmp_path / 'numbers.json').read_text())
  arrays = student.preprocess.arrays(_examples(student))
  for name, i in (('user', 0), ('movie', 1)):
    expected = [numbers[name].get(pair[i], 0) for pair in _examples(student)]
    assert arrays[name].tolist() == expected
    assert any(expected)


def test_safetensors_hold_the_network(run, tmp_path):
  student = td_jax.load(run)
  export.export(student, 'safetensors', tmp_path)
  stored = safetensors.load_file(tmp_path / 'model.safetensors')
  settings = json.loads((tmp_path / 'config.json').read_text())
  assert settings['class_names'] == list(student.class_names)
  params = traverse_util.unflatten_dict(stored, sep='.')
  model = dict(settings['model'])
  rebuilt = models.NETWORKS[model.pop('name')].module(
    **{k: tuple(v) if isinstance(v, list) else v for k, v in model.items()},
    **student.model_args,
  )
  x = student.preprocess(_examples(student))
  *_, output = rebuilt.apply({'params': params}, x, train=False)
  np.testing.assert_allclose(output, student.outputs(x), rtol=1e-5, atol=1e-5)


def test_savedmodel(ratings, tmp_path):
  tf = pytest.importorskip('tensorflow')
  student = td_jax.load(ratings)
  export.export(student, 'savedmodel', tmp_path)
  serve = tf.saved_model.load(str(tmp_path)).signatures['serving_default']
  for examples in (_examples(student), _examples(student)[:1]):
    arrays = student.preprocess.arrays(examples)
    found = serve(**{name: tf.constant(a) for name, a in arrays.items()})
    np.testing.assert_allclose(
      found['output'], student.predict(examples), rtol=1e-5, atol=1e-5
    )


def test_onnx(run, tmp_path):
  pytest.importorskip('jax2onnx', reason='jax2onnx is not installed')
  onnxruntime = pytest.importorskip('onnxruntime')
  student = td_jax.load(run)
  export.export(student, 'onnx', tmp_path)
  session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
  for examples in (_examples(student), _examples(student)[:1]):
    arrays = student.preprocess.arrays(examples)
    (found,) = session.run(None, arrays)
    np.testing.assert_allclose(
      found,
      student.outputs(student.preprocess(examples)),
      rtol=1e-5,
      atol=1e-5,
    )


_VIT = {
  'classes': 3, 'width': 8, 'depth': 2, 'heads': 2, 'mlp_width': 16, 'patch': 4,
  'class_token': 'before', 'registers': 0, 'position': 'learned',
  'pre_norm': False, 'pre_logits_width': 0, 'mlp': 'gelu', 'gelu': 'exact',
  'eps': 1e-6,
}  # fmt: skip


def _stored(folder, **settings):
  """Writes a random ViT as Hugging Face does; returns (images, its logits)."""
  settings = {**_VIT, **settings}
  model = vit.ViT(**settings, **pretrained.RUNNING)
  x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x, train=False))
  rng = np.random.default_rng(2)
  variables = jax.tree.map(
    lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32), shapes
  )
  config, tensors = published_export.stored(
    settings,
    traverse_util.flatten_dict(variables['params'], sep='/'),
    image_size=8,
    class_names=('a', 'b', 'c'),
  )
  folder.mkdir()
  (folder / 'config.json').write_text(json.dumps(config))
  safetensors.save_file(
    tensors, folder / 'model.safetensors', metadata={'format': 'pt'}
  )
  return x, model.apply(variables, x, train=False)[-1]


_KINDS = [
  {'pooling': pooling, 'layer_scale': scale}
  for pooling in ('token', 'mean', 'token_and_mean')
  for scale in (0.0, 1.0)
] + [{'pooling': 'mean', 'layer_scale': 1.0, 'registers': 2}]


@pytest.mark.parametrize('kind', _KINDS, ids=str)
def test_hf_is_read_back(tmp_path, kind):
  x, expected = _stored(tmp_path / 'hf', **kind)
  read = pretrained.load(str(tmp_path / 'hf'), image_size=8)
  model = vit.ViT(**read.settings, **pretrained.RUNNING)
  *_, found = model.apply(read.variables, x, train=False)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('kind', _KINDS, ids=str)
def test_hf_is_what_transformers_computes(tmp_path, kind):
  torch = pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  x, expected = _stored(tmp_path / 'hf', **kind)
  model = transformers.AutoModelForImageClassification.from_pretrained(
    tmp_path / 'hf'
  )
  with torch.no_grad():
    found = model(
      torch.tensor(np.asarray(x).transpose(0, 3, 1, 2).copy())
    ).logits
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  assert model.config.id2label == {0: 'a', 1: 'b', 2: 'c'}


@pytest.mark.parametrize(
  'setting',
  [
    {'class_token': 'after'},
    {'pooling': 'map'},
    {'pre_logits_width': 4},
    {'mlp_width': 12, 'layer_scale': 1.0},
  ],
  ids=str,
)
def test_hf_refuses_what_it_cannot_compute(tmp_path, setting):
  with pytest.raises(errors.ConfigError, match='Choose another format'):
    _stored(
      tmp_path / 'hf', **{'pooling': 'token', 'layer_scale': 0.0, **setting}
    )


def test_hf_of_a_run(images, tmp_path, capfd):
  out = tmp_path / 'hf'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      'sys.argv',
      [
        'td_jax',
        'export',
        str(images),
        '--format=hf',
        f'--out={out}',
        '--seed=1',
      ],
    )
    main.run()
  assert capfd.readouterr().err == f'{out} holds the student as hf\n'
  student = td_jax.load(images, seed=1)
  read = pretrained.load(str(out), image_size=tiny_vision.SIZE)
  x = student.preprocess(_examples(student))
  *_, found = vit.ViT(**read.settings, **pretrained.RUNNING).apply(
    read.variables, x, train=False
  )
  np.testing.assert_allclose(found, student.outputs(x), rtol=1e-5, atol=1e-5)
  processor = json.loads((out / 'preprocessor_config.json').read_text())
  grey = student.preprocess.arrays(_examples(student))['image']
  np.testing.assert_allclose(
    (grey * processor['rescale_factor'] - processor['image_mean'])
    / processor['image_std'],
    x,
    rtol=1e-4,
    atol=1e-4,
  )


def test_hf_cuts_the_middle_as_the_run_does(images):
  student = td_jax.load(images)
  student.config.data.smaller_side = 20
  processor = json.loads(export._hf(student)['preprocessor_config.json'])
  square = {'height': tiny_vision.SIZE, 'width': tiny_vision.SIZE}
  assert processor['size'] == {'shortest_edge': 20}
  assert processor['do_center_crop'] and processor['crop_size'] == square


def test_what_cannot_be_exported_leaves_no_folder(ratings, tmp_path):
  for form, said in (('hf', 'exports ViTs'), ('pt', '--format is')):
    with pytest.raises(errors.ConfigError, match=said):
      export.export(td_jax.load(ratings), form, tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_a_run_is_not_replaced_by_its_export(ratings):
  before = (ratings / 'config.json').read_bytes()
  with pytest.raises(errors.ConfigError, match='the folder of a run'):
    export.export(td_jax.load(ratings), 'safetensors', ratings)
  assert (ratings / 'config.json').read_bytes() == before


def test_the_card_by_hand(images, vision_teacher, tmp_path):
  student = td_jax.load(images, seed=1)
  results = dict(student.results)
  scores = {'per_seed': [0.25, 0.5], 'mean': 0.375, 'standard_error': 0.125}
  results |= {'validation': scores, 'test': scores}
  student.results = results
  export.export(student, 'stablehlo', tmp_path)
  card = (tmp_path / 'README.md').read_text()
  assert '| this student | 0.5000 | 0.5000 |' in card
  assert '| all students | 0.3750 ± 0.1250 | 0.3750 ± 0.1250 |' in card
  assert (
    f'| teacher | {results["teachers"]["teacher"]["validation"]:.4f} |' in card
  )
  folder = student.config.data.dir.split('/')[-1]
  assert f'24 labelled and 0 unlabelled examples of `{folder}`' in card
  assert f'the teacher `{vision_teacher.name}`' in card
  assert str(vision_teacher.parent) not in card
  w, mlp = tiny_vision.W, tiny_vision.MLP
  tokens = 5  # 2 x 2 patches and the class token.
  block = 4 * (w * w + w) + 2 * w * mlp + mlp + w + 4 * w
  embed = 3 * 8 * 8 * w + w + w + tokens * w
  parameters = embed + 2 * block + 2 * w + 3 * w + 3
  assert f'| student | {parameters:,} |' in card
  assert 'float32 [b, 16, 16, 3]' in card
  assert 'logits [b, 3]' in card
  assert card.rstrip().endswith('Classes, in the order of the logits: 0, 1, 2.')


def test_latency_is_that_of_whole_batches(images, monkeypatch):
  student = td_jax.load(images)
  x = student.preprocess([student.preprocess.blank])
  apply, seen = cost.layers.apply, []

  def recorded(model, variables, x):
    seen.append(len(x))
    return apply(model, variables, x)

  monkeypatch.setattr(cost.layers, 'apply', recorded)
  cost.measure(student.model, student.variables, x)
  assert seen == [1, 32, 1]  # A program for each batch; then its FLOPs.


def test_inspect_by_hand(images, vision_teacher, capsys):
  """FLOPs of the matrix products: patches, two blocks and the head."""
  inspect.main([str(images)])
  title, head, *rows = capsys.readouterr().out.splitlines()
  assert title == 'image_folder, ld, on cpu'
  assert head.split()[0] == 'parameters'
  w, mlp, tokens = tiny_vision.W, tiny_vision.MLP, 5
  block = tokens * (4 * w * w + 2 * tokens * w + 2 * w * mlp)
  expected = 2 * (4 * 3 * 8 * 8 * w + 2 * block + 3 * w)
  costs = inspect.of_run(td_jax.load(images))
  assert costs['student'].flops == costs['teacher'].flops == expected
  assert costs['student'].bytes == 4 * costs['student'].parameters
  assert set(costs['student'].seconds) == {1, 32}
  assert [row.split()[0] for row in rows] == ['student', 'teacher']
  inspect.main([str(vision_teacher), f'--size={tiny_vision.SIZE}'])
  title, _, row = capsys.readouterr().out.splitlines()
  assert title == f'{vision_teacher}, 16 pixels, on cpu'
  assert f'{costs["teacher"].parameters:,}' in row
