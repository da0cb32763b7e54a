"""What a key of a config takes: its type, shape and range.

Every key has one `Allowed`, which error lines, docs/config.md and the fuzz test
share. Networks and datasets declare those of their own keys as `ALLOWED`, beside
the code that reads them; `run/config_keys.py` declares the others.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from td_jax import errors

MOST = 2**31 - 1  # Programs count in int32.
WIDEST = 2**16  # Units of a layer, or pixels of a side: far above any in use.
_LARGEST = 3e38  # Nearly the largest float32.
Bound = float | int | None
_SHOWN = 60  # Characters of a value in a message.


class Allowed(NamedTuple):
  """What a key takes."""

  text: str  # Completes "it must be ...".
  holds: Callable[[Any], bool]
  choices: Collection[str] = ()  # If it is one of several words.


def integer(least: int, most: int = MOST) -> Allowed:
  """A whole number, and not True or False."""
  return Allowed(
    f'a whole number from {least} to {most}',
    lambda value: (
      isinstance(value, int)
      and not isinstance(value, bool)
      and least <= value <= most
    ),
  )


def number(
  *,
  above: Bound = None,
  at_least: Bound = None,
  below: Bound = None,
  at_most: Bound = None,
) -> Allowed:
  """A finite number that fits into float32, within bounds."""
  bounds = {
    'above': above,
    'at least': at_least,
    'below': below,
    'at most': at_most,
  }
  words = [
    f'{word} {bound:g}' for word, bound in bounds.items() if bound is not None
  ]

  def holds(value: Any) -> bool:
    return (
      isinstance(value, (int, float))
      and not isinstance(value, bool)
      and -_LARGEST < value < _LARGEST  # False for NaN as well.
      and (above is None or value > above)
      and (at_least is None or value >= at_least)
      and (below is None or value < below)
      and (at_most is None or value <= at_most)
    )

  return Allowed(f'a number {" and ".join(words)}'.strip(), holds)


def boolean() -> Allowed:
  """True or False."""
  return Allowed('True or False', lambda value: isinstance(value, bool))


def text() -> Allowed:
  """Any text in one line, such as a name or a path."""
  return Allowed(
    'text in one line',
    # Neither files nor messages can have other characters.
    lambda value: isinstance(value, str) and value.isprintable(),
  )


def character() -> Allowed:
  """What separates the values of a line."""
  return Allowed(
    "one character, such as ',' or ';' or a tab; no quote and no line break",
    lambda value: (
      isinstance(value, str) and len(value) == 1 and value not in '"\r\n\0'
    ),
  )


def one_of(choices: Collection[str]) -> Allowed:
  """A word. `choices` may grow later, as `METHODS` does."""
  return Allowed(
    'one of several words',
    lambda value: isinstance(value, str) and value in choices,
    choices,
  )


def several(each: Allowed, what: str, *lengths: int) -> Allowed:
  """A tuple of values that are each allowed; of any length if none is given."""

  def holds(value: Any) -> bool:
    return (
      isinstance(value, (tuple, list))
      and (not lengths or len(value) in lengths)
      and all(map(each.holds, value))
    )

  return Allowed(what, holds)


def either(one: Allowed, other: Allowed) -> Allowed:
  """What one or the other allows."""
  return Allowed(
    f'{one.text}, or {other.text}',
    lambda value: one.holds(value) or other.holds(value),
  )


def zero_or(other: Allowed) -> Allowed:
  """0, which switches something off, or a value that is allowed."""
  return either(Allowed('0', number(at_least=0, at_most=0).holds), other)


RATE = number(at_least=0, below=1)
WIDTH = integer(1, WIDEST)
SPLIT = several(
  integer(-MOST),  # The network says which of them it has.
  'two whole numbers (l, h), the layers after which states are read',
  2,
)


def check(field: str, value: Any, allowed: Allowed) -> None:
  """Raises a ConfigError of one line unless `value` is allowed.

  Args:
    field: The name of the key in the message.
    value: Anything.
    allowed: What the key takes.
  """
  if allowed.holds(value):
    return
  if allowed.choices and isinstance(value, str):
    errors.choose(field, value, allowed.choices)
  shown = repr(value)
  if len(shown) > _SHOWN:
    shown = f'{shown[:_SHOWN]}...'
  raise errors.ConfigError(f'{field} is {shown}; it must be {words(allowed)}.')


def check_all(name: str, settings: Any, allowed: Mapping[str, Allowed]) -> None:
  """Checks the fields of a block, or of a module, that messages call `name`."""
  for field, each in allowed.items():
    check(f'{name}.{field}', getattr(settings, field), each)


def words(allowed: Allowed) -> str:
  """What is allowed, with the choices."""
  if not allowed.choices:
    return allowed.text
  return f'one of {", ".join(repr(word) for word in sorted(allowed.choices))}'
