"""Ratings in columns: their order, fingerprint and cache, and TFDS's form of them."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any
from typing import NamedTuple
import zipfile

import numpy as np

from td_jax import errors
from td_jax.data import tfds as tfds_lib
from td_jax.storage import files

# Little-endian, so that the fingerprint is the same on every machine.
COLUMNS = {
  'user_id': '<i4',
  'movie_id': '<i4',
  'rating': '<f4',
  'timestamp': '<i8',
}

_ROWS = 1 << 18  # Rows that are parsed at a time.


class Ratings(NamedTuple):
  """All ratings, sorted by (timestamp, user, movie). N rows, M movies."""

  user_id: np.ndarray  # int32 [N], from 1
  movie_id: np.ndarray  # int32 [N], 1..M
  rating: np.ndarray  # float32 [N], stars up to 5
  timestamp: np.ndarray  # int64 [N], seconds since 1970 UTC
  titles: tuple[str, ...]  # [M + 1], by movie id; index 0 is ''
  genres: np.ndarray  # bool [M + 1, G], by movie id; row 0 is all False
  genre_names: tuple[str, ...]  # [G], sorted
  fingerprint: str  # SHA-256 of everything above.


def make(
  columns: Mapping[str, Any],
  *,
  titles: Mapping[int, str],
  genres: Mapping[str, Any],
) -> Ratings:
  """Returns Ratings in canonical order.

  Args:
    columns: user_id, movie_id, rating and timestamp, each [N], in any order.
    titles: {movie id: title}.
    genres: {name: movie ids}; genres without movies are left out.
  """
  # Timestamps repeat; user and movie make the order the same for every source.
  order = np.lexsort([columns[n] for n in ('movie_id', 'user_id', 'timestamp')])
  names = sorted(name for name in genres if len(genres[name]))
  flags = np.zeros((max(titles) + 1, len(names)), bool)  # [M + 1, G]
  for i, name in enumerate(names):
    flags[genres[name], i] = True
  ratings = Ratings(
    **{
      name: np.asarray(columns[name])[order].astype(dtype)
      for name, dtype in COLUMNS.items()
    },
    titles=tuple(titles.get(movie, '') for movie in range(len(flags))),
    genres=flags,
    genre_names=tuple(names),
    fingerprint='',
  )
  return ratings._replace(fingerprint=fingerprint(ratings))


def fingerprint(ratings: Ratings) -> str:
  # Results store this fingerprint: do not change its parts, nor their order.
  return files.sha256(
    f'{ratings.rating.shape} {ratings.genres.shape}',
    *(getattr(ratings, name) for name in COLUMNS),
    [ratings.titles, ratings.genre_names],
    ratings.genres,
  )


def read_cache(cache: pathlib.Path, *, most_bytes: int) -> Ratings:
  """Reads a cache of ratings; raises an Exception if it is damaged.

  Args:
    cache: A .npz file with the fields of `Ratings`.
    most_bytes: What it may unpack to.
  """
  with zipfile.ZipFile(cache) as archive:
    # A few compressed bytes can unpack to gigabytes: check before unpacking.
    unpacked = sum(member.file_size for member in archive.infolist())
  if unpacked > most_bytes:
    raise ValueError(f'it unpacks to {unpacked} bytes')
  with np.load(cache, allow_pickle=False) as stored:
    ratings = Ratings(
      **{name: stored[name] for name in (*COLUMNS, 'genres')},
      titles=tuple(stored['titles'].tolist()),
      genre_names=tuple(stored['genre_names'].tolist()),
      fingerprint=str(stored['fingerprint']),
    )
  found = fingerprint(ratings)
  if found != ratings.fingerprint:
    raise ValueError(
      f'its rows have fingerprint {found[:12]}, not'
      f' {ratings.fingerprint[:12]} as stored'
    )
  return ratings


def read_tfds(folder: pathlib.Path, name: str) -> Ratings:
  """Reads ratings that TFDS has prepared.

  Args:
    folder: A version of the dataset.
    name: What it should be, for messages: 'movielens/100k-ratings'.

  Raises:
    errors.DataError: The folder is damaged or holds other data.
  """
  tfds = tfds_lib.module()
  try:
    builder = tfds.builder_from_directory(str(folder))
    labels = builder.info.features['movie_genres'].feature.names
    return collect(map(_columns, _records(tfds, builder)), labels)
  except Exception as error:
    raise errors.DataError(
      f'{folder} cannot be read as {name} ({errors.one_line(error)}):'
      ' delete the folder and run again.'
    ) from error


def _records(tfds: Any, builder: Any) -> Iterator[Any]:
  """The serialized rows, some at a time."""
  import tensorflow as tf

  if builder.info.file_format.value == 'array_record':
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    rows = builder.as_data_source(split='train', deserialize_method=raw)
    for start in range(0, len(rows), _ROWS):
      yield rows.__getitems__(list(range(start, min(start + _ROWS, len(rows)))))
  else:
    paths = [str(path) for path in builder.info.splits['train'].filepaths]
    yield from tf.data.TFRecordDataset(paths).batch(_ROWS)


def _columns(records: Any) -> dict[str, np.ndarray]:
  """Parses serialized rows into the columns that `collect` takes."""
  import tensorflow as tf

  # All rows at once: TFDS's own decoding goes row by row and takes 100 times
  # longer.
  kinds = {
    'user_id': tf.string,
    'movie_id': tf.string,
    'movie_title': tf.string,
    'user_rating': tf.float32,
    'timestamp': tf.int64,
  }
  parsed = tf.io.parse_example(
    records,
    {name: tf.io.FixedLenFeature([], kind) for name, kind in kinds.items()}
    | {'movie_genres': tf.io.RaggedFeature(tf.int64)},
  )
  genres = parsed.pop('movie_genres')  # [N, ragged]
  return {name: column.numpy() for name, column in parsed.items()} | {
    'genre': genres.flat_values.numpy(),
    'genre_count': genres.row_lengths().numpy(),
  }


def collect(
  blocks: Iterable[Mapping[str, np.ndarray]], labels: Sequence[str]
) -> Ratings:
  """Converts TFDS's columns to Ratings.

  Titles and genres are kept once for each movie, so that memory grows by four
  numbers for each row.

  Args:
    blocks: Rows in parts, each with user_id, movie_id, movie_title, user_rating
      and timestamp, [N] each; genre_count [N], the number of genres of each
      row; and genre [sum(genre_count)], the genres of all rows one after the
      other.
    labels: Names of the genres, by number.
  """
  numbers: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
  titles: dict[int, str] = {}
  genres: dict[str, set[int]] = {label: set() for label in labels}
  for block in blocks:
    # TFDS stores both ids as text.
    for name in ('user_id', 'movie_id'):
      numbers[name].append(block[name].astype('S').astype(np.int32))
    numbers['rating'].append(block['user_rating'])
    numbers['timestamp'].append(block['timestamp'])
    movies = numbers['movie_id'][-1]
    for movie, row in zip(*np.unique(movies, return_index=True), strict=True):
      titles[int(movie)] = bytes(block['movie_title'][row]).decode()
    movie_of_genre = np.repeat(movies, block['genre_count'])
    for number, label in enumerate(labels):
      found = np.unique(movie_of_genre[block['genre'] == number])
      genres[label].update(found.tolist())
  return make(
    {name: np.concatenate(parts) for name, parts in numbers.items()},
    titles=titles,
    genres={label: sorted(found) for label, found in genres.items()},
  )
