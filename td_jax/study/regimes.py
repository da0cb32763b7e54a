"""The cells of the study of few labels: which runs it needs, and their configs.

A regime is what a student has to learn from: how many labels, which teacher,
and which examples without a label. A row is a method in a regime, and a column
is a genre.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import numpy as np

from td_jax import types
from td_jax.configs import movielens as movielens_config
from td_jax.data import movielens

COLUMNS = movielens.GENRES
# Where weights are tried: the densest and the sparsest genre.
TUNED_ON = (COLUMNS[0], COLUMNS[-1])
SHARES = (0.01, 0.05, 0.2, 1.0)
TEACHERS = movielens.TEACHER_LABELS
SCRATCH = 'scratch'

# The largest values are far above what helps with all labels: without labels of
# its own a student has little else to learn from.
_LOGIT = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_OTHERS = (0.01, 0.1, 1.0, 10.0)
_TERMS = {
  'ld': ('logit',),
  'fd': ('feature',),
  'fitnet': ('hint',),
  'hybrid': ('logit', 'feature'),
  'td': ('interact', 'message', 'state'),
  'td_ld': ('logit', 'interact', 'message', 'state'),
}
METHODS = tuple(_TERMS)
# {row: (method whose weights it has, changes)}: ablations, in some regimes.
_ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
  f'{method}, k={k}': (method, {'k': k})
  for method in ('td', 'td_ld')
  for k in (0, 2)
}


class Regime(NamedTuple):
  """What a student has to learn from."""

  share: float  # Share of the training ratings that it sees.
  teacher: str  # all: learnt from all ratings; kept: from those shares alone.
  unlabelled: str  # none, rest or pairs, as in config.data.unlabelled.source.

  @property
  def name(self) -> str:
    """Such as '5%, kept, rest', in files and tables."""
    return f'{self.share:.0%}, {self.teacher}, {self.unlabelled}'


def regimes() -> tuple[Regime, ...]:
  """The regimes in which every method is tuned and run."""
  few = [
    Regime(share, teacher, unlabelled)
    for share in SHARES[:-1]
    for teacher in TEACHERS
    for unlabelled in ('none', 'rest')
  ]
  # With all labels nothing is hidden: both teachers are the same, and only
  # pairs that nobody rated are left.
  full = [Regime(SHARES[-1], 'all', source) for source in ('none', 'pairs')]
  return (*few, *full)


# Random pairs in place of the pairs of hidden ratings: with the weights of the
# latter.
_PAIRS = tuple(Regime(0.05, teacher, 'pairs') for teacher in TEACHERS)
_PAIRS_ROWS = ('ld', 'td_ld')
# Where the rounds of the conversation are compared.
_ROUNDS = tuple(Regime(0.05, teacher, 'rest') for teacher in TEACHERS)


def rows() -> list[tuple[Regime, str]]:
  """(regime, row) of all rows of the study."""
  # Training from scratch needs neither a teacher nor other examples.
  scratch = [(Regime(share, 'all', 'none'), SCRATCH) for share in SHARES]
  methods = [(regime, method) for regime in regimes() for method in METHODS]
  rounds = [(regime, row) for regime in _ROUNDS for row in _ABLATIONS]
  pairs = [(regime, row) for regime in _PAIRS for row in _PAIRS_ROWS]
  return scratch + methods + rounds + pairs


def tuned_as(regime: Regime, row: str) -> tuple[Regime, str]:
  """The regime and method whose trials choose the weights of a row."""
  if regime in _PAIRS:
    regime = regime._replace(unlabelled='rest')
  return regime, _ABLATIONS.get(row, (row, {}))[0]


def trials(method: str, count: int) -> list[dict[str, Any]]:
  """Up to `count` weights of a method, the same in every call.

  A single weight is tried at all of its values, if there are not more.
  """
  values = [
    (
      f'distill.weights.{term}',
      _LOGIT if term == 'logit' else _OTHERS,
    )
    for term in _TERMS[method]
  ]
  grid = np.stack(
    np.meshgrid(*(np.arange(len(v)) for _, v in values), indexing='ij'), axis=-1
  ).reshape(-1, len(values))
  order = np.random.default_rng(0).permutation(len(grid))
  return [
    {name: v[i] for (name, v), i in zip(values, grid[number], strict=True)}
    for number in order[:count].tolist()
  ]


def config(
  regime: Regime,
  row: str,
  column: str,
  *,
  seeds: range,
  teacher: str,
  weights: Mapping[str, Any],
) -> types.Config:
  """The config of a cell.

  Args:
    regime: What the students learn from.
    row: A method or an ablation.
    column: A genre.
    seeds: The students, which are trained side by side.
    teacher: The teacher's folder.
    weights: Keys of the config, as from `trials`.
  """
  method, changes = _ABLATIONS.get(row, (row, {}))
  cfg = movielens_config.get_config(f'genre={column},method={method}')
  cfg.seed, cfg.seeds = seeds.start, len(seeds)
  cfg.teacher.checkpoint = teacher
  # Validation stops each student at its best step, and the test split is not
  # later than that of other runs: a refit would need another choice of steps.
  cfg.refit_on_validation = False
  _hide(cfg, regime)
  cfg.update_from_flattened_dict({**weights, **changes})
  return cfg


def teacher_config(regime: Regime, column: str) -> types.Config:
  """The config of the teacher of a regime and genre."""
  cfg = movielens_config.get_config('method=teacher')
  cfg.refit_on_validation = False
  if regime.teacher == 'kept':
    _hide(cfg, regime)
    cfg.data.labels.genre = column
  return cfg


def _hide(cfg: types.Config, regime: Regime) -> None:
  cfg.data.labels.share = regime.share
  cfg.data.unlabelled.source = regime.unlabelled
  cfg.teacher.labels = regime.teacher
