"""Crops, flips and resizes against hand-worked numbers and TensorFlow."""

import functools

import hypothesis
from hypothesis import strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from td_jax.configs import vit_cifar10
from td_jax.data import preprocess


def _images(count, height, width, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def _by_hand(image, size):
  """Bilinear with half-pixel centres, one output pixel after the other."""
  height, width, _ = image.shape
  image = image.astype(np.float64)
  out = np.zeros((size, size, 3))
  for i in range(size):
    for j in range(size):
      y = min(max((i + 0.5) * height / size - 0.5, 0), height - 1)
      x = min(max((j + 0.5) * width / size - 0.5, 0), width - 1)
      top, left = int(y), int(x)
      bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
      upper = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
      lower = image[bottom, left] * (1 - x + left)
      lower = lower + image[bottom, right] * (x - left)
      out[i, j] = upper * (1 - y + top) + lower * (y - top)
  return out


def test_two_pixels_stretched_to_four():
  image = jnp.asarray([[[[0] * 3, [100] * 3]] * 2], jnp.uint8)
  got = preprocess.resize(image, 4)[0, 0, :, 0]
  # Centres at -1/4, 1/4, 3/4, 5/4 of the distance between the two.
  np.testing.assert_allclose(got, [0, 25, 75, 100], atol=1e-4)


@pytest.mark.parametrize(
  ('height', 'width', 'size'), [(32, 32, 56), (9, 5, 7), (20, 31, 8), (1, 1, 3)]
)
def test_resize_is_bilinear(height, width, size):
  images = _images(2, height, width)
  got = preprocess.resize(jnp.asarray(images), size)
  assert got.dtype == jnp.float32
  for image, one in zip(images, got, strict=True):
    np.testing.assert_allclose(one, _by_hand(image, size), atol=1e-3)


def test_resize_matches_tensorflow():
  tf = pytest.importorskip('tensorflow')
  images = _images(2, 32, 27)
  for size in (56, 13):
    np.testing.assert_allclose(
      preprocess.resize(jnp.asarray(images), size),
      tf.image.resize(images, (size, size)).numpy(),
      atol=1e-3,
    )


@pytest.mark.parametrize('flip', [0.0, 1.0])
def test_augment_resizes_the_crop_it_drew(flip):
  images = _images(6, 24, 40)
  keys = jax.random.split(jax.random.key(3), 6)
  augment = functools.partial(preprocess.augment, size=16, flip=flip)
  got = jax.jit(augment)(jnp.asarray(images), keys)
  assert got.shape == (6, 16, 16, 3)
  for image, key, one in zip(images, keys, got, strict=True):
    draws = np.asarray(jax.random.uniform(key, (preprocess.DRAWS,)))
    top, left, rows, columns = (
      int(part)
      for part in preprocess.crop_box(
        draws, 24, 40, area=preprocess.AREA, aspect=preprocess.ASPECT, xp=np
      )
    )
    crop = image[top : top + rows, left : left + columns]
    expected = _by_hand(crop, 16)
    expected = expected[:, ::-1] if flip else expected
    np.testing.assert_allclose(one, expected, atol=2e-3)


def test_half_are_flipped():
  ramp = np.tile(
    np.arange(32, dtype=np.uint8)[None, None, :, None], (400, 8, 1, 3)
  )
  keys = jax.random.split(jax.random.key(0), 400)
  augment = jax.jit(functools.partial(preprocess.augment, size=8))
  got = np.asarray(augment(jnp.asarray(ramp), keys))
  flipped = got[:, 0, 0, 0] > got[:, 0, -1, 0]
  assert 160 < flipped.sum() < 240


def test_an_example_depends_only_on_its_own_key():
  images = jnp.asarray(_images(8, 16, 16))
  keys = preprocess.example_keys(jax.random.key(5), jnp.arange(8))
  augment = jax.jit(functools.partial(preprocess.augment, size=12))
  whole = augment(images, keys)
  # Up to rounding, since programs for other batch sizes sum in another order.
  # The crop of another key would differ by whole grey levels.
  same = functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-4)
  # Alone, elsewhere in the batch, and in another half of it.
  same(augment(images[3:4], keys[3:4])[0], whole[3])
  same(augment(images[::-1], keys[::-1]), whole[::-1])
  other = preprocess.example_keys(jax.random.key(5), jnp.arange(4, 8))
  same(augment(images[4:], other), whole[4:])
  assert len(np.unique(np.asarray(whole).sum(axis=(1, 2, 3)))) == 8


