"""Tables as figures: how much each row gains over training from scratch."""

from collections.abc import Sequence
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from td_jax.paper import cells as cells_lib
from td_jax.paper import figures
from td_jax.paper import markdown
from td_jax.paper import table_specs

_DOMAINS = {
  # Name for the title, label of the axis, what a column is.
  'movielens': ('MovieLens 100K', 'test RMSE below scratch', 'genre'),
  'images': (
    'CIFAR at laptop scale',
    'test accuracy above task only',
    'dataset',
  ),
}
# A row is off the scale if the axis without it is shorter by this factor.
_SQUEEZE = 2.5
_MINUS = '\N{MINUS SIGN}'


class _Row(NamedTuple):
  """What the figure shows of a row, in percent over scratch."""

  name: str
  columns: np.ndarray  # [columns]
  per_seed: np.ndarray  # [seeds], means over the columns.
  error: float | None  # Standard error of their mean.
  paper: float | None

  @property
  def mean(self) -> float:
    return float(self.columns.mean())

  @property
  def extent(self) -> tuple[float, float]:
    error = self.error or 0.0
    return (
      min(float(self.columns.min()), self.mean - error),
      max(float(self.columns.max()), self.mean + error),
    )


def draw(
  name: str, finished: cells_lib.FinishedCells, file: pathlib.Path
) -> None:
  """Draws table `name` of `table_specs.TABLES`; better is to the right.

  The paper's means have an axis of their own, since its gains are of another
  size than ours. A row that would squeeze the others is replaced by an arrow
  with its numbers.

  Raises:
    errors.ConfigError: matplotlib is not installed.
    errors.IOFailedError: the file cannot be written.
  """
  spec = table_specs.TABLES[name]
  rows = [
    _Row(
      figures.full_name(row, spec.domain),
      finished.over_scratch(row),
      finished.gain_per_seed(row),
      finished.error_over_scratch(row),
      markdown.paper_over_scratch(spec, row, finished),
    )
    for row in spec.rows
    if row in finished.rows and row != 'scratch'
  ]
  # matplotlib counts upwards, and the first row belongs at the top.
  rows.reverse()
  figure = figures.new(9.5, 2.3 + 0.42 * len(rows))
  ours, paper = figure.subplots(
    1, 2, sharey=True, gridspec_kw={'width_ratios': (3, 1)}
  )
  # The limits come first: an arrow starts at the edge of the axis.
  off_scale = _off_scale(rows)
  low, high = _limits([row for row in rows if row not in off_scale])
  ours.set_xlim(low, high)
  for at, row in enumerate(rows):
    if row in off_scale:
      _draw_arrow(ours, at, row, left=bool(row.mean < low))
    else:
      _draw_row(ours, at, row)
    if row.paper is not None:
      paper.plot([row.paper], [at], 'x', color=figures.VERMILION, ms=8, mew=2)
  # Both panels have the zero line, since their scales differ.
  for axes in (ours, paper):
    axes.axvline(0, color=figures.GREY, linewidth=1, zorder=0)
    axes.grid(axis='y', color='0.92')
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
  paper.margins(x=0.15)
  ours.set_ylim(-0.6, len(rows) - 0.4)
  ours.set_yticks(range(len(rows)), [row.name for row in rows])
  domain, gain, column = _DOMAINS[spec.domain]
  ours.set_xlabel(f'{gain} (relative, %); better →')
  ours.set_title('this implementation', fontsize='medium')
  paper.set_xlabel('same unit, own scale')
  paper.set_title('printed in the paper', fontsize='medium')
  figure.suptitle(
    f'{_finding(rows)}\n(table {name}: {spec.title}; {domain})',
    fontsize='large',
  )
  seeds = finished.per_seed('scratch').shape[1]
  figure.legend(
    handles=_legend(column, len(finished.columns), seeds),
    loc='outside lower center',
    ncols=2,
    frameon=False,
    fontsize='small',
  )
  figures.save(figure, file)


def _off_scale(rows: Sequence[_Row]) -> list[_Row]:
  """The row, if any, that alone makes the axis `_SQUEEZE` times longer."""
  # With two rows there is no telling which of them is the extreme one.
  if len(rows) < 3:
    return []
  low, high = _span(rows)
  # One row only. If several are extreme, the axis should show them.
  for row in rows:
    others = _span([other for other in rows if other is not row])
    if high - low > _SQUEEZE * (others[1] - others[0]):
      return [row]
  return []


