"""Scores of a whole split, from sums over its examples."""

from collections.abc import Callable
from typing import NamedTuple

from clu import metrics as clu_metrics
from jax import numpy as jnp

from td_jax import types
from td_jax.methods import losses


class Metric(NamedTuple):
  """How a task is scored: sums that add up over batches, then one number."""

  measure: Callable[[types.Array, types.Batch], clu_metrics.Metric]
  score: Callable[[clu_metrics.Metric], types.Array]
  lower_is_better: bool


_SquaredError = clu_metrics.Average.from_output('squared_error')


def _squared_error(
  output: types.Array, batch: types.Batch
) -> clu_metrics.Metric:
  return _SquaredError.from_model_output(
    squared_error=losses.squared_error(output, batch.y), mask=batch.mask
  )


_Correct = clu_metrics.Average.from_output('correct')


def _correct(output: types.Array, batch: types.Batch) -> clu_metrics.Metric:
  is_correct = output.argmax(axis=-1) == batch.y
  return _Correct.from_model_output(
    correct=is_correct.astype(jnp.float32), mask=batch.mask
  )


METRICS = {
  'accuracy': Metric(
    measure=_correct,
    score=lambda sums: sums.compute(),
    lower_is_better=False,
  ),
  'rmse': Metric(
    measure=_squared_error,
    score=lambda sums: jnp.sqrt(sums.compute()),
    lower_is_better=True,
  ),
}
