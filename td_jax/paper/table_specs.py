"""The cells of the paper's tables: which runs they need, and their configs.

A row of a table is a method with changes to its config, a column is a genre or
a dataset. The same row may be in several tables; its cells run once.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from td_jax import types
from td_jax.configs import movielens as movielens_config
from td_jax.configs import vit_cifar10
from td_jax.configs import vit_cifar100
from td_jax.data import movielens
from td_jax.paper import numbers

_IMAGES = {'cifar10': vit_cifar10, 'cifar100': vit_cifar100}
COLUMNS = {'movielens': movielens.GENRES, 'images': tuple(_IMAGES)}
BASELINE_METHODS = ('scratch', 'ld', 'fd', 'fitnet', 'hybrid')
LONGER = 'scratch, as long as td'
RANDOM = 'scratch, random'  # Images: no layer comes from the teacher.
ONE_RATE = 'td, one rate'  # Images: encoders learn as slowly as copied blocks.
L2 = 'ld, l2'  # Images: the paper's distance between outputs; elsewhere KL.
# How many times longer TD trains than scratch, rounded: the time of a step in
# results/speed_movielens.json, and the seconds per seed in results/images.jsonl.
_TIMES = {'movielens': 8, 'images': 2}
# {(domain, row): what it is called}: students of images start from blocks of
# their teacher, whatever they learn from.
NAMES = {
  ('images', 'scratch'): "task only, from the teacher's blocks",
  ('images', LONGER): 'task only, as long as td',
  ('images', RANDOM): 'scratch',
  ('images', ONE_RATE): 'td, encoders at the rate of the copied blocks',
}
_NOISE = 0.1  # Section 6.5 has "a small Gaussian noise", without a number.
# Shares of the steps in which the student, and then the encoders and decoders,
# are trained alone.
_STAGES = (0.4, 0.2)

# {row: (method, changes to the method's config)}.
_CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
  RANDOM: (
    'scratch',
    {
      'student_init': 'random',
      'student_head': 'zeros',
      # The rate of the config is that of copied blocks.
      'optim.learning_rate': 1e-3,
    },
  ),
  L2: ('ld', {'distill.logit_distance': 'l2'}),
  ONE_RATE: ('td', {'optim.method_learning_rate': 0.0}),
  'td_ld, k=0': ('td_ld', {'k': 0}),
  'td_ld, k=2': ('td_ld', {'k': 2}),
  'td, k=0': ('td', {'k': 0}),
  'td, k=2': ('td', {'k': 2}),
  'td, k=3': ('td', {'k': 3}),
  'td, no message loss': ('td', {'distill.weights.message': 0.0}),
  'td, no state loss': ('td', {'distill.weights.state': 0.0}),
  'td, noise': ('td', {'distill.noise': _NOISE}),
}
_SEPARATELY = 'td, separately'


class Table(NamedTuple):
  """How we remake a table of the paper."""

  domain: str  # A key of `COLUMNS`.
  title: str
  rows: Mapping[str, str]  # {row: its name in the paper's table, or ''}.
  printed: Mapping[str, Any]  # The paper's numbers.


# The rows are named here and not taken from `methods.METHODS`: a new method does
# not owe the tables hours of runs.
_COMPARED = {
  'scratch': 'scratch',
  'ld': 'ld',
  'fd': 'fd',
  'fitnet': 'fitnet',
  'hybrid': 'hybrid',
  'td': 'td',
  'td_ld': '',
  LONGER: '',
}
TABLES = {
  '3': Table('movielens', 'methods', _COMPARED, numbers.TABLE3),
  '4': Table('images', 'methods', _COMPARED, numbers.TABLE4),
  '5': Table(
    'movielens',
    'iterations of the conversation',
    {
      'td, k=0': 'no_interaction',
      'td': '1_iteration',
      'td, k=2': 'more_iterations',
      'td, k=3': 'more_iterations',
    },
    numbers.TABLE5,
  ),
  '6': Table(
    'images',
    'iterations of the conversation',
    {
      'td, k=0': 'no_interaction',
      'td': '1_iteration',
      'td, k=2': 'more_iterations',
    },
    numbers.TABLE6,
  ),
  '7': Table(
    'movielens',
    'consistency losses',
    {
      'td, no message loss': 'no_message',
      'td, no state loss': 'no_state',
      'td': 'td',
    },
    numbers.TABLE7,
  ),
  '8': Table(
    'movielens',
    'noise, and a stage for encoders and decoders',
    {'td, noise': 'noise', _SEPARATELY: 'separately', 'td': 'together'},
    numbers.TABLE8,
  ),
  '9': Table(
    'images',
    'the state loss, and noise',
    {'td, no state loss': 'no_state', 'td, noise': 'noise', 'td': 'td'},
    numbers.TABLE9,
  ),
}


def config(
  domain: str,
  row: str,
  column: str,
  *,
  seeds: range,
  teacher: str,
  cache_dir: str,
) -> types.Config:
  """The config of a cell.

  Args:
    domain: A key of `COLUMNS`.
    row: A row of a table, or a method.
    column: A column of the domain.
    seeds: The students, which are trained side by side.
    teacher: The teacher directory.
    cache_dir: For images: where to keep what is computed once from the teacher.
  """
  method, changes = _CHANGES.get(row, (row.split(',', maxsplit=1)[0], {}))
  if domain == 'movielens':
    cfg = movielens_config.get_config(f'genre={column},method={method}')
    # tune.py has already chosen the settings on validation.
    cfg.score_before_refit = False
  else:
    cfg = _IMAGES[column].get_config(f'laptop,method={method}')
    cfg.teacher.cache_dir = cache_dir
  cfg.seed, cfg.seeds, cfg.teacher.checkpoint = seeds.start, len(seeds), teacher
  cfg.update_from_flattened_dict(changes)
  # Both depend on the steps that the method's own config has by now.
  if row == LONGER:
    cfg.steps *= _TIMES[domain]
  if row == _SEPARATELY:
    cfg.stages = tuple(round(share * cfg.steps) for share in _STAGES)
  return cfg
