"""Why does TD gain what it gains? results/diagnosis.md, by measurement.

  python benchmarks/diagnose.py --workdir=runs/tables      # needs its teacher/
  python benchmarks/diagnose.py --render

Short trainings of MovieLens, scored on validation at every 50 steps, the best
taken for each seed as the loop does; the test split is never scored. A run is a
row of results/diagnosis.jsonl and is not run again; several processes share
them out. After a run whose method talks, its messages are looked at, on the
validation ratings.
"""

import argparse
import functools
import pathlib
import sys
import time
from typing import Any
from typing import NamedTuple

from absl import logging
import jax
from jax import numpy as jnp
from matplotlib import figure
import numpy as np

from td_jax import errors
from td_jax import methods
from td_jax import types
from td_jax.configs import movielens as movielens_config
from td_jax.data import feed as feed_lib
from td_jax.data import movielens
from td_jax.methods import channel
from td_jax.models import layers
from td_jax.models import split
from td_jax.paper import cka
from td_jax.paper import tables
from td_jax.run import environment
from td_jax.run import experiment
from td_jax.run import scores
from td_jax.run import teachers
from td_jax.storage import results_log
from td_jax.training import statistics

_FILE = 'diagnosis.jsonl'
_TERMS = ('interact', 'message', 'state')
_ALL = 'all three'
_LD = 'logit (LD)'
_TD_LD = 'all three and logit (TD + LD)'
_SILENT = 'k = 0'  # A talk without L_interact.
_TALKS = {
  'k = 1': {'k': 1},
  'k = 2, chained': {'k': 2},
  'k = 2, original': {'k': 2, 'distill.interact_target': 'original'},
}


class Run(NamedTuple):
  """A line of one of the tables."""

  part: str
  genre: str
  name: str  # What is taught: scratch, a term, or several.
  x: float  # What the part varies.
  method: str
  changes: dict[str, Any]  # Of the config.
  share: float = 1.0  # Of the genre's training ratings.


def _weights(method, weight, *terms):
  """(method, the weights of `terms`, all others 0)."""
  return method, {
    f'distill.weights.{name}': weight if name in terms else 0.0
    for name in ('logit', *_TERMS)
  }


def _taught(weight):
  """(name, method, changes) of what is compared in most parts."""
  yield 'scratch', 'scratch', {}
  yield _LD, *_weights('ld', weight, 'logit')
  yield _ALL, *_weights('td', weight, *_TERMS)
  yield _TD_LD, *_weights('td_ld', weight, 'logit', *_TERMS)


