"""A teacher of your own: a small CNN in Flax, trained here on the same photos.

python examples/cnn_teacher.py PHOTOS
td_jax --config=image_folder:data=PHOTOS,teacher=examples/cnn_teacher.py:teacher

PHOTOS has a folder for each class. The first command writes cnn_teacher.npz; the
second trains a student that learns from it. Take your own network in its place: the
function `teacher` is all that td_jax needs.
"""

import functools
import pathlib
import sys

from flax import linen as nn
from flax import traverse_util
import jax
from jax import numpy as jnp
import numpy as np
import optax

import td_jax
from td_jax.data import images

SIZE, TOKENS = 64, 8  # Pixels and cells on each side.
FILE = pathlib.Path(__file__).with_suffix('.npz')


class CNN(nn.Module):
  """Both hidden states are a grid of 8 x 8 cells, as tokens [b, 64, d]."""

  classes: int

  def setup(self):
    self.stem = [nn.Conv(width, (3, 3), strides=2) for width in (16, 32, 64)]
    self.block = nn.Conv(96, (3, 3))
    self.head = nn.Dense(self.classes)

  def low(self, x):
    for conv in self.stem:
      x = nn.gelu(conv(x))
    return x.reshape(len(x), TOKENS * TOKENS, -1)

  def interpret(self, low):
    grid = low.reshape(len(low), TOKENS, TOKENS, -1)
    return nn.gelu(self.block(grid)).reshape(*low.shape[:2], -1)

  def output(self, high):
    return self.head(high.mean(axis=1))

  def __call__(self, x):
    return self.output(self.interpret(self.low(x)))


def teacher() -> td_jax.Frozen:
  """What `teacher=examples/cnn_teacher.py:teacher` calls."""
  with np.load(FILE) as file:
    params = traverse_util.unflatten_dict(dict(file), sep='/')
  model = CNN(classes=len(params['params']['head']['bias']))

  def part(name):
    return functools.partial(model.apply, method=name)

  return td_jax.Frozen(
    params, part('output'), low=part('low'), interpret=part('interpret')
  )


def train(photos: str, *, steps: int) -> None:
  """Trains the CNN on the photos and writes its parameters."""
  columns = images.load_columns(
    'image_folder', 'train', data_dir=photos, size=SIZE, smaller_side=SIZE
  )
  x, y = columns.images / 127.5 - 1, columns.labels
  model = CNN(classes=len(columns.class_names))
  params = model.init(jax.random.key(0), jnp.asarray(x[:1]))
  optimizer = optax.adamw(1e-3)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, x, y):
    def loss(params):
      logits = model.apply(params, x)
      return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  rng = np.random.default_rng(0)
  for _ in range(steps):
    ids = rng.integers(0, len(x), 32)
    params, state = step(params, state, jnp.asarray(x[ids]), y[ids])
  np.savez(FILE, **traverse_util.flatten_dict(params, sep='/'))


if __name__ == '__main__':
  train(sys.argv[1], steps=int(sys.argv[2]) if len(sys.argv) > 2 else 500)
