"""Tables as pictures: what each row gains over training from scratch."""

import pathlib

from td_jax.paper import figures
from td_jax.paper import markdown
from td_jax.paper import table_specs


def draw(name: str, found: markdown.Found, file: pathlib.Path) -> None:
  """Draws table `name` of `table_specs.TABLES`, better to the right.

  A dot is the mean over the columns and its bar one standard error, over seeds
  that are paired with those of scratch; rings are the columns, and a cross is
  the mean that the paper prints.

  Raises:
    errors.ConfigError: matplotlib is not installed.
  """
  shown = table_specs.TABLES[name]
  rows = [r for r in shown.rows if r in found.rows and r != 'scratch']
  rows.reverse()  # The first is at the top.
  picture = figures.figure(8.0, 1.2 + 0.4 * len(rows))
  axes = picture.subplots()
  axes.axvline(0, color='0.6', linewidth=1)
  for at, row in enumerate(rows):
    columns = found.over_scratch(row)
    axes.plot(
      columns, [at] * len(columns), 'o', color='0.7', markerfacecolor='none'
    )
    printed = markdown.paper_over_scratch(shown, row, found)
    if printed is not None:
      axes.plot([printed], [at], 'x', color='tab:red')
    axes.errorbar(
      [columns.mean()],
      [at],
      xerr=found.error_over_scratch(row),
      fmt='o',
      color='tab:blue',
      capsize=3,
    )
  axes.set_yticks(range(len(rows)), rows)
  axes.set_xlabel(
    f'% better than scratch: mean of {len(found.columns)} columns (dots, with '
    'standard error), each column (rings), the paper (x)'
  )
  axes.set_title(f'Table {name}: {shown.title}', fontsize='medium')
  picture.savefig(file, dpi=100, metadata={'Software': None})
