"""The linear probe: its optimum by NumPy, and what it refuses."""

import numpy as np
import pytest

from td_jax import errors
from td_jax.models import probe


def _task(n=60, seed=0, noise=1.0):
  """Features of unlike scales and means, and noisy linear classes."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(n, 4))
  right = np.random.default_rng(9).normal(size=(4, 3))
  y = (2 * x @ right + noise * rng.gumbel(size=(n, 3))).argmax(axis=1)
  return (x * [0.01, 1, 5, 100] + 7).astype(np.float32), y


def _slopes(kernel, bias, features, labels, ridge):
  """Gradients of the penalised loss in float64, about standardised features.

  (1/n) X^T (softmax(X W + b) - onehot(y)) + ridge W, with X standardised.
  """
  mean, deviation = features.mean(axis=0), features.std(axis=0)
  x = (features - mean) / deviation
  weights = kernel * deviation[:, None]
  logits = x @ weights + bias + mean @ kernel
  chances = np.exp(logits - logits.max(axis=1, keepdims=True))
  chances /= chances.sum(axis=1, keepdims=True)
  error = (chances - np.eye(len(bias))[labels]) / len(labels)
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
  here = _slopes(
    *(v.astype(np.float64) for v in (kernel, bias, features)), labels, ridge
  )
  for slope in here:
    assert abs(slope).max() < 5e-5
  # So small a slope is found nowhere else.
  weaker = _slopes(
    *(v.astype(np.float64) for v in (0.99 * kernel, bias, features)),
    labels,
    ridge,
  )
  assert abs(weaker[0]).max() > 2e-4
  assert report['ridge'] == ridge
  assert report['gradient_norm'] <= 1e-5
  assert 0 < report['steps'] < 500


def test_one_feature_and_two_classes_by_hand():
  """x = -1, 1, each twice; of each pair the labels are 0, 0 and 0, 1.

  Standardised, x stays as it is. With W = (-w, w) and b = (-c, c), class 1 has
  chance s0 = sigmoid(2 (c - w)) at -1 and s1 = sigmoid(2 (c + w)) at 1. The
  slope along c is s0 + s1 - 1/2, that along w is s1 - s0 - 1/2 + 2 ridge w.
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
  """Four classes around the corners of a square of side 10, not at 0."""
  rng = np.random.default_rng(seed)
  labels = np.arange(n) % 4
  centres = np.array([[10, 10], [10, 20], [20, 10], [20, 20]])
  noise = rng.uniform(-2, 2, (n, 2))
  return (centres[labels] + noise).astype(np.float32), labels


def test_separable_classes_are_told_apart():
  validation = _clusters(400, seed=1)
  kernel, bias, report = probe.fit(
    *_clusters(40, seed=0), classes=4, validation=validation
  )
  assert report['accuracy'] == report['validation_accuracy'] == 1
  guess = (validation[0] @ kernel + bias).argmax(axis=1)
  np.testing.assert_array_equal(guess, validation[1])


def test_validation_chooses_the_ridge():
  # 40 features for 60 examples: without a penalty they are learned by heart.
  rng = np.random.default_rng(0)
  x = rng.normal(size=(460, 40)).astype(np.float32)
  y = (x[:, 0] + rng.normal(size=460) > 0).astype(int)
  _, _, report = probe.fit(
    x[:60], y[:60], classes=2, validation=(x[60:], y[60:])
  )
  tried = report['tried']
  assert [one['ridge'] for one in tried] == list(probe.RIDGES)
  scores = [one['validation_accuracy'] for one in tried]
  assert report['validation_accuracy'] == max(scores) > scores[-1] + 0.03
  assert tried[-1]['accuracy'] == 1
  # Of equals, the strongest.
  assert report['ridge'] == tried[scores.index(max(scores))]['ridge']
  assert report.items() >= tried[scores.index(max(scores))].items()


def test_a_draw_is_won_by_the_strongest():
  features, labels = _task(noise=0.0)
  _, _, report = probe.fit(
    features,
    labels,
    classes=3,
    validation=(features, labels),
    ridges=[1e-4, 1e-5],
  )
  assert [one['validation_accuracy'] for one in report['tried']] == [1, 1]
  assert report['ridge'] == 1e-4


def test_twice_is_the_same_bit_for_bit():
  runs = [
    probe.fit(*_task(), classes=3, validation=_task(seed=1)) for _ in range(2)
  ]
  for one, other in zip(*(run[:2] for run in runs), strict=True):
    np.testing.assert_array_equal(one, other)
  assert runs[0][2] == runs[1][2]


def test_a_constant_feature_says_nothing():
  features, labels = _task()
  constant = np.concatenate(
    [features, np.full((60, 1), 0.3, np.float32)], axis=1
  )
  validation = _task(seed=1)
  wider = np.full((60, 1), -50.0, np.float32)  # Not even where it varies.
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


def _no_class_2(features, labels, validation):
  return features, labels % 2, validation


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
  ('change', 'said'),
  [
    (_no_class_2, 'class 2 of 3 has no example'),
    (_too_many, r'training has labels 1 \.\.\. 3, but the 3 classes are 0'),
    (_too_many_in_validation, r'validation has labels 1 \.\.\. 3'),
    (_other_width, 'validation has 3 features an example, training 4'),
    (_other_length, 'validation has 59 features and 60 labels'),
    (_empty, 'validation has 0 features and 0 labels'),
    (_not_finite, 'training has features that are not finite'),
  ],
)
def test_what_cannot_be_fitted(change, said):
  features, labels, validation = change(*_task(), _task(seed=1))
  with pytest.raises(errors.DataError, match=said) as e:
    probe.fit(features, labels, classes=3, validation=validation)
  assert e.value.exit_code == 65
  assert '\n' not in str(e.value)
