"""The states of a frozen teacher, computed once and kept as columns."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from td_jax import types
from td_jax.data import feed as feed_lib
from td_jax.data import shuffle
from td_jax.models import split
from td_jax.storage import array_cache


def precompute(
  feed: feed_lib.Feed,
  *,
  name: str,
  model: nn.Module,
  variables: types.PyTree,
  batch: int,
  cache: array_cache.Cache = array_cache.NO_CACHE,
) -> feed_lib.Feed:
  """Adds the states and outputs of a frozen teacher to the columns of `feed`.

  This is valid only if the teacher's input depends on the example's id alone.
  The columns take 4 bytes x (low + high + output) widths for each example and
  token.

  Args:
    feed: A split in memory.
    name: The teacher's name.
    model: The teacher's network.
    variables: The teacher's variables.
    batch: Examples that are computed at a time.
    cache: Keeps the states for other runs.
  """
  columns = feed.columns

  @jax.jit
  def run(variables: types.PyTree, columns: types.PyTree, ids: types.PyTree):
    # Where caching is valid, the batch does not depend on the key.
    examples = feed.make_batch(columns, ids, jax.random.key(0))
    side = split.side(model, variables, examples.input_of(name))
    return side.states, side.output

  def compute() -> Mapping[str, Any]:
    ids, _ = shuffle.padded(feed.size, batch)
    parts: list[Any] = []
    for part in ids:
      # Padding is never taken into a batch; the first part gives the shapes.
      if parts and not np.any(columns.mask[part]):
        parts.append(jax.tree.map(np.zeros_like, parts[0]))
      else:
        parts.append(jax.device_get(run(variables, columns, part)))
    states, output = jax.tree.map(
      lambda *leaves: np.concatenate(leaves)[: feed.size], *parts
    )
    return states._asdict() | {'output': output}

  arrays = dict(cache.get('states', compute))
  output = arrays.pop('output')
  # The teacher's input is no longer needed on the device.
  inputs = {key: x for key, x in columns.teacher_x.items() if key != name}
  columns = columns._replace(
    teacher_x=inputs,
    teacher_states=columns.teacher_states
    | {name: (types.States(**arrays), output)},
  )
  return feed._replace(columns=columns)
