"""What a table says of its items: titles and genres, in its rows or a further file."""

import numpy as np

from td_jax import types
from td_jax.data import table as table_lib
from td_jax.data import table_file

_SEPARATOR = '|'  # Between genres.


def read(
  data: types.Config, columns: table_file.Columns, names: dict[str, list[str]]
) -> tuple[list[str], np.ndarray | None, tuple[str, ...]]:
  """(titles, genres as flags [items, G], their names) of items by number.

  Items that only the file of items has are added to `names`.
  """
  if not (data.title or data.genres):
    return [], None, ()
  items, text = columns.text[data.item].numbers, columns.text
  if data.details:
    wanted = filter(None, (data.title, data.genres))
    text = table_file.read(
      data.details, text=[data.item, *wanted], delimiter=data.delimiter
    ).text
    known = names[table_lib.ITEM]
    number = {name: i for i, name in enumerate(known)}
    added = [name for name in text[data.item].values if name not in number]
    number |= {name: len(known) + i for i, name in enumerate(added)}
    known += added
    of_value = [number[name] for name in text[data.item].values]
    items = np.asarray(of_value, np.int32)[text[data.item].numbers]
  count = len(names[table_lib.ITEM])

  def first(column: str) -> list[str]:
    """The first value of each item; '' for an item without one."""
    # Item 0 is one that is missing, of which nothing is known.
    rows = np.flatnonzero((text[column].numbers > 0) & (items > 0))
    found, at = np.unique(items[rows], return_index=True)
    values = [''] * count
    chosen = text[column].numbers[rows[at]].tolist()
    for item, value in zip(found.tolist(), chosen, strict=True):
      values[item] = text[column].values[value]
    return values

  titles = first(data.title) if data.title else []
  if not data.genres:
    return titles, None, ()
  genres = [
    [name.strip() for name in each.split(_SEPARATOR) if name.strip()]
    for each in first(data.genres)
  ]
  tag_names = sorted({name for each in genres for name in each})
  column = {name: i for i, name in enumerate(tag_names)}
  tags = np.zeros((count, len(tag_names)), bool)
  for item, each in enumerate(genres):
    tags[item, [column[name] for name in each]] = True
  return titles, tags, tuple(tag_names)
