"""The examples of each batch: whole epochs, resumable at any step."""

import functools

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from td_jax.data import shuffle

_settings = hypothesis.settings(
  max_examples=60, deadline=None, database=None, derandomize=True
)
_sizes = {
  'seed': strategies.integers(0, 2**40),
  'examples': strategies.integers(1, 12),
  'batch_size': strategies.integers(1, 30),
}


def _batches(steps, **options):
  return shuffle.batches(start=0, stop=steps, **options)


@hypothesis.given(**_sizes, epochs=strategies.integers(1, 4))
@_settings
def test_every_epoch_is_a_permutation(seed, examples, batch_size, epochs):
  steps = -(-examples * epochs // batch_size)
  ids = _batches(steps, seed=seed, examples=examples, batch_size=batch_size)
  assert ids.shape == (steps, batch_size)
  assert ids.dtype == np.int32
  # A batch may end one epoch and begin the next; none is skipped or repeated.
  row = ids.ravel()[: examples * epochs].reshape(epochs, examples)
  for epoch in row:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(examples))


@hypothesis.given(
  **_sizes, cuts=strategies.tuples(*[strategies.integers(1, 9)] * 3)
)
@_settings
def test_any_cut_reads_on_where_the_last_one_stopped(
  seed, examples, batch_size, cuts
):
  batches = functools.partial(
    shuffle.batches, seed=seed, examples=examples, batch_size=batch_size
  )
  ends = np.cumsum([0, *cuts])
  parts = [
    batches(start=start, stop=stop)
    for start, stop in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
  ]
  whole = batches(start=0, stop=int(ends[-1]))
  np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_seeds_and_epochs_differ():
  one, two = (
    _batches(20, seed=seed, examples=100, batch_size=10).reshape(2, 100)
    for seed in (0, 1)
  )
  # Two permutations of 100 share a place once on average.
  for a, b in ((one[0], two[0]), (one[1], two[1]), (one[0], one[1])):
    assert np.sum(a == b) < 10
  # Nor is the next seed the same sequence, one epoch later.
  assert np.sum(one[1] == two[0]) < 10


def test_the_order_is_a_function_of_its_arguments():
  np.random.seed(0)
  one = _batches(3, seed=7, examples=5, batch_size=4)
  np.random.seed(1)
  two = _batches(3, seed=7, examples=5, batch_size=4)
  np.testing.assert_array_equal(one, two)


def test_the_order_is_that_of_old_runs():
  # From commit 5085e1a: a run that was started then must resume in its order.
  ids = shuffle.batches(seed=5, examples=7, batch_size=4, start=1, stop=4)
  assert ids.tolist() == [[6, 5, 0, 4], [2, 0, 6, 5], [3, 1, 0, 4]]


@pytest.mark.parametrize(
  ('examples', 'batch_size', 'count'),
  [(1, 1, 1), (1, 5, 1), (7, 3, 3), (6, 3, 2), (6, 7, 1), (6, 6, 1)],
)
def test_padded_covers_every_example_once(examples, batch_size, count):
  ids, mask = shuffle.padded(examples, batch_size)
  assert ids.shape == mask.shape == (count, batch_size)
  assert (ids.dtype, mask.dtype) == (np.int32, np.float32)
  np.testing.assert_array_equal(ids[mask == 1], np.arange(examples))
  assert mask.sum() == examples
  np.testing.assert_array_equal(np.unique(mask), np.unique(mask != 0))
  assert np.all(ids[mask == 0] == 0)
