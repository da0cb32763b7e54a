"""Streams: each position has its record, for any host and despite damage."""

import gc
import pathlib
import subprocess
import sys
import textwrap
import weakref

import numpy as np
import pytest
import tiny_images

from td_jax import errors
from td_jax.data import host_pipeline
from td_jax.data import image_files
from td_jax.data import pillow_decoding
from td_jax.data import preprocess
from td_jax.data import records
from td_jax.data import tensorflow_decoding

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

tf = pytest.importorskip('tensorflow')

REPOSITORY = pathlib.Path(__file__).parents[1]
TRAIN = tiny_images.SIZES['train']  # 23, which no batch size here divides.
TEST = tiny_images.SIZES['test']
KINDS = ('image_folder', 'array_record', 'tfrecord')


@pytest.fixture(scope='module')
def datasets(tmp_path_factory):
  """{layout: Dataset}, all of the same examples."""
  folder = tiny_images.folder(tmp_path_factory.mktemp('folder'))
  layouts = {'image_folder': records.load('image_folder', str(folder))}
  for kind in KINDS[1:]:
    root = tmp_path_factory.mktemp(kind)
    tiny_images.prepare(root, file_format=kind, examples=tiny_images.examples())
    layouts[kind] = records.load('tiny', str(root))
  return layouts


@pytest.fixture
def by_pillow(monkeypatch):
  """As if TensorFlow were not installed."""

  def decoder(view, *, any_kind):
    assert any_kind
    return pillow_decoding.Decoder(view)

  monkeypatch.setattr(host_pipeline, 'decoder', decoder)


@pytest.fixture(params=(*KINDS, 'pillow'))
def dataset(request, datasets):
  if request.param == 'pillow':
    request.getfixturevalue('by_pillow')
    return datasets['image_folder']
  return datasets[request.param]


def _training(source, **options):
  return host_pipeline.training(
    source, **{'seed': 3, 'batch_size': 8, 'size': 12, **options}
  )


# Whole images, which identify their records.
NO_CROPS = {'area': None}


@pytest.fixture
def decode(request):
  """Decodes a JPEG with the library that the stream uses."""
  if 'pillow' in request.node.callspec.params.values():
    return image_files.decode
  return lambda encoded: tf.io.decode_jpeg(encoded).numpy()


def _same(one, two):
  assert one.keys() == two.keys()
  for name, column in one.items():
    np.testing.assert_array_equal(column, two[name], err_msg=name)


def _signatures(images):
  """A number for each image that no other image has."""
  return images.astype(np.int64).reshape(len(images), -1) @ np.arange(
    1, images[0].size + 1
  )


def test_shapes_and_types(dataset):
  batch = _training(dataset.records('train')).batch(0)
  assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
    'image': ((8, 12, 12, 3), 'uint8'),
    'label': ((8,), 'int32'),
    'mask': ((8,), 'float32'),
  }


def test_a_batch_follows_from_its_step(dataset):
  source = dataset.records('train')
  run = _training(source)
  batches = [run.batch(step) for step in range(9)]  # Three epochs.
  resumed = _training(source)
  _same(resumed.batch(7), batches[7])
  _same(resumed.batch(8), batches[8])
  _same(resumed.batch(2), batches[2])  # Back again.
  assert (batches[0]['image'] != batches[1]['image']).any()
  other = _training(source, seed=4).batch(0)
  assert (other['image'] != batches[0]['image']).any()


def test_epochs_skip_and_repeat_nothing(dataset):
  run = _training(dataset.records('train'), **NO_CROPS)
  batches = [run.batch(step) for step in range(9)]
  images = np.concatenate([batch['image'] for batch in batches])
  seen = _signatures(images)[: 3 * TRAIN].reshape(3, TRAIN)
  assert len(np.unique(seen[0])) == TRAIN
  for epoch in seen[1:]:
    np.testing.assert_array_equal(np.sort(epoch), np.sort(seen[0]))
    assert (epoch != seen[0]).any()
  # The epochs meet inside a batch, and labels belong to their images.
  labels = np.concatenate([batch['label'] for batch in batches])
  pairs = set(
    zip(seen.ravel().tolist(), labels[: 3 * TRAIN].tolist(), strict=True)
  )
  assert len(pairs) == TRAIN


