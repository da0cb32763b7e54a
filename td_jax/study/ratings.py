"""The study of few labels on MovieLens: which runs it needs, and their configs.

Every method is tuned and run at 5% of the labels, and at 100% with random pairs;
without pairs, table 3 compares the methods at 100%. At 1% and 20% a few methods
run, with their weights at 5%: they give the curves of score against labels. The
steps, weight decay and dropout of scratch are searched at every share. There is
no refit: a student is scored on validation and test at its best step by
validation.

There are two teachers. The paper's has learnt from all ratings of the training
split, also from those that are hidden from the students: what a student gains
from it may be its memory of the answers. The honest one has never seen them.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from td_jax import types
from td_jax.configs import movielens as movielens_config
from td_jax.data import movielens
from td_jax.data import table_task
from td_jax.study import search

NAME = 'few_labels'
LOWER_IS_BETTER = True
COLUMNS = movielens.GENRES
# Where weights are tried: the densest and the sparsest genre.
TUNED_ON = (COLUMNS[0], COLUMNS[-1])
SHARES = (0.01, 0.05, 0.2, 1.0)
TEACHERS = table_task.TEACHER_LABELS
TRIALS, TRIAL_SEEDS, SEEDS = 6, 2, 10
_DRAWS = 5
SCRATCH = 'scratch'

# The largest values are far above what helps with all labels: without labels of
# its own a student has little else to learn from.
_LOGIT = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_OTHERS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
# The student's recipe that is searched for scratch, at each share of labels.
_RECIPE: dict[str, tuple[Any, ...]] = {
  'steps': (50, 100, 250),
  'optim.weight_decay': (0.3, 1.0, 3.0),
  'model.dropout': (0.1, 0.3),
}
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
    Regime(0.05, teacher, unlabelled)
    for teacher in TEACHERS
    for unlabelled in ('none', 'rest')
  ]
  return (_FULL, *few)


# With all labels nothing is hidden: both teachers are the same, and only pairs
# that nobody rated are left.
_FULL = Regime(1.0, 'all', 'pairs')
# Random pairs in place of the pairs of hidden ratings: with the weights of the
# latter.
_PAIRS = tuple(Regime(0.05, teacher, 'pairs') for teacher in TEACHERS)
_PAIRS_ROWS = ('ld', 'td_ld')
# Where the rounds of the conversation are compared.
_ROUNDS = Regime(0.05, 'kept', 'rest')
# (source, method) of the curves of score against labels.
_CURVES = (
  ('none', 'ld'),
  ('rest', 'ld'),
  ('rest', 'fitnet'),
  ('rest', 'td_ld'),
)


def columns(regime: Regime) -> tuple[str, ...]:
  """The genres, in every regime."""
  del regime
  return COLUMNS


def draws(regime: Regime) -> tuple[int, ...]:
  """Choices of labels; they change scores by more than seeds do."""
  return tuple(range(_DRAWS)) if regime.share < 1 else (0,)


def rows() -> list[tuple[Regime, str]]:
  """(regime, row) of all rows of the study."""
  scratch = [(Regime(share, 'all', 'none'), SCRATCH) for share in SHARES]
  methods = [
    (regime, method) for regime in regimes() for method in search.METHODS
  ]
  rounds = [(_ROUNDS, row) for row in _ABLATIONS]
  pairs = [(regime, row) for regime in _PAIRS for row in _PAIRS_ROWS]
  curves = [
    (Regime(share, teacher, unlabelled), method)
    for share in (0.05, 0.01, 0.2)
    for unlabelled, method in _CURVES
    for teacher in TEACHERS
  ]
  # Without pairs, the method that wins table 3 and its simplest rival.
  curves += [(_FULL._replace(unlabelled='none'), row) for row in _PAIRS_ROWS]
  # What says most comes first, so that it is there early.
  unlabelled = [each for each in methods if each[0].unlabelled != 'none']
  honest = [each for each in pairs + methods if each[0].teacher == 'kept']
  return list(
    dict.fromkeys(
      scratch + unlabelled + curves + rounds + honest + methods + pairs
    )
  )


def tuned_as(regime: Regime, row: str) -> tuple[Regime, str]:
  """The regime and method whose trials choose the weights of a row.

  Weights for 1% and 20% of the labels are those for 5%, because a search takes
  as long as the runs themselves. Scratch is searched at every share.
  """
  if row == SCRATCH:
    return regime, row
  if regime.share < 1:
    regime = regime._replace(share=0.05)
    if regime.unlabelled == 'pairs':
      regime = regime._replace(unlabelled='rest')
  return regime, _ABLATIONS.get(row, (row, {}))[0]


def trials(method: str, count: int) -> list[dict[str, Any]]:
  """`count` settings of a method; see `search.latin`."""
  if method == SCRATCH:
    return search.latin(_RECIPE, count)
  return search.latin(
    search.weights(method, logit=_LOGIT, others=_OTHERS), count
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
  # Validation stops each student at its best step, which a refit cannot know.
  cfg.refit_on_validation = False
  cfg.steps_per_dispatch = cfg.log_every = cfg.eval_every = 25
  cfg.steps, cfg.optim.warmup, cfg.optim.learning_rate = 250, 50, 2e-3
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
