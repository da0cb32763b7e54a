"""The cells of the paper's tables: which runs they need, and their configs.

A row of a table is a method with changes to its config, a column a genre or a
dataset. The same row may be in several tables; its cells run once.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from td_jax import methods
from td_jax import types
from td_jax.configs import movielens as movielens_config
from td_jax.configs import vit_cifar10
from td_jax.configs import vit_cifar100
from td_jax.data import movielens
from td_jax.paper import numbers

_IMAGES = {'cifar10': vit_cifar10, 'cifar100': vit_cifar100}
COLUMNS = {'movielens': movielens.GENRES, 'images': tuple(_IMAGES)}
BASELINES = ('scratch', 'ld', 'fd', 'fitnet', 'hybrid')
LONGER = 'scratch, as long as td'
# TD's time over scratch's, rounded: a step in results/speed_movielens.json, a
# seed's seconds in results/images.jsonl.
_TIMES = {'movielens': 8, 'images': 2}
_NOISE = 0.1  # Of section 6.5.
# Shares of the steps for student and communication alone.
_STAGES = (0.4, 0.2)

# What a row changes in the config of its method, by row.
_CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
  'td, k=0': ('td', {'k': 0}),
  'td, k=2': ('td', {'k': 2}),
  'td, k=3': ('td', {'k': 3}),
  'td, no message loss': ('td', {'distill.weights.message': 0.0}),
  'td, no state loss': ('td', {'distill.weights.state': 0.0}),
  'td, noise': ('td', {'distill.noise': _NOISE}),
}
_SEPARATELY = 'td, separately'


class Table(NamedTuple):
  """A table of the paper, as ours is made."""

  domain: str  # Of `COLUMNS`.
  title: str
  rows: Mapping[str, str]  # Row: its name in the paper's table, or ''.
  printed: Mapping[str, Any]  # The paper's numbers.


_METHODS = {
  name: name if name in numbers.TABLE3 else '' for name in methods.METHODS
}
_COMPARED = _METHODS | {LONGER: ''}
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
  domain: str, row: str, column: str, *, seeds: range, teacher: str, kept: str
) -> types.Config:
  """The config of a cell.

  Args:
    domain: Of `COLUMNS`.
    row: Of a table.
    column: Of the domain.
    seeds: Students side by side.
    teacher: The folder of the teacher.
    kept: Of images: the folder for what is computed of the teacher once.
  """
  method, changes = _CHANGES.get(row, (row.split(',', maxsplit=1)[0], {}))
  if domain == 'movielens':
    cfg = movielens_config.get_config(f'genre={column},method={method}')
    cfg.score_before_refit = False  # Settings were chosen before: tune.py.
  else:
    cfg = _IMAGES[column].get_config(f'laptop,method={method}')
    cfg.teacher.cache_dir = kept
  cfg.seed, cfg.seeds, cfg.teacher.checkpoint = seeds.start, len(seeds), teacher
  cfg.update_from_flattened_dict(changes)
  if row == LONGER:
    cfg.steps *= _TIMES[domain]
  if row == _SEPARATELY:
    cfg.stages = tuple(round(share * cfg.steps) for share in _STAGES)
  return cfg
