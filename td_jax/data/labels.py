"""Which labels are kept, and checks of the settings that say so."""

from collections.abc import Collection

import numpy as np

from td_jax import errors
from td_jax import types


def check(data: types.Config, sources: Collection[str]) -> None:
  """Raises a ConfigError for settings of labels that cannot work.

  Args:
    data: The `data` block of a config.
    sources: Where unlabelled examples may come from, for this kind of data.
  """
  if not 0 < data.labels.share <= 1:
    raise errors.ConfigError(
      f'config.data.labels.share is {data.labels.share}; it is the share of the '
      'training examples that keep their label, above 0 and at most 1.'
    )
  if data.labels.draw < 0:
    raise errors.ConfigError(
      f'config.data.labels.draw is {data.labels.draw}; it is a seed, at least 0.'
    )
  errors.choose(
    'config.data.unlabelled.source', data.unlabelled.source, sources
  )
  if not 0 < data.unlabelled.share < 1:
    raise errors.ConfigError(
      f'config.data.unlabelled.share is {data.unlabelled.share}; it is the share '
      'of a batch without labels, above 0 and below 1.'
    )


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
