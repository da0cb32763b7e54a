"""The figures of the diagnosis."""

from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any

from td_jax.paper import diagnosis
from td_jax.paper import figures

# Colour, marker and line of each run; colours alone do not survive printing.
_STYLES = {
  'interact': (figures.SKY_BLUE, 'v', ':'),
  'message': (figures.GREEN, '^', ':'),
  'state': (figures.PURPLE, 's', ':'),
  diagnosis.ALL: (figures.BLUE, 'o', '-'),
  diagnosis.LD: (figures.ORANGE, 'D', '-'),
  diagnosis.TD_LD: (figures.VERMILION, 'X', '-'),
}
_TARGETS = {
  'chained': 'what the student interpreted just before (chained)',
  'original': "the student's states on x (original)",
}
_ITERATIONS = (figures.BLUE, figures.ORANGE, figures.GREEN)
_MARKERS = ('o', 's', '^')
# RMSE below which differences are noise; the axis is linear up to it.
_LINEAR = 1e-3
_MINUS = '\N{MINUS SIGN}'


def draw(rows: diagnosis.Rows, folder: pathlib.Path) -> None:
  """Writes diagnosis_weight.png and diagnosis_iteration.png to `folder`.

  Raises:
    errors.ConfigError: matplotlib is not installed.
    errors.IOFailedError: A file cannot be written.
  """
  figures.save(_by_weight(rows), folder / 'diagnosis_weight.png')
  figures.save(_by_iteration(rows), folder / 'diagnosis_iteration.png')


def _by_weight(rows: diagnosis.Rows) -> Any:
  figure = figures.new(10.5, 5.2)
  keys = rows.of('weight')
  genres = list(dict.fromkeys(genre for genre, _, _ in keys))
  panels = figure.subplots(1, len(genres), sharey=True, squeeze=False)[0]
  for axes, genre in zip(panels, genres, strict=True):
    names = [name for name in _STYLES if (genre, name) in {k[:2] for k in keys}]
    for name in names:
      weights = [x for g, n, x in keys if (g, n) == (genre, name)]
      scratch = (diagnosis.SCRATCH, 0.0)
      gaps = [
        gap
        for x in weights
        if (gap := rows.gap('weight', genre, name, x, against=scratch))
      ]
      assert len(gaps) == len(weights)  # Scratch ran in every genre.
      _draw_run(axes, name, weights, gaps)
    axes.axhline(0, color=figures.GREY, linewidth=1, zorder=0)
    axes.set_xscale('log')
    # Gains of 0.0005 and losses of 0.04 are both of interest.
    axes.set_yscale('symlog', linthresh=_LINEAR)
    axes.set_yticks(
      (-1e-2, -1e-3, 0, 1e-3, 1e-2, 1e-1),
      [f'{_MINUS}0.01', f'{_MINUS}0.001', '0', '0.001', '0.01', '0.1'],
    )
    axes.set_ylim(-3e-3, 1e-1)
    axes.grid(axis='y', color='0.92')
    axes.spines[['top', 'right']].set_visible(False)
    axes.set_xticks((0.1, 1, 10), ('0.1', '1', '10'))
    axes.set_xlabel('weight of the terms (log scale)')
    alone = (
      '' if set(diagnosis.TERMS) <= {*names} else ' (no single loss was run)'
    )
    axes.set_title(f'{genre}{alone}', fontsize='medium')
  panels[0].set_ylabel(
    'validation RMSE minus that of scratch;\nbelow 0 is better '
    f'(linear up to ±{_LINEAR:g}, then log)'
  )
  figure.suptitle(_finding_weight(rows), fontsize='large')
  # The first panel has all runs; the others have some of them.
  handles, labels = panels[0].get_legend_handles_labels()
  figure.legend(
    handles,
    labels,
    loc='outside lower center',
    ncols=3,
    frameon=False,
    fontsize='small',
    title='the student learns from its labels and (bar: standard error over '
    f'{_seeds(rows, "weight")} seeds, paired with scratch)',
    title_fontsize='small',
  )
  return figure


def _draw_run(
  axes: Any,
  name: str,
  weights: Sequence[float],
  gaps: Sequence[Mapping[str, Any]],
) -> None:
  colour, marker, line = _STYLES[name]
  number = [*_STYLES].index(name)
  # Side by side, since many runs lie within each other's error bars.
  shift = 1.06 ** (number - (len(_STYLES) - 1) / 2)
  axes.errorbar(
    [x * shift for x in weights],
    [gap['mean'] for gap in gaps],
    yerr=[gap['standard_error'] or 0 for gap in gaps],
    color=colour,
    marker=marker,
    linestyle=line,
    capsize=3,
    label=diagnosis.full_name(name),
  )


def _finding_weight(rows: diagnosis.Rows) -> str:
  """The title: what TD's largest weight does to the score."""
  keys = rows.of('weight')
  largest = max(x for _, _, x in keys)
  changes = []
  for genre in dict.fromkeys(genre for genre, _, _ in keys):
    gap = rows.gap(
      'weight', genre, diagnosis.ALL, largest, against=(diagnosis.SCRATCH, 0.0)
    )
    if gap:
      verb = 'worse' if gap['mean'] > 0 else 'better'
      changes.append(f'{abs(gap["mean"]):.3f} {verb} on {genre}')
  return (
    f'At weight {largest:g}, TD is {" and ".join(changes)} than training from '
    'scratch'
  )


def _by_iteration(rows: diagnosis.Rows) -> Any:
  figure = figures.new(10.5, 4.8)
  keys = rows.of('iteration')
  panels = figure.subplots(1, max(1, len(keys)), sharey=True, squeeze=False)[0]
  ratios = {}
  for axes, key in zip(panels, keys, strict=False):
    row = rows['iteration', *key]
    series = sorted(row['interact'].items())
    for number, (name, values) in enumerate(series):
      axes.plot(
        row['steps'],
        values,
        color=_ITERATIONS[number % len(_ITERATIONS)],
        marker=_MARKERS[number % len(_MARKERS)],
        label=f'iteration {name.removeprefix("talk/interact_")}',
      )
    # Near 1, the iterations are equally hard; far above it, later ones are met
    # in another way.
    ratios[key[1]] = series[0][1][-1] / series[-1][1][-1]
    axes.set_yscale('log')
    axes.set_xlabel('training step')
    axes.set_title(
      f'target: {_TARGETS.get(key[1], key[1])}\nvalidation RMSE '
      f'{row["validation"]["mean"]:.4f}',
      fontsize='medium',
    )
    axes.grid(axis='y', color='0.92')
    axes.spines[['top', 'right']].set_visible(False)
  panels[0].set_ylabel('L_interact (squared distance, log scale)')
  handles, labels = panels[0].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc='outside lower center', ncols=3, frameon=False
  )
  figure.suptitle(
    'At the last step, L_interact of iteration 0 is '
    + ' and '.join(f'{r:.1f} times ({name})' for name, r in ratios.items())
    + '\nthat of the last iteration (Drama, k = 3, means over '
    f'{_seeds(rows, "iteration")} seeds)',
    fontsize='large',
  )
  return figure


def _seeds(rows: diagnosis.Rows, part: str) -> int:
  """The number of seeds of a part's first run."""
  return len(rows[part, *rows.of(part)[0]]['validation']['per_seed'])
