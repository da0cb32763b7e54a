"""Folders of images, root/split/label/*.jpg, which need no preparation."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import os
import random

from td_jax import errors
from td_jax.data import dataset
from td_jax.storage import files as files_lib

NAME = 'image_folder'  # As a dataset's name in a config; TFDS's name for it.
_SUFFIXES = ('.jpg', '.jpeg', '.png')
_ALL = 'all'  # The split of all images that have no labels.
_NO_LABEL = -1
_LAYOUT = 'root/split/label/*.jpg, such as root/train/cat/1.jpg'


def load(data_dir: str) -> dataset.Dataset:
  """Lists the images below `data_dir`.

  The order of the records and the numbers of the labels are those of TFDS's
  ImageFolder.

  Raises:
    errors.ConfigError: `data_dir` is not a local folder.
    errors.DataError: It holds no images in this layout, or cannot be read.
  """
  root = _root(data_dir, _LAYOUT)
  with _readable():
    images = {
      split: _list_images(f'{root}/{split}')
      for split in _folders(root)
      if split != dataset.CACHE
    }
  images = {split: rows for split, rows in images.items() if rows}
  if not images:
    raise errors.DataError(f'{root} holds no images laid out as {_LAYOUT}.')
  # A label whose folder is empty counts too: it must not renumber the others.
  names = tuple(
    sorted({label for split in images for label in _folders(f'{root}/{split}')})
  )

  def reader(split: str) -> _Reader:
    rows = list(images[split])
    # Sorted by label, a slice of a split would hold a few labels only. The seed
    # is the split's name, as in TFDS.
    random.Random(split).shuffle(rows)
    return _Reader(
      [f'{root}/{split}/{label}/{name}' for label, name, _ in rows],
      [names.index(label) for label, _, _ in rows],
    )

  return dataset.Dataset(
    name=NAME,
    sizes={split: len(rows) for split, rows in images.items()},
    class_names=names,
    fingerprint=files_lib.sha256([NAME, images, names]),
    reader=reader,
  )


def load_unlabelled(data_dir: str) -> dataset.Dataset:
  """Lists the images at any depth below `data_dir`, which need no classes.

  Returns:
    A dataset without labels. Its split `all` has all images, and the images of
    each folder in `data_dir` are a split of the folder's name.

  Raises:
    errors.ConfigError: `data_dir` is not a local folder.
    errors.DataError: It holds no images, or cannot be read.
  """
  root = _root(data_dir, 'images at any depth')
  found = below(root)
  images = {_ALL: found}
  for name, size in found:
    folder, slash, _ = name.partition('/')
    if slash and folder != _ALL:
      images.setdefault(folder, []).append((name, size))

  def reader(split: str) -> _Reader:
    rows = list(images[split])
    random.Random(split).shuffle(rows)
    return _Reader(
      [f'{root}/{name}' for name, _ in rows], [_NO_LABEL] * len(rows)
    )

  return dataset.Dataset(
    name=NAME,
    sizes={split: len(rows) for split, rows in images.items()},
    class_names=(),
    fingerprint=files_lib.sha256([NAME, found]),
    reader=reader,
  )


class _Reader:
  """A `dataset.Reader` of one file per record."""

  def __init__(self, paths: Sequence[str], labels: Sequence[int]):
    self.shards = (len(paths),)
    self._paths, self._labels = paths, labels

  def read(self, ids: Sequence[int]) -> list[dataset.Example]:
    examples = []
    for number in ids:
      with open(self._paths[number], 'rb') as file:
        examples.append(dataset.Example(file.read(), self._labels[number]))
    return examples

  def prefetch(self, ids: Sequence[int]) -> None:
    del ids  # Reading one file is fast enough.

  def location(self, number: int) -> str:
    return self._paths[number]


def _root(data_dir: str, layout: str) -> str:
  """The absolute path of a local folder with images."""
  if not data_dir or '://' in data_dir:
    raise errors.ConfigError(
      f'dataset {NAME!r} needs data_dir to be a local folder with {layout};'
      f' it is {data_dir!r}.'
    )
  return os.path.abspath(os.path.expanduser(data_dir))


def below(root: str) -> list[tuple[str, int]]:
  """(path below `root`, size in bytes) of all images at any depth, sorted.

  Raises:
    errors.DataError: There are none, or one cannot be read.
  """
  with _readable():
    found = sorted(_walk(root))
  if not found:
    raise errors.DataError(f'{root} holds no images ({", ".join(_SUFFIXES)}).')
  return found


@contextlib.contextmanager
def _readable() -> Iterator[None]:
  """Turns an OSError into one that names the mend."""
  try:
    yield
  except OSError as error:  # For example a link to a file that is gone.
    raise errors.DataError(
      f'{error.filename} cannot be read: {error.strerror}. Repair or remove it.'
    ) from error


def _walk(root: str) -> Iterator[tuple[str, int]]:
  """(path below `root`, size in bytes) of all images, hidden ones left out."""
  for folder, folders, names in os.walk(root):
    folders[:] = [
      name for name in folders if name != dataset.CACHE and name[0] != '.'
    ]
    for name in names:
      if name.lower().endswith(_SUFFIXES) and name[0] != '.':
        path = f'{folder}/{name}'
        yield os.path.relpath(path, root), os.stat(path).st_size


def _list_images(folder: str) -> list[tuple[str, str, int]]:
  """Returns (label, file name, size in bytes) of the images of a split."""
  # Sorted, since the order of a directory differs between machines. Sizes go
  # into the fingerprint, which then notices files that were replaced.
  return [
    (label, file.name, file.stat().st_size)
    for label in _folders(folder)
    for file in sorted(
      os.scandir(f'{folder}/{label}'), key=lambda file: file.name
    )
    if file.name.lower().endswith(_SUFFIXES)
  ]


def _folders(path: str) -> list[str]:
  """Returns the sorted names of the folders in `path`, if it is a folder."""
  if not os.path.isdir(path):
    return []
  return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())
