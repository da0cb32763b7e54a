"""A method of your own: label distillation with Huber's loss.

pip install scikit-learn
python examples/custom_method.py

A method is a function of a lesson: what student, teachers and batch are. It returns
the cost of each example, and further numbers to report. A line in METHODS gives it a
name; from there on it is trained, saved, resumed and compared like all others.
"""

import sys

from flax import linen as nn
import numpy as np
import optax
from sklearn import datasets

import td_jax
from td_jax.methods import base


def huber(lesson: base.Lesson):
  """Huber's loss between the outputs of student and teacher, summed over classes."""
  costs = optax.huber_loss(lesson.student.output, lesson.teacher.output)
  return costs.sum(axis=-1), {}


def build(config, weigh):
  """(weight, method); the weight of LD is as good as a key of its own."""
  method = base.stateless(huber, needs={base.Need.TEACHER_OUTPUT})
  return weigh(config.distill.weights.logit), method


td_jax.methods.METHODS['huber'] = {'huber': build}


class Small(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(10)(nn.relu(nn.Dense(32)(x)))


def nearest(x: np.ndarray, y: np.ndarray) -> td_jax.Frozen:
  """A teacher without a network: minus the distance to the mean of each class."""
  means = np.stack([x[y == label].mean(axis=0) for label in range(10)])
  return td_jax.Frozen(
    means, lambda means, x: -((x[:, None] - means[None]) ** 2).sum(axis=2)
  )


def main(steps: int) -> None:
  x, y = datasets.load_digits(return_X_y=True)
  x, y = (x / 16).astype(np.float32), y.astype(np.int32)
  teacher = nearest(x[:1400], y[:1400])
  for method in ('scratch', 'ld', 'huber'):
    student = td_jax.distill(
      teacher,
      Small(),
      x[:100],
      y[:100],
      method=method,
      unlabelled=x[100:1400],
      test=(x[1400:], y[1400:]),
      steps=steps,
      seeds=3,
    )
    test = student.results['test']
    print(f'{method}: {test["mean"]:.3f} +- {test["standard_error"]:.3f}')


if __name__ == '__main__':
  main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)