def runs():
  """All of them, in the order of the page."""
  for genre in ('Drama', 'War'):  # The densest and the sparsest of the 8.
    yield Run('weight', genre, 'scratch', 0.0, 'scratch', {})
    for weight in (0.1, 1.0, 10.0):
      for name, method, changes in list(_taught(weight))[1:]:
        yield Run('weight', genre, name, weight, method, changes)
      if genre == 'Drama':
        for name in _TERMS:
          how = _weights('td', weight, name)
          yield Run('weight', genre, name, weight, *how)
  for target in ('chained', 'original'):
    method, changes = _weights('td', 1.0, *_TERMS)
    changes |= {'k': 3, 'distill.interact_target': target}
    yield Run('iteration', 'Drama', target, 3, method, changes)
  for share in (0.01, 0.05, 0.2, 1.0):
    for name, method, changes in _taught(1.0):
      yield Run('share', 'Drama', name, share, method, changes, share)
  off = {'model.unknown_rate': 0.0}
  for genre in ('Drama', 'War'):
    for name, method, changes in _taught(1.0):
      yield Run('unknown', genre, name, 0.0, method, changes | off)
  for factor in (2, 4, 8):
    narrow = {'model.hidden': (128 // factor, 64 // factor)}
    for name, method, changes in _taught(1.0):
      yield Run('width', 'Drama', name, 1 / factor, method, changes | narrow)
  yield from _as_chosen()


def _as_chosen():
  """With the weights of table 3, but for those that a part varies."""
  for genre in ('Drama', 'War'):
    yield Run('answers', genre, _SILENT, 0.0, 'td', {'k': 0})
    for weight in (0.3, 3.0):
      for name, talk in _TALKS.items():
        changes = talk | {'distill.weights.interact': weight}
        yield Run('answers', genre, name, weight, 'td', changes)
    for method in methods.METHODS:
      yield Run('stop', genre, method, 0.0, method, {})


def measure(
  run: Run, teacher: str, *, seeds: int, steps: int = 0
) -> dict[str, Any]:
  """Trains students as `run` says, and looks at them.

  Args:
    run: One of `runs`.
    teacher: The folder of a teacher that has not seen validation.
    seeds: Students side by side.
    steps: 0: the config knows.

  Returns:
    `validation` and `last`, the spreads of best and of last scores;
    `best_step`, a mean over the seeds; `terms`, means over the last 50
    steps; `interact`, L_interact at steps; `talk`, what `look` says.
  """
  config = movielens_config.get_config(f'genre={run.genre},method={run.method}')
  config.test = config.refit_on_validation = False
  config.seeds, config.teacher.checkpoint = seeds, teacher
  config.steps = steps or config.steps
  config.steps_per_dispatch = min(config.steps_per_dispatch, config.steps)
  config.log_every = config.eval_every = config.steps_per_dispatch
  config.update_from_flattened_dict(run.changes)
  config, parallel = train.check(config)
  task = cut(movielens.load(config, log=lambda line: None), run.share)
  taught_by = None
  if run.method != 'scratch':
    taught_by = teachers.load(config, task, path=pathlib.Path(), folder=teacher)
  made = experiment.build(config, parallel, task, taught_by)
  assert task.validation is not None
  score = scores.scorer(
    config, made.model, task.validation, task=task, parallel=parallel
  )
  state = parallel.place(made.state)
  steps_seen, scores, measured = [], [], []
  for start in range(0, config.steps, config.steps_per_dispatch):
    stop = min(start + config.steps_per_dispatch, config.steps)
    state, metrics = made.train(state, made.fixed, made.rows(start, stop))
    measured.append({k: float(v.mean()) for k, v in metrics.items()})
    scores.append(score(state.params['student']))
    steps_seen.append(stop)
  row = {
    'validation': statistics.mean_and_stderr(np.min(scores, axis=0)),
    'last': statistics.mean_and_stderr(scores[-1]),
    'best_step': float(np.mean(np.take(steps_seen, np.argmin(scores, axis=0)))),
    'terms': measured[-1],
    'steps': steps_seen,
    'interact': {
      name: [terms[name] for terms in measured]
      for name in measured[-1]
      if name.startswith('talk/interact_')
    },
    'talk': {},
  }
  if 'talk' in state.params['method']:
    found = look(
      config, task, state.params, model=made.model, teacher=taught_by
    )
    row['talk'] = {name: float(v.mean()) for name, v in found.items()}
  return row


def cut(task, share: float):
  """`task` with a random share of its training ratings, the same each time.

  Ids that are not in it any more are unknown to the student.
  """
  if share == 1:
    return task
  examples = np.flatnonzero(task.train.mask)
  kept = np.random.default_rng(0).choice(
    examples, round(share * len(examples)), replace=False
  )
  kept.sort()
  known = {
    name: np.unique(task.train.x[name][kept]) for name in ('user', 'movie')
  }

  def forget(batch):
    x = batch.x | {
      name: np.where(np.isin(batch.x[name], ids), batch.x[name], 0)
      for name, ids in known.items()
    }
    return batch._replace(x=x)

  part = jax.tree.map(lambda leaf: leaf[kept], forget(task.train))
  return task._replace(
    train=feed_lib.padded(part, len(task.train.mask)),
    validation=forget(task.validation),
    model_args=task.model_args | {'mean': float(part.y.mean())},
  )


def look(config, task, params, *, model, teacher, examples=1000):
  """What students and their teacher say to each other, on validation.

  Returns:
    [seeds] by name. `rank *`: the participation ratio of a message's
    covariance, between 1 and its width. `cka ...`: linear, debiased. `missed *`:
    the share of a state's variance that the decoded state misses, above 1 where
    its mean would be nearer. `rmse ...`: the teacher's, from its own low state
    and from the one that it decodes from the student's message.
  """
  real = np.flatnonzero(task.validation.mask)[:examples]
  batch = jax.tree.map(lambda leaf: leaf[real], task.validation)
  block = config.distill
  encoder = channel.Encoder(
    hidden=block.hidden, message=block.message, dropout=0.0
  )

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(0, None, None))
  def run(params, variables, batch):
    talk = params['method']['talk']
    g = split.side(model, params['student'], batch.x)
    h = split.side(teacher.model, variables, batch.input_of('teacher'))
    decoder = channel.Decoder(
      hidden=block.hidden,
      widths=(h.states.low.shape[-1], h.states.high.shape[-1]),
      dropout=0.0,
    )
    message_g = layers.apply(encoder, talk['student_encoder'], g.states)
    message_h = layers.apply(encoder, talk['teacher_encoder'], h.states)
    heard = layers.apply(decoder, talk['teacher_decoder'], message_g)
    high = h.interpret(heard.low, None)
    output = functools.partial(
      layers.apply, teacher.model, variables, method='output'
    )
    alike = {
      'cka m_g, m_h': (message_g, message_h),
      'cka m_g, low_h': (message_g, h.states.low),
      'cka m_g, high_h': (message_g, h.states.high),
      'cka m_g, high_g': (message_g, g.states.high),
      'cka m_h, high_h': (message_h, h.states.high),
    }
    return {
      'rank m_g': _rank(message_g),
      'rank m_h': _rank(message_h),
      'rank high_h': _rank(h.states.high),
      **{name: cka.cka(*pair) for name, pair in alike.items()},
      'missed low_h': _missed(heard.low, h.states.low),
      'missed high_h': _missed(high, h.states.high),
      'rmse of low_h': _rmse(h.output, batch.y),
      'rmse of decoded low_h': _rmse(output(high), batch.y),
    }

  return jax.device_get(run(params, teacher.variables, batch))


def _rank(values: types.Hidden) -> jax.Array:
  """(tr C)^2 / tr(C^2) of the covariance C of values [n, d]."""
  centred = values - values.mean(axis=0, keepdims=True)
  covariance = centred.T @ centred
  return jnp.trace(covariance) ** 2 / jnp.sum(covariance**2)


def _missed(found: types.Hidden, wanted: types.Hidden) -> jax.Array:
  """Share of the variance of `wanted` [n, d] that `found` leaves."""
  mean = wanted.mean(axis=0, keepdims=True)
  variance = jnp.sum((wanted - mean) ** 2)
  return jnp.sum((found - wanted) ** 2) / variance


def _rmse(found: types.PerExample, wanted: types.PerExample) -> jax.Array:
  return jnp.sqrt(jnp.mean((found - wanted) ** 2))


class Rows:
  """What has been run."""

  def __init__(self, rows):
    self._rows = {
      (row['part'], row['genre'], row['name'], row['x']): row for row in rows
    }

  def __contains__(self, run):
    return run[:4] in self._rows

  def __getitem__(self, key):
    return self._rows[key]

  def gap(
    self, part, genre, name, x, *, against=('scratch', None), score='validation'
  ):
    """Validation RMSE minus that of scratch, seed by seed; None if absent."""
    other, at = against
    ours = self._rows.get((part, genre, name, x))
    theirs = self._rows.get((part, genre, other, x if at is None else at))
    if ours is None or theirs is None:
      return None
    pairs = zip(
      ours[score]['per_seed'],
      theirs[score]['per_seed'],
      strict=False,  # The first seeds are the same.
    )
    return statistics.mean_and_stderr([one - other for one, other in pairs])

  def made(self, part):
    """Of how many seeds and which code a part is, in a sentence."""
    found = [self._rows[part, *at] for at in self.of(part)]
    seeds = sorted({len(row['validation']['per_seed']) for row in found})
    commits = sorted({row['commit'] for row in found})
    seeds = ' or '.join(map(str, seeds))
    return f'{seeds} seeds, commit {" and ".join(commits)}.'

  def of(self, part):
    """(genre, name, x) of a part, in the order of the page."""
    return [
      (run.genre, run.name, run.x)
      for run in runs()
      if run.part == part and run in self
    ]


def _gap_text(gap):
  if gap is None:
    return ''
  return f'{gap["mean"]:+.4f} +- {gap["standard_error"] or 0:.4f}'


def _table(heads, lines):
  yield '| ' + ' | '.join(heads) + ' |'
  yield '|---' * len(heads) + '|'
  for line in lines:
    yield '| ' + ' | '.join(line) + ' |'
  yield ''


def _of_weights(rows, part, base):
  """A table of gaps to `base`, a column for each weight."""
  found = [at for at in rows.of(part) if at[1] != base]
  weights = sorted({x for _, _, x in found})
  return _table(
    ['genre', 'taught by', *(f'weight {w:g}' for w in weights)],
    (
      [genre, name]
      + [
        _gap_text(rows.gap(part, genre, name, x, against=(base, 0.0)))
        for x in weights
      ]
      for genre, name in dict.fromkeys(at[:2] for at in found)
    ),
  )


def _of_x(rows, part, shown):
  for genre, name, x in rows.of(part):
    score = rows[part, genre, name, x]['validation']
    gap = None if name == 'scratch' else rows.gap(part, genre, name, x)
    yield [genre, shown(x), name, f'{score["mean"]:.4f}', _gap_text(gap)]


def _of_stops(rows):
  for at in rows.of('stop'):
    row = rows['stop', *at]
    texts = [*at[:2], f'{row["best_step"]:.0f}']
    for score in ('validation', 'last'):
      gap = None
      if at[1] != 'scratch':
        gap = rows.gap('stop', *at, score=score)
      texts += [f'{row[score]["mean"]:.4f}', _gap_text(gap)]
    yield texts


def page(rows: Rows) -> str:
  """The tables in Markdown."""
  lines = [
    '## Which term moves the score',
    '',
    'Validation RMSE minus that of scratch, seed by seed, k = 1; below 0 is '
    f'better. {rows.made("weight")}',
    '',
    *_of_weights(rows, 'weight', 'scratch'),
    '![by weight](diagnosis_weight.png)',
    '',
    '## What is said',
    '',
    'On the first 1,000 validation ratings, after training. `rank`: the '
    'participation ratio of a covariance, of 128 at most. `cka`: linear, '
    'debiased. `missed`: the share of the variance of a state of the teacher '
    'that is not in what it decodes from the message of the student, and not '
    'in what its frozen layers make of that; above 1 the mean alone would be '
    'nearer. `rmse`: the teacher with its own low state, and with the decoded '
    'one.',
    '',
  ]
  said = [at for at in rows.of('weight') if rows['weight', *at]['talk']]
  if said:
    heads = list(rows['weight', *said[0]]['talk'])
    lines += _table(
      ['genre', 'taught by', 'weight', *heads],
      (
        [genre, name, f'{x:g}']
        + [f'{rows["weight", genre, name, x]["talk"][h]:.3g}' for h in heads]
        for genre, name, x in said
      ),
    )
  lines += [
    '## L_interact, by iteration',
    '',
    'Drama, k = 3, all three terms at weight 1. `chained`: the target of an '
    'iteration is what the student interpreted just before; `original`: its '
    f'states on x. {rows.made("iteration")}',
    '',
    '![by iteration](diagnosis_iteration.png)',
    '',
    *_table(
      ['target', 'iteration', 'first 50 steps', 'last 50 steps', 'RMSE'],
      (
        [
          name,
          series.removeprefix('talk/interact_'),
          f'{values[0]:.4g}',
          f'{values[-1]:.4g}',
          f'{rows["iteration", genre, name, x]["validation"]["mean"]:.4f}',
        ]
        for genre, name, x in rows.of('iteration')
        for series, values in sorted(
          rows['iteration', genre, name, x]['interact'].items()
        )
      ),
    ),
    '## Fewer ratings',
    '',
    'A random share of the training ratings of Drama, weights 1; the teacher '
    f'keeps all. Minus scratch on the same share. {rows.made("share")}',
    '',
    *_table(
      ['genre', 'share', 'taught by', 'RMSE', 'minus scratch'],
      _of_x(rows, 'share', lambda x: f'{x:.0%}'),
    ),
    '## Without unknown-id rows in training',
    '',
    '`unknown_rate` 0: the rows of unknown ids are not learnt. Weights 1. '
    + rows.made('unknown'),
    '',
    *_table(
      ['genre', 'rate', 'taught by', 'RMSE', 'minus scratch'],
      _of_x(rows, 'unknown', lambda x: f'{x:g}'),
    ),
    '## Narrower students',
    '',
    f'Layers of 128 and 64 cut to a share. Weights 1. {rows.made("width")}',
    '',
    *_table(
      ['genre', 'width', 'taught by', 'RMSE', 'minus scratch'],
      _of_x(rows, 'width', lambda x: f'1/{1 / x:g}'),
    ),
    '## Answers, beside agreement on messages and states',
    '',
    f'Minus {_SILENT}, which has no L_interact, by the weight of L_interact; '
    'the other weights as in table 3, where that of L_interact is .03 and '
    f'k = 1. {rows.made("answers")}',
    '',
    *_of_weights(rows, 'answers', _SILENT),
    '## At the best step, and at the last',
    '',
    'Weights of table 3. Validation RMSE of each seed at its best step, as '
    'settings were chosen, and at the last one, as table 3 has it on test. '
    + rows.made('stop'),
    '',
    *_table(
      [
        'genre',
        'method',
        'best step',
        'RMSE there',
        'minus scratch',
        'RMSE at the last',
        'minus scratch',
      ],
      _of_stops(rows),
    ),
  ]
  return '\n'.join(lines)


def _draw(rows, folder):
  """diagnosis_weight.png and diagnosis_iteration.png."""
  picture = figure.Figure(figsize=(10, 4), layout='constrained')
  found = rows.of('weight')
  genres = list(dict.fromkeys(genre for genre, _, _ in found))
  panels = picture.subplots(1, len(genres), sharey=True, squeeze=False)[0]
  for axes, genre in zip(panels, genres, strict=True):
    for name in (*_TERMS, _ALL, _LD, _TD_LD):
      at = [x for g, n, x in found if (g, n) == (genre, name)]
      if not at:
        continue
      gaps = [
        rows.gap('weight', genre, name, x, against=('scratch', 0.0)) for x in at
      ]
      axes.errorbar(
        at,
        [gap['mean'] for gap in gaps],
        yerr=[gap['standard_error'] or 0 for gap in gaps],
        marker='o',
        capsize=3,
        label=name,
      )
    axes.axhline(0, color='black', linewidth=0.8)
    axes.set(xscale='log', xlabel='weight', title=genre)
  panels[0].set_ylabel('validation RMSE minus scratch')
  panels[0].legend()
  _save(picture, folder / 'diagnosis_weight.png')
  picture = figure.Figure(figsize=(10, 4), layout='constrained')
  found = rows.of('iteration')
  panels = picture.subplots(1, max(1, len(found)), squeeze=False)[0]
  for axes, at in zip(panels, found, strict=False):
    row = rows['iteration', *at]
    for series, values in sorted(row['interact'].items()):
      label = f'iteration {series.removeprefix("talk/interact_")}'
      axes.plot(row['steps'], values, marker='o', label=label)
    axes.set(yscale='log', xlabel='step', title=at[1])
  panels[0].set_ylabel('L_interact')
  panels[0].legend()
  _save(picture, folder / 'diagnosis_iteration.png')


def _save(picture, file):
  picture.savefig(file, dpi=100, metadata={'Software': None})


def main():
  logging.set_verbosity(logging.WARNING)
  parser = argparse.ArgumentParser(description='Why TD gains what it gains.')
  parser.add_argument('--workdir', default='runs/tables', type=pathlib.Path)
  parser.add_argument('--results', default='results', type=pathlib.Path)
  parts = dict.fromkeys(run.part for run in runs())
  parser.add_argument('--part', choices=parts, help='to run; by default all')
  parser.add_argument('--seeds', default=10, type=int, help='of each run')
  parser.add_argument('--steps', default=0, type=int, help='0: as configured')
  parser.add_argument('--render', action='store_true', help='run nothing')
  args = parser.parse_args()
  try:
    if not args.render:
      _run([run for run in runs() if args.part in (None, run.part)], args)
    rows = Rows(results_log.read(args.results / _FILE))
    (args.results / 'diagnosis.md').write_text(
      f'{(args.results / "diagnosis_said.md").read_text()}\n{page(rows)}'
    )
    _draw(rows, args.results)
  except errors.TdError as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(e.exit_code)


def _run(wanted, args):
  """Those of `wanted` that have not run."""
  tables.begin(args.workdir, args.results)
  locks, file = args.workdir / 'diagnosis', args.results / _FILE
  locks.mkdir(exist_ok=True)
  teacher = str(args.workdir.resolve() / 'teacher/selection')
  for number, run in enumerate(wanted, start=1):
    name = '-'.join(map(str, run[:4])).replace(' ', '_').replace('/', '_')
    with results_log.lock(locks / f'{name}.lock') as ours:
      if not ours or run in Rows(results_log.read(file)):
        continue  # Another process is at it, or has been.
      began = time.monotonic()
      row = measure(run, teacher, seeds=args.seeds, steps=args.steps)
      row |= {k: getattr(run, k) for k in ('part', 'genre', 'name', 'x')}
      row['seconds'] = round(time.monotonic() - began, 1)
      row['commit'] = environment.environment()['commit']
      results_log.append(file, row)
    print(
      f'{number} of {len(wanted)}: {run[:4]} '
      f'{row["validation"]["mean"]:.4f}, {row["seconds"]} s',
      flush=True,
    )


if __name__ == '__main__':
  main()