@pytest.mark.parametrize(
  ('kind', 'batch_size', 'hosts'),
  [
    ('image_folder', 8, 2),
    ('array_record', 8, 2),
    ('tfrecord', 8, 2),
    ('tfrecord', 4, 4),  # A lane each.
    ('tfrecord', 6, 3),  # 2 lanes, so that hosts share lanes.
  ],
)
def test_hosts_divide_the_batches_of_one_host(
  datasets, kind, batch_size, hosts
):
  source = datasets[kind].records('train')
  whole = _training(source, batch_size=batch_size)
  parts = [
    _training(
      source, batch_size=batch_size, host=host_pipeline.Host(index, hosts)
    )
    for index in range(hosts)
  ]
  for step in (0, 1, 2, 3, 5):  # An epoch ends inside.
    got = [part.batch(step) for part in parts]
    together = {
      name: np.concatenate([part[name] for part in got]) for name in got[0]
    }
    _same(together, whole.batch(step))


def test_layouts_hold_the_same_examples(datasets):
  contents = []
  for kind in KINDS:
    run = _training(
      datasets[kind].records('train'), batch_size=TRAIN, **NO_CROPS
    )
    batch = run.batch(0)
    contents.append(
      sorted(
        zip(
          _signatures(batch['image']).tolist(),
          batch['label'].tolist(),
          strict=True,
        )
      )
    )
  assert contents[0] == contents[1] == contents[2]


def test_crops_are_those_of_the_draws(dataset, decode):
  source = dataset.records('train')
  got = _training(source, size=10).batch(2)
  # Whole images in the same order identify the records to crop by hand.
  whole = _training(source, size=10, **NO_CROPS).batch(2)
  examples = source.read(np.arange(len(source)))
  decoded = [decode(example.image) for example in examples]
  shrunk = [tf.image.resize(image, (10, 10)).numpy() for image in decoded]
  draws = np.random.default_rng((3, 2, host_pipeline._CROPS)).random(
    (8, preprocess.DRAWS), np.float32
  )
  flips = 0
  for row in range(8):
    number = np.argmin(
      [np.abs(image - whole['image'][row]).max() for image in shrunk]
    )
    top, left, rows, columns = (
      int(part)
      for part in preprocess.crop_box(
        draws[row],
        24,
        32,
        area=preprocess.AREA,
        aspect=preprocess.ASPECT,
        xp=np,
      )
    )
    crop = decoded[number][top : top + rows, left : left + columns]
    expected = tf.image.resize(crop, (10, 10)).numpy()
    if draws[row, 4] < 0.5:
      expected, flips = expected[:, ::-1], flips + 1
    assert got['label'][row] == examples[number].label
    difference = np.abs(got['image'][row] - expected)
    if decode is not image_files.decode:
      # A decoded crop differs from the crop of a decoded image at its border,
      # where colours are interpolated from what is not decoded.
      assert np.median(difference) < 1.5 and difference.mean() < 4
    else:
      assert difference.max() <= 0.501  # Rounded.
  assert 0 < flips < 8


# Evaluation.


