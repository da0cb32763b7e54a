"""Why does TD gain what it gains? Measures it, and writes results/diagnosis.md.

  python benchmarks/diagnose.py --workdir=runs/tables      # needs its teacher/
  python benchmarks/diagnose.py --render

The runs are short trainings on MovieLens. They are scored on validation every 50
steps, and each seed counts at its best step, as the train loop does it; the test
split is never scored. A run is a row of results/diagnosis.jsonl and is not run
again; several processes share the runs. The messages of a method that talks are
measured after its run, on the validation ratings.

The page starts with results/diagnosis_findings.md, which is written by hand.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import pathlib
import time
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np

from td_jax import types
from td_jax.configs import movielens as movielens_config
from td_jax.data import feed as feed_lib
from td_jax.data import movielens
from td_jax.data import task as task_lib
from td_jax.methods import base
from td_jax.methods import channel
from td_jax.models import layers
from td_jax.models import split
from td_jax.paper import cka
from td_jax.paper import diagnosis
from td_jax.paper import diagnosis_page
from td_jax.paper import diagnosis_plot
from td_jax.paper import tables
from td_jax.run import command_line
from td_jax.run import config as config_lib
from td_jax.run import environment
from td_jax.run import experiment
from td_jax.run import plan
from td_jax.run import scores
from td_jax.run import teachers as teachers_lib
from td_jax.storage import files
from td_jax.storage import results_log
from td_jax.training import statistics


def measure(
  run: diagnosis.Run, teacher: str, *, seeds: int, steps: int = 0
) -> dict[str, Any]:
  """Trains the students of a run, and measures their messages.

  Args:
    run: One of `diagnosis.runs`.
    teacher: The directory of a teacher that has not seen validation.
    seeds: The students, which are trained side by side.
    steps: Training steps; 0: as configured.

  Returns:
    `validation` and `last`, statistics of the best and of the last scores;
    `best_step`, a mean over the seeds; `terms`, means over the last 50 steps;
    `interact`, L_interact at `steps`; `talk`, the means of `measure_messages`.
  """
  config = movielens_config.get_config(f'genre={run.genre},method={run.method}')
  config.test = config.refit_on_validation = False
  config.seeds, config.teacher.checkpoint = seeds, teacher
  config.steps = steps or config.steps
  # Scores are taken between dispatches, so that a dispatch is the interval.
  config.steps_per_dispatch = min(config.steps_per_dispatch, config.steps)
  config.log_every = config.eval_every = config.steps_per_dispatch
  config.update_from_flattened_dict(run.changes)
  config_lib.validate(config)
  parallel = plan.devices(config)
  task = with_share(movielens.load(config, log=types.no_log), run.share)
  teachers = {}
  # Scratch would not read it.
  if run.method != 'scratch':
    teachers[types.TEACHER] = teachers_lib.load(
      config, task, path=pathlib.Path(), folder=teacher
    )
  trained = experiment.build(config, parallel, task, teachers)
  assert task.validation is not None
  score = scores.scorer(
    config, trained.model, task.validation, task=task, parallel=parallel
  )
  state = parallel.place(trained.state)
  stops, scores_seen, measured = [], [], []
  for start in range(0, config.steps, config.steps_per_dispatch):
    stop = min(start + config.steps_per_dispatch, config.steps)
    state, metrics = trained.train(
      state, trained.fixed, trained.rows(start, stop)
    )
    measured.append({k: float(v.mean()) for k, v in metrics.items()})
    scores_seen.append(score(state.params['student']))
    stops.append(stop)
  # Each seed has its own best step, as in the train loop.
  best = np.argmin(scores_seen, axis=0)
  row = {
    'validation': statistics.mean_and_stderr(np.min(scores_seen, axis=0)),
    'last': statistics.mean_and_stderr(scores_seen[-1]),
    'best_step': float(np.mean(np.take(stops, best))),
    'terms': measured[-1],
    'steps': stops,
    'interact': {
      name: [terms[name] for terms in measured]
      for name in measured[-1]
      if name.startswith('talk/interact_')
    },
    'talk': {},
  }
  if 'talk' in state.params['method']:
    messages = measure_messages(
      config,
      task,
      state.params,
      model=trained.model,
      teacher=teachers[types.TEACHER],
    )
    row['talk'] = {name: float(v.mean()) for name, v in messages.items()}
  return row


def with_share(task: task_lib.Task, share: float) -> task_lib.Task:
  """`task` with a random share of its training ratings, the same in each call.

  Ids that are no longer in it are unknown to the student.
  """
  if share == 1:
    return task
  train, validation = task.train, task.validation
  assert isinstance(train, types.Batch)  # Ratings are in memory,
  assert isinstance(validation, types.Batch)  # and not refitted here.
  examples = np.flatnonzero(train.mask)
  chosen = np.random.default_rng(0).choice(
    examples, round(share * len(examples)), replace=False
  )
  # In the original order.
  chosen.sort()
  known = {name: np.unique(train.x[name][chosen]) for name in ('user', 'movie')}

  def forget(batch: types.Batch) -> types.Batch:
    """The batch with 0, the unknown id, in place of ids that are not known."""
    x = batch.x | {
      name: np.where(np.isin(batch.x[name], ids), batch.x[name], 0)
      for name, ids in known.items()
    }
    return batch._replace(x=x)

  part = jax.tree.map(lambda leaf: leaf[chosen], forget(train))
  return task._replace(
    # Padded to the old size, so that all shares run the same program.
    train=feed_lib.padded(part, len(train.mask)),
    validation=forget(validation),
    model_args={**task.model_args, 'mean': float(part.y.mean())},
  )


def measure_messages(
  config: types.Config,
  task: task_lib.Task,
  params: Mapping[str, types.PyTree],
  *,
  model: nn.Module,
  teacher: teachers_lib.Teacher,
  examples: int = 1000,
) -> dict[str, np.ndarray]:
  """Measures what students and teacher tell each other, on validation.

  Returns:
    Arrays [seeds] by name. `rank *`: the participation ratio of the covariance,
    between 1 and the width. `cka ...`: linear, debiased. `missed *`: the share
    of a state's variance that is missing from the decoded state; above 1, the
    state's mean would be nearer. `rmse ...`: of the teacher, with its own low
    state and with the one that it decodes from the student's message.
  """
  validation = task.validation
  assert isinstance(validation, types.Batch)
  # Padding would count as ratings.
  real = np.flatnonzero(validation.mask)[:examples]
  batch = task.examples(validation, real)
  messages = experiment.method_of(config, task).messages
  assert messages is not None  # Only runs that talk are measured.

  # One program for all seeds, which share the teacher and the batch.
  @jax.jit
  @functools.partial(jax.vmap, in_axes=(0, None, None))
  def run(
    params: Mapping[str, types.PyTree],
    variables: types.PyTree,
    batch: types.Batch,
  ) -> dict[str, jax.Array]:
    g = split.side(model, params['student'], batch.x)
    h = split.side(teacher.model, variables, batch.input_of(types.TEACHER))
    lesson = base.Lesson(
      student=g,
      teachers={types.TEACHER: h},
      batch=batch,
      step=jnp.int32(0),
      rng=jax.random.key(0),  # Without dropout no key is used.
    )
    message_g, message_h = messages(params['method'], lesson)
    decoder = channel.Decoder(
      hidden=config.distill.hidden,
      widths=(h.states.low.shape[-1], h.states.high.shape[-1]),
      dropout=0.0,
    )
    decoded = layers.apply(
      decoder, params['method']['talk']['teacher_decoder'], message_g
    )
    # The teacher's frozen layers, from the state that it decoded.
    high = h.interpret(decoded.low, None)
    output = layers.apply(teacher.model, variables, high, method='output')
    pairs = {
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
      **{name: cka.cka(*pair) for name, pair in pairs.items()},
      'missed low_h': _missed(decoded.low, h.states.low),
      'missed high_h': _missed(high, h.states.high),
      'rmse of low_h': _rmse(h.output, batch.y),
      'rmse of decoded low_h': _rmse(output, batch.y),
    }

  return jax.device_get(run(params, teacher.variables, batch))


def _rank(values: types.Hidden) -> jax.Array:
  """(tr C)^2 / tr(C^2) of the covariance C of values [n, d]."""
  centred = values - values.mean(axis=0, keepdims=True)
  covariance = centred.T @ centred
  return jnp.trace(covariance) ** 2 / jnp.sum(covariance**2)


def _missed(decoded: types.Hidden, target: types.Hidden) -> jax.Array:
  """Share of the variance of `target` [n, d] that `decoded` does not explain."""
  # Over all dimensions together: those of large variance dominate.
  mean = target.mean(axis=0, keepdims=True)
  variance = jnp.sum((target - mean) ** 2)
  return jnp.sum((decoded - target) ** 2) / variance


def _rmse(
  predictions: types.PerExample, targets: types.PerExample
) -> jax.Array:
  return jnp.sqrt(jnp.mean((predictions - targets) ** 2))


def _run(
  selected: Sequence[diagnosis.Run], args: argparse.Namespace, log: types.Log
) -> None:
  """Executes those of the selected runs that are missing."""
  tables.begin(args.workdir, args.results)
  locks, file = args.workdir / 'diagnosis', args.results / diagnosis.FILE
  locks.mkdir(exist_ok=True)
  # Runs are scored on validation, on which the refitted teacher has trained.
  teacher = str(args.workdir.resolve() / 'teacher/selection')
  for number, run in enumerate(selected, start=1):
    name = '-'.join(map(str, run[:4])).replace(' ', '_').replace('/', '_')
    with results_log.lock(locks / f'{name}.lock') as acquired:
      # Read under the lock: another process may have finished the run.
      if not acquired or run in diagnosis.Rows(results_log.read(file)):
        continue
      began = time.monotonic()
      row = measure(run, teacher, seeds=args.seeds, steps=args.steps)
      row |= {k: getattr(run, k) for k in ('part', 'genre', 'name', 'x')}
      row['seconds'] = round(time.monotonic() - began, 1)
      row['commit'] = environment.environment()['commit']
      results_log.append(file, row)
    log(
      f'{number} of {len(selected)}: {run[:4]} '
      f'{row["validation"]["mean"]:.4f}, {row["seconds"]} s'
    )


def render(results: pathlib.Path) -> str:
  """The text of diagnosis.md: the findings, then the tables."""
  rows = diagnosis.Rows(results_log.read(results / diagnosis.FILE))
  findings = (results / 'diagnosis_findings.md').read_text()
  return f'{findings}\n{diagnosis_page.page(rows)}'


def _command(args: argparse.Namespace, log: types.Log) -> None:
  if not args.render:
    selected = [r for r in diagnosis.runs() if args.part in (None, r.part)]
    _run(selected, args, log)
  files.write_atomically(args.results / 'diagnosis.md', render(args.results))
  rows = diagnosis.Rows(results_log.read(args.results / diagnosis.FILE))
  diagnosis_plot.draw(rows, args.results)


def main() -> None:
  """Executes the missing runs, then renders the page and its figures."""
  parser = command_line.parser(
    'Measure why TD gains what it gains.',
    workdir='runs/tables',
    results='the rows, the page and the figures',
    teacher=False,
  )
  # Not a set, whose order would differ from call to call.
  parts = dict.fromkeys(run.part for run in diagnosis.runs())
  parser.add_argument('--part', choices=parts, help='run only this part')
  parser.add_argument('--seeds', default=10, type=int, help='students per run')
  parser.add_argument(
    '--steps', default=0, type=int, help='training steps; 0: as configured'
  )
  parser.add_argument(
    '--render', action='store_true', help='render only; run nothing'
  )
  command_line.run(parser, _command)


if __name__ == '__main__':
  main()
