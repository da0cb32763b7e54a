"""The least that a network takes, by a formula: tracing it would take seconds."""

import itertools
import math
from typing import Any
from typing import NamedTuple

_FLOAT = 4  # Bytes. Parameters, states and softmax are float32.
_BYTES = {'float32': 4, 'bfloat16': 2}  # Of a number in `ViT.dtype`.


class Footprint(NamedTuple):
  """Bytes; all but `parameters` are for one example."""

  parameters: int = 0  # Matrices alone; other parameters are small.
  kept: int = 0  # What the backward pass reads: the state after each layer.
  states: int = 0  # The two states that methods look at.
  widest: int = 0  # The largest array within a layer.


def mlp(settings: Any) -> Footprint:
  """Of `mlp.MLP`: its ReLU layers, without embeddings."""
  hidden = settings.hidden
  low, high = settings.split
  return Footprint(
    parameters=_FLOAT * sum(map(math.prod, itertools.pairwise(hidden))),
    kept=_FLOAT * sum(hidden),
    states=_FLOAT * (hidden[low - 1] + hidden[high - 1]),
    widest=_FLOAT * max(hidden),
  )


def vit(settings: Any, tokens: int) -> Footprint:
  """Of `vit.ViT`: its patches and blocks, on `tokens` tokens."""
  width = settings.width
  layers_of_mlp = 3 if settings.mlp == 'swiglu' else 2
  block = 4 * width**2 + layers_of_mlp * width * settings.mlp_width
  patches = 3 * settings.patch**2 * width
  state = tokens * width
  return Footprint(
    parameters=_FLOAT * (patches + settings.depth * block),
    kept=_BYTES[settings.dtype] * settings.depth * state,
    states=_FLOAT * 2 * state,
    # The weights of attention: of each token to each, for every head.
    widest=_FLOAT * settings.heads * tokens**2,
  )