@pytest.mark.parametrize(('batch_size', 'hosts'), [(4, 1), (4, 2), (16, 4)])
def test_evaluation_counts_every_example(dataset, decode, batch_size, hosts):
  source = dataset.records('test')
  parts = [
    host_pipeline.evaluation(
      source,
      batch_size=batch_size,
      size=12,
      host=host_pipeline.Host(index, hosts),
    )
    for index in range(hosts)
  ]
  assert parts[0].steps == -(-TEST // batch_size)
  batches = [
    [part.batch(step) for part in parts] for step in range(parts[0].steps)
  ]
  whole = {
    name: np.concatenate([part[name] for step in batches for part in step])
    for name in ('image', 'label', 'mask')
  }
  np.testing.assert_array_equal(
    whole['mask'], np.arange(len(whole['mask'])) < TEST
  )
  examples = source.read(np.arange(TEST))
  np.testing.assert_array_equal(
    whole['label'][:TEST], [example.label for example in examples]
  )
  for image, example in zip(whole['image'], examples, strict=False):
    expected = tf.image.resize(decode(example.image), (12, 12)).numpy()
    assert np.abs(image - expected).max() <= 0.501  # Rounded.
  with pytest.raises(errors.DataError, match='there are only'):
    parts[0].batch(parts[0].steps)


def test_middle_of_the_resized_image(datasets):
  source = datasets['array_record'].records('test')  # 24 x 32 pixels.
  run = host_pipeline.evaluation(source, batch_size=2, size=5, smaller_side=8)
  file = source.read(np.array([1]))[0].image
  got = tensorflow_decoding._whole_image(file, size=5, smaller_side=8).numpy()
  pixels = tf.io.decode_jpeg(file).numpy()
  # To 8 x 11: 8 rows of 3 pixels, and 11 columns of 32/11 = 2.9. Of those the
  # middle 5 x 5 begins at row 1 and column 3, after 96/11 pixels.
  rows = pixels.reshape(8, 3, 32, 3).astype(np.float64).mean(1)[1:6]
  sums = np.concatenate([np.zeros((5, 1, 3)), rows.cumsum(1)], 1)
  ends = np.arange(3, 9) * 32 / 11
  whole = ends.astype(int)
  upto = sums[:, whole] + (ends - whole)[:, None] * rows[:, whole]
  expected = np.diff(upto, axis=1) * 11 / 32
  np.testing.assert_allclose(got, expected, atol=1e-2)
  np.testing.assert_array_equal(
    run.batch(0)['image'][1], np.floor(got + np.float32(0.5))
  )
  with pytest.raises(errors.ConfigError, match='smaller_side is 6'):
    host_pipeline.evaluation(source, batch_size=2, size=8, smaller_side=6)


def test_png_files_are_cropped_alike(tmp_path):
  root = tiny_images.folder(
    tmp_path, sizes={'train': 4}, encode=tiny_images.png
  )
  source = records.load('image_folder', str(root)).records('train')
  batch = _training(source, batch_size=4).batch(0)
  assert len(np.unique(_signatures(batch['image']))) == 4
  evaluation = host_pipeline.evaluation(source, batch_size=4, size=12).batch(0)
  pixels = tf.io.decode_png(source.read(np.array([2]))[0].image)
  expected = tf.image.resize(pixels, (12, 12)).numpy()
  assert np.abs(evaluation['image'][2] - expected).max() <= 0.501


def test_hosts_must_divide_the_batch(datasets):
  with pytest.raises(
    errors.ConfigError, match='batch_size is 8, not a multiple'
  ):
    _training(
      datasets['image_folder'].records('train'), host=host_pipeline.Host(0, 3)
    )


# Broken images.


@pytest.fixture(params=(*KINDS, 'pillow'))
def broken(request, tmp_path):
  """A dataset with two corrupt images among 23."""
  kind = request.param
  if kind == 'pillow':
    request.getfixturevalue('by_pillow')
  if kind in ('image_folder', 'pillow'):
    root = tiny_images.folder(tmp_path)
    (root / 'train' / 'dog' / '007.jpeg').write_bytes(tiny_images.CORRUPT)
    path = root / 'train' / 'cat' / '012.jpeg'
    path.write_bytes(path.read_bytes()[:-200])  # Cut off.
    return records.load('image_folder', str(root))
  examples = tiny_images.examples()
  rows = examples['train']
  rows[7] = (tiny_images.CORRUPT, rows[7][1])
  rows[12] = (rows[12][0][:-200], rows[12][1])
  tiny_images.prepare(tmp_path, file_format=kind, examples=examples)
  return records.load('tiny', str(tmp_path))


def test_corrupt_image_is_named(broken):
  source = broken.records('train')
  run = host_pipeline.evaluation(source, batch_size=TRAIN, size=12)
  with pytest.raises(errors.DataError, match='is corrupt') as caught:
    run.batch(0)
  assert caught.value.exit_code == 65
  message = str(caught.value)
  assert '\n' not in message
  named = int(message.split('record ')[1].split(maxsplit=1)[0])
  image = source.read(np.array([named]))[0].image
  with pytest.raises(tf.errors.InvalidArgumentError):
    tf.io.decode_jpeg(image)
  assert f"'train' ({source.name(named).split('(')[1]}" in message


def test_skipped_images_shift_no_others(broken, decode):
  source = broken.records('train')
  lines = []
  options = {'skip_corrupt': True, 'log': lines.append, **NO_CROPS}
  run = _training(source, **options)
  batches = [run.batch(step) for step in range(6)]
  masks = np.concatenate([batch['mask'] for batch in batches])
  assert masks[:TRAIN].sum() == TRAIN - 2  # In each epoch.
  assert masks[TRAIN : 2 * TRAIN].sum() == TRAIN - 2
  assert len(run.skipped) == 2 == len(lines)
  assert '2 so far' in lines[1]
  images = np.concatenate([batch['image'] for batch in batches])
  assert not images[masks == 0].any()
  # All others are where they would have been.
  good = {
    number: tf.image.resize(
      decode(source.read(np.array([number]))[0].image), (12, 12)
    ).numpy()
    for number in range(TRAIN)
    if number not in run.skipped
  }
  for step, batch in enumerate(batches):
    ids = run._positions(step, slice(0, 8)).ids.tolist()
    for number, image in zip(ids, batch['image'], strict=True):
      if number in good:
        assert np.abs(image - good[number]).max() <= 0.501
  again = _training(source, **options)
  _same(again.batch(4), batches[4])


def test_damaged_file_is_skipped_record_by_record(tmp_path):
  tiny_images.prepare(
    tmp_path, file_format='tfrecord', examples=tiny_images.examples()
  )
  file = sorted(tmp_path.glob('tiny/1.2.3/tiny-train*'))[1]
  file.write_bytes(file.read_bytes()[:-300])
  source = records.load('tiny', str(tmp_path)).records('train')
  run = _training(source, skip_corrupt=True, log=lambda line: None)
  masks = np.concatenate([run.batch(step)['mask'] for step in range(3)])
  assert masks[:TRAIN].sum() == TRAIN - 1
  assert list(run.skipped) == [14]  # The last of the second file.


def test_lost_file_is_no_corrupt_image(tmp_path):
  root = tiny_images.folder(tmp_path, sizes={'train': 8})
  source = records.load('image_folder', str(root)).records('train')
  pathlib.Path(source._reader._paths[5]).unlink()
  run = _training(source, skip_corrupt=True)
  with pytest.raises(errors.IOFailedError, match=r'record 5 .*cannot be read'):
    run.batch(0)


@pytest.mark.parametrize('dataset', ['pillow'], indirect=True)
def test_a_stream_that_nobody_holds_is_freed(dataset):
  stream = _training(dataset.records('train'))
  stream.batch(0)
  lost = weakref.ref(stream)
  del stream
  gc.collect()
  assert lost() is None


# Processes.


def test_a_process_ends_in_the_middle_of_a_stream(tmp_path):
  root = tiny_images.folder(tmp_path)
  code = """
    import sys
    from td_jax.data import records
    from td_jax.data import host_pipeline
    source = records.load('image_folder', sys.argv[1]).records('train')
    run = host_pipeline.training(source, seed=0, batch_size=8, size=12)
    print(run.batch(5)['label'].sum())
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code), str(root)],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
    timeout=100,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  expected = host_pipeline.training(
    records.load('image_folder', str(root)).records('train'),
    seed=0,
    batch_size=8,
    size=12,
  ).batch(5)
  assert done.stdout.split() == [str(expected['label'].sum())]
