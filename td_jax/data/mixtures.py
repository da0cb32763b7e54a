"""Mixtures of two images, which no label fits but a teacher can be asked about.

Learning from what a network answers to convex combinations of two inputs follows
mixup (Zhang et al., 2018). Here the mixtures are made once, so that a teacher sees
each of them once.
"""

import numpy as np

_STREAM = 1  # Separates these draws from those of labels.


def mixtures(images: np.ndarray, out: np.ndarray, *, seed: int) -> None:
  """Fills `out` with mixtures of two random images each.

  A mixture is s a + (1 - s) b with s uniform in [0, 1).

  Args:
    images: uint8 [n, ...].
    out: uint8 [m, ...], which is written.
    seed: Determines the pairs and their shares; those of a shorter `out` are not
      among those of a longer one.
  """
  rng = np.random.default_rng((seed, _STREAM))
  pairs = rng.integers(len(images), size=(len(out), 2))
  shares = rng.random(len(out), np.float32)
  # One at a time, since all in float32 would take four times the memory.
  for row, ((a, b), share) in enumerate(zip(pairs, shares, strict=True)):
    mixed = share * images[a] + (1 - share) * images[b]
    out[row] = mixed + np.float32(0.5)  # The cast truncates.
