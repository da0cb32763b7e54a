"""From the values of a row to the inputs of a network.

A batch stores numbers of embedding rows, and the compiled step adds the words and
genres of the item. After training the same is done for values that the run's folder
names: `Inputs.keep` makes the arrays that go there, and `Encoder` reads them.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import json
import re
from typing import Any
from typing import NamedTuple

import jax
from jax import numpy as jnp
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import feed
from td_jax.data import table as table_lib
from td_jax.data import task as task_lib

# The embedding row of each value of each id; 0, the unknown row, for values
# never trained on.
Vocabulary = table_lib.Ids
_FACTS, _NUMBERS = 'facts', 'numbers'  # Columns of a batch.
_KEPT = 'columns'  # What is no array, as JSON.
# Every table has at least one column.
BLANK = task_lib.Blank(
  {'users': 1, 'tagged': False}, {'user': jax.ShapeDtypeStruct((1,), jnp.int32)}
)


class Scale(NamedTuple):
  """How numbers reach a network; F of them."""

  mean: np.ndarray  # float32 [F]
  std: np.ndarray  # float32 [F]
  # bool [F]: has values that are missing, and then a column that says so.
  gaps: np.ndarray

  @property
  def width(self) -> int:
    """The number of columns that a network sees."""
    return len(self.mean) + int(np.count_nonzero(self.gaps))

  def __call__(self, numbers: Any, xp: Any = np) -> Any:
    """float32 [n, width] of numbers [n, F]; a missing one becomes the mean.

    Args:
      numbers: float32; NaN is missing.
      xp: NumPy, or `jax.numpy` inside a compiled program.
    """
    missing = xp.isnan(numbers)
    scaled = xp.where(missing, 0, (numbers - self.mean[None]) / self.std[None])
    gaps = missing[:, self.gaps]
    return xp.concatenate([scaled, gaps], axis=1).astype(np.float32)


def vocabulary(
  table: table_lib.Table, *known: table_lib.Examples
) -> Vocabulary:
  """The values in `known`, which keep their numbers as rows."""
  tables = {}
  for name, values in table.names.items():
    rows = np.zeros(len(values), np.int32)
    for examples in known:
      rows[examples.ids[name]] = examples.ids[name]
    tables[name] = rows
  return tables


class Inputs:
  """The inputs that a table gives a network, known values or not.

  Attributes:
    words: int32 [items, w], the words of each title, 0 is padding; None without
      titles. The vocabulary is that of the items in the training rows.
    genres: float32 [items, g]; rows sum to 1, or to 0 without a genre; or None.
    scale: Of the numbers.
  """

  def __init__(self, table: table_lib.Table, train: np.ndarray):
    """Reads the titles, genres and numbers of a table.

    Args:
      table: All rows.
      train: The training rows of all tasks.
    """
    self._table = table
    self.words = self.genres = None
    if len(table.titles):
      self.words = _words(
        table.titles, np.unique(table.ids[table_lib.ITEM][train])
      )
    if table.tags is not None:
      shares = table.tags.astype(np.float32)
      self.genres = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1)
    self.scale = _scale(table.numbers[train])

  @property
  def model_args(self) -> dict[str, Any]:
    """What `models.mlp.MLP` needs to know of the inputs."""
    sizes = {name: len(values) for name, values in self._table.names.items()}
    args: dict[str, Any] = {
      'users': sizes.pop(table_lib.USER, 0),
      'movies': sizes.pop(table_lib.ITEM, 0),
      'words': 0 if self.words is None else int(self.words.max()) + 1,
    }
    if sizes:
      args['categories'] = tuple(sizes.values())
    if self.genres is None:
      args['tagged'] = False
    return args

  def columns(
    self, examples: table_lib.Examples, vocabulary: Vocabulary
  ) -> dict[str, np.ndarray]:
    """What a batch stores of examples for a network with this vocabulary."""
    columns: dict[str, np.ndarray] = {
      name: vocabulary[name][ids] for name, ids in examples.ids.items()
    }
    if self._tables:
      columns[_FACTS] = examples.ids[table_lib.ITEM]  # A row of the tables.
    if self.scale.width:
      columns[_NUMBERS] = self.scale(examples.numbers)
    return columns

  @property
  def _tables(self) -> dict[str, np.ndarray]:
    """What is known of items, by the name of a network's input."""
    tables = {'title': self.words, 'genres': self.genres}
    return {name: table for name, table in tables.items() if table is not None}

  @property
  def make_batch(self) -> feed.MakeBatch:
    """Adds what is known of items to a batch, see `models.mlp.MLP`."""
    tables = self._tables

    def whole(x: types.PyTree) -> types.PyTree:
      known = {
        name: jnp.asarray(table).at[x[_FACTS]].get(mode='promise_in_bounds')
        for name, table in tables.items()
      }
      return {name: x[name] for name in x if name != _FACTS} | known

    def make(
      columns: types.PyTree, ids: types.PyTree, key: types.Key | None
    ) -> types.Batch:
      batch = feed.take(columns, ids, key)
      return batch._replace(
        x=whole(batch.x),
        teacher_x={
          # Else a teacher sees the number of an answer alone.
          name: whole(x) if isinstance(x, Mapping) else x
          for name, x in batch.teacher_x.items()
        },
      )

    return make

  def keep(self, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """The arrays that `Encoder` needs, by name.

    Values that are not in the vocabulary are left out. Items that are not may
    still have a title and genres.
    """
    table, kept = self._table, dict[str, np.ndarray]()
    for name, values in table.names.items():
      chosen = np.flatnonzero(vocabulary[name])
      if name == table_lib.ITEM and self._tables:
        chosen = np.arange(len(values))
      kept[f'{name}s'] = np.asarray([values[i] for i in chosen.tolist()], str)
      kept[f'{name}_rows'] = vocabulary[name][chosen]
    if self.words is not None:
      kept |= {'titles': np.asarray(table.titles), 'words': self.words}
    if self.genres is not None:
      kept['genres'] = self.genres
    if table.class_names:
      kept['class_names'] = np.asarray(table.class_names)
    kept |= {
      f'numbers_{name}': value for name, value in self.scale._asdict().items()
    }
    stated = {
      'ids': dict(table.columns),
      'numbers': table.number_names,
      'target': table.target_name,
    }
    return kept | {_KEPT: np.asarray(json.dumps(stated))}


class Encoder:
  """Raw examples -> the inputs of a network.

  An example is a mapping from names of columns to values; or, if a user and an
  item are all that a network reads, a pair of their ids. Ids may be text or
  numbers.

  Attributes:
    ids: {name of an id: its column}
    numbers: The columns of numbers.
    target: What is predicted.
    has_titles: Whether items have titles.
    blank: An example of which nothing is known, for shapes.
  """

  def __init__(self, kept: Mapping[str, np.ndarray]):
    """Takes the arrays that `Inputs.keep` has made."""
    stated = json.loads(str(kept[_KEPT]))
    self.ids: Mapping[str, str] = stated['ids']
    self.numbers: tuple[str, ...] = tuple(stated['numbers'])
    self.target: str = stated['target']
    self.blank: Any = dict.fromkeys(self.columns, '')
    self._scale = Scale(*(kept[f'numbers_{name}'] for name in Scale._fields))
    self._tables = {
      name: kept[stored]
      for name, stored in (('title', 'words'), ('genres', 'genres'))
      if stored in kept
    }
    self._titles = kept.get('titles')
    self.has_titles = self._titles is not None
    # Numbers that a program takes: places among the kept values of an item, of
    # which more than the embedding row is known, and embedding rows of others.
    self._rows = {name: kept[f'{name}_rows'] for name in self.ids}
    self._known = {
      name: dict(
        zip(
          kept[f'{name}s'].tolist(),
          range(len(rows)) if self._is_item(name) else rows.tolist(),
          strict=True,
        )
      )
      for name, rows in self._rows.items()
    }

  @property
  def columns(self) -> tuple[str, ...]:
    """The columns of an example."""
    return (*self.ids.values(), *self.numbers)

  @property
  def are_pairs(self) -> bool:
    """Whether a pair of ids is an example."""
    return not self.numbers and [*self.ids] == [table_lib.USER, table_lib.ITEM]

  def __call__(self, examples: Sequence[Any]) -> types.PyTree:
    """Leaves [n, ...] of examples [n].

    Raises:
      errors.DataError: An example is neither a mapping nor a pair, lacks a column
        or has text in place of a number.
    """
    return self.inside(self.arrays(examples))

  def arrays(self, examples: Sequence[Any]) -> dict[str, np.ndarray]:
    """What the host makes of examples: int32 [n] of each id, float32 [n, F]."""
    rows = [self.values(example) for example in examples]
    arrays: dict[str, np.ndarray] = {
      name: np.asarray(
        [self._known[name].get(_text(row[column]), 0) for row in rows],
        np.int32,
      )
      for name, column in self.ids.items()
    }
    if self.numbers:
      numbers = [
        [_number(name, row[name]) for name in self.numbers] for row in rows
      ]
      arrays[_NUMBERS] = np.asarray(numbers, np.float32)
    return arrays

  def inside(self, arrays: Mapping[str, Any]) -> types.PyTree:
    """What a compiled program makes of them: the input of a network."""
    x: dict[str, Any] = {
      name: jnp.asarray(self._rows[name])[arrays[name]]
      if self._is_item(name)
      else jnp.asarray(arrays[name])
      for name in self.ids
    }
    for name, table in self._tables.items():
      x[name] = jnp.asarray(table)[arrays[table_lib.ITEM]]
    if self.numbers:
      x[_NUMBERS] = self._scale(arrays[_NUMBERS], jnp)
    return x

  def values(self, example: Any) -> dict[str, Any]:
    """{column: value} of an example."""
    if isinstance(example, Mapping):
      lacking = [name for name in self.columns if name not in example]
      if lacking:
        raise errors.DataError(
          f'an example has no value of {", ".join(lacking)}; it needs '
          f'{", ".join(self.columns)}.'
        )
      return {name: example[name] for name in self.columns}
    is_text = isinstance(example, str) or not hasattr(example, '__len__')
    if self.are_pairs and not is_text and len(example) == 2:
      return dict(zip(self.columns, example, strict=True))
    pair = " a pair such as ('1', '50'), or" if self.are_pairs else ''
    raise errors.DataError(
      f'an example is{pair} a mapping with {", ".join(self.columns)}, and not '
      f'{example!r}.'
    )

  @property
  def known(self) -> dict[str, dict[str, int]]:
    """{column: {value: the number that a program takes}}; others have 0."""
    return {column: self._known[name] for name, column in self.ids.items()}

  def unknown(self, example: Any) -> list[str]:
    """The columns of an example whose value no training example had."""
    values = self.values(example)
    unknown = []
    for name, column in self.ids.items():
      number = self._known[name].get(_text(values[column]), 0)
      row = self._rows[name][number] if self._is_item(name) else number
      if not row:
        unknown.append(column)
    return unknown

  def title(self, item: Any) -> str:
    """The title of an item; '' if there is no such item, or no titles."""
    if self._titles is None:
      return ''
    return str(self._titles[self._known[table_lib.ITEM].get(_text(item), 0)])

  def _is_item(self, name: str) -> bool:
    return name == table_lib.ITEM and bool(self._tables)


def _words(titles: Sequence[str], known: np.ndarray) -> np.ndarray:
  """int32 [items, w]: the words of titles; the year of a title is a word, too.

  Args:
    titles: Of all items.
    known: The items whose words make the vocabulary.
  """
  split = [re.findall(r"[\w']+", title.lower()) for title in titles]
  words = sorted({word for item in known for word in split[item]})
  number = {word: i + 1 for i, word in enumerate(words)}
  numbers = np.zeros((len(titles), max(1, *map(len, split))), np.int32)
  for item, title in enumerate(split):
    found = [number[word] for word in title if word in number]
    numbers[item, : len(found)] = found
  return numbers


def _scale(numbers: np.ndarray) -> Scale:
  """The scale of training rows [n, F]."""
  gaps = np.asarray(np.isnan(numbers).any(axis=0))
  present = np.ma.masked_invalid(numbers.astype(np.float64))
  mean = np.ma.filled(present.mean(axis=0), 0)
  std = np.ma.filled(present.std(axis=0), 0)
  return Scale(
    mean.astype(np.float32),
    # A column that never varies says nothing, in whatever unit.
    np.where(std > 0, std, 1).astype(np.float32),
    gaps,
  )


def _text(value: Any) -> str:
  """A value as `table_file` reads it, which calls 5.0 and 5 the same."""
  if value is None:
    return ''
  if isinstance(value, (bool, np.bool_)):
    return str(value).lower()
  if isinstance(value, (float, np.floating)) and float(value).is_integer():
    return str(int(value))
  return str(value).strip()


def _number(name: str, value: Any) -> float:
  if value is None or (
    isinstance(value, str) and value.strip() in table_lib.MISSING
  ):
    return np.nan
  try:
    number = float(value)
  except (TypeError, ValueError) as e:
    raise errors.DataError(f'{name} is {value!r}, which is no number.') from e
  if abs(number) > np.finfo(np.float32).max:
    raise errors.DataError(f'{name} is {value!r}, which is not finite.')
  return number
