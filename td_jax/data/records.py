"""Encoded images and labels of a split, by number, wherever TFDS has put them.

A dataset is any image classification dataset of TFDS by its TFDS name, prepared
in array_record or tfrecord files; or `image_folder`, a folder that holds
split/label/*.jpg, which need not be prepared. Records are numbered from 0 in
the order of the files, as TFDS's own slices count them.
"""

import collections
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from concurrent import futures
import os
import random
import re
import threading
from typing import Any
from typing import NamedTuple
from typing import Protocol
from typing import runtime_checkable

from etils import epath
import numpy as np

from td_jax import errors
from td_jax.data import tfds as tfds_lib
from td_jax.storage import digest

IMAGE_FOLDER = 'image_folder'
CACHE = 'td_jax'  # A folder of ours beside the data; never a split.
_IMAGES = ('.jpg', '.jpeg', '.png')
_GOOGLE = 'storage.googleapis.com'
# What TFDS cannot fetch by itself, it wants in this folder.
_MANUAL = {
  'imagenet2012': 'ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar',
}


class CorruptError(Exception):
  """One record cannot be read; others can. The message says why."""


class Example(NamedTuple):
  image: bytes  # A JPEG or PNG file.
  label: int


@runtime_checkable  # For the tests, which check every argument.
class Reader(Protocol):
  """The records of one whole split."""

  # How many records each file holds that is read front to back; one number
  # where any record can be read by itself.
  shards: tuple[int, ...]

  def read(self, ids: Sequence[int]) -> list[Example]:
    """Records by number; raises CorruptError if one is damaged."""
    ...

  def expect(self, ids: Sequence[int]) -> None:
    """Says that these will be read soon."""
    ...

  def place(self, number: int) -> str:
    """Where a record lies, for messages."""
    ...


class Records:
  """A split, or a slice of one, numbered from 0."""

  def __init__(
    self, dataset: str, spec: str, reader: Reader, *, start: int, stop: int
  ):
    self.shards = _clip(reader.shards, start, stop)
    self._title = f'{dataset} {spec!r}'
    self._reader, self._start, self._stop = reader, start, stop

  def __len__(self) -> int:
    return self._stop - self._start

  def read(self, ids: np.ndarray) -> list[Example]:
    """Examples of the numbers `ids` [b].

    Raises:
      CorruptError: one is damaged.
      errors.DataError: one has no label, as TFDS has test splits whose labels
        are not published.
    """
    examples = self._reader.read((ids + self._start).tolist())
    for number, example in zip(ids.tolist(), examples, strict=True):
      if example.label < 0:
        raise errors.DataError(
          f'{self.name(number)} has no label ({example.label}); choose another '
          'split.'
        )
    return examples

  def expect(self, ids: np.ndarray) -> None:
    """Begins to load what `ids` [b] need, where loading takes long."""
    self._reader.expect((ids + self._start).tolist())

  def name(self, number: int) -> str:
    """What a message calls record `number`."""
    place = self._reader.place(number + self._start)
    return f'record {number} of {self._title} ({place})'


class Dataset(NamedTuple):
  """A dataset that is ready to be read."""

  name: str
  sizes: Mapping[str, int]  # Records of each whole split.
  class_names: tuple[str, ...]
  fingerprint: str  # sha256 of version, splits, sizes and classes.
  reader: Callable[[str], Reader]  # Of a whole split, by its name.

  def records(self, spec: str) -> Records:
    """The records of a TFDS split such as 'train', 'train[:98%]'."""
    split, start, stop = cut(spec, self.sizes, name=self.name)
    return Records(self.name, spec, self.reader(split), start=start, stop=stop)


def parse(spec: str, *, name: str) -> tuple[str, str | None, str | None]:
  """(split, from, to) of `split[from:to]`, as text; ConfigError if it is none."""
  bound = r'(-?\d+(?:\.\d+)?%|-?\d+)?'
  match = re.fullmatch(rf'([\w-]+)(?:\[{bound}:{bound}\])?', spec)
  if not match:
    raise errors.ConfigError(
      f"split {spec!r} of {name} is not of the form 'train', 'train[:98%]' or"
      " 'train[100:200]'."
    )
  return match[1], match[2], match[3]


