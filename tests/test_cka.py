"""CKA against golden numbers, by hand, and what it must not depend on."""

import json
import os
import pathlib

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from td_jax import errors
from td_jax.paper import cka

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

ESTIMATORS = {'biased': cka.biased_hsic, 'unbiased': cka.unbiased_hsic}
EVERY = pytest.mark.parametrize('hsic', ESTIMATORS.values(), ids=ESTIMATORS)


@pytest.fixture(scope='module')
def golden():
  here = pathlib.Path(__file__).parents[2] / 'shared'
  file = pathlib.Path(os.environ.get('TD_JAX_SHARED', here)) / 'golden/cka.npz'
  if not file.exists():
    pytest.skip(f'no golden numbers at {file}')
  with np.load(file, allow_pickle=False) as stored:
    return dict(stored)


@pytest.mark.parametrize('n', [20, 200])
@pytest.mark.parametrize('kind', ['indep', 'related'])
@pytest.mark.parametrize('name', ESTIMATORS)
def test_golden(golden, n, kind, name):
  x, y = golden[f'n{n}/x'], golden[f'n{n}/{kind}/y']
  hsic = ESTIMATORS[name]
  want = {
    part: float(golden[f'n{n}/{kind}/{name}_{part}'])
    for part in ('cka', 'hsic_xy', 'hsic_xx', 'hsic_yy')
  }
  got = cka.cka(jnp.asarray(x), jnp.asarray(y), hsic=hsic)
  assert got.dtype == jnp.float32
  assert abs(float(got) - want['cka']) < 2e-6
  with jax.enable_x64(True):
    x, y = (cka.gram(jnp.asarray(v, jnp.float64)) for v in (x, y))
    for pair, value in (
      ('xy', hsic(x, y)),
      ('xx', hsic(x, x)),
      ('yy', hsic(y, y)),
    ):
      np.testing.assert_allclose(value, want[f'hsic_{pair}'], rtol=1e-11)
    x = jnp.asarray(golden[f'n{n}/x'], jnp.float64)
    y = jnp.asarray(golden[f'n{n}/{kind}/y'], jnp.float64)
    assert abs(float(cka.cka(x, y, hsic=hsic)) - want['cka']) < 1e-9


@pytest.mark.parametrize('kind', ['indep', 'related'])
def test_golden_in_batches(golden, kind):
  want = float(golden[f'n200/{kind}/minibatch20_unbiased_cka'])
  x, y = golden['n200/x'], golden[f'n200/{kind}/y']
  with jax.enable_x64(True):
    x, y = (jnp.asarray(v, jnp.float64).reshape(10, 20, -1) for v in (x, y))
    assert abs(float(cka.cka(x, y)) - want) < 1e-9


def test_four_examples_by_hand():
  """Of one feature, 0 0 0 1 for the one and 0 1 0 1 for the other."""
  x = cka.gram(jnp.asarray([[0.0], [0.0], [0.0], [1.0]]))
  y = cka.gram(jnp.asarray([[0.0], [1.0], [0.0], [1.0]]))
  # About the mean -1/4 -1/4 -1/4 3/4 and -1/2 1/2 -1/2 1/2: the squared
  # products' sums, (1/2)^2, (3/4)^2 and 1^2, over 3^2.
  assert float(cka.biased_hsic(x, y)) == pytest.approx(0.25 / 9)
  assert float(cka.biased_hsic(x, x)) == pytest.approx(0.5625 / 9)
  assert float(cka.biased_hsic(y, y)) == pytest.approx(1 / 9)
  # Each is 1/4 off the diagonal of y where the signs are equal (2 pairs), else
  # -1/4: the sum of squares 12/16; its rows sum to -1/4 each, so 4/16 and 1:
  # (12/16 - 2/2 * 4/16 + 1/6) / 4.
  assert float(cka.unbiased_hsic(y, y)) == pytest.approx((8 / 16 + 1 / 6) / 4)
  # One example apart from all others tells an unbiased estimate nothing.
  assert float(cka.unbiased_hsic(x, y)) == pytest.approx(0, abs=1e-7)


def _features(n=30, d=5, seed=0):
  return jnp.asarray(
    np.random.default_rng(seed).normal(size=(n, d)), jnp.float32
  )


@EVERY
def test_rotation_scale_and_shift_do_not_matter(hsic):
  x, y = _features(), _features(d=7, seed=1)
  turn, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))
  moved = 3.0 * x @ jnp.asarray(turn, jnp.float32) + 40.0
  plain = float(cka.cka(x, y, hsic=hsic))
  assert float(cka.cka(moved, y, hsic=hsic)) == pytest.approx(plain, abs=2e-5)
  assert float(cka.cka(x, moved, hsic=hsic)) == pytest.approx(1, abs=2e-5)
  assert float(cka.cka(y, x, hsic=hsic)) == pytest.approx(plain, abs=1e-6)
  squeezed = x * jnp.asarray([[10.0, 1.0, 1.0, 1.0, 1.0]])
  assert float(cka.cka(x, squeezed, hsic=hsic)) < 0.9  # What does matter.


