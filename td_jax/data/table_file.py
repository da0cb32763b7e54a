"""Columns of a CSV or Parquet file, read in blocks.

Text becomes numbers as it is read, so that memory grows by a few bytes for each
row and not by its text.
"""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import csv
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from td_jax import errors
from td_jax.data import table as table_lib
from td_jax.storage import paths

_BLOCK_BYTES = 1 << 22  # Of a CSV file.
_BLOCK_ROWS = 1 << 16  # Of a Parquet file.
_LONGEST_SHOWN = 60  # Characters of a value in a message.
_BLUR = 0.01  # Of the spread of a column, the most that float32 may change.


class Text(NamedTuple):
  """A column of text: the number of each row's value, and the values."""

  numbers: np.ndarray  # int32 [n]; 0 is a value that is missing.
  values: list[str]  # In the order in which they appear; [0] is ''.


def header(path: str, *, delimiter: str = ',') -> tuple[str, ...]:
  """The names of a file's columns.

  Raises:
    errors.DataError: There is no such file, or it is no table.
  """
  return _Source(path, delimiter).names


class Columns(NamedTuple):
  """The columns that were asked for, n rows each."""

  text: dict[str, Text]
  numbers: dict[str, np.ndarray]  # float32 [n]; NaN is missing.
  times: dict[str, np.ndarray]  # float64 [n], in any unit that grows with time.


def read(
  path: str,
  *,
  text: Sequence[str] = (),
  numbers: Sequence[str] = (),
  times: Sequence[str] = (),
  delimiter: str = ',',
  rows: int | None = None,
  learnt: bool = False,
) -> Columns:
  """Reads columns of a file.

  Args:
    path: A CSV file with names in its first line, or a Parquet file (.parquet).
    text: Columns of text, or of lists of text, which are joined by '|'.
    numbers: Columns of numbers.
    times: Columns of numbers, or of dates such as 2024-05-31 17:00.
    delimiter: Between the values of a CSV file.
    rows: How many rows are read at least; None reads all.
    learnt: Refuse numbers whose differences float32 does not keep.

  Raises:
    errors.DataError: There is no such file or column, or a value cannot be read;
      the message names its line.
  """
  source = _Source(path, delimiter)
  for name in (*text, *numbers, *times):
    if name not in source.names:
      raise errors.DataError(
        f'{path} has no column {name!r}; its columns are '
        f'{", ".join(source.names)}.'
      )
  codes = {name: _Codes() for name in text}
  found = {name: [np.zeros(0)] for name in numbers}
  found_times = {name: [np.zeros(0)] for name in times}
  readers: list[tuple[Mapping[str, Any], Callable[[Any, Any], None]]] = [
    (codes, _Codes.add),
    (found, lambda parts, column: parts.append(_floats(column))),
    (found_times, lambda parts, column: parts.append(_times(column))),
  ]
  done = 0
  for block in source.blocks(tuple(dict.fromkeys((*text, *numbers, *times)))):
    for names, convert in readers:
      for name, parts in names.items():
        try:
          convert(parts, block[name])
        except _UnreadableError as e:
          raise errors.DataError(
            f'{path}: {name} has values of type {block[name].type}, which are '
            f'neither text nor numbers ({errors.one_line(e)}); leave it out.'
          ) from e
        except _BadValueError as e:
          raise errors.DataError(
            f'{source.place(done + e.row)}: {name} is {_shown(e.value)}, which is '
            f'{e.reason}.'
          ) from None
    done += len(block[next(iter(block))])
    if rows is not None and done >= rows:
      break
  whole = {name: np.concatenate(parts) for name, parts in found.items()}
  if learnt:
    for name, values in whole.items():
      _check_spread(f'{path}: {name}', values)
  return Columns(
    {name: column.finish() for name, column in codes.items()},
    {name: values.astype(np.float32) for name, values in whole.items()},
    {name: np.concatenate(parts) for name, parts in found_times.items()},
  )


def _check_spread(name: str, values: np.ndarray) -> None:
  """Raises a DataError where float32, with its seven digits, blurs float64 [n]."""
  known = values[~np.isnan(values)]
  if not len(known):
    return
  lost = known - known.astype(np.float32)
  if np.std(lost) > _BLUR * np.std(known):
    raise errors.DataError(
      f'{name} has values from {known.min():.12g} to {known.max():.12g}, whose '
      'differences are lost in float32, which keeps 7 digits; subtract '
      f'{known.min():.12g} from all of them, or leave the column out.'
    )


class _UnreadableError(Exception):
  """pyarrow cannot convert a column."""


