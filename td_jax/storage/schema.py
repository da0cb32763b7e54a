"""The form that a JSON value must have; a wrong one is told by its key.

A schema is a type (int counts as float, but no bool as int), `None` for null,
`Any` for every value, a tuple of alternatives, a list with the schema of its
elements, or a dict of keys. There 'key?' may be absent, and '*' stands for all
other keys.
"""

import json
import sys
from typing import Any

# Levels. Ours have 5, and Python's own limit ends in a traceback.
_DEEPEST = 50
_NAMES = {
  bool: 'true or false',
  int: 'a whole number',
  float: 'a number',
  str: 'a text',
  None: 'null',
}


def check(value: Any, schema: Any) -> Any:
  """Returns `value`, with floats in place of ints where the schema has float.

  Raises:
    ValueError: A key is missing or has a wrong value; the text names the first.
  """
  _check_depth(value, _DEEPEST)
  return _checked(value, schema, '')


def _checked(value: Any, schema: Any, key: str) -> Any:
  alternatives = schema if isinstance(schema, tuple) else (schema,)
  fitting = [each for each in alternatives if _fits(value, each)]
  if not fitting:
    expected = ' or '.join(map(_name, alternatives))
    raise ValueError(f'{key or "it"} is {_short(value)}; it must be {expected}')
  form = fitting[0]
  if isinstance(form, dict):
    return _checked_keys(value, form, key)
  if isinstance(form, list):
    return [
      _checked(element, form[0], f'{key}[{i}]')
      for i, element in enumerate(value)
    ]
  return float(value) if form is float else value


def _checked_keys(
  value: dict[str, Any], schema: dict[str, Any], key: str
) -> dict[str, Any]:
  prefix = f'{key}.' if key else ''
  for name in schema:
    if name != '*' and not name.endswith('?') and name not in value:
      raise ValueError(f'{prefix}{name} is missing')

  def form(name: str) -> Any:
    patterns = (name, f'{name}?', '*')
    return next((schema[each] for each in patterns if each in schema), Any)

  return {
    name: _checked(element, form(name), f'{prefix}{name}')
    for name, element in value.items()
  }


def _check_depth(value: Any, levels: int) -> None:
  if not levels:
    raise ValueError(f'it is nested more than {_DEEPEST} levels deep')
  if isinstance(value, (dict, list)):
    for each in value.values() if isinstance(value, dict) else value:
      _check_depth(each, levels - 1)


def _fits(value: Any, schema: Any) -> bool:
  """Whether the value itself, not what is in it, has the form of `schema`."""
  if schema is Any:
    return True
  if schema is None or value is None:
    return value is schema
  if isinstance(schema, (dict, list)):
    return isinstance(value, type(schema))
  if isinstance(value, bool):  # In Python it is an int too.
    return schema is bool
  if schema is float and isinstance(value, int):
    return abs(value) <= sys.float_info.max
  return isinstance(value, schema)


def _name(schema: Any) -> str:
  if isinstance(schema, dict):
    return 'an object'
  return 'a list' if isinstance(schema, list) else _NAMES[schema]


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 40 else f'{text[:37]}...'
