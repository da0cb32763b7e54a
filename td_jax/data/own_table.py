"""Tables of your own: ratings, or any rows of categories and numbers.

`complete` looks at the file and names what a config leaves to it: columns with
usual names, the kind of target, and rows that have none. `read` turns the rows into
a `table.Table`, in the order in which `table_task` cuts them.
"""

from collections.abc import Callable
import pathlib
from typing import NamedTuple

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.configs import allowed
from td_jax.data import labels
from td_jax.data import table as table_lib
from td_jax.data import table_file
from td_jax.data import table_items
from td_jax.data import table_task
from td_jax.data import task as task_lib
from td_jax.storage import files

_AUTO = 'auto'
_TEXTS = ('csv', 'details', 'by', 'task')
_COLUMNS = ('target', 'user', 'item', 'time', 'title', 'genres')
_SEVERAL = allowed.several(
  allowed.text(), "names of columns, such as ('age', 'city')"
)
_SHARE = allowed.number(above=0, below=1)
ALLOWED = {
  **{f'data.{key}': allowed.text() for key in (*_TEXTS, *_COLUMNS)},
  'data.delimiter': allowed.character(),
  'data.categories': _SEVERAL,
  'data.numbers': _SEVERAL,
  'data.others': allowed.one_of(('use', 'ignore')),
  'data.kind': allowed.one_of((_AUTO, 'regression', 'classification')),
  'data.order': allowed.one_of((_AUTO, 'time', 'random')),
  'data.order_seed': allowed.integer(0),
  'data.test_share': _SHARE,
  'data.validation_share': _SHARE,
  'data.labels.task': allowed.text(),
  **labels.keys((_AUTO, *table_task.UNLABELLED)),
  **table_task.ALLOWED,
}
_ROWS_OF_A_CLASS = 5  # With fewer, on average, the target is hardly a class.
# Names of columns that 'auto' finds, in lower case and without spaces and _.
_USUAL = {
  'target': ('rating', 'score', 'stars'),
  'user': ('user', 'userid', 'reviewerid', 'customer', 'customerid'),
  'item': (
    'item',
    'itemid',
    'movie',
    'movieid',
    'product',
    'productid',
    'asin',
  ),
  'time': ('timestamp', 'time', 'date', 'datetime', 'unixreviewtime'),
  'title': ('title', 'movietitle', 'itemtitle', 'name'),
  'genres': ('genres', 'genre', 'tags'),
}
_ABOUT_ITEMS = ('title', 'genres')
_LOOK = 10_000  # Rows that show whether a column has numbers.
# A column with more numbers than this is one of numbers, in which other values are
# errors.
_MOST = 0.9


class Rows(NamedTuple):
  """A table and the tasks that its rows belong to."""

  table: table_lib.Table
  # The name of a task -> bool [N], its rows; raises a ConfigError for others.
  of_task: Callable[[str], np.ndarray]


def check(config: types.Config) -> None:
  """Raises a ConfigError for settings that cannot work."""
  data = config.data
  if data.order == 'time' and not data.time:
    raise errors.ConfigError(
      "config.data.order is 'time', but config.data.time names no column."
    )
  if data.task and not data.by:
    raise errors.ConfigError(
      f'config.data.task is {data.task!r}, but config.data.by does not say which '
      'column has the tasks.'
    )
  table_task.check(config)


def task_loss(config: types.Config) -> str:
  """A key of `losses.TASK_LOSSES`."""
  if config.data.kind == 'classification':
    return table_task.CLASSIFICATION
  return table_task.REGRESSION


def use_all_tasks(config: types.Config) -> None:
  """Makes the run of `config` use the rows of all tasks."""
  table_task.use_all_tasks(config, 'task')


def load(config: types.Config, *, log: types.Log = print) -> task_lib.Task:
  """Reads the table and makes the task of `config`."""
  return task(config, read(config, log=log))