def cut(
  spec: str, sizes: Mapping[str, int], *, name: str
) -> tuple[str, int, int]:
  """(split, start, stop) of `split[from:to]`; bounds are records or percents.

  Rounds as TFDS does.

  Raises:
    errors.ConfigError: not of that form, or no such split.
    errors.DataError: nothing lies between the bounds.
  """
  split, low, high = parse(spec, name=name)
  errors.choose(f'split of {name}', split, sizes)
  size = sizes[split]

  def absolute(text, default):
    if text is None:
      return default
    if text.endswith('%'):
      place = round(float(text[:-1]) * size / 100)
    else:
      place = int(text)
    return min(max(place + size if place < 0 else place, 0), size)

  start, stop = absolute(low, 0), absolute(high, size)
  if start >= stop:
    raise errors.DataError(
      f'split {spec!r} of {name} is empty: {split} has {size} records.'
    )
  return split, start, stop


def load(name: str, data_dir: str = '') -> Dataset:
  """Opens a prepared dataset, or a folder of images.

  Args:
    name: a TFDS name: 'cifar10', 'imagenet2012_subset/10pct', 'cifar10:3.0.2';
      or 'image_folder'.
    data_dir: TFDS's data folder, local or gs://; '' is TFDS's own default. For
      'image_folder' the folder that has the splits.

  Raises:
    errors.ConfigError: no such name can be.
    errors.DataError: it is not there (the message names the command that
      prepares it), or it is damaged, or is no image classification.
  """
  if name == IMAGE_FOLDER:
    return _load_folder(data_dir)
  folder = find(name, data_dir)
  tfds = tfds_lib.module()
  try:
    info = tfds.builder_from_directory(str(folder)).info
    keys = info.supervised_keys or ('image', 'label')
    features = dict(info.features.items())
    pair: list[Any] = [features.get(key) for key in keys]
  # TFDS raises what its parsers raise.
  except Exception as error:
    raise errors.DataError(
      f'{folder} cannot be read as TFDS data ({one_line(error)}): delete it.'
      f' {_command(name, data_dir)}'
    ) from error
  image, label = pair
  if not (
    isinstance(image, tfds.features.Image)
    and isinstance(label, tfds.features.ClassLabel)
  ):
    raise errors.DataError(
      f'{name} is no image classification: its {keys[0]!r} and {keys[1]!r} are'
      f' {type(image).__name__} and {type(label).__name__}, not Image and'
      ' ClassLabel.'
    )
  kind = info.file_format.value
  readers = {'array_record': _ArrayRecords, 'tfrecord': _TFRecords}
  if kind not in readers or (kind == 'array_record' and _remote(str(folder))):
    raise errors.DataError(
      f'{folder} holds {kind} files; read are array_record (local folders'
      ' only) and tfrecord. Prepare it again with'
      " tfds.load(..., builder_kwargs={'file_format': 'tfrecord'})."
    )
  shards = {
    split: tuple(map(int, part.shard_lengths))
    for split, part in info.splits.items()
  }
  names = tuple(label.names or ())

  def reader(split):
    paths = [os.fspath(path) for path in info.splits[split].filepaths]
    return readers[kind](paths, shards[split], keys)

  return Dataset(
    name=name,
    sizes={split: sum(parts) for split, parts in shards.items()},
    class_names=names,
    fingerprint=_digest(info.full_name, kind, shards, names),
    reader=reader,
  )


def find(name: str, data_dir: str = '') -> epath.Path:
  """The folder of the newest prepared version, without importing TFDS.

  Raises:
    errors.ConfigError: no such name can be.
    errors.DataError: it is not there.
  """
  match = re.fullmatch(r'(\w+(?:/\w[\w.-]*)?)(?::(\d+\.\d+\.\d+))?', name)
  if not match:
    raise errors.ConfigError(
      f'dataset {name!r} is no TFDS name, such as cifar10, cifar10:3.0.2 or'
      f' imagenet2012_subset/10pct; nor is it {IMAGE_FOLDER}.'
    )
  where = root(data_dir)
  if _remote(str(where)) and not tfds_lib.answers(_GOOGLE):
    raise errors.DataError(
      f'{name} cannot be read from {where}: {_GOOGLE} does not answer.'
    )
  versions = [
    info.parent
    for info in (where / match[1]).glob('*/dataset_info.json')
    if re.fullmatch(r'\d+\.\d+\.\d+', info.parent.name)
    and match[2] in (None, info.parent.name)
  ]
  if not versions:
    prepared = sorted(
      {
        str(info.parent.parent.relative_to(where))
        for pattern in ('*/*', '*/*/*')
        for info in where.glob(f'{pattern}/dataset_info.json')
      }
    )
    raise errors.DataError(
      f'{name} is not prepared in {where} (there: '
      f'{", ".join(prepared) or "nothing"}). {_command(name, data_dir)}'
    )
  return max(versions, key=lambda folder: _numbers(folder.name))


