"""The settings that a search tries for every method."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from td_jax.paper import tune

METHODS = tuple(tune.TERMS)


def weights(
  method: str, *, logit: tuple[float, ...], others: tuple[float, ...]
) -> dict[str, tuple[Any, ...]]:
  """{key of the config: values to try} of a method's terms.

  Args:
    method: One of `METHODS`.
    logit: Weights to try for the teacher's outputs.
    others: Weights to try for every other term.
  """
  return {
    f'distill.weights.{term}': logit if term == 'logit' else others
    for term in tune.TERMS[method]
  }


def latin(
  space: Mapping[str, tuple[Any, ...]], count: int
) -> list[dict[str, Any]]:
  """`count` settings from `space`, the same in every call.

  A Latin square: every key runs through all of its values, each in another
  order, so that a method with one weight and one with four are searched over
  the same range with as many trials.
  """
  columns = {}
  for number, (name, values) in enumerate(space.items()):
    rng = np.random.default_rng(number)
    rounds = -(-count // len(values))
    order = np.concatenate(
      [rng.permutation(len(values)) for _ in range(rounds)]
    )
    columns[name] = [values[i] for i in order[:count].tolist()]
  return [
    {name: column[i] for name, column in columns.items()} for i in range(count)
  ]