def task(config: types.Config, rows: Rows) -> task_lib.Task:
  """The task of `config.data`: all rows, or those of one task.

  Raises:
    errors.ConfigError: There is no such task.
    errors.DataError: A split is empty.
  """
  data = config.data
  whose = f'of {data.csv}'
  if data.task:
    whose += f' with {data.by}={data.task!r}'
  return table_task.task(
    config,
    rows.table,
    table_task.Selection(
      name=data.task or pathlib.Path(data.csv).stem,
      rows=rows.of_task(data.task),
      hideable=rows.of_task(data.labels.task or data.task),
      whose=whose,
    ),
    cuts=table_task.Cuts(1 - data.test_share, 1 - data.validation_share),
    standardise=True,
    metadata={},
  )


# What a config leaves to the file.


def complete(config: types.Config, log: types.Log) -> None:
  """Fills in, in place, what `config.data` leaves to the file.

  Raises:
    errors.ConfigError: No file is given, or columns have to be named.
    errors.DataError: The file cannot be read.
  """
  data = config.data
  if not data.csv:
    raise errors.ConfigError(
      f'{config.name} needs a table: give it as --config={config.name}:data=FILE, '
      'or in config.data.csv.'
    )
  names = table_file.header(data.csv, delimiter=data.delimiter)
  _find(data, names, log)
  if data.others == 'use':
    _use_others(data, names, log)
  if not (data.user or data.item or data.categories or data.numbers):
    raise errors.ConfigError(
      f'{data.csv} has no column from which {data.target!r} could be predicted; '
      'name some in config.data.categories or config.data.numbers.'
    )
  if data.order == _AUTO:
    data.order = 'time' if data.time else 'random'
  if data.kind == _AUTO:
    data.kind = _kind(data)
  regression = data.kind == 'regression'
  columns = table_file.read(
    data.csv,
    text=() if regression else (data.target,),
    numbers=(data.target,) if regression else (),
    delimiter=data.delimiter,
  )
  empty = np.isnan(_target(data, columns)[0])
  lacking = int(np.count_nonzero(empty))
  log(
    f'{data.csv}: {len(empty) - lacking} rows with {data.target}, for '
    f'{data.kind}' + (f', and {lacking} without' if lacking else '')
  )
  if data.unlabelled.source == _AUTO:
    of_task = lacking
    if lacking and data.by and data.task:
      rows = read(config, log=types.no_log)
      of_task = rows.of_task(data.task)[len(rows.table.target) :].any()
    data.unlabelled.source = 'rest' if of_task else 'none'


def _find(data: types.Config, names: tuple[str, ...], log: types.Log) -> None:
  """Names the columns that are 'auto', and checks those that are named."""
  of_items = names
  if data.details:
    of_items = table_file.header(data.details, delimiter=data.delimiter)
  found = []
  for key, usual in _USUAL.items():
    where = of_items if key in _ABOUT_ITEMS else names
    if data[key] == _AUTO:
      plain = {_plain(name): name for name in reversed(where)}
      data[key] = next((plain[name] for name in usual if name in plain), '')
      found += [f'{key}={data[key]}'] if data[key] else []
      if not data[key] and key in ('target', 'user', 'item'):
        raise errors.ConfigError(
          f'{data.csv} has the columns {", ".join(names)}; say which has the '
          f'{key}: --config.data.{key}=NAME.'
        )
    elif data[key]:
      errors.choose(f'config.data.{key}', data[key], where)
  if found:
    log(f'{data.csv}: columns {", ".join(found)}')
  if not data.target:
    raise errors.ConfigError(
      f'{data.csv} has the columns {", ".join(names)}; say which is to be '
      'predicted: --config.data.target=NAME.'
    )
  for key in ('categories', 'numbers'):
    for name in data[key]:
      errors.choose(f'config.data.{key}', name, names)
  _check_roles(data, of_items)
  if data.by == _AUTO:
    data.by = data.genres
    if not data.by:
      raise errors.ConfigError(
        f'the task {data.task!r} is a genre, but no column has genres; name it in '
        'config.data.genres, or another in config.data.by.'
      )
  elif data.by and data.by != data.genres:
    errors.choose('config.data.by', data.by, names)


