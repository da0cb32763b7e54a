"""What weights stored by PyTorch have in common.

Kernels are stored as [out, in], and channels come before pixels. Layers that one
project stores in parts are stored as one leaf by another. The functions here turn
an archive into one that shows such leaves as a `vit.ViT` has them.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import re
from typing import Any

import numpy as np

from td_jax.models import archive
from td_jax.models import published

Read = Callable[[], np.ndarray]


def stored_shape(
  name: str, shape: published.Shape, settings: Mapping[str, Any]
) -> published.Shape:
  """The stored shape of a parameter, see `published.StoredLayout`."""
  if name == 'embed/patches/kernel':
    return (settings['width'], 3, settings['patch'], settings['patch'])
  if name.endswith('kernel'):
    return shape[::-1]
  return published.with_batch_axis(name, shape)


def convert(values: np.ndarray) -> np.ndarray:
  """PyTorch's order of axes -> ours; a reshape to our shape must follow."""
  if values.ndim == 4:
    return values.transpose(2, 3, 1, 0)
  return values.T if values.ndim == 2 else values


def unfused(
  stored: archive.Archive, pattern: str, parts: Sequence[str]
) -> archive.Archive:
  """Cuts each leaf whose name matches into equal parts, along its first axis.

  Args:
    stored: The archive.
    pattern: Of names, such as r'\\.(qkv)\\.'. Its first group is replaced by the
      name of the part.
    parts: The names of the parts, in their order.
  """
  removed, added = [], {}
  for name, shape in stored.shapes.items():
    match = re.search(pattern, name)
    if not match or not shape or shape[0] % len(parts):
      continue
    removed.append(name)
    size = shape[0] // len(parts)
    for i, part in enumerate(parts):

      def read(name: str = name, start: int = i * size, size: int = size):
        return stored.read(name)[start : start + size]

      own = name[: match.start(1)] + part + name[match.end(1) :]
      added[own] = (size, *shape[1:]), read
  return _changed(stored, removed, added)


def with_zero_biases(stored: archive.Archive, pattern: str) -> archive.Archive:
  """Adds biases of zeros to the layers whose kernel's name matches.

  Args:
    stored: The archive.
    pattern: Of the names of kernels, such as r'\\.(query|key)\\.weight$'.
  """
  added = {}
  for name, shape in stored.shapes.items():
    bias = re.sub('weight$', 'bias', name)
    if re.search(pattern, name) and shape and bias not in stored.shapes:
      added[bias] = (
        shape[:1],
        lambda size=shape[0]: np.zeros(size, np.float32),
      )
  return _changed(stored, [], added)


def reshaped(stored: archive.Archive, name: str, axes: int) -> archive.Archive:
  """Adds axes of size 1 in front of a leaf, up to `axes`, if there is such a leaf."""
  shape = stored.shapes.get(name)
  if shape is None or len(shape) >= axes:
    return stored
  whole = (1,) * (axes - len(shape)) + shape
  return _changed(
    stored, [name], {name: (whole, lambda: stored.read(name).reshape(whole))}
  )


def registers(
  stored: archive.Archive, tokens: Sequence[str], *, table: str, target: str
) -> archive.Archive:
  """Joins further tokens, and adds their positions to them.

  A token with a row in the position table of its own is the same as a token
  without any that is their sum.

  Args:
    stored: The archive.
    tokens: The names of leaves [1, r, d], in the order of the rows.
    table: The name of the table [1, 1 + r + n, d], whose first row is that of the
      class token.
    target: The name of the joined tokens [1, r, d].
  """
  shapes = [stored.shapes.get(name, ()) for name in tokens]
  whole = stored.shapes.get(table, ())
  if any(len(shape) != 3 for shape in (*shapes, whole)):
    return stored  # A leaf is missing or damaged, which is noticed later.
  count = sum(shape[1] for shape in shapes)

  def joined() -> np.ndarray:
    own = np.concatenate([stored.read(name) for name in tokens], axis=1)
    return own + stored.read(table)[:, 1 : 1 + count]

  def positions() -> np.ndarray:
    values = stored.read(table)
    return np.concatenate([values[:, :1], values[:, 1 + count :]], axis=1)

  return _changed(
    stored,
    [*tokens, table],
    {
      target: ((1, count, whole[2]), joined),
      table: ((1, whole[1] - count, whole[2]), positions),
    },
  )


def _changed(
  stored: archive.Archive,
  removed: Sequence[str],
  added: Mapping[str, tuple[published.Shape, Read]],
) -> archive.Archive:
  """An archive with other leaves in place of some of its own."""
  shapes = {
    name: shape for name, shape in stored.shapes.items() if name not in removed
  }

  def read(name: str) -> np.ndarray:
    return added[name][1]() if name in added else stored.read(name)

  return stored._replace(
    shapes=shapes | {name: shape for name, (shape, _) in added.items()},
    read=read,
  )
