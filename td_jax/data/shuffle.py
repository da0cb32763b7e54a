"""The examples of each batch, as a function of (seed, step)."""

import numpy as np


def batches(
  *,
  seed: int,
  examples: int,
  batch_size: int,
  start: int,
  stop: int,
  stream: int = 0,
) -> np.ndarray:
  """Returns the example ids of the steps start..stop-1.

  Every epoch is a permutation of all examples. The epochs follow each other in
  one endless sequence, so a batch may end one epoch and begin the next, and no
  example is skipped or repeated within an epoch. Each `stream` of examples has
  another order.

  Returns:
    int32 [stop - start, batch_size].
  """
  first, last = start * batch_size, stop * batch_size
  epochs = range(first // examples, -(-last // examples))
  # A generator for each (seed, epoch) makes the order a function of the step: a
  # resumed run continues it without replaying the steps before.
  more = (stream,) if stream else ()
  sequence = np.concatenate(
    [
      np.random.default_rng((seed, e, *more)).permutation(examples)
      for e in epochs
    ]
  )
  offset = first - epochs[0] * examples
  ids = sequence[offset : offset + last - first]
  return ids.astype(np.int32).reshape(stop - start, batch_size)


def padded(examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns all examples once, in order, in batches of equal size.

  Returns:
    (ids int32, mask float32), both [batches, batch_size]. The end of the last
    batch is example 0 with mask 0.
  """
  count = -(-examples // batch_size)
  ids = np.zeros(count * batch_size, np.int32)
  ids[:examples] = np.arange(examples)
  mask = np.zeros(count * batch_size, np.float32)
  mask[:examples] = 1
  return ids.reshape(count, -1), mask.reshape(count, -1)
