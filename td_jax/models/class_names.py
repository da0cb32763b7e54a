"""The names of a stored head's classes, and those of a task."""

from collections.abc import Sequence
import re

import numpy as np

from td_jax import errors
from td_jax import types

_SHOWN = 5  # Names that a message lists.
_IMAGENET = re.compile(r'n\d{8}')  # WordNet's number of a class.


def order(
  stored: Sequence[str], names: Sequence[str], *, where: str, log: types.Log
) -> np.ndarray:
  """Which output of a stored head is about each class of a task, int [classes].

  Args:
    stored: The names of the head's classes; () if no file says them.
    names: Those of the task, as many as the head has outputs.
    where: The file of the head, for messages.
    log: Receives a warning if numbers alone say which class is which.

  Raises:
    errors.DataError: The two have different names.
  """
  as_stored = np.arange(len(names))
  if not names or list(stored) == list(names):
    return as_stored
  if sorted(stored) == sorted(names) and len(set(names)) == len(names):
    return np.array([stored.index(name) for name in names])
  if any(map(_are_numbers, (stored, names))) or _are_of_imagenet(names):
    log(
      f'warning: {where} and the data do not both name the classes of the stored '
      'head, which are taken to be in the order of the data: '
      f'{_shown(names)}.'
    )
    return as_stored
  raise errors.DataError(
    f'{where} has a head for the classes {_shown(stored)}, but those of the data are '
    f'{_shown(names)}; rename them in id2label of config.json or as folders, or '
    "choose config.teacher.head='probe'."
  )


def _are_numbers(names: Sequence[str]) -> bool:
  """Whether names say no more than their place: none, 0, 1 or LABEL_0, LABEL_1."""
  return all(
    name in (str(number), f'LABEL_{number}')
    for number, name in enumerate(names)
  )


def _are_of_imagenet(names: Sequence[str]) -> bool:
  """Whether names are ImageNet's, in whose order all published heads are."""
  return list(names) == sorted(names) and all(map(_IMAGENET.fullmatch, names))


def _shown(names: Sequence[str]) -> str:
  more = ', ...' if len(names) > _SHOWN else ''
  return ', '.join(map(repr, names[:_SHOWN])) + more
