"""td_jax as a library: a Flax teacher into a Flax student, on NumPy arrays.

pip install scikit-learn
python examples/library.py

The digits of scikit-learn, 8 x 8 pixels, stand for your data: 100 of them have a
label, and 1,300 more have none. The teacher is an MLP that has seen all labels.
"""

import sys

from flax import linen as nn
import jax
import numpy as np
import optax
from sklearn import datasets

import td_jax


class MLP(nn.Module):
  """Two hidden layers, which are its low and its high state."""

  width: int

  def setup(self):
    self.layers = [nn.Dense(self.width), nn.Dense(self.width), nn.Dense(10)]

  def low(self, x):
    return nn.relu(self.layers[0](x))

  def interpret(self, low):
    return nn.relu(self.layers[1](low))

  def output(self, high):
    return self.layers[2](high)

  def __call__(self, x):
    return self.output(self.interpret(self.low(x)))


def trained(x: np.ndarray, y: np.ndarray) -> td_jax.Frozen:
  """Your teacher: here an MLP, trained with optax in the usual way."""
  model = MLP(512)
  params = model.init(jax.random.key(0), x[:1])
  optimizer = optax.adam(1e-3)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state):
    def loss(params):
      logits = model.apply(params, x)
      return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, updates), state

  for _ in range(200):
    params, state = step(params, state)
  return td_jax.Frozen(
    params,
    output=lambda params, high: model.apply(params, high, method='output'),
    low=lambda params, x: model.apply(params, x, method='low'),
    interpret=lambda params, low: model.apply(params, low, method='interpret'),
  )


def main(steps: int) -> None:
  x, y = datasets.load_digits(return_X_y=True)
  x, y = (x / 16).astype(np.float32), y.astype(np.int32)
  teacher = trained(x[:1400], y[:1400])
  for method in ('scratch', 'ld', 'td_ld'):
    student = td_jax.distill(
      teacher,
      MLP(32),
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