def _span(rows: Sequence[_Row]) -> tuple[float, float]:
  """The smallest interval with 0 and all that the rows show."""
  lows, highs = zip(*(row.extent for row in rows), strict=True)
  return min(0.0, *lows), max(0.0, *highs)


def _limits(rows: Sequence[_Row]) -> tuple[float, float]:
  low, high = _span(rows)
  margin = 0.08 * (high - low) or 1.0
  return low - margin, high + margin


def _draw_row(axes: Any, at: int, row: _Row) -> None:
  # Rings first: the mean must not be hidden by a genre next to it.
  axes.plot(
    row.columns,
    [at] * len(row.columns),
    'o',
    color=figures.GREY,
    markerfacecolor='none',
    ms=6,
  )
  axes.errorbar(
    [row.mean],
    [at],
    xerr=row.error,
    fmt='o',
    color=figures.BLUE,
    capsize=4,
    ms=7,
  )


def _draw_arrow(axes: Any, at: int, row: _Row, *, left: bool) -> None:
  """An arrow to where an off-scale row lies, with its numbers."""
  edge, inside = (0.0, 0.05) if left else (1.0, 0.95)
  # In axes coordinates horizontally, so that a zoom does not move the arrow.
  axes.annotate(
    '',
    xy=(edge, at),
    xytext=(inside, at),
    xycoords=axes.get_yaxis_transform(),
    arrowprops={'arrowstyle': '-|>', 'color': figures.BLUE, 'linewidth': 2},
  )
  error = '' if row.error is None else f' ± {row.error:.2f}'
  axes.text(
    inside + (0.01 if left else -0.01),
    at,
    (
      f'off the scale: {row.mean:.2f}{error}% ({row.columns.min():.2f} to '
      f'{row.columns.max():.2f}%)'
    ).replace('-', _MINUS),
    transform=axes.get_yaxis_transform(),
    ha='left' if left else 'right',
    va='center',
    color=figures.BLUE,
    fontsize='small',
    bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 1},
  )


def _finding(rows: Sequence[_Row]) -> str:
  """The title: the row that gains most, and its statistical ties."""
  # Computed, so that new results cannot leave an old claim behind.
  best = max(rows, key=lambda row: row.mean)
  gain = f'{best.mean:+.2f}'
  gain += '%' if best.error is None else f' ± {best.error:.2f}%'
  gain = gain.replace('-', _MINUS)
  others = [row for row in reversed(rows) if row is not best]
  ties = [_one_line(row) for row in others if _is_tie(best, row)]
  if ties and len(ties) == len(others):
    return (
      f'No row differs significantly from the best ({_one_line(best)}, {gain})'
    )
  if ties:
    named = ', '.join(ties) if len(ties) <= 2 else f'{len(ties)} rows'
    return f'{_one_line(best)} gains most ({gain}),\nnot significantly more than {named}'
  return f'{_one_line(best)} gains most ({gain})'


def _one_line(row: _Row) -> str:
  return row.name.replace('\n', ' ')


def _is_tie(best: _Row, other: _Row) -> bool:
  """Whether their gains differ by less than p = 0.05, paired over seeds."""
  # Rows may have different numbers of seeds; the first ones are the same.
  count = min(len(best.per_seed), len(other.per_seed))
  p = cells_lib.difference(best.per_seed[:count] - other.per_seed[:count]).p
  return p is None or p >= 0.05


def _legend(column: str, columns: int, seeds: int) -> list[Any]:
  """What the marks mean."""
  # Late, like everything from matplotlib, which is optional.
  from matplotlib import lines

  return [
    lines.Line2D(
      [],
      [],
      color=figures.BLUE,
      marker='o',
      ms=7,
      label=f'dot: mean over {columns} {column}s',
    ),
    lines.Line2D(
      [],
      [],
      color=figures.GREY,
      marker='o',
      markerfacecolor='none',
      linestyle='none',
      label=f'ring: a single {column}',
    ),
    lines.Line2D(
      [],
      [],
      color=figures.BLUE,
      marker='|',
      ms=8,
      label=f'bar: standard error over {seeds} seeds, paired with scratch',
    ),
    lines.Line2D(
      [],
      [],
      color=figures.VERMILION,
      marker='x',
      ms=8,
      mew=2,
      linestyle='none',
      label=f"cross: the paper's mean over the same {column}s",
    ),
  ]
