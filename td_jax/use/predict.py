"""td_jax predict RUN INPUT ...: what a student says, as JSON lines or CSV.

  td_jax predict runs/flowers rose.jpg holiday/ --top=3
  td_jax predict runs/movies 196,242 pairs.csv --out=predicted.csv

For images an input is a file, or a folder, of which all images are taken. For
ratings it is USER,MOVIE, or a CSV file with the columns `user` and `movie`.
"""

import argparse
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import csv
import json
import os
import sys
from typing import Any
from typing import NamedTuple
from typing import TextIO

import jax
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import image_folder
from td_jax.run import command_line
from td_jax.storage import files
from td_jax.use import student as student_lib

Row = dict[str, Any]
# The names that a column of a CSV file may have.
_COLUMNS = {'user': ('user', 'user_id'), 'movie': ('movie', 'movie_id', 'item')}


class _Kind(NamedTuple):
  """How a domain's examples are named, and its predictions shown."""

  read: Callable[[str], list[Any]]  # An input -> its examples.
  # (student, example, scores, top) -> a row.
  row: Callable[[student_lib.Student, Any, Any, int], Row]


def rows(
  student: student_lib.Student,
  inputs: Sequence[str],
  *,
  top: int = 5,
  batch: int = 64,
  log: types.Log = types.no_log,
) -> Iterator[Row]:
  """A row of predictions for each example of `inputs`, which are as above.

  Inputs are looked up at once, and predicted as rows are taken.

  Args:
    student: Predicts.
    inputs: What to predict for.
    top: How many of the most probable classes a row has.
    batch: How many examples are computed at a time.
    log: Receives a line for each example that cannot be read.

  Raises:
    errors.DataError: There is no such input; or, after all others, some examples
      could not be read.
  """
  kind = _KINDS[student.config.domain]
  examples = [example for each in inputs for example in kind.read(each)]
  return _predicted(student, examples, top, batch, log)


def _predicted(
  student: student_lib.Student,
  examples: Sequence[Any],
  top: int,
  batch: int,
  log: types.Log,
) -> Iterator[Row]:
  row = _KINDS[student.config.domain].row
  bad = 0
  for start in range(0, len(examples), batch):
    part = examples[start : start + batch]
    readable, x = _preprocessed(student, part, log)
    bad += len(part) - len(readable)
    if readable:
      scores = student.scores(x)
      for example, each in zip(readable, scores, strict=True):
        yield row(student, example, each, top)
  if bad:
    raise errors.DataError(
      f'{bad} of {len(examples)} examples could not be read; the others are '
      'predicted.'
    )


def _preprocessed(
  student: student_lib.Student, part: Sequence[Any], log: types.Log
) -> tuple[Sequence[Any], types.PyTree]:
  """(the examples that can be read, the network's input for them)."""
  try:
    return part, student.preprocess(part)
  except errors.DataError:
    readable, inputs = [], []
  for example in part:
    try:
      inputs.append(student.preprocess([example]))
      readable.append(example)
    except errors.DataError as e:
      log(f'warning: {e}')
  if not readable:
    return [], None
  return readable, jax.tree.map(lambda *x: np.concatenate(x), *inputs)


def _images(name: str) -> list[str]:
  """The image of that name, or all images below the folder."""
  if not os.path.isdir(name):
    if not os.path.exists(name):
      raise errors.DataError(
        f'{name} does not exist; name an image, or a folder of images.'
      )
    return [name]
  return [os.path.join(name, path) for path, _ in image_folder.below(name)]


def _image_row(
  student: student_lib.Student, file: str, scores: np.ndarray, top: int
) -> Row:
  # Of equal probabilities the first class wins, as in `argmax`.
  order = np.argsort(-scores, kind='stable')[:top].tolist()
  best = [
    {'class': student.class_names[i], 'probability': float(scores[i])}
    for i in order
  ]
  return {'file': file, **best[0], 'top': best}


def _pairs(text: str) -> list[tuple[str, str]]:
  """The pairs of a CSV file, or of USER,MOVIE."""
  if os.path.exists(text):
    return _pairs_of_file(text)
  user, comma, movie = text.partition(',')
  if not (user and comma and movie):
    raise errors.DataError(
      f'{text!r} is neither a file nor USER,MOVIE, such as 196,242.'
    )
  return [(user.strip(), movie.strip())]


