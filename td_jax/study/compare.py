"""td_jax compare: several methods on the same data, with the same teacher and seeds.

  td_jax compare --config=ratings:data=ratings.csv --methods=scratch,ld,td_ld

Each method is a run in a folder of its own, ready for `td_jax predict`; the same
command with the same --workdir resumes, and runs only what is missing. The table
compares test scores seed by seed, and goes to compare.md with the learning curves in
compare.png.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from td_jax import data
from td_jax import errors
from td_jax import methods
from td_jax import types
from td_jax.devices import compile_cache
from td_jax.paper import cells as cells_lib
from td_jax.paper import figures
from td_jax.run import command
from td_jax.run import command_line
from td_jax.run import completion
from td_jax.run import config as config_lib
from td_jax.run import metrics_log
from td_jax.run import pipeline
from td_jax.run import plan
from td_jax.run import preemption
from td_jax.run import process
from td_jax.run import terminal
from td_jax.run import workdir as workdir_lib
from td_jax.storage import files
from td_jax.study import finished as finished_lib
from td_jax.training import metrics

Runs = Mapping[str, Mapping[str, Any]]  # {method: its results.json}
_COLORS = (
  figures.BLACK,
  figures.ORANGE,
  figures.SKY_BLUE,
  figures.GREEN,
  figures.BLUE,
  figures.VERMILION,
  figures.PURPLE,
)


class Curve(NamedTuple):
  """The validation scores of a run."""

  steps: np.ndarray  # int [n]
  scores: np.ndarray  # float [n, seeds]


def configs(
  config: str, overrides: Sequence[str], names: Sequence[str], *, seeds: int
) -> dict[str, types.Config]:
  """{method: its config}.

  The method is an argument of the config if it takes one, since configs choose
  weights by it; otherwise it replaces `config.method`.

  Args:
    config: As after --config=.
    overrides: Words such as --config.k=2.
    names: Methods.
    seeds: Students of each method.
  """
  found = {}
  for name in names:
    errors.choose('--methods', name, methods.METHODS)
    separator = ',' if ':' in config else ':'
    try:
      own = command.config(f'{config}{separator}method={name}', overrides)
    except errors.ConfigError:
      own = command.config(config, overrides)
    own.method, own.seeds = name, seeds
    found[name] = own
  return found


def run(
  configs: Mapping[str, types.Config],
  folder: pathlib.Path,
  *,
  watch: preemption.Watch,
  log: types.Log,
) -> dict[str, dict[str, Any]]:
  """Runs each method in a folder of its own; returns their results.

  A teacher that has no checkpoint is trained first, for all methods.

  Raises:
    errors.TdError: See `errors.py`; the same call resumes.
  """
  # All that is wrong is said before anything is trained.
  complete = {}
  for name, config in configs.items():
    complete[name] = completion.complete(
      config, log=types.no_log if complete else log
    )
    config_lib.validate(complete[name])
  first = next(iter(complete.values()))
  domain = data.DOMAINS[first.domain]
  dataset = domain.read(first, log=log)
  for config in complete.values():
    domain.task(config, dataset)
  del dataset
  taught = [
    each for each in complete.values() if config_lib.teacher_names(each)
  ]
  if taught and not config_lib.given_teacher(taught[0]):
    teacher = folder / types.TEACHER
    log(f'the teacher of all methods, in {teacher}')
    pipeline.run(
      config_lib.as_teacher(taught[0]), teacher, watch=watch, log=log
    )
    for config in complete.values():
      config.teacher.checkpoint = str(teacher.absolute())
  results = {}
  for number, (name, config) in enumerate(complete.items(), 1):
    if not config.teacher.get('cache_dir', 'none'):
      config.teacher.cache_dir = str(folder / 'kept')
    log(f'method {number} of {len(complete)}: {name}, in {folder / name}')
    results[name] = pipeline.run(config, folder / name, watch=watch, log=log)
  return results


def page(runs: Runs) -> str:
  """The table, in Markdown; the first method is what others are compared with."""
  first, *_ = runs
  facts = runs[first]
  splits = [name for name in ('validation', 'test') if name in facts]
  metric, last = facts['metric'], splits[-1]
  body = []
  frozen = dict(facts['baselines'])
  for each in runs.values():
    frozen |= {
      f'{name} (frozen)': row for name, row in each['teachers'].items()
    }
  for name, scores in frozen.items():
    body.append([name, *(f'{scores[split]:.4f}' for split in splits), '', ''])
  for name, each in runs.items():
    gap = ''
    if name != first:
      gap = _difference(each, facts, last)
    body.append(
      [
        each['label'],
        *(_score(each, split).text() for split in splits),
        gap,
        f'{each["seconds"]:.0f}',
      ]
    )
  head = ['', *splits, f'{last}, minus {facts["label"]}', 'seconds']
  count = len(facts['seeds'])
  better = 'lower' if metrics.METRICS[metric].lower_is_better else 'higher'
  return '\n'.join(
    [
      f'# {facts["task"]}: {metric} of {count} students of each method',
      '',
      *finished_lib.table(head, body),
      f'{metric}: {better} is better. {_spread(count)}',
      '',
      _best(runs, splits),
      '',
    ]
  )


def curves(
  folder: pathlib.Path, names: Sequence[str], metric: str
) -> dict[str, Curve]:
  """The curve of each method, of the run before its refit if there was one."""
  found = {}
  for name in names:
    run = folder / name
    if (run / plan.SELECTION).is_dir():
      run = run / plan.SELECTION
    rows = [
      (row['step'], row[f'validation_{metric}'])
      for row in metrics_log.read(run)
      if f'validation_{metric}' in row
    ]
    if rows:
      steps, scores = zip(*rows, strict=True)
      found[name] = Curve(np.asarray(steps), np.asarray(scores))
  return found


def draw(runs: Runs, curves: Mapping[str, Curve], file: pathlib.Path) -> None:
  """Validation scores against steps, with a band of one standard error."""
  figure = figures.new(6.4, 4.4)
  axes = figure.subplots()
  for i, (name, curve) in enumerate(curves.items()):
    color = _COLORS[i % len(_COLORS)]
    scores = [finished_lib.mean(each) for each in curve.scores]
    means = np.asarray([score.mean for score in scores])
    spread = np.asarray([score.standard_error or 0 for score in scores])
    axes.plot(curve.steps, means, color=color, label=runs[name]['label'])
    axes.fill_between(
      curve.steps, means - spread, means + spread, color=color, alpha=0.2, lw=0
    )
  teachers = [each['teachers'] for each in runs.values() if each['teachers']]
  if teachers and 'validation' in next(iter(teachers[0].values())):
    for name, scores in teachers[0].items():
      axes.axhline(
        scores['validation'], color=figures.GREY, linestyle=':', label=name
      )
  first = next(iter(runs.values()))
  axes.set_xlabel('step')
  axes.set_ylabel(f'validation {first["metric"]}')
  axes.set_title(first['task'])
  axes.grid(alpha=0.3)
  axes.legend(frameon=False)
  figures.save(figure, file)


def _score(results: Mapping[str, Any], split: str) -> finished_lib.Score:
  return finished_lib.mean(np.asarray(results[split]['per_seed']))


def _difference(
  one: Mapping[str, Any], other: Mapping[str, Any], split: str
) -> str:
  """Such as '-0.0017 ± 0.0005 (p = 0.03)'."""
  gap = cells_lib.difference(
    np.asarray(one[split]['per_seed']) - np.asarray(other[split]['per_seed'])
  )
  text = finished_lib.Score(gap.mean, gap.standard_error).text(sign=True)
  return text if gap.p is None else f'{text} (p = {gap.p:.2g})'


def _spread(count: int) -> str:
  """What the table says of `count` students."""
  if count == 1:
    return (
      'One student of each method says nothing of the spread; more --seeds do.'
    )
  return (
    '± is the standard error over seeds. Differences are of students with the same '
    'seed; p is that of a paired t-test, and is not corrected for the number of '
    'methods.'
  )


def _best(runs: Runs, splits: Sequence[str]) -> str:
  """What validation chooses, and what the test says of it."""
  first, *_ = runs
  metric = metrics.METRICS[runs[first]['metric']]
  best = (min if metric.lower_is_better else max)(
    runs, key=lambda name: _score(runs[name], splits[0]).mean
  )
  text = f'The best by {splits[0]} is {runs[best]["label"]}'
  if best == first or splits[0] == splits[-1]:
    return f'{text}.'
  return (
    f'{text}; on {splits[-1]} it differs from {runs[first]["label"]} by '
    f'{_difference(runs[best], runs[first], splits[-1])}.'
  )


def _command(
  args: argparse.Namespace, overrides: Sequence[str], log: types.Log
) -> None:
  names = list(dict.fromkeys(filter(None, args.methods.split(','))))
  if not names:
    raise errors.ConfigError(
      '--methods names no method; it takes a list such as scratch,ld,td_ld.'
    )
  figures.new(1.0, 1.0)  # Without matplotlib nothing should be trained.
  found = configs(args.config, overrides, names, seeds=args.seeds)
  folder = args.workdir or pathlib.Path(
    workdir_lib.default(f'compare-{found[names[0]].name}')
  )
  log(f'workdir {folder}')
  watch = process.watch()
  watch.workdir = str(folder)  # A new one each time, unless it is given.
  compile_cache.enable()
  runs = run(found, folder, watch=watch, log=log)
  text = page(runs)
  files.write_atomically(folder / 'compare.md', text)
  first = runs[names[0]]
  draw(runs, curves(folder, names, first['metric']), folder / 'compare.png')
  terminal.show(text)
  log(f'the table is in {folder}/compare.md, the curves in compare.png')


def main(argv: Sequence[str]) -> None:
  """Runs `td_jax compare` with the words after it."""
  parser = command_line.Parser(
    prog='td_jax compare',
    description='Compare methods on the same data, teacher and seeds.',
    epilog='Further words, such as --config.k=2, change every config.',
  )
  parser.add_argument('--config', required=True, help='NAME or FILE.py, :ARGS')
  parser.add_argument(
    '--methods',
    default='scratch,ld,td_ld',
    help=f'a list of {", ".join(methods.METHODS)}; the first is what others are '
    'compared with',
  )
  parser.add_argument(
    '--seeds',
    default=5,
    type=command_line.positive,
    help='students of each method',
  )
  parser.add_argument(
    '--workdir',
    type=command_line.folder,
    help='folder of the runs; by default a new one under runs/',
  )
  overrides = [word for word in argv if word.startswith('--config.')]
  own = [word for word in argv if word not in overrides]
  command_line.run(
    parser, lambda args, log: _command(args, overrides, log), own
  )
