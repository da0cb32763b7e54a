"""The study of the conversation on CIFAR: 50 labelled images a class, and no others.

The recipe is the argument `laptop`, for 320 steps. Weights are chosen on CIFAR-10.
CIFAR-100 is held back: nothing is chosen by it.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from td_jax import types
from td_jax.study import conversation_rows
from td_jax.study import images

NAME = 'conversation_images'
LOWER_IS_BETTER = False
COLUMNS = images.COLUMNS
draws, tuned_as = conversation_rows.draws, conversation_rows.tuned_as
TUNED_ON = ('cifar10',)
HELD_BACK = ('cifar100',)
TRIALS, TRIAL_SEEDS, SEEDS = 4, 1, 5
_PER_CLASS = 50

_OUTPUTS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_STATES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
# Ratings tell about the others, at a tenth of the time.
_ROWS = (
  conversation_rows.LD,
  conversation_rows.MIXED_INPUTS,
  'mix',
  'ask, inputs',
  'ask',
  'td_ld, k=0',
  'td_ld',
)


class Regime(NamedTuple):
  """What a student has to learn from."""

  per_class: int  # Labels in each class.

  @property
  def name(self) -> str:
    """Such as '50 per class'."""
    return f'{self.per_class} per class'


def columns(regime: Regime) -> tuple[str, ...]:
  """The datasets."""
  del regime
  return COLUMNS


def rows() -> list[tuple[Regime, str]]:
  """The variants."""
  return [(Regime(_PER_CLASS), row) for row in _ROWS]


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
  """The config of a cell; see `images.config`."""
  variant = conversation_rows.VARIANTS[row]
  cfg = images.config(
    images.Regime(regime.per_class, 'none'),
    conversation_rows.LD,
    column,
    seeds=seeds,
    teacher=teacher,
    weights={},
  )
  cfg.method, cfg.steps = variant.method, 320
  if row == conversation_rows.MIXED_INPUTS:
    cfg.data.unlabelled.source = 'mixtures'
  cfg.update_from_flattened_dict({**variant.changes, **weights})
  return cfg


def teacher_config(regime: Regime, column: str) -> None:
  """The teacher has published weights."""
  return images.teacher_config(images.Regime(regime.per_class, 'none'), column)
