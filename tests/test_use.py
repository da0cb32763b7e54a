"""The student of a finished run: loaded and asked, without its training data."""

import csv
import json
import shutil

import conftest
from jax import numpy as jnp
import numpy as np
import PIL.Image
import pytest
import tiny_vision

import td_jax
from td_jax import errors
from td_jax import main
from td_jax import types
from td_jax.data import movielens
from td_jax.data import preprocess
from td_jax.run import pipeline
from td_jax.use import predict

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
    conftest.small_config('genre=War,method=scratch'),
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
    with pytest.raises(errors.DataError, match='pairs of a user and a movie'):
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
    ('ratings', ['nowhere.csv'], (65, 'neither a file nor USER,MOVIE')),
    ('images', [], (2, 'required: input')),
    ('images', ['x', '--seed=a'], (2, 'invalid int value')),
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
  assert 'has the columns who, what; it needs `user` and `movie`' in err


def test_the_command_is_found(monkeypatch, capsys):
  monkeypatch.setattr('sys.argv', ['td_jax', 'predict', '--help'])
  with pytest.raises(SystemExit) as e:
    main.run()
  assert e.value.code == 0
  assert 'usage: td_jax predict' in capsys.readouterr().out


@pytest.mark.parametrize('smaller_side', [0, 9])
@pytest.mark.parametrize('shape', [(24, 32), (9, 40), (7, 5)])
def test_whole_images_are_those_of_an_evaluation(shape, smaller_side):
  decoding = pytest.importorskip('td_jax.data.decoding')
  tf = pytest.importorskip('tensorflow')
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  expected = decoding.whole_image(
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
