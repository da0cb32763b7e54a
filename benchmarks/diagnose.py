"""Which term of the conversation moves the score: results/diagnosis_sweep.*.

  python benchmarks/diagnose.py --workdir=runs/tables

One term at a time, at weights from nothing to far too much, and all of them
together, for a dense and a sparse genre; LD beside them. Each is compared with
scratch on validation, seed by seed; the test split is never scored. Rows that
are there already are not run again. `--workdir` holds the teacher that
`td_jax.tables` has trained there.
"""

import json
import pathlib
import sys
import tempfile

from absl import app
from absl import flags
from absl import logging
import jax
from matplotlib import figure
import numpy as np

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from configs import movielens
from td_jax import preemption
from td_jax import report
from td_jax import train

GENRES = ('Drama', 'War')  # The densest and the sparsest of the 8.
WEIGHTS = (0.01, 0.1, 1.0, 10.0)
TERMS = {
  'interact': ('td', ('interact',)),
  'message': ('td', ('message',)),
  'state': ('td', ('state',)),
  'all three': ('td', ('interact', 'message', 'state')),
  'logit (LD)': ('ld', ('logit',)),
}
_WORKDIR = flags.DEFINE_string('workdir', 'runs/tables', 'Has teacher/.')
_SEEDS = flags.DEFINE_integer('seeds', 5, 'Students of each.')
_OUT = flags.DEFINE_string('out', 'results/diagnosis_sweep.jsonl', 'Rows.')


def _run(genre, method, weights, watch):
  config = movielens.get_config(f'genre={genre},method={method}')
  config.test = config.refit = False
  config.seeds, config.k = _SEEDS.value, 2 if method == 'td' else 0
  config.teacher.checkpoint = str(
    pathlib.Path(_WORKDIR.value).resolve() / 'teacher/selection'
  )
  for name in ('interact', 'message', 'state'):
    config.distill.weights[name] = 0.0
  for name, weight in weights.items():
    config.distill.weights[name] = weight
  with tempfile.TemporaryDirectory() as folder:
    results = train.run(
      config, pathlib.Path(folder), watch=watch, log=lambda line: None
    )
    lines = (pathlib.Path(folder) / 'metrics.jsonl').read_text().splitlines()
  last = json.loads(lines[-1])
  return {
    'validation': results['validation'],
    'terms': {
      name: float(np.mean(values))
      for name, values in last.items()
      if name.startswith(('talk', 'logit', 'task'))
    },
    'seconds': results['seconds'],
    'commit': results['commit'],
  }


def _draw(rows, file):
  """Change of validation RMSE from scratch's, over the weight."""
  picture = figure.Figure(figsize=(10, 4), layout='constrained')
  for axes, genre in zip(
    picture.subplots(1, len(GENRES), sharey=True), GENRES, strict=True
  ):
    for term in TERMS:
      gaps = [_gap(rows, genre, term, weight) for weight in WEIGHTS]
      axes.errorbar(
        WEIGHTS,
        [gap['mean'] for gap in gaps],
        yerr=[gap['standard_error'] for gap in gaps],
        marker='o',
        capsize=3,
        label=term,
      )
    axes.axhline(0, color='black', linewidth=0.8)
    axes.set(xscale='log', xlabel='weight', title=genre)
  picture.axes[0].set_ylabel('validation RMSE minus scratch')
  picture.axes[0].legend()
  picture.savefig(file, dpi=120, metadata={'Software': None})


def _gap(rows, genre, term, weight):
  ours = rows[genre, term, weight]['validation']['per_seed']
  theirs = rows[genre, 'scratch', 0.0]['validation']['per_seed']
  return report.spread(np.subtract(ours, theirs))


def render(rows):
  """The sweep in Markdown; `rows` by (genre, term, weight)."""
  first = rows[GENRES[0], 'scratch', 0.0]
  lines = [
    'Validation RMSE minus that of scratch, seed by seed, over '
    f'{len(first["validation"]["per_seed"])} seeds; k = 2; commit '
    f'{first["commit"]}. Below 0 is better.',
    '',
    '| genre | term | ' + ' | '.join(f'weight {w:g}' for w in WEIGHTS) + ' |',
    '|---' * (2 + len(WEIGHTS)) + '|',
  ]
  for genre in GENRES:
    for term in TERMS:
      gaps = [_gap(rows, genre, term, weight) for weight in WEIGHTS]
      lines.append(
        f'| {genre} | {term} | '
        + ' | '.join(
          f'{gap["mean"]:+.4f} +- {gap["standard_error"]:.4f}' for gap in gaps
        )
        + ' |'
      )
  lines += [
    '',
    'What the terms came to in the last steps, with all three on:',
    '',
  ]
  shown = sorted(rows[GENRES[0], 'all three', WEIGHTS[0]]['terms'])
  lines += [
    '| genre | weight | ' + ' | '.join(shown) + ' |',
    '|---' * (2 + len(shown)) + '|',
  ]
  for genre in GENRES:
    for weight in WEIGHTS:
      terms = rows[genre, 'all three', weight]['terms']
      lines.append(
        f'| {genre} | {weight:g} | '
        + ' | '.join(f'{terms[name]:.4g}' for name in shown)
        + ' |'
      )
  return '\n'.join([*lines, ''])


def main(argv):
  del argv  # Flags say it all.
  jax.config.update(
    'jax_compilation_cache_dir', str(pathlib.Path(_WORKDIR.value) / 'compiled')
  )
  watch = preemption.Watch()
  out = pathlib.Path(_OUT.value)
  out.touch()
  rows = {
    (row['genre'], row['term'], row['weight']): row
    for row in map(json.loads, out.read_text().splitlines())
  }
  cells = [('scratch', 'scratch', (), 0.0)]
  cells += [
    (term, method, names, weight)
    for term, (method, names) in TERMS.items()
    for weight in WEIGHTS
  ]
  for genre in GENRES:
    for term, method, names, weight in cells:
      if (genre, term, weight) in rows:
        continue
      row = {'genre': genre, 'term': term, 'weight': weight} | _run(
        genre, method, dict.fromkeys(names, weight), watch
      )
      rows[genre, term, weight] = row
      with out.open('a') as f:
        f.write(json.dumps(row, sort_keys=True) + '\n')
      print(genre, term, weight, row['validation']['mean'], flush=True)
  out.with_suffix('.md').write_text(render(rows))
  _draw(rows, out.with_suffix('.png'))


if __name__ == '__main__':
  logging.set_verbosity(logging.WARNING)
  app.run(main)
