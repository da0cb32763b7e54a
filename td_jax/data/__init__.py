"""Datasets by name. A new one is a file with `check` and `load`, and a line."""

from collections.abc import Callable
from typing import NamedTuple

from td_jax.data import classification
from td_jax.data import movielens
from td_jax.data import task


class Domain(NamedTuple):
  # config -> None; raises a ConfigError for a `data` block that cannot work.
  check: Callable[..., None]
  load: Callable[..., task.Task]  # (config, log=) -> Task
  # config -> a Task to see shapes by, where there may be no data.
  shapes: Callable[..., task.Task]


DOMAINS = {
  'movielens': Domain(movielens.check, movielens.load, movielens.load),
  'images': Domain(
    classification.check, classification.load, classification.shapes
  ),
}
