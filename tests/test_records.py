"""Finding image datasets and reading their records by number."""

import pathlib
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_images

from td_jax import errors
from td_jax.data import dataset as dataset_lib
from td_jax.data import records
from td_jax.data import splits
from td_jax.data import tfds as tfds_lib

FORMATS = ('array_record', 'tfrecord')


@pytest.fixture(scope='module')
def examples():
  return tiny_images.examples()


@pytest.fixture(scope='module')
def prepared(tmp_path_factory, examples):
  """{file format: TFDS data folder}."""
  roots = {}
  for name in FORMATS:
    roots[name] = tmp_path_factory.mktemp(name)
    tiny_images.prepare(roots[name], file_format=name, examples=examples)
  return roots


@pytest.fixture
def copy(tmp_path, prepared):
  """Copies a prepared dataset, to be damaged; returns the data folder."""

  def make(name):
    return pathlib.Path(shutil.copytree(prepared[name], tmp_path / 'copy'))

  return make


def _files(root, part):
  return sorted(root.glob(f'tiny/1.2.3/tiny-{part}.*'))


# Splits.


def test_cuts_are_those_of_tfds():
  tfds = pytest.importorskip('tensorflow_datasets')
  for size in (70, 50_000, 1_281_167):
    infos = {
      'train': tfds.core.SplitInfo(
        name='train', shard_lengths=[size], num_bytes=0
      )
    }
    for spec in (
      'train',
      'train[:98%]',
      'train[98%:]',
      'train[:99%]',
      'train[99%:]',
      'train[2:5]',
      'train[-3:]',
      'train[:-2]',
      'train[33.3%:66.6%]',
      'train[-25%:]',
    ):
      (there,) = tfds.core.ReadInstruction.from_spec(spec).to_absolute(infos)
      here = splits.cut(spec, {'train': size}, name='x')
      stop = size if there.to is None else there.to
      assert here == ('train', there.from_ or 0, stop), (spec, size)


@pytest.mark.parametrize(
  ('spec', 'kind', 'text'),
  [
    ('trian', errors.ConfigError, "Did you mean 'train'"),
    ('train[:', errors.ConfigError, r"not of the form 'train'"),
    ('../x', errors.ConfigError, r"not of the form 'train'"),
    ('train[5:5]', errors.DataError, 'is empty: train has 23'),
    ('train[:1%]', errors.DataError, 'is empty: train has 23'),
  ],
)
def test_wrong_splits_are_named(spec, kind, text):
  with pytest.raises(kind, match=text):
    splits.cut(spec, tiny_images.SIZES, name='tiny')


# Absent data.


def test_absent_dataset_names_the_command(tmp_path, monkeypatch):
  def hang(*arguments, **keywords):
    raise AssertionError('a local folder needs no network')

  monkeypatch.setattr(socket, 'create_connection', hang)
  (tmp_path / 'cifar100' / '3.0.2').mkdir(parents=True)
  (tmp_path / 'cifar100' / '3.0.2' / 'dataset_info.json').write_text('{}')
  start = time.monotonic()
  with pytest.raises(errors.DataError) as caught:
    records.load('cifar10', str(tmp_path))
  assert time.monotonic() - start < 1
  assert caught.value.exit_code == 65
  message = str(caught.value)
  assert '\n' not in message
  for part in (
    f'cifar10 is not prepared in {tmp_path}',
    'there: cifar100)',
    'python -c "import tensorflow_datasets as tfds;'
    f" tfds.load('cifar10', data_dir='{tmp_path}')\"",
  ):
    assert part in message, message


def test_command_of_absent_dataset_prepares_what_it_names(tmp_path):
  # As a shell would read it, but for a dataset that needs no network.
  with pytest.raises(errors.DataError) as caught:
    records.load('no_such_dataset', str(tmp_path))
  code = str(caught.value).split('python -c "')[1].split('"')[0]
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert 'DatasetNotFoundError' in done.stderr
  assert 'no_such_dataset' in done.stderr


def test_imagenet_names_the_archives_and_their_folder(tmp_path):
  with pytest.raises(
    errors.DataError,
    match=r'ILSVRC2012_img_train\.tar.*put|put.*ILSVRC2012_img_train\.tar.*downloads/manual',
  ):
    records.load('imagenet2012', str(tmp_path))


def test_other_version_counts_as_absent(prepared):
  root = str(prepared['tfrecord'])
  assert tfds_lib.find('tiny:1.2.3', root) == tfds_lib.find('tiny', root)
  with pytest.raises(errors.DataError, match=r'tiny:9[.]0[.]0 is not prepared'):
    tfds_lib.find('tiny:9.0.0', root)


