"""Figures: how they are made, and how methods are named in them."""

from typing import Any

from td_jax import errors

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, VERMILION, GREY = (
  '#0072B2', '#E69F00', '#009E73', '#D55E00', '#666666',
)  # fmt: skip


def figure(width: float, height: float) -> Any:
  """An empty matplotlib figure, in inches.

  Raises:
    errors.ConfigError: matplotlib is not installed.
  """
  try:
    from matplotlib import figure as plot  # Imported late: it is optional.
  except ImportError as e:
    raise errors.ConfigError(
      "a figure needs matplotlib: pip install 'td_jax[plot]'."
    ) from e
  return plot.Figure(figsize=(width, height), layout='constrained')