def root(data_dir: str) -> epath.Path:
  """TFDS's data folder; '' is its default."""
  default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  path = epath.Path(data_dir or default).expanduser()
  return path if _remote(str(path)) else path.absolute()


def _remote(path):
  return '://' in path


def _numbers(version):
  return tuple(map(int, version.split('.')))


def _command(name, data_dir):
  """The sentence that says how a dataset is prepared."""
  where = f', data_dir={data_dir!r}' if data_dir else ''
  manual = _MANUAL.get(re.split('[/:]', name)[0], '')
  if manual:
    manual = f'put {manual} in {root(data_dir)}/downloads/manual and '
  return (
    f'To prepare it, {manual}run: python -c "import tensorflow_datasets as'
    f' tfds; tfds.load({name!r}{where})"'
  )


def _digest(*parts):
  return digest.sha256(list(parts))


def one_line(error: Exception) -> str:
  """What happened, short, without TensorFlow's names of its own parts."""
  text = re.sub(r'\{\{.*?\}\}|\[Op:.*?\]|name: $', '', str(error))
  return f'{type(error).__name__}: {" ".join(text.split())[:200]}'


def _clip(shards, start, stop):
  """How many of start..stop lie in each shard; none is dropped."""
  ends = np.cumsum(shards)
  begins = ends - shards
  inside = np.minimum(ends, stop) - np.maximum(begins, start)
  return tuple(np.maximum(inside, 0).tolist())


# Folders of images.


class _Folder:
  """Files of their own."""

  def __init__(self, paths, labels):
    self.shards = (len(paths),)
    self._paths, self._labels = paths, labels

  def read(self, ids):
    examples = []
    for number in ids:
      with open(self._paths[number], 'rb') as file:
        examples.append(Example(file.read(), self._labels[number]))
    return examples

  def expect(self, ids):
    del ids  # A file is read at once.

  def place(self, number):
    return self._paths[number]


def _load_folder(data_dir):
  """Lists root/split/label/*.jpg."""
  layout = 'root/split/label/*.jpg, such as root/train/cat/1.jpg'
  if not data_dir or _remote(data_dir):
    raise errors.ConfigError(
      f'dataset {IMAGE_FOLDER!r} needs data_dir to be a local folder with'
      f' {layout}; it is {data_dir!r}.'
    )
  where = os.path.abspath(os.path.expanduser(data_dir))
  try:
    found = {
      split: [
        (label, file.name, file.stat().st_size)
        for label in _folders(f'{where}/{split}')
        for file in sorted(
          os.scandir(f'{where}/{split}/{label}'), key=lambda file: file.name
        )
        if file.name.lower().endswith(_IMAGES)
      ]
      for split in _folders(where)
      if split != CACHE
    }
  except OSError as error:  # A link that leads nowhere, say.
    raise errors.DataError(
      f'{error.filename} cannot be read: {error.strerror}. Mend or remove it.'
    ) from error
  found = {split: files for split, files in found.items() if files}
  if not found:
    raise errors.DataError(f'{where} holds no images laid out as {layout}.')
  names = tuple(
    sorted({label for split in found for label in _folders(f'{where}/{split}')})
  )

  def reader(split):
    files = list(found[split])
    # Sorted by label, a slice would hold some labels only. TFDS's own order.
    random.Random(split).shuffle(files)
    return _Folder(
      [f'{where}/{split}/{label}/{name}' for label, name, _ in files],
      [names.index(label) for label, _, _ in files],
    )

  return Dataset(
    name=IMAGE_FOLDER,
    sizes={split: len(files) for split, files in found.items()},
    class_names=names,
    fingerprint=_digest(IMAGE_FOLDER, found, names),
    reader=reader,
  )


def _folders(path):
  """Sorted names of the folders in `path`; none if it is none itself."""
  if not os.path.isdir(path):
    return []
  return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())


# Files that TFDS has prepared.