def test_unbiased_is_0_in_the_mean_for_unrelated_features():
  pairs = [
    (_features(8, 3, seed), _features(8, 3, 1000 + seed)) for seed in range(400)
  ]
  x, y = (jnp.stack(side) for side in zip(*pairs, strict=True))
  x, y = cka.gram(x), cka.gram(y)
  for hsic, zero in ((cka.unbiased_hsic, True), (cka.biased_hsic, False)):
    values = np.asarray(hsic(x, y))  # [400]
    error = values.std() / 400**0.5
    assert (abs(values.mean()) < 3 * error) == zero


# Figure 3.


def _classes(classes=3, n=9, d=6, seed=0):
  """(features, labels) in mixed order."""
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.repeat(np.arange(classes), n))
  return rng.normal(size=(classes * n, d)).astype(np.float32), labels


@EVERY
def test_every_cell_is_the_cka_of_two_classes(hsic):
  student, labels = _classes()
  teacher, _ = _classes(d=4, seed=1)
  teacher[labels == 1, :2] = 2 * student[labels == 1, :2]
  matrix = cka.per_class(
    student, teacher, labels, classes=3, examples=8, hsic=hsic
  )
  assert matrix.shape == (3, 3)
  for i in range(3):
    for j in range(3):
      one = student[np.flatnonzero(labels == i)[:8]]
      two = teacher[np.flatnonzero(labels == j)[:8]]
      expected = cka.cka(jnp.asarray(one), jnp.asarray(two), hsic=hsic)
      np.testing.assert_allclose(matrix[i, j], expected, atol=1e-5)
  assert abs(matrix - matrix.T).max() > 0.05  # Rows are not columns.
  assert matrix[1, 1] > max(matrix[0, 0], matrix[2, 2])


def test_examples_of_a_class_are_the_first_20():
  student, labels = _classes(n=22)
  teacher, _ = _classes(n=22, seed=1)
  matrix = cka.per_class(student, teacher, labels, classes=3)
  late = np.concatenate([np.flatnonzero(labels == c)[20:] for c in range(3)])
  student[late] += 100.0
  again = cka.per_class(student, teacher, labels, classes=3)
  np.testing.assert_array_equal(matrix, again)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'classes': 4}, r'class 3 has 0 examples, but CKA needs 8'),
    (
      {'classes': 2},
      r'labels range over 0 \.\.\. 2, but the 2 classes are 0 \.\.\. 1',
    ),
    ({'examples': 10}, r'class 0 has 9 examples, but CKA needs 10'),
    ({'examples': 3}, r'needs 4 or more examples of each class, not 3'),
  ],
)
def test_what_cannot_be_compared(change, message):
  features, labels = _classes()
  with pytest.raises(errors.DataError, match=message) as e:
    cka.per_class(
      features, features, labels, **({'classes': 3, 'examples': 8} | change)
    )
  assert '\n' not in str(e.value)


@pytest.mark.parametrize('side', ['student', 'teacher'])
def test_features_that_do_not_vary(side):
  given = dict.fromkeys(('student', 'teacher'), _classes()[0])
  labels = _classes()[1]
  given[side] = given[side].copy()
  given[side][labels == 2] = 0.3
  with pytest.raises(errors.DataError, match=f'{side} .* class 2 the same'):
    cka.per_class(**given, labels=labels, classes=3, examples=8)


def test_summary_is_json():
  matrix = np.array([[0.5, 0.25], [0.125, 1.0]], np.float32)
  summary = cka.summary({'low': matrix, 'one': matrix[:1, :1]})
  assert json.loads(json.dumps(summary)) == {
    'low': {
      'diagonal': 0.75,
      'off_diagonal': 0.1875,
      'cka': [[0.5, 0.25], [0.125, 1.0]],
    },
    'one': {'diagonal': 0.5, 'off_diagonal': None, 'cka': [[0.5]]},
  }


def _pixels(file):
  from matplotlib import image

  picture = image.imread(file)  # [height, width, 4]
  return (255 * picture[..., :3]).round().astype(int)


def test_figure(tmp_path):
  pytest.importorskip('matplotlib')
  file = tmp_path / 'cka.png'
  panels = {
    name: np.eye(4, dtype=np.float32) for name in ('low', 'high', 'message')
  }
  cka.render({'teacher': panels}, file)
  pixels = _pixels(file)
  assert pixels.shape[1] > 2 * pixels.shape[0]  # Side by side.
  # The two ends of viridis: 0 is dark, 1 is light.
  colours = set(map(tuple, pixels.reshape(-1, 3).tolist()))
  assert {(68, 1, 84), (253, 231, 37)} <= colours
  cka.render(
    {'teacher': panels}, file, class_names=('ant', 'bee', 'cat', 'dog')
  )
  assert not np.array_equal(_pixels(file), pixels)  # Names, not numbers.
  cka.render({'a': panels, 'b': panels}, file)
  # A row of panels per teacher.
  assert _pixels(file).shape[0] > 1.5 * pixels.shape[0]
  with pytest.raises(errors.IOFailedError, match=r'cka\.png') as e:
    cka.render(
      {'teacher': {'low': np.eye(4, dtype=np.float32)}},
      tmp_path / 'none' / 'cka.png',
    )
  assert e.value.exit_code == 74


def test_the_title_names_the_panel_that_is_most_alike():
  low = np.array([[0.5, 0.25], [0.125, 1.0]], np.float32)
  panels = {'high': low / 2, 'low': low}
  assert cka._finding({'teacher': panels}) == (
    'The student is most like the teacher in its low states (mean CKA on the '
    'same class: 0.75)'
  )