class _BadValueError(Exception):
  """A value cannot be read."""

  def __init__(self, row: int, value: Any, reason: str):
    super().__init__()
    self.row, self.value, self.reason = row, value, reason


class _Source:
  """A file, which is opened anew by each call of `blocks`."""

  def __init__(self, path: str, delimiter: str):
    self._path, self._delimiter = path, delimiter
    if len(delimiter) != 1:
      raise errors.ConfigError(
        f'config.data.delimiter is {delimiter!r}; it is one character, such as '
        "',' or ';'."
      )
    if paths.is_remote(paths.as_path(path)):
      raise errors.DataError(
        f'{path} is not a local file, and tables are read from local files only: '
        'copy it.'
      )
    if not pathlib.Path(path).is_file():
      raise errors.DataError(
        f'{path} is no file; name a CSV or Parquet file in config.data.csv.'
      )
    self._is_parquet = path.lower().endswith(('.parquet', '.pq'))
    self.names = self._names()
    repeated = {name for name in self.names if self.names.count(name) > 1}
    if repeated:
      raise errors.DataError(
        f'{path} has two columns {min(repeated)!r}; rename one.'
      )
    near = next((each for each in ';\t|' if each in self.names[0]), '')
    if len(self.names) == 1 and near:
      raise errors.DataError(
        f'{path} has a single column, {self.names[0]!r}; is {near!r} between its '
        'values? Then say so in config.data.delimiter.'
      )

  def _names(self) -> tuple[str, ...]:
    from pyarrow import parquet

    try:
      if self._is_parquet:
        return tuple(parquet.read_schema(self._path).names)
      with open(self._path, newline='', encoding='utf-8-sig') as opened:
        names = next(csv.reader(opened, delimiter=self._delimiter), [])
    except Exception as e:  # pyarrow's errors, OSError, UnicodeDecodeError.
      raise self._unreadable(e) from e
    if not any(names):
      raise errors.DataError(
        f'{self._path} is empty; its first line has to name the columns.'
      )
    return tuple(names)

  def blocks(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """{column: pyarrow array} of some rows at a time."""
    read = self._parquet if self._is_parquet else self._csv
    try:
      for batch in read(columns):
        yield {name: batch.column(name) for name in columns}
    except errors.TdError:
      raise
    except Exception as e:  # pyarrow's errors and OSError.
      raise self._unreadable(e) from e

  def place(self, row: int) -> str:
    """Where a row is: its line in a CSV file."""
    if self._is_parquet:
      return f'{self._path}, row {row + 1}'
    with open(self._path, newline='', encoding='utf-8-sig') as opened:
      reader = csv.reader(opened, delimiter=self._delimiter)
      # A line without anything is no row, and the first row has the names.
      filled = (reader.line_num for values in reader if values)
      line = next((line for i, line in enumerate(filled) if i == row + 1), 0)
    return f'{self._path}, line {line}'

  def _unreadable(self, error: Exception) -> errors.DataError:
    kind = 'a Parquet' if self._is_parquet else 'a CSV'
    return errors.DataError(
      f'{self._path} cannot be read as {kind} file: {errors.one_line(error)}.'
    )

  def _parquet(self, columns: Sequence[str]) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(self._path) as file:
      yield from file.iter_batches(_BLOCK_ROWS, columns=list(columns))

  def _csv(self, columns: Sequence[str]) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import csv as pa_csv

    def refuse(row: Any) -> str:
      bad.append(row)
      return 'error'

    bad: list[Any] = []
    try:
      with pa_csv.open_csv(
        self._path,
        # With threads pyarrow does not say where a bad row is.
        read_options=pa_csv.ReadOptions(
          use_threads=False, block_size=_BLOCK_BYTES
        ),
        parse_options=pa_csv.ParseOptions(
          delimiter=self._delimiter,
          newlines_in_values=True,
          invalid_row_handler=refuse,
        ),
        convert_options=pa_csv.ConvertOptions(
          include_columns=list(columns),
          column_types=dict.fromkeys(columns, pa.string()),
        ),
      ) as reader:
        yield from reader
    except pa.ArrowInvalid:
      if not bad:
        raise
      row = bad[0]
      where = self.place(row.number - 2) if row.number else self._path
      raise errors.DataError(
        f'{where} has {row.actual_columns} values, but the first line names '
        f'{row.expected_columns} columns.'
      ) from None


class _Codes:
  """Numbers the values of a column in the order in which they appear."""

  def __init__(self):
    self._number = {'': 0}
    self._parts: list[np.ndarray] = [np.zeros(0, np.int32)]

  def add(self, column: Any) -> None:
    encoded = _as_text(column).dictionary_encode()
    number = self._number
    numbers = np.asarray(
      [
        number.setdefault(value or '', len(number))
        for value in encoded.dictionary.to_pylist()
      ],
      np.int32,
    )
    self._parts.append(numbers[encoded.indices.to_numpy(zero_copy_only=False)])

  def finish(self) -> Text:
    return Text(np.concatenate(self._parts), list(self._number))


def _compute() -> Any:
  """pyarrow's functions, which its stubs do not list."""
  from pyarrow import compute

  return compute


def _as_text(column: Any) -> Any:
  """A column as text without space around it; what is missing is ''."""
  import pyarrow as pa

  compute = _compute()
  if pa.types.is_dictionary(column.type):
    column = column.dictionary_decode()
  try:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
      column = compute.binary_join(column.cast(pa.list_(pa.string())), '|')
    text = compute.utf8_trim_whitespace(column.cast(pa.string()))
  except pa.ArrowException as e:
    raise _UnreadableError(str(e)) from e
  return compute.fill_null(text, '')


def _present(column: Any) -> Any:
  """Text with null where a value is missing."""
  import pyarrow as pa

  compute = _compute()
  text = _as_text(column)
  missing = compute.is_in(text, value_set=pa.array(table_lib.MISSING))
  return compute.if_else(missing, pa.scalar(None, pa.string()), text)


def _floats(column: Any) -> np.ndarray:
  """float64 [n]; NaN where a value is missing."""
  import pyarrow as pa

  if pa.types.is_boolean(column.type):
    column = column.cast(pa.int8())
  if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
    values = column.cast(pa.float64(), safe=False)
  else:
    text = _present(column)
    try:
      values = text.cast(pa.float64())
    except pa.ArrowInvalid:
      raise _first_bad(
        text, lambda value: pa.scalar(value).cast(pa.float64()), 'no number'
      ) from None
  found = values.to_numpy(zero_copy_only=False)
  infinite = np.flatnonzero(np.abs(found) > np.finfo(np.float32).max)
  if len(infinite):
    row = int(infinite[0])
    raise _BadValueError(row, str(column[row]), 'not finite as float32')
  return found


def _times(column: Any) -> np.ndarray:
  """float64 [n] that grow with time."""
  import pyarrow as pa

  if pa.types.is_temporal(column.type):
    try:
      values = column.cast(pa.timestamp('us'), safe=False).cast(pa.int64())
    except pa.ArrowException as e:
      raise _UnreadableError(str(e)) from e
    return _without_gaps(values)
  try:
    found = _floats(column)
  except _BadValueError:
    text = _present(column)
    try:
      dates = text.cast(pa.timestamp('us'))
    except pa.ArrowInvalid:
      raise _first_bad(
        text,
        _time,
        'neither a number nor a date such as 2024-05-31 17:00',
      ) from None
    return _without_gaps(dates.cast(pa.int64()))
  return _without_gaps(found)


def _without_gaps(times: Any) -> np.ndarray:
  """float64 [n] of an array that must have a value everywhere."""
  found = np.asarray(times, np.float64)
  empty = np.flatnonzero(np.isnan(found))
  if len(empty):
    raise _BadValueError(int(empty[0]), '', 'no time')
  return found


def _time(value: str) -> None:
  """Raises an exception for text that is neither a number nor a date."""
  import pyarrow as pa

  if not is_number(value):
    pa.scalar(value).cast(pa.timestamp('us'))


def _first_bad(
  text: Any, convert: Callable[[str], Any], reason: str
) -> _BadValueError:
  """The error of the first value that `convert` refuses."""
  for row, value in enumerate(text.to_pylist()):
    try:
      convert(value if value is not None else '0')
    except Exception:
      return _BadValueError(row, value, reason)
  # Each can be read, but not all in the same way: dates among numbers.
  kinds = [is_number(value) for value in text.to_pylist()]
  row = kinds.index(not kinds[0])
  return _BadValueError(
    row, text[row].as_py(), 'not of the same kind as others'
  )


def _shown(value: Any) -> str:
  """A value as messages show it."""
  text = repr(value)
  if len(text) <= _LONGEST_SHOWN:
    return text
  return f'{text[:_LONGEST_SHOWN]}... ({len(str(value)):,} characters)'


def is_number(value: str | None) -> bool:
  """Whether text can be read as a number, or is absent."""
  try:
    float(value or 0)
  except ValueError:
    return False
  return True
