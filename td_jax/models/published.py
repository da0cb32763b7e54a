"""What the origins of published weights have in common: `StoredLayout`."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import Any
from typing import NamedTuple

import numpy as np

from td_jax import errors
from td_jax.models import archive

Shape = tuple[int, ...]


class StoredLayout(NamedTuple):
  """How a file stores the parameters of a `vit.ViT`."""

  source: str  # The file that says the settings, for messages.
  settings: dict[str, Any]  # The fields of `vit.ViT` that the file implies.
  grid: int | None  # Patches per side of its position table, if it has one.
  # (pattern, replacement): applied in this order, they turn the name of a
  # parameter of `vit.ViT` into its stored name.
  names: tuple[tuple[str, str], ...]
  ignored: str | None  # Pattern of stored names that are not parameters.
  # (our name, our shape, settings) -> the stored shape.
  stored_shape: Callable[[str, Shape, Mapping[str, Any]], Shape]
  convert: Callable[[np.ndarray], np.ndarray]  # Moves axes before a reshape.
  resize: Callable[[int, int], np.ndarray]  # A rule of `posemb`.
  class_names: tuple[str, ...] = ()  # Of the head, in its order, if known.


def stored_name(leaf: str, names: Sequence[tuple[str, str]]) -> str:
  """The stored name of a parameter, by `StoredLayout.names`."""
  for pattern, replacement in names:
    leaf = re.sub(pattern, replacement, leaf)
  return leaf


def with_batch_axis(name: str, shape: Shape) -> Shape:
  """Adds the axis of size 1 that all origins store in tables and tokens."""
  if name in ('embed/position', 'embed/registers'):
    return (1, *shape)
  if name in ('embed/class_token', 'pool/probe'):
    return (1, 1, *shape)
  return shape


def shape_of(stored: archive.Archive, name: str, axes: Sequence[Any]) -> Shape:
  """The shape of a leaf that determines settings.

  Args:
    stored: The file.
    name: The leaf's stored name.
    axes: The meaning of each axis, for the message.

  Raises:
    errors.DataError: the leaf is missing, or has another number of axes.
  """
  shape = stored.shapes.get(name)
  if shape is None or len(shape) != len(axes):
    raise mismatch(stored, name, axes)
  return shape


def depth(stored: archive.Archive, pattern: str) -> int:
  """The highest number of a block plus one, so that a gap is noticed later.

  Args:
    stored: The file.
    pattern: Of the start of a block's leaves; its group is the number.
  """
  matches = (re.match(pattern, name) for name in stored.shapes)
  return 1 + max((int(match[1]) for match in matches if match), default=-1)


def mismatch(
  stored: archive.Archive,
  name: str,
  expected: Sequence[Any] | None,
  *,
  source: str = '',
) -> errors.DataError:
  """The error for a leaf that is missing, unexpected or of another shape.

  Args:
    stored: The file.
    name: The leaf's stored name.
    expected: Its sizes, or the names of its axes; None if it is unexpected.
    source: The file that says what network to expect, if it is another one.
  """
  shape = stored.shapes.get(name)
  say = 'the config says'
  if source not in ('', stored.path):
    say = f'{source} and the config say'
  return errors.DataError(
    f'{stored.path}: leaf {name} is stored as {_describe(shape)} and expected '
    f'as {_describe(expected)}; the file is incomplete, or holds another '
    f'network than {say}.'
  )


def _describe(shape: Sequence[Any] | None) -> str:
  if shape is None:
    return 'nothing'
  return f'[{", ".join(map(str, shape))}]'
