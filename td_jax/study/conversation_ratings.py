"""The study of the conversation on MovieLens: 5% of the labels, the honest teacher.

Students see the pairs of the hidden ratings as well, without their ratings; a few
variants also run without them. Weights are chosen on Drama and Sci-Fi. Romance and War
are held back: nothing is chosen by them.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from td_jax import types
from td_jax.study import conversation_rows
from td_jax.study import ratings

NAME = 'conversation_ratings'
LOWER_IS_BETTER = True
COLUMNS = ratings.COLUMNS
draws, tuned_as = conversation_rows.draws, conversation_rows.tuned_as
TUNED_ON = ('Drama', 'Sci-Fi')
HELD_BACK = ('Romance', 'War')
TRIALS, TRIAL_SEEDS, SEEDS = 6, 2, 10
_SHARE = 0.05
# The rows that also run without unlabelled pairs.
_ALONE = (conversation_rows.LD, 'mix', 'ask, inputs', 'ask')

_OUTPUTS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_STATES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


class Regime(NamedTuple):
  """What a student has to learn from."""

  share: float  # Share of the training ratings.
  unlabelled: str  # rest or none, as in config.data.unlabelled.source.

  @property
  def name(self) -> str:
    """Such as '5%, rest'."""
    return f'{self.share:.0%}, {self.unlabelled}'


def columns(regime: Regime) -> tuple[str, ...]:
  """The genres."""
  del regime
  return COLUMNS


def rows() -> list[tuple[Regime, str]]:
  """All variants with unlabelled pairs, and a few without them."""
  rest, none = (Regime(_SHARE, source) for source in ('rest', 'none'))
  return [
    *((rest, row) for row in conversation_rows.VARIANTS),
    *((none, row) for row in _ALONE),
  ]


def trials(method: str, count: int) -> list[dict[str, Any]]:
  """`count` settings of a variant."""
  return conversation_rows.trials(
    method, count, outputs=_OUTPUTS, states=_STATES
  )


def config(
  regime: Regime,
  row: str,
  column: str,
  *,
  seeds: range,
  teacher: str,
  weights: Mapping[str, Any],
) -> types.Config:
  """The config of a cell; see `ratings.config`."""
  variant = conversation_rows.VARIANTS[row]
  made_up = row == conversation_rows.MIXED_INPUTS
  return ratings.config(
    ratings.Regime(
      regime.share, 'kept', 'pairs' if made_up else regime.unlabelled
    ),
    variant.method,
    column,
    seeds=seeds,
    teacher=teacher,
    weights={**variant.changes, **weights},
  )


def teacher_config(regime: Regime, column: str) -> types.Config:
  """The honest teacher of a genre."""
  return ratings.teacher_config(
    ratings.Regime(regime.share, 'kept', regime.unlabelled), column
  )
