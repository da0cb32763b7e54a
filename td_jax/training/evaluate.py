"""Scores and outputs of networks on whole splits."""

from collections.abc import Callable
from collections.abc import Iterator
import functools

from flax import linen as nn
import jax
import numpy as np

from td_jax import types
from td_jax.data import feed as feed_lib
from td_jax.devices import parallel as parallel_lib
from td_jax.models import layers
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

  At most `batch` examples are on a device at once; scores do not depend on it.
  """
  batch *= parallel.count
  if feed.size:
    # Splits in memory are often smaller than a batch; do not compute padding.
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

  def score(students: types.PyTree) -> np.ndarray:
    # The sums are small, so the host adds them up.
    sums = [
      jax.device_get(compiled(students, columns, rows))
      for rows in feed.eval_batches(batch, parallel.host_slice(batch))
    ]
    total = jax.tree.map(lambda *parts: sum(parts[1:], parts[0]), *sums)
    return np.asarray(jax.device_get(metric.score(total)))

  return score


def outputs(
  feed: feed_lib.Feed,
  *,
  model: nn.Module,
  variables: types.PyTree,
  batch: int,
  teacher: str = '',
) -> tuple[np.ndarray, np.ndarray]:
  """(outputs [n, ...], labels [n]) of a network on all examples of `feed`.

  With a `teacher` the network gets the input of the teacher with this name.
  """
  run = jax.jit(lambda variables, x: layers.apply(model, variables, x)[-1])
  parts, labels = [], []
  for examples in batches(feed, batch):
    real = examples.mask > 0
    x = examples.input_of(teacher)
    parts.append(np.asarray(run(variables, x))[real])
    labels.append(np.asarray(examples.y)[real])
  return np.concatenate(parts), np.concatenate(labels)


def batches(feed: feed_lib.Feed, batch: int) -> Iterator[types.Batch]:
  """All examples of `feed` once, `batch` at a time; padding has mask 0."""
  make_batch = jax.jit(feed.make_batch)
  for rows, masks in feed.eval_batches(batch, slice(0, batch)):
    for i, mask in enumerate(masks):
      row = jax.tree.map(lambda leaf, i=i: leaf[i], rows)
      examples = make_batch(feed.columns, row, None)
      yield examples._replace(mask=np.asarray(examples.mask) * mask)
