"""Which labels are kept, and the keys that say so."""

from collections.abc import Collection

import numpy as np

from td_jax.configs import allowed


def keys(sources: Collection[str]) -> dict[str, allowed.Allowed]:
  """What the keys take that say which labels are hidden.

  Args:
    sources: Where unlabelled examples may come from, for this kind of data.
  """
  return {
    'data.labels.share': allowed.number(above=0, at_most=1),
    'data.labels.draw': allowed.integer(0),
    'data.unlabelled.source': allowed.one_of(sources),
    'data.unlabelled.share': allowed.number(above=0, below=1),
  }


def balanced(labels: np.ndarray, limit: int, *, seed: int) -> np.ndarray:
  """Selects `limit` examples, as evenly from the classes as possible.

  Each class is permuted by `seed`; then the classes take turns. The selection
  of a limit therefore contains those of all smaller limits.

  Args:
    labels: Integers [n].
    limit: At most n.
    seed: Determines the permutations.

  Returns:
    Sorted positions, int [limit].
  """
  turn = np.empty(len(labels))
  rng = np.random.default_rng(seed)
  for label in np.unique(labels):
    rows = np.flatnonzero(labels == label)
    # The fraction decides at random which class goes first in each round.
    turn[rows] = rng.permutation(len(rows)) + rng.random()
  return np.sort(np.argsort(turn, kind='stable')[:limit])
