"""Position tables: the fixed sine-cosine table, and resized learned tables.

Row i of a table belongs to cell i of the grid of patches in reading order.
Tables are computed once per run, in NumPy at float64, and rounded at the end.
"""

from collections.abc import Callable
import math

import numpy as np

_LONGEST = 10_000.0  # The longest wavelength over 2 pi, in cells.


def sincos2d(*, rows: int, columns: int, width: int) -> np.ndarray:
  """The fixed table, float32 [rows * columns, width].

  Its four quarters are sin(x), cos(x), sin(y) and cos(y) at width / 4
  frequencies from 1 down to 1 / 10,000 (MoCo v3, arXiv 2104.02057, in the
  layout of big_vision). `width` is a multiple of 4 and at least 8.
  """
  frequencies = _LONGEST ** -np.linspace(0, 1, width // 4)
  y, x = np.mgrid[:rows, :columns].reshape(2, -1, 1) * frequencies
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  return table.astype(np.float32)


def rotations(*, rows: int, columns: int, width: int) -> np.ndarray:
  """Angles of rotary positions in DINOv3 (arXiv 2508.10104).

  Returns:
    float32 [rows * columns, width], for heads of this width, a multiple of 4. Both
    halves are equal: dimensions i and i + width / 2 form a pair. Within a half come
    first the angles of y and then those of x, at frequencies from 1 down to 1 /
    100. Places go from -1 to 1, with the centres of patches half a patch inside.
  """
  frequencies = 100.0 ** -np.arange(0, 1, 4 / width)
  y, x = (np.mgrid[:rows, :columns] + 0.5).reshape(2, -1, 1)
  y, x = 2 * y / rows - 1, 2 * x / columns - 1
  half = 2 * np.pi * np.concatenate([y * frequencies, x * frequencies], axis=1)
  return np.tile(half, 2).astype(np.float32)


def align_corners(old: int, new: int) -> np.ndarray:
  """Linear weights [new, old] that leave the corners where they are.

  google-research/vision_transformer and big_vision resize in this way, with
  `scipy.ndimage.zoom(order=1)`. For some pairs of sizes `zoom` fills the last
  row and column with zeros by mistake; this function does not.
  """
  places = np.linspace(0, old - 1, new)[:, None]
  return np.maximum(0, 1 - np.abs(places - np.arange(old)))


def bicubic(old: int, new: int) -> np.ndarray:
  """Cubic weights [new, old]: a = -0.75, half-pixel centres, clamped borders.

  Hugging Face resizes `vit` and `dinov2` in this way (torch's `interpolate`),
  without antialiasing when the table shrinks.
  """
  places = (np.arange(new) + 0.5) * old / new - 0.5
  left = np.floor(places).astype(int)
  weights = np.zeros((new, old))
  for tap in range(-1, 3):
    cell = np.clip(left + tap, 0, old - 1)
    # Several clamped taps can fall on one cell, and `weights[...] +=` would
    # keep only the last of them.
    np.add.at(
      weights, (np.arange(new), cell), _cubic(places - (left + tap), a=-0.75)
    )
  return weights


def antialiased(old: int, new: int) -> np.ndarray:
  """Cubic weights [new, old]: a = -0.5, wider by the factor of a reduction.

  timm resizes in this way (torch's `interpolate` with `antialias`); weights beyond
  the borders are left out.
  """
  factor = max(old / new, 1)
  places = ((np.arange(new) + 0.5) * old / new - 0.5)[:, None]
  weights = _cubic((places - np.arange(old)) / factor, a=-0.5)
  return weights / weights.sum(axis=1, keepdims=True)


def resize(
  table: np.ndarray,
  grid: int,
  *,
  rule: Callable[[int, int], np.ndarray],
  class_row: bool,
) -> np.ndarray:
  """Resizes a learned table for images of another resolution.

  Args:
    table: [n, d] for a square grid.
    grid: Cells per side of the new grid.
    rule: `align_corners` or `bicubic`, as the table's origin requires.
    class_row: Whether row 0 belongs to the class token; it stays as it is.

  Returns:
    float32 [grid * grid (+ 1), d]; `table` itself if it has that size.
  """
  class_token, cells = table[: int(class_row)], table[int(class_row) :]
  old = math.isqrt(len(cells))
  if old == grid:
    return table
  weights = rule(old, grid)
  square = cells.astype(np.float64).reshape(old, old, -1)
  resized = np.einsum('ih,jw,hwd->ijd', weights, weights, square, optimize=True)
  resized = resized.reshape(grid * grid, -1).astype(np.float32)
  return np.concatenate([class_token, resized])


def _cubic(distance: np.ndarray, *, a: float) -> np.ndarray:
  """Keys' cubic kernel (1981), which is 0 beyond a distance of 2 cells."""
  t = np.abs(distance)
  near = (a + 2) * t**3 - (a + 3) * t**2 + 1
  far = a * (t**3 - 5 * t**2 + 8 * t - 4)
  return np.where(t <= 1, near, np.where(t < 2, far, 0))
