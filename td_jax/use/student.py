"""The student of a finished run, ready for predictions."""

from collections.abc import Mapping
from collections.abc import Sequence
import os
from typing import Any

import jax
from jax import numpy as jnp
import numpy as np

from td_jax import data
from td_jax import errors
from td_jax import types
from td_jax.data import arrays
from td_jax.models import layers
from td_jax.run import results as results_lib
from td_jax.run import saved
from td_jax.run import workdir
from td_jax.storage import paths
from td_jax.training import metrics


class Student:
  """A trained network, and how its input is made.

  Attributes:
    config: The config of the run.
    results: The content of the run's results.json.
    seed: The seed of this network.
    model: The Flax module.
    variables: Its variables.
    model_args: What the data say about the network, such as {'classes': 10}.
    class_names: Of images; () for ratings.
    preprocess: Examples [n] -> the input of `model`, leaves [n, ...]. Images are
      files, PIL images or uint8 arrays [h, w, 3]; ratings are pairs of the ids of
      a user and a movie.
  """

  def __init__(
    self, folder: str | os.PathLike[str], *, seed: int | None = None
  ):
    """Loads the best network of a run; see `load`."""
    path = paths.as_path(os.fspath(folder))
    self.config = saved.config_of(path)
    self.results: Mapping[str, Any] = results_lib.read(path)
    if self.config.domain == arrays.NAME:
      arrays.read(self.config)  # Says why not.
    self.model_args, kept = workdir.inputs(path)
    self.class_names = tuple(kept.get('class_names', np.empty(0)).tolist())
    domain = data.DOMAINS[self.config.domain]
    self.preprocess = domain.encoder(self.config, kept)
    networks = saved.networks(
      path, self.model_args, self.preprocess([self.preprocess.blank])
    )
    seeds = self.results['seeds']
    self.seed = best_seed(self.results) if seed is None else seed
    if self.seed not in seeds:
      raise errors.ConfigError(
        f'{folder} has no seed {self.seed}; its seeds are '
        f'{", ".join(map(str, seeds))}.'
      )
    self.model = networks.model
    self.variables = jax.tree.map(
      lambda leaf: jnp.asarray(leaf[seeds.index(self.seed)]),
      networks.variables,
    )
    self._apply = jax.jit(
      lambda variables, x: layers.apply(self.model, variables, x)[-1]
    )

  def outputs(self, x: types.PyTree) -> np.ndarray:
    """The network's output [n, ...] for inputs [n, ...] from `preprocess`.

    These are logits [n, classes] of images and ratings [n].
    """
    count = len(jax.tree.leaves(x)[0])
    # A program is compiled for powers of two alone, not for every n.
    padding = (1 << (count - 1).bit_length()) - count

    def pad(leaf: Any) -> np.ndarray:
      leaf = np.asarray(leaf)
      return np.pad(leaf, [(0, padding)] + [(0, 0)] * (leaf.ndim - 1))

    padded = jax.tree.map(pad, x)
    return np.asarray(self._apply(self.variables, padded))[:count]

  def scores(self, x: types.PyTree) -> np.ndarray:
    """Probabilities [n, classes] or ratings [n] for inputs from `preprocess`."""
    outputs = self.outputs(x)
    if not self.class_names:
      return outputs
    return np.asarray(jax.nn.softmax(outputs, axis=-1))

  def predict(self, examples: Sequence[Any], *, batch: int = 64) -> np.ndarray:
    """Probabilities [n, classes] of images, or ratings [n].

    Args:
      examples: What `preprocess` takes.
      batch: How many examples are computed at a time.

    Raises:
      errors.DataError: An example cannot be read.
    """
    parts = [
      self.scores(self.preprocess(examples[start : start + batch]))
      for start in range(0, len(examples), batch)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def load(folder: str | os.PathLike[str], *, seed: int | None = None) -> Student:
  """The student of a finished run, without its training data.

  >>> student = td_jax.load('runs/flowers')
  >>> student.predict(['rose.jpg']).argmax()

  Args:
    folder: The run's folder; local, or gs://.
    seed: Which of the run's students; None takes the best by validation, or the
      first if there was none.

  Raises:
    errors.DataError: There is no finished run, or it is damaged.
    errors.ConfigError: The run has no such seed.
  """
  return Student(folder, seed=seed)


def best_seed(results: Mapping[str, Any]) -> int:
  """The seed with the best score on validation, or the first without one."""
  if 'validation' not in results:
    return results['seeds'][0]
  scores = np.asarray(results['validation']['per_seed'])
  if not metrics.METRICS[results['metric']].lower_is_better:
    scores = -scores
  return results['seeds'][int(scores.argmin())]
