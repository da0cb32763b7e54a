"""The order of sharded records: whole epochs, whole files, any host."""

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
    'group': strategies.integers(1, 3),
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
def test_a_place_has_its_record_whoever_asks(options, start, cut):
  order = _order(options)
  places = np.arange(start, start + 40)
  whole = order.ids(places)
  parts = [order.ids(part) for part in (places[:cut], places[cut:])]
  np.testing.assert_array_equal(np.concatenate(parts), whole)
  np.testing.assert_array_equal(order.ids(places[::-1]), whole[::-1])


def test_lanes_divide_the_batch():
  sizes = [
    interleave.order(
      seed=0, shards=(5,), batch_size=batch, lanes=16, group=1
    ).lanes
    for batch in (512, 24, 7)
  ]
  assert sizes == [16, 8, 1]


def test_a_lane_reads_file_by_file():
  order = interleave.order(
    seed=1, shards=(100,) * 16, batch_size=32, lanes=4, group=1
  )
  ids = order.ids(np.arange(1600)).reshape(50, 4, 8)  # [steps, lanes, width]
  files = ids // 100
  for lane in range(4):
    read = files[:, lane].ravel()
    # 4 files of 100 each, one after the other, and no other lane's.
    assert np.sum(read[1:] != read[:-1]) == 3
    assert len(np.unique(read)) == 4
  assert len(np.unique(files)) == 16
  # Within a file not in order, and not in the same order next time.
  first = ids[:, 0].ravel()[:100]
  assert np.sum(np.diff(first) == 1) < 10
  again = order.ids(np.arange(1600, 3200)).reshape(50, 4, 8)
  assert np.sum(again[:, 0] // 100 == files[:, 0]) < 350


def test_a_group_of_files_is_one_buffer():
  order = interleave.order(
    seed=3, shards=(50,) * 8, batch_size=4, lanes=1, group=2
  )
  files = order.ids(np.arange(400)).reshape(4, 100) // 50
  for group in files:
    assert sorted(np.unique(group, return_counts=True)[1]) == [50, 50]
    assert np.sum(group[1:] != group[:-1]) > 30  # Well mixed.


def test_seeds_and_epochs_differ():
  def ids(seed):
    order = interleave.order(
      seed=seed, shards=(200,), batch_size=8, lanes=1, group=1
    )
    return order.ids(np.arange(400)).reshape(2, 200)

  one, two = ids(0), ids(1)
  for a, b in ((one[0], one[1]), (one[0], two[0]), (one[1], two[0])):
    assert np.sum(a == b) < 12  # One place in common on average.
