"""Scores of models without a network, to compare with."""

from collections.abc import Mapping

import numpy as np

from td_jax.data import table as table_lib

_PENALTIES = (0.5, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30)
_SWEEPS = 30  # Rounds after which the biases no longer change.
# {name of a baseline: {split: score}}
Scores = dict[str, dict[str, float]]
Biases = tuple[
  np.floating, dict[str, np.ndarray]
]  # (mean, of each value of ids)


def of_classes(
  table: table_lib.Table, train: np.ndarray, splits: dict[str, np.ndarray]
) -> Scores:
  """The accuracy of the most frequent class of the rows `train`."""
  return most_frequent(
    table.target[train],
    {split: table.target[rows] for split, rows in splits.items()},
  )


def most_frequent(
  train: np.ndarray, splits: Mapping[str, np.ndarray]
) -> Scores:
  """The accuracy of the most frequent class among the labels `train`.

  Args:
    train: Classes [n].
    splits: {split: its classes}.
  """
  most = np.bincount(train).argmax()
  return {
    'most frequent class': {
      split: float(np.mean(labels == most)) for split, labels in splits.items()
    }
  }


def of_numbers(
  table: table_lib.Table,
  *,
  fit: np.ndarray,
  train: np.ndarray,
  validation: np.ndarray,
  test: np.ndarray,
) -> Scores:
  """Validation and test RMSE of a mean and of biases.

  `mean` predicts the mean of the training rows. `bias` adds a bias for each value
  of each id, fitted by ridge regression; validation chooses the penalty.

  Args:
    table: All rows.
    fit: The training rows without those of validation.
    train: The rows that the test's model is fitted to.
    validation: Chooses the penalty.
    test: The rows of the test.
  """

  def rmse(model: Biases, rows: np.ndarray) -> float:
    mean, biases = model
    predicted = sum(
      (bias[table.ids[name][rows]] for name, bias in biases.items()), mean
    )
    return float(np.sqrt(np.mean((predicted - table.target[rows]) ** 2)))

  def of_validation(penalty: float | int) -> float:
    return rmse(biases(table, fit, penalty), validation)

  def both(penalty: float | int) -> dict[str, float]:
    return {
      'validation': of_validation(penalty),
      'test': rmse(biases(table, train, penalty), test),
    }

  # An infinite penalty leaves the mean alone.
  scores = {f'mean {table.target_name}': both(np.inf)}
  if table.ids:
    name = f'{"+".join(table.columns.values())} bias'
    scores[name] = both(min(_PENALTIES, key=of_validation))
  return scores


def biases(
  table: table_lib.Table, rows: np.ndarray, penalty: float | int
) -> Biases:
  """The mean and the biases of all values, by alternating ridge regression."""
  ids = {name: column[rows] for name, column in table.ids.items()}
  sizes = {name: len(names) for name, names in table.names.items()}
  target = table.target[rows]
  mean = target.mean()
  found = {name: np.zeros(size) for name, size in sizes.items()}
  for _ in range(_SWEEPS):
    for own in reversed(ids):
      residual = target - mean
      for other in ids:
        if other != own:
          residual = residual - found[other][ids[other]]
      total = np.bincount(ids[own], residual, minlength=sizes[own])
      count = np.bincount(ids[own], minlength=sizes[own])
      found[own] = total / (count + penalty)
  return mean, found
