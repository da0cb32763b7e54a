"""The order of sharded records: whole epochs, file by file, for any host."""

import hypothesis
from hypothesis import strategies
import numpy as np

from td_jax.data import interleave

_settings = hypothesis.settings(
  max_examples=80, deadline=None, database=None, derandomize=True
)
_options = strategies.fixed_dictionaries(
  {
    'seed': strategies.integers(0, 2**40),
    'shards': strategies.lists(
      strategies.integers(0, 9), min_size=1, max_size=9
    ).filter(any),
    'batch_size': strategies.integers(1, 24),
    'lanes': strategies.sampled_from((1, 2, 4, 8)),
  }
)


def _order(options):
  return interleave.order(**{**options, 'shards': tuple(options['shards'])})


@hypothesis.given(options=_options, epochs=strategies.integers(1, 3))
@_settings
def test_every_epoch_has_every_record_once(options, epochs):
  order = _order(options)
  examples = sum(order.shards)
  ids = order.ids(np.arange(epochs * examples)).reshape(epochs, examples)
  for epoch in ids:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(examples))


@hypothesis.given(
  options=_options,
  start=strategies.integers(0, 100),
  cut=strategies.integers(0, 40),
)
@_settings
def test_a_position_has_the_same_record_in_any_request(options, start, cut):
  order = _order(options)
  positions = np.arange(start, start + 40)
  whole = order.ids(positions)
  parts = [order.ids(part) for part in (positions[:cut], positions[cut:])]
  np.testing.assert_array_equal(np.concatenate(parts), whole)
  np.testing.assert_array_equal(order.ids(positions[::-1]), whole[::-1])


def test_lanes_divide_the_batch():
  lanes = [
    interleave.order(seed=0, shards=(5,), batch_size=batch, lanes=16).lanes
    for batch in (512, 24, 7)
  ]
  assert lanes == [16, 8, 1]


def test_a_lane_reads_file_by_file():
  order = interleave.order(seed=1, shards=(100,) * 16, batch_size=32, lanes=4)
  ids = order.ids(np.arange(1600)).reshape(50, 4, 8)  # [steps, lanes, width]
  files = ids // 100
  for lane in range(4):
    read = files[:, lane].ravel()
    # 4 files of 100 records, one after the other, that no other lane reads.
    assert np.sum(read[1:] != read[:-1]) == 3
    assert len(np.unique(read)) == 4
  assert len(np.unique(files)) == 16
  # Records of a file are shuffled, and differently in the next epoch.
  first = ids[:, 0].ravel()[:100]
  assert np.sum(np.diff(first) == 1) < 10
  again = order.ids(np.arange(1600, 3200)).reshape(50, 4, 8)
  assert np.sum(again[:, 0] // 100 == files[:, 0]) < 350


def test_seeds_and_epochs_differ():
  def ids(seed):
    order = interleave.order(seed=seed, shards=(200,), batch_size=8, lanes=1)
    return order.ids(np.arange(400)).reshape(2, 200)

  one, two = ids(0), ids(1)
  for a, b in ((one[0], one[1]), (one[0], two[0]), (one[1], two[0])):
    assert np.sum(a == b) < 12  # On average they agree at one position.


def test_the_order_is_that_of_old_runs():
  # From commit 5085e1a: a run that was started then must resume in its order.
  order = interleave.order(seed=5, shards=(3, 4, 2), batch_size=4, lanes=2)
  assert order.ids(np.arange(18)).tolist() == [
    *(5, 3, 8, 1, 6, 4, 0, 2, 7),
    *(2, 4, 6, 0, 1, 3, 5, 8, 7),
  ]
