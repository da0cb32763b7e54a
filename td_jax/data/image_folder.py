"""Folders of images, which need no preparation.

They are laid out as root/split/label/*.jpg, or as root/label/*.jpg, whose only
split is called train. A folder root/unlabelled is none of the labels: it may hold
images without one. Hidden folders are left out.
"""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import os
import random
from typing import NamedTuple
import unicodedata

from td_jax import errors
from td_jax.data import dataset
from td_jax.data import image_files
from td_jax.storage import files as files_lib

NAME = 'image_folder'  # As a dataset's name in a config; TFDS's name for it.
ALL = 'all'  # The split of all images that have no labels.
TRAIN = 'train'  # The only split of root/label/*.jpg.
# {part of a dataset: what folders call it}.
SPLITS = {
  'train': (TRAIN, 'training'),
  'validation': ('validation', 'val', 'valid', 'dev'),
  'test': ('test', 'testing'),
}
_UNLABELLED = ('unlabelled', 'unlabeled')
_MAC = '__MACOSX'  # What Macs put beside the files of a zip archive.
_NO_LABEL = -1
_LAYOUT = (
  'root/split/label/*.jpg, such as root/train/cat/1.jpg, or root/label/*.jpg'
)


class _Image(NamedTuple):
  """An image in a folder of a label."""

  label: str
  name: str
  size: int  # In bytes.


def load(data_dir: str) -> dataset.Dataset:
  """Lists the images below `data_dir`.

  The order of the records and the numbers of the labels are those of TFDS's
  ImageFolder.

  Raises:
    errors.ConfigError: `data_dir` is not a local folder.
    errors.DataError: It holds no images in one of these layouts, or cannot be
      read. The message names everything that is wrong.
  """
  root = _root(data_dir, _LAYOUT)
  with _readable():
    folders = _splits(root)
    images = {
      split: [
        image for label in _folders(folder) for image in _images(folder, label)
      ]
      for split, folder in folders.items()
    }
    # A label whose folder is empty counts too: it must not renumber the others.
    names = sorted(
      {label for folder in folders.values() for label in _folders(folder)}
    )
    problems = [*_misplaced(root, folders), *_wrong_labels(names, images)]
  if problems:
    raise errors.DataError(f'{root}: {"; ".join(problems)}.')

  def reader(split: str) -> _Reader:
    rows = list(images[split])
    # Sorted by label, a slice of a split would hold a few labels only. The seed
    # is the split's name, as in TFDS.
    random.Random(split).shuffle(rows)
    return _Reader(
      [f'{folders[split]}/{row.label}/{row.name}' for row in rows],
      [names.index(row.label) for row in rows],
    )

  return dataset.Dataset(
    name=NAME,
    sizes={split: len(rows) for split, rows in images.items()},
    class_names=tuple(names),
    fingerprint=files_lib.sha256([NAME, images, names]),
    reader=reader,
  )


def labels(folder: dataset.Dataset, split: str) -> Sequence[int]:
  """The labels of a split of a dataset that `load` returned."""
  found = folder.reader(split).labels
  assert found is not None  # They are the names of folders.
  return found


def unlabelled_folder(data_dir: str) -> str:
  """The folder of images without labels inside `data_dir`; '' if it has none."""
  root = _root(data_dir, _LAYOUT)
  with _readable():
    for name in sorted(os.listdir(root)):
      if name.lower() in _UNLABELLED and any(_walk(f'{root}/{name}')):
        return f'{root}/{name}'
  return ''


class LeftOut(NamedTuple):
  """What `load` does not take, by paths below the folder."""

  hidden: list[str]  # Folders.
  unreadable: list[str]  # Pictures of a kind that cannot be read.


def left_out(data_dir: str) -> LeftOut:
  """What `load` leaves out below `data_dir`."""
  root = _root(data_dir, _LAYOUT)
  left = LeftOut([], [])
  for folder, folders, names in os.walk(root):
    place = os.path.relpath(folder, root)
    for name in filter(_is_hidden, folders):
      left.hidden.append(os.path.normpath(f'{place}/{name}'))
    folders[:] = [name for name in folders if not _is_hidden(name)]
    for name in names:
      if name.lower().endswith(image_files.UNREADABLE):
        left.unreadable.append(os.path.normpath(f'{place}/{name}'))
  return left


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
  images = {ALL: found}
  for name, size in found:
    folder, slash, _ = name.partition('/')
    if slash and folder != ALL:
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

  any_kind = True

  def __init__(self, paths: Sequence[str], labels: Sequence[int]):
    self.shards = (len(paths),)
    self.labels, self._paths = labels, paths

  def read(self, ids: Sequence[int]) -> list[dataset.Example]:
    examples = []
    for number in ids:
      with open(self._paths[number], 'rb') as file:
        examples.append(dataset.Example(file.read(), self.labels[number]))
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
  root = os.path.abspath(os.path.expanduser(data_dir))
  if not os.path.isdir(root):
    raise errors.DataError(f'{root} is no folder; it must hold {layout}.')
  return root


def stamp(data_dir: str) -> str:
  """A digest of the names, sizes and times of all images below `data_dir`.

  It changes with files that are replaced by others of the same size.
  """
  root = _root(data_dir, _LAYOUT)
  with _readable():
    facts = sorted(
      (
        os.path.relpath(path, root),
        (info := _stat(path)).st_size,
        info.st_mtime_ns,
      )
      for path in _walk(root)
    )
  return files_lib.sha256([NAME, facts])


