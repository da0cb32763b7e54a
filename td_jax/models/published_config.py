"""A config.json of published weights, which may hold anything."""

from collections.abc import Mapping
import json
import pathlib
from typing import Any
from typing import NamedTuple

from td_jax import errors


class Config(NamedTuple):
  """A config.json."""

  path: str
  values: Mapping[str, Any]

  def get(
    self, field: str, kind: type | tuple[type, ...], default: Any = None
  ) -> Any:
    """A field of type `kind`.

    Raises:
      errors.DataError: the field has another type, or is absent and there is
        no default.
    """
    value = self.values.get(field)
    if value is None:
      value = default
    # In Python a bool is an int too, but `true` is no number in JSON.
    is_bool = isinstance(value, bool)
    if not isinstance(value, kind) or (is_bool and kind is not bool):
      kinds = kind if isinstance(kind, tuple) else (kind,)
      raise errors.DataError(
        f'{self.path}: {field} is {value!r}; it must be of type '
        f'{" or ".join(each.__name__ for each in kinds)}.'
      )
    return value

  def inner(self, field: str) -> 'Config':
    """A field that is an object itself; empty if it is absent."""
    return Config(f'{self.path}: {field}', self.get(field, dict, {}))

  def square(self, field: str) -> int:
    """The side of a square: a number, or two equal ones.

    Raises:
      errors.DataError: As for `get`, or the sides differ.
    """
    value = self.get(field, (int, list))
    sides = [value, value] if isinstance(value, int) else value
    if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int):
      raise errors.DataError(
        f'{self.path}: {field} is {value!r}; only squares can be loaded.'
      )
    if sides[0] < 1:
      raise errors.DataError(
        f'{self.path}: {field} is {value!r}; it must be at least 1.'
      )
    return sides[0]


def read(file: pathlib.Path, path: str) -> Config:
  """Reads a config.json; messages refer to it as `path`.

  Raises:
    errors.DataError: it is no JSON object.
  """
  try:
    values = json.loads(file.read_text())
  # The JSON parser recurses, so deeply nested lists exhaust the stack.
  except (OSError, ValueError, RecursionError) as e:
    raise errors.DataError(
      f'{path} cannot be read: {errors.one_line(e)}. Download it again.'
    ) from e
  if not isinstance(values, dict):
    raise errors.DataError(
      f'{path} cannot be read: it holds a {type(values).__name__}, not an '
      'object. Download it again.'
    )
  return Config(path, values)
