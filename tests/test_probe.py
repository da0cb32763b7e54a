"""The linear probe: its optimum in NumPy, and data that it cannot fit."""

import numpy as np
import pytest

from td_jax import errors
from td_jax.models import probe


def _task(n=60, seed=0, noise=1.0):
  """Features of different scales and means, and noisy linear classes."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(n, 4))
  kernel = np.random.default_rng(9).normal(size=(4, 3))
  y = (2 * x @ kernel + noise * rng.gumbel(size=(n, 3))).argmax(axis=1)
  return (x * [0.01, 1, 5, 100] + 7).astype(np.float32), y


def _gradients(kernel, bias, features, labels, ridge):
  """Gradients of the penalised loss on standardised features, in float64.

  (1/n) X^T (softmax(X W + b) - onehot(y)) + ridge W, with X standardised.
  """
  mean, deviation = features.mean(axis=0), features.std(axis=0)
  x = (features - mean) / deviation
  weights = kernel * deviation[:, None]
  logits = x @ weights + bias + mean @ kernel
  probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
  probabilities /= probabilities.sum(axis=1, keepdims=True)
  error = (probabilities - np.eye(len(bias))[labels]) / len(labels)
  return x.T @ error + ridge * weights, error.sum(axis=0)


@pytest.mark.parametrize('ridge', [1.0, 0.01, 1e-4])
def test_the_gradient_is_0_at_the_solution(ridge):
  features, labels = _task()
  kernel, bias, report = probe.fit(
    features,
    labels,
    classes=3,
    validation=_task(seed=1),
    ridges=[ridge],
  )
  assert kernel.shape == (4, 3) and bias.shape == (3,)
  assert (kernel.dtype, bias.dtype) == (np.float32, np.float32)
  solution = _gradients(
    *(v.astype(np.float64) for v in (kernel, bias, features)), labels, ridge
  )
  for gradient in solution:
    assert abs(gradient).max() < 5e-5
  # A kernel 1% away has a clearly larger gradient.
  weaker = _gradients(
    *(v.astype(np.float64) for v in (0.99 * kernel, bias, features)),
    labels,
    ridge,
  )
  assert abs(weaker[0]).max() > 2e-4
  assert report['ridge'] == ridge
  assert report['gradient_norm'] <= 1e-5
  assert 0 < report['steps'] < 500


def test_one_feature_and_two_classes_by_hand():
  """x = -1 twice with labels 0, 0, and x = 1 twice with labels 0, 1.

  Standardising does not change x. With W = (-w, w) and b = (-c, c), class 1 has
  probability s0 = sigmoid(2 (c - w)) at -1 and s1 = sigmoid(2 (c + w)) at 1.
  The derivative by c is s0 + s1 - 1/2, by w it is s1 - s0 - 1/2 + 2 ridge w.
  """
  features = np.array([[-1.0], [-1.0], [1.0], [1.0]], np.float32)
  labels = np.array([0, 0, 0, 1])
  kernel, bias, _ = probe.fit(
    features,
    labels,
    classes=2,
    validation=(features, labels),
    ridges=[0.1],
  )
  w, c = float(kernel[0, 1]), float(bias[1])
  np.testing.assert_allclose(kernel[0, 0], -w, atol=1e-5)
  s0, s1 = (1 / (1 + np.exp(-2 * (c + x * w))) for x in (-1, 1))
  assert s0 + s1 == pytest.approx(0.5, abs=1e-4)
  assert 0.5 - s1 + s0 == pytest.approx(2 * 0.1 * w, abs=1e-4)
  assert w > 0.1


def _clusters(n, seed):
  """Four classes around the corners of a square of side 10 far from 0."""
  rng = np.random.default_rng(seed)
  labels = np.arange(n) % 4
  centres = np.array([[10, 10], [10, 20], [20, 10], [20, 20]])
  noise = rng.uniform(-2, 2, (n, 2))
  return (centres[labels] + noise).astype(np.float32), labels


def test_separable_classes_are_separated():
  validation = _clusters(400, seed=1)
  kernel, bias, report = probe.fit(
    *_clusters(40, seed=0), classes=4, validation=validation
  )
  assert report['accuracy'] == report['validation_accuracy'] == 1
  predictions = (validation[0] @ kernel + bias).argmax(axis=1)
  np.testing.assert_array_equal(predictions, validation[1])


def test_validation_chooses_the_ridge():
  # With 40 features for 60 examples an unpenalised head overfits.
  rng = np.random.default_rng(0)
  x = rng.normal(size=(460, 40)).astype(np.float32)
  y = (x[:, 0] + rng.normal(size=460) > 0).astype(int)
  _, _, report = probe.fit(
    x[:60], y[:60], classes=2, validation=(x[60:], y[60:])
  )
  tried = report['tried']
  assert [head['ridge'] for head in tried] == list(probe.RIDGES)
  scores = [head['validation_accuracy'] for head in tried]
  assert report['validation_accuracy'] == max(scores) > scores[-1] + 0.03
  assert tried[-1]['accuracy'] == 1
  # Of equally accurate heads, the one with the strongest ridge.
  assert report['ridge'] == tried[scores.index(max(scores))]['ridge']
  assert report.items() >= tried[scores.index(max(scores))].items()


def test_of_equal_scores_the_strongest_ridge_wins():
  features, labels = _task(noise=0.0)
  _, _, report = probe.fit(
    features,
    labels,
    classes=3,
    validation=(features, labels),
    ridges=[1e-4, 1e-5],
  )
  assert [head['validation_accuracy'] for head in report['tried']] == [1, 1]
  assert report['ridge'] == 1e-4


def test_two_fits_are_bit_identical():
  runs = [
    probe.fit(*_task(), classes=3, validation=_task(seed=1)) for _ in range(2)
  ]
  for array, again in zip(*(run[:2] for run in runs), strict=True):
    np.testing.assert_array_equal(array, again)
  assert runs[0][2] == runs[1][2]


def test_a_constant_feature_gets_no_weight():
  features, labels = _task()
  constant = np.concatenate(
    [features, np.full((60, 1), 0.3, np.float32)], axis=1
  )
  validation = _task(seed=1)
  wider = np.full((60, 1), -50.0, np.float32)  # Even if it varies here.
  kernel, bias, _ = probe.fit(
    constant,
    labels,
    classes=3,
    validation=(np.concatenate([validation[0], wider], axis=1), validation[1]),
    ridges=[0.01],
  )
  plain, plain_bias, _ = probe.fit(
    features, labels, classes=3, validation=validation, ridges=[0.01]
  )
  np.testing.assert_allclose(kernel[4], 0, atol=1e-5)
  np.testing.assert_allclose(kernel[:4], plain, rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(bias, plain_bias, rtol=1e-3, atol=1e-3)


def test_a_class_without_examples_is_never_predicted():
  """The others are fitted as if it were none."""
  features, labels = _task()
  options = {'validation': (features, labels % 2), 'ridges': [0.01]}
  lines = []
  kernel, bias, _ = probe.fit(
    features, 2 * (labels % 2), classes=4, log=lines.append, **options
  )
  expected = probe.fit(features, labels % 2, classes=2, **options)
  np.testing.assert_array_equal(kernel[:, ::2], expected.kernel)
  np.testing.assert_array_equal(bias[::2], expected.bias)
  logits = features @ kernel + bias
  shares = np.exp(logits - logits.max(axis=1, keepdims=True))
  shares /= shares.sum(axis=1, keepdims=True)
  assert np.isfinite(logits).all() and shares[:, 1::2].max() < 1e-3
  assert 'warning: 2 of 4 classes have no example' in lines[0]
  assert 'such as class 1' in lines[0]


def _one_class(features, labels, validation):
  return features, 0 * labels, validation


def _too_many(features, labels, validation):
  return features, labels + 1, validation


def _too_many_in_validation(features, labels, validation):
  return features, labels, (validation[0], validation[1] + 1)


def _other_width(features, labels, validation):
  return features, labels, (validation[0][:, :3], validation[1])


def _other_length(features, labels, validation):
  return features, labels, (validation[0][1:], validation[1])


def _empty(features, labels, validation):
  return features, labels, (validation[0][:0], validation[1][:0])


def _not_finite(features, labels, validation):
  features = features.copy()
  features[3, 1] = np.nan
  return features, labels, validation


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (_one_class, 'training has examples of one class alone, class 0 of 3'),
    (_too_many, r'training has labels 1 \.\.\. 3, but the 3 classes are 0'),
    (_too_many_in_validation, r'validation has labels 1 \.\.\. 3'),
    (
      _other_width,
      'validation has 3 features per example, and training has 4',
    ),
    (
      _other_length,
      'validation has features of 59 examples and labels of 60',
    ),
    (_empty, 'validation has features of 0 examples and labels of 0'),
    (_not_finite, 'training has features that are NaN or infinite'),
  ],
)
def test_data_that_cannot_be_fitted_raise_an_error(change, message):
  features, labels, validation = change(*_task(), _task(seed=1))
  with pytest.raises(errors.DataError, match=message) as e:
    probe.fit(features, labels, classes=3, validation=validation)
  assert e.value.exit_code == 65
  assert '\n' not in str(e.value)