def below(root: str) -> list[tuple[str, int]]:
  """(path below `root`, size in bytes) of all images at any depth, sorted.

  Raises:
    errors.DataError: There are none, or one cannot be read.
  """
  with _readable():
    found = sorted(
      (os.path.relpath(path, root), _stat(path).st_size) for path in _walk(root)
    )
  if not found:
    raise errors.DataError(
      f'{root} holds no images ({", ".join(image_files.SUFFIXES)}).'
    )
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


def _splits(root: str) -> dict[str, str]:
  """{split: its folder, which has a folder for each label}.

  Raises:
    errors.DataError: `root` has neither of the two layouts.
  """
  folders = _folders(root)
  splits = [
    name
    for name in folders
    if any(
      _images(f'{root}/{name}', label) for label in _folders(f'{root}/{name}')
    )
  ]
  with_images = [name for name in folders if _images(root, name)]
  if splits and (any(map(part, splits)) or set(with_images) <= set(splits)):
    return {name: f'{root}/{name}' for name in splits}
  # Not the layout root/label, if one of its labels has the name of a split.
  for name in filter(part, with_images):
    raise errors.DataError(
      f'{root} holds images in {name} itself; put them into a folder for each '
      f'class, laid out as {_LAYOUT}.'
    )
  if with_images:
    return {TRAIN: root}
  elsewhere = min(_walk(root), default='')
  hint = f'; one is at {os.path.relpath(elsewhere, root)}' if elsewhere else ''
  raise errors.DataError(f'{root} holds no images laid out as {_LAYOUT}{hint}.')


def part(split: str) -> str:
  """train, validation or test if a folder is called so; else ''."""
  return next(
    (part for part, names in SPLITS.items() if split.lower() in names), ''
  )


def _images(folder: str, label: str) -> list[_Image]:
  """The images of a label in the folder of a split, sorted by name."""
  # Sorted, since the order of a directory differs between machines. Sizes go
  # into the fingerprint, which then notices files that were replaced.
  return [
    _Image(label, file.name, _stat(file.path).st_size)
    for file in sorted(
      os.scandir(f'{folder}/{label}'), key=lambda file: file.name
    )
    if _is_image(file.name)
  ]


def _misplaced(root: str, folders: Mapping[str, str]) -> Iterator[str]:
  """What to say of images that lie in no folder of a label."""
  above = 1 if root in folders.values() else 2  # Folders of a labelled image.
  stray, deeper = [], []
  for path in _walk(root, without=_UNLABELLED):
    place = path.removeprefix(f'{root}/')
    if place.count('/') < above:
      stray.append(place)
    elif place.count('/') > above:
      deeper.append(place)
  if stray:
    yield (
      f'{len(stray)} images lie in no folder of a label, such as {min(stray)}'
    )
  if deeper:
    yield (
      f'{len(deeper)} images lie deeper than the folder of their label, such '
      f'as {min(deeper)}; move them up, or name the folder above them'
    )


def _wrong_labels(
  names: Sequence[str], images: Mapping[str, Sequence[_Image]]
) -> Iterator[str]:
  """What to say of labels that cannot be meant."""
  if len(names) < 2:
    yield (
      f'there is one label only, {names[0]!r}; a task needs a folder for each '
      f'of two labels or more, laid out as {_LAYOUT}'
    )
  seen: dict[str, str] = {}
  for name in names:
    # One name in two spellings: of case, or of the accents in Unicode.
    key = unicodedata.normalize('NFC', name).casefold()
    if key in seen:
      yield f'the labels {seen[key]!r} and {name!r} differ in spelling only'
    seen[key] = name
  trained = {
    image.label
    for split, rows in images.items()
    if part(split) == TRAIN
    for image in rows
  }
  for split, rows in images.items():
    unknown = sorted({image.label for image in rows} - trained)
    if trained and unknown:
      yield (
        f'{split} has the label {unknown[0]!r}, which train has not; put its '
        "images into folders of train's labels"
      )


def _stat(path: str) -> os.stat_result:
  """The facts of an image's file; raises a DataError if it is no file."""
  files_lib.check_regular(path)
  return os.stat(path)


def _walk(root: str, *, without: Sequence[str] = ()) -> Iterator[str]:
  """The paths of all images at any depth, hidden ones left out.

  Args:
    root: Where to begin.
    without: Names of folders that are left out too, in lower case.
  """
  seen = set()
  for folder, folders, names in os.walk(root, followlinks=True):
    # A link to a folder above would lead round and round.
    facts = os.stat(folder)
    if (facts.st_dev, facts.st_ino) in seen:
      folders.clear()
      continue
    seen.add((facts.st_dev, facts.st_ino))
    folders[:] = [
      name for name in folders if _is_seen(name) and name.lower() not in without
    ]
    for name in names:
      if _is_image(name):
        yield f'{folder}/{name}'


def _folders(path: str) -> list[str]:
  """The sorted names of the folders in `path` that may be splits or labels."""
  return sorted(
    entry.name
    for entry in os.scandir(path)
    if entry.is_dir()
    and _is_seen(entry.name)
    and entry.name.lower() not in _UNLABELLED
  )


def _is_hidden(name: str) -> bool:
  return name.startswith('.') or name == _MAC


def _is_seen(name: str) -> bool:
  """Whether a folder of this name is neither hidden nor that of our caches."""
  return not _is_hidden(name) and name.lower() != dataset.CACHE


def _is_image(name: str) -> bool:
  return name.lower().endswith(image_files.SUFFIXES) and name[0] != '.'
