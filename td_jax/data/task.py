"""What a dataset is to the rest of the package."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from td_jax import types
from td_jax.data import feed

Split = types.Batch | feed.Stream  # Columns with leaves [n, ...], or streamed.


class Task(NamedTuple):
  """One downstream task: three splits, and what they mean."""

  name: str  # For tables and progress.
  facts: Mapping[str, Any]  # What results.json says of it.
  train: Split
  validation: Split | None  # None where it is trained on too.
  test: Split
  model_args: Mapping[str, Any]  # What the data say about a network's shape.
  cost: str  # Of `losses.COSTS`.
  metric: str  # Of `metrics.METRICS`.
  fingerprint: str  # Of the records: a resumed run insists on the same.
  controls: Callable[[], dict[str, dict[str, float]]]  # Network-free scores.
  pick: feed.Pick | None = None  # Of `feed.feed`, for all splits.
