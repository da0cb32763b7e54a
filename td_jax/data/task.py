"""The interface between a dataset and the rest of the package."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np

from td_jax import types
from td_jax.data import feed


class Blank(NamedTuple):
  """What is known of a network's input before any data are read."""

  model_args: Mapping[str, Any]  # As `Task.model_args`, of the smallest data.
  x: types.PyTree  # An input: jax.ShapeDtypeStruct of shapes [1, ...].
  is_streamed: bool = False  # Whether batches come from the host, with inputs.


Split = types.Batch | feed.Stream  # Columns with leaves [n, ...], or streamed.


class Task(NamedTuple):
  """One downstream task: its three splits and what they mean."""

  name: str  # Shown in tables and progress lines.
  metadata: Mapping[str, Any]  # Copied into results.json.
  train: Split
  validation: Split | None  # None if it is part of `train`.
  test: Split | None  # None if `config.test` is False and no split is named.
  model_args: Mapping[str, Any]  # Network settings that follow from the data.
  task_loss: str  # A key of `losses.TASK_LOSSES`.
  metric: str  # A key of `metrics.METRICS`.
  fingerprint: str  # SHA-256 of the records; a resumed run must match it.
  # Scores of models without a network: {name: {split: score}}.
  baselines: Callable[[], dict[str, dict[str, float]]]
  # What methods divide labels and outputs by; scores are of the labels as they are.
  unit: float = 1.0
  make_batch: feed.MakeBatch | None = None  # Passed to `feed.feed`.
  # Arrays that the run's folder keeps, for `data.Domain.encoder`; None if no file can
  # describe the network.
  inputs: Callable[[], Mapping[str, np.ndarray]] | None = dict
  # Examples that students see without a label. `train` has labels throughout.
  unlabelled: feed.Unlabelled | None = None
  # SHA-256 of unlabelled records that `fingerprint` does not cover, or ''.
  unlabelled_fingerprint: str = ''
  # The teacher, if the caller of `td_jax.distill` holds it.
  teacher: Any = None

  def examples(self, split: types.Batch, ids: Any) -> types.Batch:
    """The rows `ids` [b] of a split in memory, as networks see them."""
    return (self.make_batch or feed.take)(split, ids, None)

  @property
  def train_feed(self) -> feed.Feed:
    """What students train on."""
    return feed.feed(self.train, self.make_batch, self.unlabelled)