def _check_roles(data: types.Config, of_items: tuple[str, ...]) -> None:
  """Raises a ConfigError for a column that is used twice or absent from `details`."""
  if data.item not in of_items and data.details:
    raise errors.ConfigError(
      f'{data.details} has the columns {", ".join(of_items)}, but {data.csv} has '
      f'its items in {data.item!r}; give both columns the same name.'
    )
  others = [data.user, data.item, *data.categories, *data.numbers]
  twice = [name for name in others if name and others.count(name) > 1]
  if data.target in (*others, data.time, data.by):
    raise errors.ConfigError(
      f'{data.target!r} is to be predicted, so no other key of config.data may '
      'name it.'
    )
  if twice:
    raise errors.ConfigError(
      f'{twice[0]!r} is named twice in config.data; a column is a user, an item, a '
      'category or a number.'
    )


def _plain(name: str) -> str:
  return name.lower().replace('_', '').replace(' ', '')


def _use_others(
  data: types.Config, names: tuple[str, ...], log: types.Log
) -> None:
  """Makes numbers or categories of the columns that no key names."""
  # A teacher of all tasks sees which is which: `by` is among the others.
  used = {data[key] for key in _USUAL}
  used.update(data.categories, data.numbers)
  others = [name for name in names if name not in used]
  look = table_file.read(
    data.csv, text=others, delimiter=data.delimiter, rows=_LOOK
  )
  numbers, categories, different = [], [], []
  for name in others:
    column = look.text[name]
    if _share_of_numbers(column) > _MOST:
      numbers.append(name)
    elif name != data.by and len(column.values) > 1 + len(column.numbers) // 2:
      different.append(name)  # Its values say nothing about other rows.
    else:
      categories.append(name)
  data.numbers = (*data.numbers, *numbers)
  data.categories = (*data.categories, *categories)
  data.others = 'ignore'
  log(
    f'{data.csv}: numbers {", ".join(numbers) or "(none)"}; categories '
    f'{", ".join(categories) or "(none)"}'
    + (
      f'; ignored, as most values differ: {", ".join(different)}'
      * bool(different)
    )
  )


def _kind(data: types.Config) -> str:
  """Whether the target is a number or a class, by its first rows."""
  look = table_file.read(
    data.csv, text=[data.target], delimiter=data.delimiter, rows=_LOOK
  )
  column = look.text[data.target]
  few = len(_classes(column.values)) <= 2
  are_numbers = _share_of_numbers(column) > _MOST
  return 'regression' if are_numbers and not few else 'classification'


def _share_of_numbers(column: table_file.Text) -> float:
  """The share of numbers among the rows that are not missing."""
  counts = np.bincount(column.numbers, minlength=len(column.values)).tolist()
  filled = numbers = 0
  for value, count in zip(column.values, counts, strict=True):
    if value not in table_lib.MISSING:
      filled += count
      numbers += count * table_file.is_number(value)
  return numbers / filled if filled else 1.0


# The rows.


