"""Scores on whole splits, and a frozen teacher's states on them."""

from collections.abc import Callable
from collections.abc import Iterator
import functools
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from td_jax import types
from td_jax.data import feed as feed_lib
from td_jax.data import shuffle
from td_jax.devices import parallel as parallel_lib
from td_jax.models import layers
from td_jax.models import split
from td_jax.storage import array_cache
from td_jax.training import metrics
from td_jax.training import scan
from td_jax.training import step


def scorer(
  feed: feed_lib.Feed,
  *,
  model: nn.Module,
  metric: metrics.Metric,
  parallel: parallel_lib.Parallel,
  batch: int,
) -> Callable[[types.PyTree], np.ndarray]:
  """students [seeds, ...] -> scores [seeds] on all examples of `feed`.

  `batch` examples at most are on a device at once; no score depends on it.
  """
  batch *= parallel.count
  if feed.size:  # Of what is in memory no more is padding than must be.
    batch = min(batch, -(-feed.size // parallel.count) * parallel.count)
  columns = parallel.replicate(feed.columns)
  compiled = parallel.compile(
    functools.partial(
      scan.evaluate,
      make_batch=feed.make_batch,
      step=functools.partial(
        step.eval_step, model=model, measure=metric.measure
      ),
    ),
    axis=1,
  )

  def score(students):
    # Small, so the host adds up what the devices measured.
    sums = [
      jax.device_get(compiled(students, columns, rows))
      for rows in feed.eval_batches(batch, parallel.part(batch))
    ]
    total = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *sums)
    return np.asarray(jax.device_get(metric.score(total)))

  return score


def outputs(
  feed: feed_lib.Feed, *, model: nn.Module, variables: types.PyTree, batch: int
) -> tuple[np.ndarray, np.ndarray]:
  """(outputs [n, ...], labels [n]) of a network on all examples of `feed`."""

  run = jax.jit(lambda variables, x: layers.apply(model, variables, x)[-1])
  made, labels = [], []
  for found in batches(feed, batch):
    real = found.mask > 0
    made.append(np.asarray(run(variables, found.x))[real])
    labels.append(np.asarray(found.y)[real])
  return np.concatenate(made), np.concatenate(labels)


def batches(feed: feed_lib.Feed, batch: int) -> Iterator[types.Batch]:
  """All examples of `feed` once, `batch` at a time; padding is at mask 0."""
  make_batch = jax.jit(feed.make_batch)
  for rows, masks in feed.eval_batches(batch, slice(0, batch)):
    for i, mask in enumerate(masks):
      row = jax.tree.map(lambda leaf, i=i: leaf[i], rows)
      found = make_batch(feed.columns, row, None)
      yield found._replace(mask=np.asarray(found.mask) * mask)


def with_teacher_states(
  feed: feed_lib.Feed,
  *,
  model: nn.Module,
  teacher: types.PyTree,
  batch: int,
  keep: Callable[..., Any] = array_cache.NO_CACHE.get,
) -> feed_lib.Feed:
  """`feed` with the frozen teacher's states and outputs as columns.

  Sound where the teacher's input is a function of the example's id alone. The
  states take 4 bytes x (low + high + output) widths an example and token.
  """
  columns = feed.columns

  @jax.jit
  def run(teacher, columns, ids):
    # As in training: any key must do, where caching is sound.
    found = feed.make_batch(columns, ids, jax.random.key(0))
    side = split.side(model, teacher, found.seen_by_teacher)
    return side.states, side.output

  def compute():
    ids, _ = shuffle.padded(feed.size, batch)
    parts = [jax.device_get(run(teacher, columns, part)) for part in ids]
    states, output = jax.tree.map(
      lambda *leaves: np.concatenate(leaves)[: feed.size], *parts
    )
    return states._asdict() | {'output': output}

  kept = dict(keep('states', compute))
  output = kept.pop('output')
  columns = columns._replace(
    teacher_states=(types.States(**kept), output), teacher_x=None
  )
  return feed._replace(columns=columns)