@hypothesis.given(
  height=strategies.integers(1, 600),
  width=strategies.integers(1, 600),
  least=strategies.floats(0.01, 1.0),
  seed=strategies.integers(0, 99),
)
@hypothesis.settings(
  max_examples=60, deadline=None, database=None, derandomize=True
)
def test_boxes_lie_within_the_image(height, width, least, seed):
  draws = np.random.default_rng(seed).random((50, 4), np.float32)
  draws[0], draws[1] = 0, 1 - 2**-24  # The extremes in float32.
  box = np.stack(
    preprocess.crop_box(
      draws, height, width, area=(least, 1.0), aspect=(3 / 4, 4 / 3), xp=np
    )
  )
  np.testing.assert_array_equal(box, np.round(box))
  top, left, rows, columns = box
  assert (rows >= 1).all() and (columns >= 1).all()
  assert (top >= 0).all() and (top + rows <= height).all()
  assert (left >= 0).all() and (left + columns <= width).all()


@pytest.mark.parametrize(
  ('draws', 'box'),
  [
    # 12% of 120 x 120 pixels at 4/3 are 36 rows of 48.
    ((0.5, 0.0, 0.0, 0.0), (0, 0, 36, 48)),
    # The height is limited by the width, 120 / (4/3); the last of 31 tops.
    ((0.5, 0.999, 0.999, 0.999), (30, 0, 90, 120)),
    # The middle one of 55 heights (36 to 90), of 58 tops and of 37 lefts.
    ((0.5, 0.5, 0.5, 0.5), (29, 18, 63, 84)),
  ],
)
def test_boxes_by_hand(draws, box):
  got = preprocess.crop_box(
    np.array(draws), 120, 120, area=(0.12, 1.0), aspect=(4 / 3, 4 / 3), xp=np
  )
  assert tuple(got) == box


def test_boxes_are_the_same_in_numpy_jax_and_tensorflow():
  tf = pytest.importorskip('tensorflow')
  draws = np.random.default_rng(0).random((500, 4), np.float32)
  box = functools.partial(
    preprocess.crop_box, area=preprocess.AREA, aspect=preprocess.ASPECT
  )
  one = np.stack(box(draws, 375, 500, xp=np))
  two = np.stack(box(jnp.asarray(draws), 375, 500, xp=jnp))
  three = np.stack(box(tf.constant(draws), 375.0, 500.0, xp=tf))
  # A sum close to a half may round either way.
  assert (one != two).any(axis=0).mean() < 0.01
  assert (one != three).any(axis=0).mean() < 0.01


@pytest.mark.parametrize(('height', 'width'), [(32, 32), (375, 500)])
def test_boxes_are_distributed_as_in_tensorflow(height, width):
  tf = pytest.importorskip('tensorflow')
  count = 4000
  draws = np.random.default_rng(1).random((count, 4), np.float32)
  ours = np.stack(
    preprocess.crop_box(
      draws, height, width, area=(0.05, 1.0), aspect=(0.75, 1.33), xp=np
    )
  ).T

  def sample(seed):
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
      (height, width, 3),
      tf.zeros((1, 0, 4)),
      tf.stack([seed, 7]),
      min_object_covered=0.0,
      aspect_ratio_range=(0.75, 1.33),
      area_range=(0.05, 1.0),
      use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], 0)

  theirs = np.array(
    list(tf.data.Dataset.range(count).map(sample).as_numpy_iterator())
  )
  mean, spread = theirs.mean(axis=0), theirs.std(axis=0)
  # Four standard errors of a difference of means, and half a pixel of rounding.
  allowed = 4 * spread * np.sqrt(2 / count) + 0.5
  assert (np.abs(ours.mean(axis=0) - mean) < allowed).all()
  np.testing.assert_allclose(ours.std(axis=0), spread, rtol=0.06)
  area = [rows[:, 2] * rows[:, 3] / (height * width) for rows in (ours, theirs)]
  quantiles = [np.quantile(part, np.linspace(0.05, 0.95, 10)) for part in area]
  np.testing.assert_allclose(*quantiles, atol=0.04)


def test_normalize():
  images = jnp.asarray([[0.0, 127.5, 255.0]])
  np.testing.assert_allclose(preprocess.normalize(images), [[-1, 0, 1]])
  data = vit_cifar10.get_config('laptop').data
  got = preprocess.normalize(images, preprocess.Scale(data.mean, data.std))
  # The published mean and deviation for pixels in [0, 1], at 0, 1/2 and 1.
  expected = [-0.485 / 0.229, (0.5 - 0.456) / 0.224, (1 - 0.406) / 0.225]
  np.testing.assert_allclose(got[0], expected, rtol=1e-4)
