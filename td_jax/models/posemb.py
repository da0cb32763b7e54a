"""Tables of positions on a grid: the fixed one, and learned ones resized.

Everything is NumPy in float64, rounded once: a table is made once a run.
Cells are in reading order.
"""

from collections.abc import Callable
import math

import numpy as np

_FLAT = 10_000.0  # The longest wavelength over 2 pi, in cells.


def sincos2d(*, rows: int, columns: int, width: int) -> np.ndarray:
  """The fixed table, float32 [rows * columns, width].

  One quarter each: sine and cosine of x, sine and cosine of y, at width / 4
  frequencies from 1 down to 1 / 10,000 (MoCo v3, arXiv 2104.02057; the layout
  is big_vision's). `width` is a multiple of 4 and at least 8.
  """
  frequencies = _FLAT ** -np.linspace(0, 1, width // 4)
  y, x = np.mgrid[:rows, :columns].reshape(2, -1, 1) * frequencies
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
  return table.astype(np.float32)


def align_corners(old: int, new: int) -> np.ndarray:
  """Linear weights [new, old] by which the corners stay where they are.

  This is what google-research/vision_transformer and big_vision mean by
  `scipy.ndimage.zoom(order=1)`, which for some pairs of sizes returns zeros
  in the last row and column; here it does not.
  """
  wanted = np.linspace(0, old - 1, new)[:, None]
  return np.maximum(0, 1 - np.abs(wanted - np.arange(old)))


def bicubic(old: int, new: int) -> np.ndarray:
  """Cubic weights [new, old]: a = -0.75, half-pixel centres, clamped borders.

  So Hugging Face resizes `vit` and `dinov2` (torch's `interpolate`); there is
  no antialiasing where the table shrinks.
  """
  wanted = (np.arange(new) + 0.5) * old / new - 0.5
  left = np.floor(wanted).astype(int)
  weights = np.zeros((new, old))
  for tap in range(-1, 3):
    cell = np.clip(left + tap, 0, old - 1)
    # Clamped taps fall on the same cell, so they are added up.
    np.add.at(
      weights, (np.arange(new), cell), _cubic(wanted - (left + tap), a=-0.75)
    )
  return weights


def resize(
  table: np.ndarray,
  grid: int,
  *,
  rule: Callable[[int, int], np.ndarray],
  class_row: bool,
) -> np.ndarray:
  """A learned table for another resolution.

  Args:
    table: [n, d] of a square grid.
    grid: Cells of a side that are wanted.
    rule: `align_corners` or `bicubic`: each family has its own.
    class_row: Whether row 0 is the class token's, which is kept as it is.

  Returns:
    float32 [grid * grid (+ 1), d]; `table` itself if it has that size.
  """
  kept, cells = table[: int(class_row)], table[int(class_row) :]
  old = math.isqrt(len(cells))
  if old == grid:
    return table
  weights = rule(old, grid)
  square = cells.astype(np.float64).reshape(old, old, -1)
  resized = np.einsum('ih,jw,hwd->ijd', weights, weights, square, optimize=True)
  resized = resized.reshape(grid * grid, -1).astype(np.float32)
  return np.concatenate([kept, resized])


def _cubic(distance, *, a):
  """Keys' kernel (1981), 0 from 2 cells on."""
  t = np.abs(distance)
  near = (a + 2) * t**3 - (a + 3) * t**2 + 1
  far = a * (t**3 - 5 * t**2 + 8 * t - 4)
  return np.where(t <= 1, near, np.where(t < 2, far, 0))
