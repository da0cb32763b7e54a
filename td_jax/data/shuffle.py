"""Which examples make up which batch: a function of (seed, epoch, step)."""

import numpy as np


def batches(
  *, seed: int, examples: int, batch_size: int, start: int, stop: int
) -> np.ndarray:
  """Example ids int32 [stop - start, batch_size] of steps start..stop-1.

  Every epoch is one permutation of all examples. The epochs are read as one
  endless row, so a batch may end one epoch and begin the next, and none is
  skipped or repeated. Nothing but the arguments is remembered: a resumed run
  reads on where the interrupted one stopped.
  """
  first, last = start * batch_size, stop * batch_size
  epochs = range(first // examples, -(-last // examples))
  row = np.concatenate(
    [np.random.default_rng((seed, e)).permutation(examples) for e in epochs]
  )
  offset = first - epochs[0] * examples
  chosen = row[offset : offset + last - first]
  return chosen.astype(np.int32).reshape(stop - start, batch_size)


def padded(examples: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
  """All examples once, in order: (ids, mask), both [batches, batch_size].

  The last batch is filled up with example 0 at mask 0.
  """
  count = -(-examples // batch_size)
  ids = np.zeros(count * batch_size, np.int32)
  ids[:examples] = np.arange(examples)
  mask = np.zeros(count * batch_size, np.float32)
  mask[:examples] = 1
  return ids.reshape(count, -1), mask.reshape(count, -1)