def test_newest_version_is_taken(tmp_path):
  for version in ('0.9.0', '0.10.0', 'incomplete.A_0.11.0'):
    folder = tmp_path / 'x' / 'small' / version
    folder.mkdir(parents=True)
    (folder / 'dataset_info.json').write_text('{}')
  assert tfds_lib.find('x/small', str(tmp_path)).name == '0.10.0'
  with pytest.raises(errors.DataError, match='there: x/small'):
    tfds_lib.find('x', str(tmp_path))


def test_names_cannot_leave_the_folder(tmp_path):
  for name in ('../x', 'x/../../y', '/etc', 'x:../1.0.0', ''):
    with pytest.raises(errors.ConfigError, match='is not a TFDS name'):
      tfds_lib.find(name, str(tmp_path))


def test_an_unreachable_bucket_fails_at_once(monkeypatch):
  def dead(*arguments, **keywords):
    raise OSError('no network')

  monkeypatch.setattr(socket, 'create_connection', dead)
  start = time.monotonic()
  with pytest.raises(errors.DataError, match=r'storage.*does not answer'):
    records.load('cifar10', 'gs://bucket/data')
  assert time.monotonic() - start < 5


# Reading.


@pytest.mark.parametrize('name', FORMATS)
def test_records_are_those_that_were_prepared(prepared, examples, name):
  dataset = records.load('tiny', str(prepared[name]))
  assert dataset.sizes == tiny_images.SIZES
  assert dataset.class_names == tiny_images.NAMES
  for split, rows in examples.items():
    got = dataset.records(split)
    assert len(got) == len(rows)
    read = got.read(np.arange(len(rows)))
    assert sorted(read) == sorted(rows)
  some = dataset.records('train').read(np.array([22, 0, 22, 9]))
  whole = dataset.records('train').read(np.arange(23))
  assert some == [whole[22], whole[0], whole[22], whole[9]]


@pytest.mark.parametrize('name', FORMATS)
def test_slices_are_those_of_tfds(prepared, name):
  tfds = pytest.importorskip('tensorflow_datasets')
  dataset = records.load('tiny', str(prepared[name]))
  builder = tfds.builder_from_directory(str(prepared[name] / 'tiny' / '1.2.3'))
  for spec in ('train[:60%]', 'train[60%:]', 'train[7:9]'):
    got = dataset.records(spec).read(np.arange(len(dataset.records(spec))))
    raw = (
      builder.as_data_source(
        split=spec, decoders={'image': tfds.decode.SkipDecoding()}
      )
      if name == 'array_record'
      else tfds.as_numpy(
        builder.as_dataset(
          split=spec,
          decoders={'image': tfds.decode.SkipDecoding()},
          read_config=tfds.ReadConfig(interleave_cycle_length=1),
        )
      )
    )
    expected = [(row['image'], int(row['label'])) for row in raw]
    assert got == expected


def test_slices_know_their_shards(prepared):
  dataset = records.load('tiny', str(prepared['tfrecord']))
  whole = dataset.records('train').shards
  assert len(whole) == 3 and sum(whole) == 23
  assert dataset.records('train[5:20]').shards == (
    whole[0] - 5,
    whole[1],
    whole[2] - 3,
  )
  assert dataset.records(f'train[:{whole[0]}]').shards == (whole[0], 0, 0)
  assert records.load('tiny', str(prepared['array_record'])).records(
    'train[5:20]'
  ).shards == (15,)


def test_files_that_are_not_in_use_are_evicted(tmp_path, examples):
  tiny_images.prepare(
    tmp_path, file_format='tfrecord', examples=examples, shards=8
  )
  source = records.load('tiny', str(tmp_path)).records('train')
  assert len(source.shards) == 8
  whole = [source.read(np.array([number]))[0] for number in range(23)]
  # The capacity is three times the one file of each call.
  assert list(source._reader._loaded) == [5, 6, 7]
  source.prefetch(np.array([0]))
  assert list(source._reader._loaded) == [6, 7, 0]
  assert source.read(np.array([6]))[0] == whole[6]  # Evicted, and read again.


@pytest.mark.parametrize('name', FORMATS)
def test_fingerprint_follows_the_data(prepared, tmp_path, name):
  one = records.load('tiny', str(prepared[name])).fingerprint
  assert one == records.load('tiny', str(prepared[name])).fingerprint
  more = tiny_images.examples(sizes={'train': 24, 'test': 10})
  tiny_images.prepare(tmp_path, file_format=name, examples=more)
  assert records.load('tiny', str(tmp_path)).fingerprint != one


def test_fingerprint_is_that_of_old_runs(prepared):
  # From commit 5085e1a: results store fingerprints, and resuming compares them.
  assert records.load('tiny', str(prepared['tfrecord'])).fingerprint == (
    '97b56b1b887de9664ffebb9ecc52bae8e25c710da41ffa4f9153d1e84e9835a1'
  )


def test_damaged_info_is_named(copy):
  root = copy('tfrecord')
  (root / 'tiny' / '1.2.3' / 'features.json').write_text('{"feat')
  with pytest.raises(errors.DataError, match='cannot be read as TFDS data'):
    records.load('tiny', str(root))