def _parse(serialized: Sequence[bytes], keys: Sequence[str]) -> list[Example]:
  """The image, still encoded, and the label of each tf.train.Example."""
  import tensorflow as tf

  features = {
    keys[0]: tf.io.FixedLenFeature([], tf.string),
    keys[1]: tf.io.FixedLenFeature([], tf.int64),
  }
  try:
    parsed = tf.io.parse_example(serialized, features)
  except tf.errors.InvalidArgumentError as error:
    raise CorruptError(one_line(error)) from error
  images, labels = (parsed[key].numpy().tolist() for key in keys)
  return [Example(*pair) for pair in zip(images, labels, strict=True)]


class _ArrayRecords:
  """Any record at any time."""

  def __init__(self, paths, sizes, keys):
    from array_record.python import array_record_data_source

    self.shards = (sum(sizes),)
    self._paths, self._ends, self._keys = paths, np.cumsum(sizes), keys
    # With its range a file is opened when first read, not to be counted now.
    self._source = array_record_data_source.ArrayRecordDataSource(
      [f'{path}[0:{size}]' for path, size in zip(paths, sizes, strict=True)]
    )

  def read(self, ids):
    try:
      return _parse(self._source.__getitems__(ids), self._keys)
    except RuntimeError as error:  # All that its C++ raises.
      if 'Corrupted' in str(error):
        raise CorruptError(one_line(error)) from error
      raise

  def expect(self, ids):
    del ids  # A record is read at once.

  def place(self, number):
    return self._paths[np.searchsorted(self._ends, number, side='right')]


class _TFRecords:
  """Whole files in memory: as many as are in use, and those that come next."""

  _THREADS = 8

  def __init__(self, paths, sizes, keys):
    self.shards = sizes
    self._paths, self._ends, self._keys = paths, np.cumsum(sizes), keys
    self._held: collections.OrderedDict[int, futures.Future[Any]] = (
      collections.OrderedDict()
    )
    self._capacity = 2
    self._lock = threading.Lock()
    self._pool = futures.ThreadPoolExecutor(self._THREADS)

  def read(self, ids):
    shards = self._shards(ids)
    loads = self._load(shards)
    rows = np.asarray(ids) - self._begin(shards)
    examples = []
    for shard, row in zip(shards.tolist(), rows.tolist(), strict=True):
      try:
        found = loads[shard].result()[row]
      except Exception:
        with self._lock:  # Another attempt may fare better.
          self._held.pop(shard, None)
        raise
      if isinstance(found, Exception):
        raise found
      examples.append(found)
    return examples

  def expect(self, ids):
    self._load(self._shards(ids))

  def place(self, number):
    return self._paths[self._shards([number])[0]]

  def _shards(self, ids):
    return np.searchsorted(self._ends, ids, side='right')

  def _begin(self, shard):
    return self._ends[shard] - np.asarray(self.shards)[shard]

  def _load(self, shards):
    """Futures of the contents of `shards`; the least recently used are let go.

    Memory follows from the order of reading: three times the files of one call,
    which are those now in use, those that come next and, between two epochs,
    some of both.
    """
    wanted = np.unique(shards).tolist()
    with self._lock:
      self._capacity = max(self._capacity, 3 * len(wanted))
      for shard in wanted:
        if shard not in self._held:
          self._held[shard] = self._pool.submit(self._contents, shard)
        self._held.move_to_end(shard)
      while len(self._held) > self._capacity:
        self._held.popitem(last=False)
      return {shard: self._held[shard] for shard in wanted}

  def _contents(self, shard):
    """Each record of a file: an Example or, if it is lost, the CorruptError."""
    import tensorflow as tf

    path, size = self._paths[shard], self.shards[shard]
    # In batches, which is fast; if there is damage, up to where it is.
    for count in (256, 1):
      contents = []
      records = tf.data.TFRecordDataset(path, buffer_size=8 << 20)
      try:
        for batch in records.batch(count):
          contents += self._examples(batch.numpy().tolist())
        reason = f'the file ends after {len(contents)} of {size} records'
        break
      except tf.errors.DataLossError as error:
        # Where a record ends is lost with it: so are all that follow.
        reason = one_line(error)
    return contents + [CorruptError(reason)] * (size - len(contents))

  def _examples(self, batch):
    try:
      return _parse(batch, self._keys)
    except CorruptError as error:
      if len(batch) == 1:
        return [error]
      return [part for one in batch for part in self._examples([one])]
