"""How the paper's figures look: colours, full names, and how they are saved."""

import io
import pathlib
from typing import Any

from td_jax import errors
from td_jax.storage import files

# The palette of Okabe and Ito (2008), which colour-blind readers can tell apart.
BLACK = '#000000'
ORANGE = '#E69F00'
SKY_BLUE = '#56B4E9'
GREEN = '#009E73'
BLUE = '#0072B2'
VERMILION = '#D55E00'
PURPLE = '#CC79A7'
GREY = '#888888'

_FULL_NAMES = {
  'scratch': 'From scratch',
  'ld': 'Label distillation (LD)',
  'ld, l2': 'LD with the L2 distance',
  'fd': 'Feature distillation (FD)',
  'fitnet': 'FitNet',
  'hybrid': 'Hybrid (LD + FD)',
  'td': 'TD, k = 1',
  'td_ld': 'TD + LD, k = 1',
  'scratch, as long as td': 'From scratch, trained as long as TD',
  'td, k=0': 'TD, k = 0 (no interaction)',
  'td_ld, k=0': 'TD + LD, k = 0',
  'td_ld, k=2': 'TD + LD, k = 2',
  'td, k=2': 'TD, k = 2',
  'td, k=3': 'TD, k = 3',
  'td, no message loss': 'TD without the message loss (L_MC)',
  'td, no state loss': 'TD without the state loss (L_SC)',
  'td, noise': 'TD with noise on the states',
  'td, separately': 'TD, separate stage for\nencoders and decoders',
}
# Students of images start from blocks of their teacher.
_OF_IMAGES = {
  'scratch': "Task only, from the teacher's blocks",
  'scratch, random': 'From scratch',
  'scratch, as long as td': 'Task only, trained as long as TD',
}


def full_name(row: str, domain: str = 'movielens') -> str:
  """A table's row as a reader outside the project would call it."""
  names = _FULL_NAMES | (_OF_IMAGES if domain == 'images' else {})
  return names.get(row, row)


def new(width: float, height: float) -> Any:
  """An empty matplotlib figure of so many inches.

  Raises:
    errors.ConfigError: matplotlib is not installed.
  """
  try:
    # Imported late: matplotlib is optional, and only figures need it.
    from matplotlib import figure
  except ImportError as e:
    raise errors.ConfigError(
      "a figure needs matplotlib: pip install 'td_jax[plot]'."
    ) from e
  # pyplot would keep a global reference to every figure; Figure does not.
  return figure.Figure(figsize=(width, height), layout='constrained')


def save(figure: Any, file: pathlib.Path) -> None:
  """Writes a figure as a PNG.

  Raises:
    errors.IOFailedError: the file cannot be written.
  """
  buffer = io.BytesIO()
  # Without 'Software' the bytes do not depend on matplotlib's version string.
  figure.savefig(buffer, format='png', dpi=150, metadata={'Software': None})
  files.write_atomically(file, buffer.getvalue())
