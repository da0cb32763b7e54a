"""Images of one's own: files of every kind, layouts of folders, the config."""

import io
import json
import os
import unicodedata

import numpy as np
import PIL.Image
import pytest
import tiny_images
import tiny_vision

import td_jax
from td_jax import errors
from td_jax.configs import image_folder as image_folder_config
from td_jax.data import class_counts
from td_jax.data import classification
from td_jax.data import dataset as dataset_lib
from td_jax.data import decoding
from td_jax.data import image_files
from td_jax.data import image_folder
from td_jax.data import image_keys
from td_jax.data import images
from td_jax.data import preprocess
from td_jax.data import tensorflow_decoding
from td_jax.run import completion
from td_jax.run import config as config_lib
from td_jax.run import pipeline
from td_jax.run import preemption

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def _encoded(image, form, **options):
  file = io.BytesIO()
  image.save(file, form, **options)
  return file.getvalue()


def _kinds():
  """{kind: (file, what it shows)}; the latter is made without `image_files`."""
  rgb = PIL.Image.fromarray(RGB)
  grey = RGB[..., 0]
  as_rgb = np.repeat(grey[..., None], 3, axis=2)
  alpha = np.dstack([RGB, np.full(grey.shape, 77, np.uint8)])
  deep = PIL.Image.fromarray(grey.astype(np.uint16) * 256 + 3)
  palette = PIL.Image.fromarray(grey // 86, 'P')
  colours = np.array([[9, 8, 7], [200, 0, 3], [1, 250, 2]], np.uint8)
  palette.putpalette(colours.tobytes())
  ink = np.dstack([255 - RGB, np.zeros(grey.shape, np.uint8)])
  exif = PIL.Image.Exif()
  exif[image_files._ORIENTATION] = 6  # Its top is the right side as shown.
  lying = PIL.Image.fromarray(np.rot90(RGB).copy())
  return {
    'png': (_encoded(rgb, 'png'), RGB),
    'webp': (_encoded(rgb, 'webp', lossless=True), RGB),
    'bmp': (_encoded(rgb, 'bmp'), RGB),
    'tiff': (_encoded(rgb, 'tiff'), RGB),
    'grey': (_encoded(PIL.Image.fromarray(grey), 'png'), as_rgb),
    'rgba': (_encoded(PIL.Image.fromarray(alpha), 'png'), RGB),
    '16 bits': (_encoded(deep, 'png'), as_rgb),
    'palette': (_encoded(palette, 'png'), colours[grey // 86]),
    'gif': (_encoded(palette, 'gif'), colours[grey // 86]),
    'cmyk': (_encoded(PIL.Image.fromarray(ink, 'CMYK'), 'tiff'), RGB),
    'lying': (_encoded(lying, 'png', exif=exif), RGB),
  }


KINDS = _kinds()


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_file_is_read(kind, tmp_path):
  encoded, expected = KINDS[kind]
  np.testing.assert_array_equal(image_files.decode(encoded), expected)
  (tmp_path / 'file').write_bytes(encoded)
  np.testing.assert_array_equal(
    image_files.pixels(str(tmp_path / 'file')), expected
  )


@pytest.mark.parametrize('kind', KINDS)
def test_tensorflow_sees_the_same_picture(kind):
  encoded, expected = KINDS[kind]
  safe = image_files.for_tensorflow(encoded)
  np.testing.assert_array_equal(images._pixels(safe).numpy(), expected)
  assert (safe == encoded) == (kind in ('png', 'grey', 'bmp'))


def test_pixels_without_a_known_range_are_refused():
  floats = PIL.Image.fromarray(np.ones((4, 4), np.float32))
  with pytest.raises(dataset_lib.CorruptError, match='range is not known'):
    image_files.decode(_encoded(floats, 'tiff'))


@pytest.mark.parametrize('area', [None, (0.1, 1.0)])
@pytest.mark.parametrize('damaged', [b'nothing', tiny_images.CORRUPT])
def test_what_tensorflow_says_of_damage_is_short(area, damaged):
  """Without the trace of the graph that it ran."""
  decoder = tensorflow_decoding.Decoder(
    decoding.View(8, area=area), any_kind=True
  )
  draws = np.full(preprocess.DRAWS, 0.5, np.float32)
  with pytest.raises(
    dataset_lib.CorruptError,
    match=r'^InvalidArgumentError: [^/\[{]*(image file format|JPEG)[^/\[{]*$',
  ):
    decoder.pixels(damaged, draws)


def test_ordinary_jpegs_reach_tensorflow_unchanged():
  jpeg = tiny_images.jpeg(1)
  assert image_files.for_tensorflow(jpeg) == jpeg
  # A damaged file too: TensorFlow names its record.
  assert image_files.for_tensorflow(b'nothing') == b'nothing'
  with pytest.raises(
    dataset_lib.CorruptError, match='no image that can be read'
  ):
    image_files.decode(b'nothing')


def _write(root, *names, size=(6, 6)):
  for seed, name in enumerate(names):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(root / name)
  return str(root)


def test_folders_of_classes_are_one_split(tmp_path):
  root = _write(
    tmp_path,
    *('cat/1.png', 'cat/2.webp', 'dog/1.bmp', 'unlabelled/deep/3.png'),
    *('.ipynb_checkpoints/4.png', 'td_jax/5.png', '__MACOSX/cat/._6.png'),
  )
  dataset = image_folder.load(root)
  assert dataset.sizes == {'train': 3}
  assert dataset.class_names == ('cat', 'dog')
  read = dataset.records('train').read(np.arange(3))
  assert sorted(example.label for example in read) == [0, 0, 1]
  assert image_folder.unlabelled_folder(root) == f'{root}/unlabelled'


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    (('cat/1.png',), 'there is one label only'),
    (('train/1.png', 'train/a/1.png', 'train/b/1.png'), 'such as train/1.png'),
    (('cat/1.png', 'dog/1.png', 'dog/old/2.png'), 'such as dog/old/2.png'),
    (('cat/1.png', 'Cat/1.png'), "'Cat' and 'cat' differ in spelling"),
    (
      [f'{unicodedata.normalize(form, "é")}/1.png' for form in ('NFC', 'NFD')],
      'differ in spelling only',
    ),
    (
      ('train/n1/1.png', 'train/n2/1.png', 'val/images/1.png'),
      "val has the label 'images', which train has not; put its images into "
      "folders of train's labels",
    ),
    (
      # Tiny ImageNet, as it is unzipped.
      ('train/n1/images/1.png', 'train/n2/images/1.png', 'val/images/1.png'),
      'such as train/n1/images/1.png; move them up',
    ),
    (
      ('train/n1/images/1.png', 'train/n2/images/1.png'),
      'one is at train/n1/images/1.png',
    ),
    (('notes/1.txt.d/x',), 'holds no images laid out as'),
    (('cat/1.png', 'dog/1.png', 'stray.png'), 'such as stray.png'),
    (('train/a/1.png', 'train/b/1.png', 'c/1.png'), 'such as c/1.png'),
    (('train/1.png', 'val/2.png'), 'holds images in train itself'),
  ],
)
def test_a_folder_that_cannot_be_meant_is_refused(tmp_path, names, message):
  images_only = [name for name in names if name.endswith('.png')]
  root = _write(tmp_path, *images_only)
  with pytest.raises(errors.DataError) as e:
    image_folder.load(root)
  assert message in str(e.value) and '\n' not in str(e.value)


def test_a_label_may_be_a_link_but_no_circle(tmp_path):
  root = _write(tmp_path / 'root', 'cat/1.png', 'unlabelled/2.png')
  _write(tmp_path / 'elsewhere', '1.png')
  (tmp_path / 'root' / 'dog').symlink_to(tmp_path / 'elsewhere')
  before = image_folder.stamp(root)
  _write(tmp_path / 'elsewhere', '2.png')
  assert image_folder.stamp(root) != before
  (tmp_path / 'root' / 'unlabelled' / 'circle').symlink_to(tmp_path / 'root')
  assert len(image_folder.below(f'{root}/unlabelled')) == 4
  assert image_folder.load(root).sizes == {'train': 3}


@pytest.mark.parametrize('name', ['cat/1.png', 'unlabelled/1.png'])
def test_a_pipe_is_not_opened(tmp_path, name):
  root = _write(tmp_path, 'cat/0.png', 'dog/0.png', 'unlabelled/0.png')
  os.mkfifo(tmp_path / name)
  with pytest.raises(errors.DataError, match='is a pipe or a device'):
    image_folder.load(root)
    image_folder.load_unlabelled(f'{root}/unlabelled')
  with pytest.raises(errors.DataError, match='is a pipe or a device'):
    image_files.pixels(tmp_path / name)


def test_all_that_is_wrong_is_said_at_once(tmp_path):
  root = _write(tmp_path, 'cat/1.png', 'Cat/1.png', 'dog/deep/1.png')
  with pytest.raises(errors.DataError, match=r'deeper .*; .* spelling'):
    image_folder.load(root)


def test_images_of_a_folder_are_cut_as_predictions_are(tmp_path):
  """Also if all have one size, which may be too large to keep."""
  root = _write(tmp_path, 'cat/1.png', 'dog/1.png', size=(8, 12))
  columns = images.load_columns(
    'image_folder', 'train', data_dir=root, size=4, smaller_side=4, log=print
  )
  row = int(np.flatnonzero(columns.labels == 0)[0])
  expected = preprocess.whole_image(
    image_files.pixels(f'{root}/cat/1.png'), size=4, smaller_side=4
  )
  np.testing.assert_allclose(columns.images[row], expected, atol=0.51)


def test_images_of_several_sizes_are_brought_to_one(tmp_path):
  _write(tmp_path, 'cat/1.png', size=(8, 12))
  root = _write(tmp_path, 'dog/1.png', 'dog/2.png', size=(20, 10))
  lines = []

  def load(**options):
    return images.load_columns(
      'image_folder', 'train', data_dir=root, log=lines.append, **options
    )

  with pytest.raises(errors.DataError, match='have to be streamed'):
    load()
  columns = load(size=4)
  assert 'differ in size; each is stretched to 4 x 4' in lines[-1]
  assert columns.images.shape == (3, 4, 4, 3)
  row = int(np.flatnonzero(columns.labels == 0)[0])
  expected = preprocess.whole_image(
    image_files.pixels(f'{root}/cat/1.png'), size=4
  )
  np.testing.assert_allclose(columns.images[row], expected, atol=0.51)
  lines.clear()
  np.testing.assert_array_equal(load(size=4).images, columns.images)
  assert lines == []  # From the cache.
  assert load(size=2).images.shape == (3, 2, 2, 3)


def test_a_replaced_file_of_the_same_size_is_decoded_again(tmp_path):
  root = _write(tmp_path, 'cat/1.bmp', 'dog/1.bmp')

  def load():
    columns = images.load_columns(
      'image_folder', 'train', data_dir=root, log=lambda line: None
    )
    return {label: columns.images[columns.labels == label] for label in (0, 1)}

  before = load()
  file = tmp_path / 'cat' / '1.bmp'
  length = file.stat().st_size
  file.write_bytes((tmp_path / 'dog' / '1.bmp').read_bytes())
  os.utime(file, ns=(1, 1))
  assert file.stat().st_size == length
  after = load()
  np.testing.assert_array_equal(after[0], before[1])


# The config.


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  """Published weights, and the scale of their images."""
  folder = tiny_vision.teacher(tmp_path_factory.mktemp('weights'), classes=0)
  (folder / 'preprocessor_config.json').write_text(
    json.dumps({'image_mean': [0.1, 0.2, 0.3], 'image_std': [0.5, 0.5, 0.25]})
  )
  return folder


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """30 photos of 3 kinds, each of a size of its own, and 4 without a label."""
  root = tmp_path_factory.mktemp('photos')
  for seed in range(34):
    pixels, label = tiny_vision.picture(seed)
    folder = root / (str(label) if seed < 30 else 'unlabelled')
    folder.mkdir(exist_ok=True)
    PIL.Image.fromarray(pixels[: 20 + seed % 4]).save(folder / f'{seed}.png')
  return root


def _config(photos, teacher, arg=''):
  config = image_folder_config.get_config(
    f'data={photos},teacher={teacher},method=ld{arg}'
  )
  config.update({'steps': 4, 'batch_size': 4, 'steps_per_dispatch': 2})
  config.update({'log_every': 2, 'eval_every': 4, 'seeds': 2})
  config.parallel.kind = 'single'
  return config


def test_the_config_is_completed_by_folder_and_weights(photos, teacher):
  lines = []
  config = completion.complete(_config(photos, teacher), log=lines.append)
  config_lib.validate(config)
  data = config.data
  assert (data.classes, data.train, data.validation) == (
    3, 'train[0:24]', 'train[24:30]',
  )  # fmt: skip
  assert not config.test and data.test == ''
  assert (data.size, data.smaller_side) == (64, 64)  # 8 patches of 8.
  np.testing.assert_allclose(data.mean, [25.5, 51, 76.5])
  np.testing.assert_allclose(data.std, [127.5, 127.5, 63.75])
  assert (data.unlabelled.source, data.unlabelled.split) == ('dataset', 'all')
  assert data.unlabelled.dir == f'{photos}/unlabelled'
  student, taught = config.model, config.teacher.model
  assert (taught.width, taught.depth, taught.split) == (8, 2, (1, 2))
  assert (student.width, student.depth, student.split) == (8, 2, (1, 2))
  assert student.pooling == 'token_and_mean' and student.gelu == 'exact'
  # The blocks of the config are more than the teacher has.
  assert 'depth is 4, and becomes 2' in lines[0]
  assert 'config.model.split is (2, 4), which 2 blocks do not' in lines[1]
  assert '3 classes, 24 images for training, 6 for validation' in lines[2]
  assert 'warning: validation has 6 images' in lines[3]
  # A complete config stays as it is.
  again = completion.complete(config, log=lines.append)
  assert config_lib.to_json(again) == config_lib.to_json(config)


def test_what_a_config_states_is_kept(photos, teacher):
  config = _config(photos, teacher, ',size=16,unlabelled=/elsewhere')
  config.data.mean = config.data.std = (1.0, 2.0, 3.0)
  config.model.width, config.model.heads, config.model.mlp_width = 4, 1, 5
  config.data.validation = 'train[:10]'
  config.data.train = 'train[10:]'
  config = completion.complete(config, log=lambda line: None)
  assert (config.data.size, config.data.smaller_side) == (16, 16)
  assert config.data.mean == (1.0, 2.0, 3.0)
  assert (config.model.width, config.model.mlp_width) == (4, 5)
  assert config.data.train == 'train[10:]'
  assert config.data.unlabelled.dir == '/elsewhere'


def test_splits_have_their_usual_names(tmp_path, teacher):
  names = [
    f'{split}/{label}/{i}.png'
    for split in ('training', 'val', 'testing')
    for label in ('a', 'b')
    for i in range(2)
  ]
  config = _config(_write(tmp_path, *names), teacher)
  config = completion.complete(config, log=lambda line: None)
  data = config.data
  assert (data.train, data.validation, data.test) == (
    'training', 'val', 'testing',
  )  # fmt: skip
  assert config.test


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    (
      ('test/a/1.png', 'test/b/1.png'),
      'no split for training: its folders are',
    ),
    (
      ('train/a/1.png', 'train/b/1.png', 'val/a/1.png', 'valid/a/1.png'),
      'the folders val and valid are both for validation',
    ),
    (
      ('train/a/1.png', 'val/a/1.png', 'val/b/1.png'),
      "the label 'b', which train has not",
    ),
    (('a/1.png', 'b/1.png', 'a/2.png', 'empty/x.txt'), 'has no image of empty'),
  ],
)
def test_splits_that_cannot_be_meant_are_refused(
  tmp_path, teacher, names, message
):
  root = _write(tmp_path, *(name for name in names if name.endswith('.png')))
  for name in names:
    (tmp_path / name).parent.mkdir(exist_ok=True)
  with pytest.raises(errors.DataError) as e:
    completion.complete(_config(root, teacher), log=lambda line: None)
  assert message in str(e.value) and '\n' not in str(e.value)


def test_what_looks_wrong_is_said(tmp_path, teacher):
  root = _write(
    tmp_path,
    *(f'{split}/{label}/1.png' for split in ('Train',) for label in 'ab'),
  )
  _write(tmp_path, 'VAL/a/1.png')
  (tmp_path / 'Train' / 'a' / 'phone.HEIC').write_bytes(b'')
  (tmp_path / 'Unlabelled').mkdir()  # Empty.
  (tmp_path / 'Train' / 'a' / '.ipynb_checkpoints').mkdir()
  lines = []
  config = _config(root, teacher, ',stream')
  config = completion.complete(config, log=lines.append)
  assert (config.data.train, config.data.validation) == ('Train', 'VAL')
  assert config.data.classes == 2
  assert config.data.unlabelled.source == 'none'
  class_counts.report(
    classification.load(config, log=lines.append), lines.append
  )
  lacking = "all 1 examples of validation are of class 'a'"
  assert any(lacking in line for line in lines)
  assert any('1 files are of a kind' in line for line in lines)
  [hidden] = (line for line in lines if 'hidden' in line)
  assert 'such as Train/a/.ipynb_checkpoints' in hidden


def test_without_folder_or_weights_one_line_says_so(photos, teacher):
  with pytest.raises(errors.ConfigError, match='needs a teacher'):
    completion.complete(
      image_folder_config.get_config(f'data={photos}'), log=lambda line: None
    )
  with pytest.raises(errors.ConfigError, match='needs a folder of images'):
    completion.complete(
      image_folder_config.get_config(f'teacher={teacher}'),
      log=lambda line: None,
    )
  with pytest.raises(errors.DataError, match='is neither published weights'):
    completion.complete(_config(photos, 'nowhere'), log=lambda line: None)
  with pytest.raises(errors.ConfigError, match=r'teacher=my\.py:function'):
    completion.complete(_config(photos, 'my.py'), log=lambda line: None)
  config = image_folder_config.get_config(f'data={photos}')
  config.teacher.build = 'my.py:make'
  with pytest.raises(errors.ConfigError, match='give it after the colon'):
    completion.complete(config, log=lambda line: None)
  with pytest.raises(errors.DataError, match='is no folder'):
    completion.complete(_config('nowhere', teacher), log=lambda line: None)
  with pytest.raises(ValueError, match='size takes a value of type int'):
    image_folder_config.get_config('size=0.5')
  config = _config(photos, teacher)
  config.data.dataset = 'cifar10'
  with pytest.raises(errors.ConfigError, match='for image_folder only'):
    completion.complete(config, log=lambda line: None)


def test_a_damaged_scale_is_named(photos, teacher, tmp_path):
  folder = tiny_vision.teacher(tmp_path, classes=0)
  (folder / 'preprocessor_config.json').write_text('{"image_mean": [1]}')
  with pytest.raises(errors.DataError, match='three numbers each'):
    completion.complete(_config(photos, folder), log=lambda line: None)


@pytest.mark.parametrize('stream', [False, True])
def test_photos_become_a_student_that_predicts(
  photos, teacher, tmp_path, stream
):
  config = _config(photos, teacher, ',stream' if stream else '')
  results = pipeline.run(
    config, tmp_path, watch=preemption.Watch(), log=lambda line: None
  )
  assert results['class_names'] == ['0', '1', '2']
  assert results['unlabelled'] == 4 and 'test' not in results
  student = td_jax.load(tmp_path)
  # The predictions for the validation images give the score of the run.
  data = student.config.data
  held_out = image_folder.load(data.dir).records(data.validation)
  paths = [
    held_out.name(i).partition('(')[2].removesuffix(')')
    for i in range(len(held_out))
  ]
  labels = [int(path.split('/')[-2]) for path in paths]
  accuracy = np.mean(student.predict(paths).argmax(axis=1) == labels)
  seeds = results['validation']['per_seed']
  assert accuracy == pytest.approx(seeds[student.seed])


def test_the_test_split_may_be_named_alone(photos, teacher):
  config = completion.complete(_config(photos, teacher), log=lambda line: None)
  config.test = True
  with pytest.raises(errors.ConfigError, match=r"test is '', but config\.test"):
    image_keys.check(config)
