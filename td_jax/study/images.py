"""The study of few labels on CIFAR: which runs it needs, and their configs.

All runs have the recipe of the argument `laptop` and the same 20,000 training
images, some of which have a label. Students that see those alone train for 80
steps, the others for 320. Every method runs with 50 labels in each class, where
weights are searched, on CIFAR-10 alone; a few methods run with 10 and 500, with
the same weights. What all labels give is in the paper's tables, and the page takes
it from there. A student is scored on validation and test at its best step by
validation.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from td_jax import types
from td_jax.paper import table_specs
from td_jax.study import search

NAME = 'few_images'
LOWER_IS_BETTER = False
COLUMNS = table_specs.COLUMNS['images']
CLASSES = {'cifar10': 10, 'cifar100': 100}
TUNED_ON = COLUMNS[:1]
SCRATCH = 'scratch'
RANDOM = table_specs.RANDOM
ALL = 0  # In place of a number of labels; these rows are the paper's tables'.
PER_CLASS = (10, 50, 500)
_TUNED = 50
TRIALS, TRIAL_SEEDS, SEEDS = 4, 1, 3
_DRAWS = 3

_LOGIT = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_OTHERS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)
_RECIPE: dict[str, tuple[Any, ...]] = {
  # Copied blocks take a far smaller rate than a random start.
  'optim.learning_rate': (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
  'optim.weight_decay': (0.01, 0.1),
}


class Regime(NamedTuple):
  """What a student has to learn from."""

  per_class: int  # Labels in each class; `ALL`: every training image has one.
  unlabelled: str  # none or rest, as in config.data.unlabelled.source.

  @property
  def name(self) -> str:
    """Such as '50 per class, rest', in tables."""
    labels = f'{self.per_class} per class' if self.per_class else 'all labels'
    return f'{labels}, {self.unlabelled}'


# {row: the method whose weights it has}. What rounds do for TD alone is in table 6.
_ABLATIONS = {
  'td_ld, k=0': 'td_ld',
  'td_ld, k=2': 'td_ld',
  table_specs.ONE_RATE: 'td',
}
# What runs with other numbers of labels.
_CURVES = (
  ('none', 'ld'),
  ('rest', 'ld'),
  ('rest', 'td_ld'),
)


def columns(regime: Regime) -> tuple[str, ...]:
  """The datasets of a regime: CIFAR-100 has fewer than 500 images a class."""
  return COLUMNS[:1] if regime.per_class == 500 else COLUMNS


def draws(regime: Regime) -> tuple[int, ...]:
  """Choices of labels, a seed for each."""
  return tuple(range(_DRAWS)) if regime.per_class != ALL else (0,)


def rows() -> list[tuple[Regime, str]]:
  """(regime, row) of all rows of the study."""
  labels_alone = [
    (Regime(labels, 'none'), row)
    for labels in PER_CLASS
    for row in (SCRATCH, RANDOM)
  ]
  curves = [
    (Regime(labels, source), row)
    for labels in PER_CLASS
    for source, row in _CURVES
  ]
  methods = [
    (Regime(_TUNED, source), row)
    for source in ('none', 'rest')
    for row in (*search.METHODS, table_specs.L2)
  ]
  ablations = [
    (Regime(_TUNED, 'rest' if method == 'td_ld' else 'none'), row)
    for row, method in _ABLATIONS.items()
  ]
  # The rows of the curves come first, so that the figure is there early.
  return list(dict.fromkeys(labels_alone + curves + methods + ablations))


def tuned_as(regime: Regime, row: str) -> tuple[Regime, str]:
  """The regime and row whose trials choose the settings of a row."""
  if row not in (SCRATCH, RANDOM):
    regime = regime._replace(per_class=_TUNED)
  return regime, _ABLATIONS.get(row, row)


def trials(method: str, count: int) -> list[dict[str, Any]]:
  """`count` settings of a row of `tuned_as`; see `search.latin`."""
  if method in (SCRATCH, RANDOM):
    return search.latin(_RECIPE, count)
  if method == table_specs.L2:
    method = 'ld'
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
    column: A dataset.
    seeds: The students, which are trained side by side.
    teacher: The folder of the published weights.
    weights: Keys of the config, as from `trials`.
  """
  cfg = table_specs.config(
    'images', row, column, seeds=seeds, teacher=teacher, cache_dir=''
  )
  if regime.unlabelled == 'none':
    # A few hundred images are soon learnt by heart.
    cfg.steps, cfg.optim.warmup, cfg.eval_every = 80, 20, 20
  cfg.data.labels.per_class = regime.per_class
  cfg.data.unlabelled.source = regime.unlabelled
  cfg.update_from_flattened_dict({**weights})
  return cfg


def teacher_config(regime: Regime, column: str) -> None:
  """The teacher has published weights."""