def test_other_datasets_are_refused(tmp_path):
  tfds = pytest.importorskip('tensorflow_datasets')
  tfds.dataset_builders.store_as_tfds_dataset(
    name='texts',
    version='1.0.0',
    features=tfds.features.FeaturesDict({'text': tfds.features.Text()}),
    split_datasets={'train': [(0, {'text': 'a'})]},
    data_dir=str(tmp_path),
    file_format='tfrecord',
  )
  with pytest.raises(
    errors.DataError, match='is not an image classification dataset'
  ):
    records.load('texts', str(tmp_path))


@pytest.mark.parametrize('name', FORMATS)
def test_flipped_byte_loses_as_little_as_the_format_allows(copy, name):
  root = copy(name)
  whole = records.load('tiny', str(root)).records('train').read(np.arange(23))
  file = _files(root, 'train')[1]  # Of the 7 records from 8 on.
  data = bytearray(file.read_bytes())
  data[3000] ^= 0xFF
  file.write_bytes(data)
  source = records.load('tiny', str(root)).records('train')
  lost = []
  for number in range(23):
    try:
      assert source.read(np.array([number])) == [whole[number]]
    except dataset_lib.CorruptError:
      lost.append(number)
  assert 8 < lost[0] < 15
  # A tfrecord file cannot be read beyond a damaged record.
  end = 15 if name == 'tfrecord' else lost[0] + 1
  assert lost == list(range(lost[0], end))
  with pytest.raises(dataset_lib.CorruptError):
    source.read(np.arange(23))
  assert str(file) in source.name(lost[0])


@pytest.mark.parametrize('name', FORMATS)
def test_missing_file_is_not_a_corrupt_record(copy, name):
  root = copy(name)
  file = _files(root, 'train')[0]
  file.rename(file.with_suffix('.away'))
  source = records.load('tiny', str(root)).records('train')
  with pytest.raises(Exception, match=file.name) as caught:
    source.read(np.array([0]))
  assert not isinstance(caught.value, dataset_lib.CorruptError)
  if name == 'tfrecord':  # A network may come back.
    file.with_suffix('.away').rename(file)
    assert source.read(np.array([0]))


# Folders.


def test_image_folder_is_that_of_tfds(tmp_path):
  tfds = pytest.importorskip('tensorflow_datasets')
  root = tiny_images.folder(tmp_path)
  (root / 'train' / 'cat' / 'notes.txt').write_text('not an image')
  (root / dataset_lib.CACHE).mkdir()
  dataset = records.load('image_folder', str(root))
  theirs = tfds.folder_dataset.ImageFolder(str(root))
  assert dataset.sizes == tiny_images.SIZES
  assert dataset.class_names == tuple(theirs.info.features['label'].names)
  for split, count in tiny_images.SIZES.items():
    read = dataset.records(split).read(np.arange(count))
    rows = theirs.as_dataset(
      split=split, decoders={'image': tfds.decode.SkipDecoding()}
    )
    expected = [(row['image'], row['label']) for row in tfds.as_numpy(rows)]
    assert [tuple(row) for row in read] == expected
  # Not sorted by label: a slice has all of them.
  part = dataset.records('train[:50%]').read(np.arange(12))
  assert {row.label for row in part} == {0, 1, 2}
  assert str(root / 'train') in dataset.records('train').name(0)


def test_image_folder_fingerprint_follows_the_files(tmp_path):
  root = tiny_images.folder(tmp_path)
  one = records.load('image_folder', str(root)).fingerprint
  assert one == records.load('image_folder', str(root)).fingerprint
  file = next((root / 'test' / 'dog').iterdir())
  file.rename(file.with_name('other.jpg'))
  assert records.load('image_folder', str(root)).fingerprint != one


def test_image_folder_fingerprint_is_that_of_old_runs(tmp_path):
  # From commit 5085e1a.
  for name, size in {
    'train/cat/a.jpg': 3,
    'train/cat/b.png': 5,
    'train/dog/a.jpeg': 4,
    'train/newt/notes.txt': 2,
    'test/cat/c.JPG': 1,
  }.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b'x' * size)
  dataset = records.load('image_folder', str(tmp_path))
  assert dataset.class_names == ('cat', 'dog', 'newt')
  assert dataset.sizes == {'test': 1, 'train': 3}
  assert dataset.fingerprint == (
    '308b9c1590d829d5951707cc28192057ffa1be57acb3c7947361de898fd3dead'
  )


def test_an_empty_image_folder_names_the_layout(tmp_path):
  with pytest.raises(errors.DataError, match=r'root/split/label/\*\.jpg'):
    records.load('image_folder', str(tmp_path))
  with pytest.raises(errors.ConfigError, match='needs data_dir'):
    records.load('image_folder')
  with pytest.raises(errors.ConfigError, match='local folder'):
    records.load('image_folder', 'gs://bucket/images')
