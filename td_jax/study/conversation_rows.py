"""The variants of the conversation that are compared, for ratings and for images.

Each variant changes one thing about the one that it is compared with, and has weights of
its own, chosen with as many trials as those of every other.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from td_jax.paper import tune
from td_jax.study import search

LD = 'ld'
MIXED_INPUTS = 'ld, mixed inputs'


class Variant(NamedTuple):
  """A row of the study."""

  method: str
  title: str
  against: str  # The row that it changes one thing of; '' for none.
  changes: Mapping[str, Any] = {}  # Of the config.


_PLAIN = {'distill.states': 'standardised'}
VARIANTS = {
  LD: Variant('ld', 'LD: the outputs on the inputs', ''),
  MIXED_INPUTS: Variant('ld', 'LD, on further made-up inputs', LD),
  'mix': Variant('mix', 'Mixed states on both sides, no messages', LD),
  'ask, inputs': Variant(
    'ask',
    'Questions in messages, about inputs',
    LD,
    {'distill.questions': 'inputs'},
  ),
  'ask': Variant('ask', 'Questions in messages, between inputs', 'ask, inputs'),
  'td_ld, k=0': Variant('td_ld', 'TD + LD, k = 0', LD, {'k': 0}),
  'td_ld': Variant('td_ld', 'TD + LD, k = 1', 'td_ld, k=0'),
  'td_ld, standardised, k=0': Variant(
    'td_ld',
    'TD + LD, standardised states, k = 0',
    'td_ld, k=0',
    _PLAIN | {'k': 0},
  ),
  'td_ld, standardised': Variant(
    'td_ld',
    'TD + LD, standardised states, k = 1',
    'td_ld, standardised, k=0',
    _PLAIN,
  ),
  'td_ld, held': Variant(
    'td_ld',
    'TD + LD, standardised states, k = 1, the answer held constant',
    'td_ld, standardised',
    _PLAIN | {'distill.interact_teaches': 'student'},
  ),
}
_DRAWS = 5
_TERMS = {**tune.TERMS, 'mix': ('logit', 'mix'), 'ask': ('logit', 'ask')}
# Terms that compare outputs have weights of the same size.
_OF_OUTPUTS = ('logit', 'mix', 'ask')


def draws(regime: Any) -> tuple[int, ...]:
  """Choices of labels, the same number in every regime."""
  del regime
  return tuple(range(_DRAWS))


def tuned_as(regime: Any, row: str) -> tuple[Any, str]:
  """Every variant has trials of its own."""
  return regime, row


def trials(
  row: str,
  count: int,
  *,
  outputs: tuple[float, ...],
  states: tuple[float, ...],
) -> list[dict[str, Any]]:
  """`count` settings of a row; see `search.latin`.

  Args:
    row: A key of `VARIANTS`.
    count: How many.
    outputs: Weights to try for terms that compare outputs.
    states: Weights to try for terms that compare states or messages.
  """
  terms = _TERMS[VARIANTS[row].method]
  return search.latin(
    {
      f'distill.weights.{term}': outputs if term in _OF_OUTPUTS else states
      for term in terms
    },
    count,
  )
