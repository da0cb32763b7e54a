"""td_jax predict RUN INPUT ...: what a student says, as JSON lines or CSV.

  td_jax predict runs/flowers rose.jpg holiday/ --top=3
  td_jax predict runs/movies 196,242 pairs.csv --out=predicted.csv

For images an input is a file, or a folder, of which all images are taken. For
ratings it is USER,ITEM, and for all tables a CSV or Parquet file with the columns that
the student has learnt from.
"""

import argparse
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import csv
import json
import os
from typing import Any
from typing import NamedTuple
from typing import TextIO

import jax
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import image_folder
from td_jax.data import table as table_lib
from td_jax.data import table_file
from td_jax.run import command_line
from td_jax.run import terminal
from td_jax.storage import files
from td_jax.use import student as student_lib

Row = dict[str, Any]
# Other names that a column of a CSV file may have.
_ALSO = {'user': ('user_id',), 'movie': ('movie_id', 'item')}


class _Kind(NamedTuple):
  """How a domain's examples are named, and its predictions shown."""

  # (student, input) -> the examples of the input.
  read: Callable[[student_lib.Student, str], list[Any]]
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
  examples = [
    example for each in inputs for example in kind.read(student, each)
  ]
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


def _images(student: student_lib.Student, name: str) -> list[str]:
  """The image of that name, or all images below the folder."""
  del student
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
  return {'file': file} | _classes(student, scores, top)


def _classes(student: student_lib.Student, scores: np.ndarray, top: int) -> Row:
  # Of equal probabilities the first class wins, as in `argmax`.
  order = np.argsort(-scores, kind='stable')[:top].tolist()
  best = [
    {'class': student.class_names[i], 'probability': float(scores[i])}
    for i in order
  ]
  return {**best[0], 'top': best}


def _table(student: student_lib.Student, text: str) -> list[Row]:
  """The rows of a file, or the pair USER,ITEM."""
  encoder = student.preprocess
  if os.path.exists(text):
    delimiter = student.config.data.get('delimiter', ',')
    return _rows_of_file(text, encoder.columns, delimiter)
  user, comma, item = text.partition(',')
  if not encoder.are_pairs:
    raise errors.DataError(
      f'{text} does not exist; name a CSV or Parquet file with the columns '
      f'{", ".join(encoder.columns)}.'
    )
  if not (user and comma and item):
    raise errors.DataError(
      f'{text!r} is neither a file nor USER,ITEM, such as 196,242.'
    )
  return [dict(zip(encoder.columns, (user.strip(), item.strip()), strict=True))]


def _rows_of_file(
  name: str, wanted: Sequence[str], delimiter: str
) -> list[Row]:
  names = table_file.header(name, delimiter=delimiter)
  columns = {
    column: next(
      (each for each in (column, *_ALSO.get(column, ())) if each in names), ''
    )
    for column in wanted
  }
  lacking = [column for column, found in columns.items() if not found]
  if lacking:
    raise errors.DataError(
      f'{name} has the columns {", ".join(names)}; it lacks {", ".join(lacking)}.'
    )
  read = table_file.read(
    name, text=list(columns.values()), delimiter=delimiter
  ).text
  values = [
    [read[found].values[i] for i in read[found].numbers.tolist()]
    for found in columns.values()
  ]
  if not values[0]:
    raise errors.DataError(f'{name} has the names of columns, and no rows.')
  return [
    dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)
  ]


def _table_row(
  student: student_lib.Student, example: Row, scores: Any, top: int
) -> Row:
  encoder = student.preprocess
  row = dict(example)
  item = encoder.ids.get(table_lib.ITEM)
  if item and encoder.has_titles:
    row['title'] = encoder.title(example[item])
  if student.class_names:
    predicted = _classes(student, scores, top)
  else:
    predicted = {encoder.target: float(scores)}
  # Values that the student has never seen: it goes by the others, and by the title
  # and genres of an item.
  predicted['unknown'] = encoder.unknown(example)
  for name, value in predicted.items():
    row[f'predicted_{name}' if name in row else name] = value
  return row


_KINDS = {
  'images': _Kind(_images, _image_row),
  'movielens': _Kind(_table, _table_row),
  'table': _Kind(_table, _table_row),
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
    with terminal.results() as opened:
      write(predicted, opened, as_csv=False)
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
    help='images: files or folders; ratings: USER,ITEM; all tables: CSV files',
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