def _pairs_of_file(name: str) -> list[tuple[str, str]]:
  try:
    with open(name, newline='', encoding='utf-8-sig') as opened:
      reader = csv.DictReader(opened)
      names = reader.fieldnames or []
      columns = [
        next((name for name in known if name in names), '')
        for known in _COLUMNS.values()
      ]
      if not all(columns):
        raise errors.DataError(
          f'{name} has the columns {", ".join(names) or "(none)"}; it needs '
          '`user` and `movie` in its first line.'
        )
      pairs = []
      for row in reader:
        user, movie = (row[column] for column in columns)
        if user is None or movie is None:
          raise errors.DataError(
            f'{name}, line {reader.line_num} has too few columns.'
          )
        pairs.append((user.strip(), movie.strip()))
      return pairs
  except (OSError, UnicodeDecodeError, csv.Error) as e:
    raise errors.DataError(
      f'{name} cannot be read as a CSV file: {errors.one_line(e)}.'
    ) from e


def _rating_row(
  student: student_lib.Student,
  pair: tuple[str, str],
  score: np.floating,
  top: int,
) -> Row:
  del top  # There are no classes.
  user, movie = pair
  return {
    'user': user,
    'movie': movie,
    'title': student.preprocess.title(movie),
    'rating': float(score),
    # Ids that the student has never seen: it then goes by the other id, the
    # words of the title and the genres.
    'unknown': student.preprocess.unknown(pair),
  }


_KINDS = {
  'images': _Kind(_images, _image_row),
  'movielens': _Kind(_pairs, _rating_row),
}


def write(rows: Iterator[Row], opened: TextIO, *, as_csv: bool) -> None:
  """Writes rows as they come, as JSON lines or as CSV."""
  writer = None
  for row in rows:
    if not as_csv:
      opened.write(json.dumps(row, ensure_ascii=False) + '\n')
      continue
    cells = _cells(row)
    if writer is None:
      writer = csv.DictWriter(opened, cells, lineterminator='\n')
      writer.writeheader()
    writer.writerow(cells)


def _cells(row: Row) -> dict[str, Any]:
  """A row without lists: class_2, probability_2, ... for what follows the best."""
  cells = {}
  for name, value in row.items():
    if name == 'top':
      for i, each in enumerate(value[1:], 2):
        cells |= {f'{key}_{i}': part for key, part in each.items()}
    else:
      cells[name] = ' '.join(value) if isinstance(value, list) else value
  return cells


def _command(args: argparse.Namespace, log: types.Log) -> None:
  student = student_lib.load(args.run, seed=args.seed)
  predicted = rows(student, args.input, top=args.top, batch=args.batch, log=log)
  as_csv = args.out.endswith('.csv')
  if not args.out:
    write(predicted, sys.stdout, as_csv=False)
    return
  with (
    files.io_errors(args.out),
    open(args.out, 'w', newline='', encoding='utf-8') as opened,
  ):
    write(predicted, opened, as_csv=as_csv)
  log(f'predictions are in {args.out}')


def main(argv: Sequence[str]) -> None:
  """Runs `td_jax predict` with the words after it."""
  parser = command_line.Parser(
    prog='td_jax predict', description='Predict with the student of a run.'
  )
  parser.add_argument('run', help='folder of a finished run')
  parser.add_argument(
    'input',
    nargs='+',
    help='images: files or folders; ratings: USER,MOVIE or CSV files with the '
    'columns user and movie',
  )
  parser.add_argument(
    '--out',
    default='',
    help='file to write, .csv for CSV; by default JSON lines go to the terminal',
  )
  parser.add_argument(
    '--top',
    default=5,
    type=command_line.positive,
    help='classes to show for each image',
  )
  parser.add_argument(
    '--seed', type=int, help='which student; by default the best by validation'
  )
  parser.add_argument(
    '--batch',
    default=64,
    type=command_line.positive,
    help='examples computed at a time',
  )
  command_line.run(parser, _command, argv)
