"""Splits that the host decodes: their batches, scores and damage."""

import shutil

import jax
import numpy as np
import pytest
import tiny_vision

from td_jax import errors
from td_jax.data import classification
from td_jax.data import records
from td_jax.data import streamed_split

BATCH = 8


@pytest.fixture(scope='module')
def split(vision_data):
  """(name, **data) -> a streamed split."""

  def make(name, log=print, **data):
    config = tiny_vision.get_config()
    config.data.dir = data.pop('dir', str(vision_data))
    config.data.update(data)
    dataset = records.load('image_folder', config.data.dir)
    return streamed_split.Split(dataset.records(name), config.data, log)

  return make


def _joined(*parts):
  return [np.concatenate(leaves) for leaves in zip(*parts, strict=True)]


def _leaves(batch):
  assert batch.teacher_x == {}
  return [batch.x, batch.y, batch.mask]


def test_processes_deliver_slices_of_the_same_batches(split):
  whole = split('train')
  assert len(whole) == tiny_vision.SIZES['train']
  halves = slice(0, BATCH // 2), slice(BATCH // 2, BATCH)
  for step in (0, 2):
    expected = _leaves(whole.train(3, step, BATCH, slice(0, BATCH)))
    # Each process has streams of its own.
    slices = [
      _leaves(split('train').train(3, step, BATCH, half)) for half in halves
    ]
    for one, other in zip(_joined(*slices), expected, strict=True):
      np.testing.assert_array_equal(one, other)
  other = whole.train(4, 2, BATCH, slice(0, BATCH))
  assert (other.x != expected[0]).any()


def test_every_example_is_scored_once(split):
  validation = split('validation')  # 9, in batches of 8.
  whole = [_leaves(b) for b in validation.whole(BATCH, slice(0, BATCH))]
  assert [mask.sum() for *_, mask in whole] == [8, 1]
  halves = [
    [_leaves(b) for b in validation.whole(BATCH, part)]
    for part in (slice(0, BATCH // 2), slice(BATCH // 2, BATCH))
  ]
  for one, other, expected in zip(*halves, whole, strict=True):
    for joined, leaf in zip(_joined(one, other), expected, strict=True):
      np.testing.assert_array_equal(joined, leaf)


def test_scores_are_of_the_same_images_as_in_memory(vision_data):
  config = tiny_vision.get_config()
  config.data.dir = str(vision_data)
  resident = classification.load(config, log=print)
  config.data.memory = 'stream'
  streamed = classification.load(config, log=print)
  assert streamed.metadata == resident.metadata
  count = tiny_vision.SIZES['validation']
  (batch,) = streamed.validation.whole(count, slice(0, count))
  seen = jax.jit(streamed.make_batch)((), batch, None)
  expected = jax.jit(resident.make_batch)(
    resident.validation, np.arange(count), None
  )
  np.testing.assert_array_equal(seen.y, expected.y)
  # A stream rounds to whole grey levels.
  np.testing.assert_allclose(seen.x, expected.x, atol=0.51 / 55)
  assert np.std(expected.x) > 0.3


def test_a_blank_split_has_the_shapes_of_a_real_one(split):
  blank = streamed_split.Blank(tiny_vision.SIZE)
  part = slice(2, 6)
  for one, other in (
    (blank.train(0, 0, BATCH, part), split('train').train(0, 0, BATCH, part)),
    (next(blank.whole(BATCH, part)), next(split('test').whole(BATCH, part))),
  ):
    for leaf, real in zip(_leaves(one), _leaves(other), strict=True):
      assert (leaf.shape, leaf.dtype) == (real.shape, real.dtype)


def test_a_corrupt_image_is_named_or_left_out(split, vision_data, tmp_path):
  shutil.copytree(vision_data / 'train', tmp_path / 'train')
  bad = tmp_path / 'train' / '1' / '004.png'
  bad.write_bytes(bad.read_bytes()[:60])
  count, lines = tiny_vision.SIZES['train'], []
  whole = slice(0, count)
  with pytest.raises(errors.DataError, match=r'1/004\.png') as e:
    list(split('train', dir=str(tmp_path)).whole(count, whole))
  assert '\n' not in str(e.value)
  skipping = split(
    'train', dir=str(tmp_path), skip_corrupt=True, log=lines.append
  )
  for _ in range(2):
    (batch,) = skipping.whole(count, whole)
    assert batch.mask.sum() == count - 1
  (line,) = lines  # Of both evaluations.
  assert '004.png' in line
