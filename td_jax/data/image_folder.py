"""Folders of images, root/split/label/*.jpg, which need no preparation."""

from collections.abc import Sequence
import os
import random

from td_jax import errors
from td_jax.data import dataset
from td_jax.storage import files as files_lib

NAME = 'image_folder'  # As a dataset's name in a config; TFDS's name for it.
_SUFFIXES = ('.jpg', '.jpeg', '.png')
_LAYOUT = 'root/split/label/*.jpg, such as root/train/cat/1.jpg'


def load(data_dir: str) -> dataset.Dataset:
  """Lists the images below `data_dir`.

  The order of the records and the numbers of the labels are those of TFDS's
  ImageFolder.

  Raises:
    errors.ConfigError: `data_dir` is not a local folder.
    errors.DataError: It holds no images in this layout, or cannot be read.
  """
  if not data_dir or '://' in data_dir:
    raise errors.ConfigError(
      f'dataset {NAME!r} needs data_dir to be a local folder with {_LAYOUT};'
      f' it is {data_dir!r}.'
    )
  root = os.path.abspath(os.path.expanduser(data_dir))
  try:
    images = {
      split: _list_images(f'{root}/{split}')
      for split in _folders(root)
      if split != dataset.CACHE
    }
  except OSError as error:  # For example a link to a file that is gone.
    raise errors.DataError(
      f'{error.filename} cannot be read: {error.strerror}. Repair or remove it.'
    ) from error
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