def read(config: types.Config, *, log: types.Log = print) -> Rows:
  """Reads a table whose columns `complete` has named.

  Raises:
    errors.DataError: The file cannot be read; the message names line and column.
  """
  data = config.data
  log(f'{data.csv}: reading')
  categories = {
    table_lib.category(i): name for i, name in enumerate(data.categories)
  }
  ids = {
    name: column
    for name, column in (
      (table_lib.USER, data.user),
      (table_lib.ITEM, data.item),
      *categories.items(),
    )
    if column
  }
  tasks = data.by if data.by != data.genres else ''
  text, numbers = [*ids.values(), tasks], [*data.numbers]
  if not data.details:
    text += [data.title, data.genres]
  (numbers if data.kind == 'regression' else text).append(data.target)
  columns = table_file.read(
    data.csv,
    text=[name for name in dict.fromkeys(text) if name],
    numbers=numbers,
    times=[data.time] if data.order == 'time' else [],
    delimiter=data.delimiter,
    learnt=True,
  )
  target, class_names = _target(data, columns)
  filled = np.flatnonzero(~np.isnan(target))
  if len(filled) and np.ptp(target[filled]) == 0:
    raise errors.DataError(
      f'{data.csv}: {data.target} is the same in every row, so there is nothing to '
      'learn; choose another config.data.target.'
    )
  if len(class_names) > len(filled) / _ROWS_OF_A_CLASS:
    log(
      f'warning: {data.target} has {len(class_names)} classes in {len(filled)} rows; '
      "if it is a number, set config.data.kind='regression'."
    )
  if data.order == 'time':
    # Rows of the same time keep the order of the file.
    filled = filled[np.argsort(columns.times[data.time][filled], kind='stable')]
  else:
    filled = np.random.default_rng(data.order_seed).permutation(filled)
  order = np.concatenate([filled, np.flatnonzero(np.isnan(target))])
  names = {name: columns.text[column].values for name, column in ids.items()}
  numbers_of_rows = np.zeros((len(target), len(data.numbers)), np.float32)
  for i, name in enumerate(data.numbers):
    numbers_of_rows[:, i] = columns.numbers[name]
  titles, tags, tag_names = table_items.read(data, columns, names)
  table = table_lib.Table(
    ids={
      name: columns.text[column].numbers[order] for name, column in ids.items()
    },
    names=names,
    numbers=numbers_of_rows[order],
    target=target[filled].astype(np.int32 if class_names else np.float32),
    fingerprint='',
    columns=ids,
    number_names=tuple(data.numbers),
    target_name=data.target,
    class_names=class_names,
    titles=titles,
    tags=tags,
    lines=order,
  )
  table = table._replace(fingerprint=_fingerprint(table, tag_names))

  def of_task(task: str) -> np.ndarray:
    if not task:
      return np.ones(table.size, bool)
    if not tasks:
      errors.choose('config.data.task', task, tag_names)
      assert table.tags is not None
      return table.tags[table.ids[table_lib.ITEM], tag_names.index(task)]
    column = columns.text[tasks]
    errors.choose('config.data.task', task, column.values[1:])
    return column.numbers[order] == column.values.index(task)

  return Rows(table, of_task)


def _target(
  data: types.Config, columns: table_file.Columns
) -> tuple[np.ndarray, tuple[str, ...]]:
  """(float64 [N], NaN where it is missing; names of classes, or ())."""
  if data.kind == 'regression':
    return columns.numbers[data.target].astype(np.float64), ()
  column = columns.text[data.target]
  classes = _classes(column.values)
  number = {name: float(i) for i, each in enumerate(classes) for name in each}
  of_value = np.asarray([number.get(value, np.nan) for value in column.values])
  return of_value[column.numbers], tuple(names[0] for names in classes)


def _classes(values: list[str]) -> list[list[str]]:
  """The spellings of each class, the shortest first: 1 and 1.0 are one class."""
  names = sorted(
    {*values} - {*table_lib.MISSING}, key=lambda name: (len(name), name)
  )
  key = _number if all(map(table_file.is_number, names)) else str
  spellings: dict[int | float | str, list[str]] = {}
  for name in names:
    spellings.setdefault(key(name), []).append(name)
  return [spellings[value] for value in sorted(spellings)]


def _number(text: str) -> int | float:
  try:
    return int(text)  # Exact, however long.
  except ValueError:
    return float(text)


def _fingerprint(table: table_lib.Table, tag_names: tuple[str, ...]) -> str:
  # Results store this fingerprint: do not change its parts, nor their order.
  return files.sha256(
    [list(table.columns.values()), table.number_names, table.target_name],
    [table.numbers.shape, len(table.target)],
    [*table.names.values(), table.class_names, table.titles, tag_names],
    *table.ids.values(),
    table.numbers,
    table.target,
    *([] if table.tags is None else [table.tags]),
  )
