"""A study: settings are chosen by trials on validation, then every row runs.

A regime is what a student has to learn from, a row is a method or variant in a regime,
and a column is a genre or a dataset. The modules that say what a study compares have the
form of `Design`. Trials and runs are appended to two files; what is there is not run
again, and several processes share the work.
"""

import argparse
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
from typing import Any
from typing import Protocol
from typing import runtime_checkable

import numpy as np

from td_jax import types
from td_jax.paper import tables
from td_jax.run import command_line
from td_jax.run import pipeline
from td_jax.run import preemption
from td_jax.run import process
from td_jax.storage import results_log
from td_jax.study import work as work_lib

_FIELDS = (
  'method', 'k', 'seeds', 'steps', 'batch_size', 'labels', 'train_examples',
  'unlabelled', 'best_step', 'seconds', 'metric', 'terms', 'validation', 'test',
  'teachers', 'baselines', 'commit', 'python', 'versions',
)  # fmt: skip
AnyRegime = Any  # A NamedTuple with a property `name`.
# Keys of the config, such as distill.weights.logit.
Weights = Mapping[str, Any]


@runtime_checkable
class Design(Protocol):
  """What a study compares, such as the modules `ratings` and `images`."""

  @property
  def NAME(self) -> str:
    """The name of its result files."""
    ...

  @property
  def TUNED_ON(self) -> tuple[str, ...]:
    """The columns in which weights are tried."""
    ...

  @property
  def TRIALS(self) -> int:
    """Trials of each method."""
    ...

  @property
  def TRIAL_SEEDS(self) -> int:
    """Students in a trial and column."""
    ...

  @property
  def SEEDS(self) -> int:
    """Students of a row and column; every choice of labels has as many."""
    ...

  @property
  def LOWER_IS_BETTER(self) -> bool:
    """Whether a lower score is better."""
    ...

  @property
  def Regime(self) -> Callable[..., AnyRegime]:
    """Makes a regime of its fields."""
    ...

  def columns(self, regime: AnyRegime) -> tuple[str, ...]:
    """The columns of a regime."""
    ...

  def draws(self, regime: AnyRegime) -> tuple[int, ...]:
    """The choices of labels of a regime, which share its seeds."""
    ...

  def rows(self) -> list[tuple[AnyRegime, str]]:
    """(regime, row) of all rows."""
    ...

  def tuned_as(self, regime: AnyRegime, row: str) -> tuple[AnyRegime, str]:
    """The regime and method whose trials choose the weights of a row."""
    ...

  def trials(self, method: str, count: int) -> list[dict[str, Any]]:
    """`count` settings of a method, the same in every call."""
    ...

  def config(
    self,
    regime: AnyRegime,
    row: str,
    column: str,
    *,
    seeds: range,
    teacher: str,
    weights: Weights,
  ) -> types.Config:
    """The config of a cell; `teacher` is the folder of its teacher."""
    ...

  def teacher_config(
    self, regime: AnyRegime, column: str
  ) -> types.Config | None:
    """The config of the teacher; None for published weights."""
    ...


class Study:
  """The work of a study: what is done, and what is left."""

  def __init__(
    self,
    design: Design,
    workdir: pathlib.Path,
    results: pathlib.Path,
    *,
    teacher: str = '',
    watch: preemption.Watch,
    log: types.Log,
  ):
    """Nothing is run yet.

    Args:
      design: What is compared.
      workdir: The folder of teachers, locks and compiled programs.
      results: The folder of the two result files.
      teacher: The published weights, where the design takes them.
      watch: Tells the train loop when to stop.
      log: Receives progress lines.
    """
    tables.begin(workdir, results)
    self._design, self._workdir, self._teacher = design, workdir, teacher
    self._trials = results / f'{design.NAME}_search.jsonl'
    self._cells = results / f'{design.NAME}.jsonl'
    self._watch, self._log = watch, log

  def search(self, *, trials: int, seeds: int) -> None:
    """Runs the missing trials of all weights."""
    tuned = dict.fromkeys(
      self._design.tuned_as(regime, row) for regime, row in self._design.rows()
    )
    work = [
      {
        'regime': regime._asdict(),
        'method': method,
        'column': column,
        'weights': weights,
      }
      for regime, method in tuned
      for weights in self._design.trials(method, trials)
      for column in self._design.TUNED_ON
    ]

    def run(key: work_lib.Key) -> dict[str, Any]:
      config = self._config(key, key['method'], key['weights'], seeds)
      config.test = False
      return self._train(
        config, ('metric', 'validation', 'best_step', 'seconds', 'commit')
      )

    self._all('trials', work, self._trials, run)

  def cells(self, *, seeds: int) -> None:
    """Runs the missing cells with the weights that the search has chosen.

    Args:
      seeds: Students of a row and column, as many for each choice of labels.
    """
    chosen = best(self._design, results_log.read(self._trials))
    work = [
      {
        'regime': regime._asdict(),
        'row': row,
        'column': column,
        'draw': draw,
      }
      for regime, row in self._design.rows()
      for column in self._design.columns(regime)
      for draw in self._design.draws(regime)
    ]

    def run(key: work_lib.Key) -> dict[str, Any]:
      regime = self._design.Regime(**key['regime'])
      weights = chosen[self._design.tuned_as(regime, key['row'])]
      draws = self._design.draws(regime)
      config = self._config(key, key['row'], weights, seeds // len(draws))
      outcome = self._train(config, _FIELDS)
      return outcome | {'weights': weights}

    self._all('cells', work, self._cells, run)

  def _config(
    self, key: work_lib.Key, row: str, weights: Weights, seeds: int
  ) -> types.Config:
    regime = self._design.Regime(**key['regime'])
    draw = key.get('draw', 0)  # Trials have the first choice of labels.
    config = self._design.config(
      regime,
      row,
      key['column'],
      seeds=range(draw * seeds, (draw + 1) * seeds),
      teacher=self._teacher_of(regime, key['column'], draw),
      weights=weights,
    )
    config.data.labels.draw = draw
    if 'cache_dir' in config.teacher:
      config.teacher.cache_dir = str(self._workdir / 'kept')
    return config

  def _teacher_of(self, regime: AnyRegime, column: str, draw: int) -> str:
    """The folder of a regime's teacher, which is trained unless it is there."""
    config = self._design.teacher_config(regime, column)
    if config is None:
      return self._teacher
    name = 'teacher'
    if config.data.labels.share < 1:  # It must not see what is hidden.
      name = f'teacher-{regime.share:g}-{column}-{draw}'
      config.data.labels.draw = draw
    folder = self._workdir / name
    # Other processes wait here until the first has trained the teacher.
    with results_log.lock(self._workdir / f'{name}.lock', wait=True):
      if not (folder / 'results.json').exists():
        pipeline.run(config, folder, watch=self._watch, log=self._log)
    return str(folder)

  def _train(
    self, config: types.Config, fields: Sequence[str]
  ) -> dict[str, Any]:
    return work_lib.train(
      config, fields, workdir=self._workdir, watch=self._watch
    )

  def _all(
    self,
    what: str,
    work: Sequence[work_lib.Key],
    file: pathlib.Path,
    run: Callable[[work_lib.Key], dict[str, Any]],
  ) -> None:
    work_lib.run_all(
      what,
      work,
      file,
      run,
      title=self._title,
      workdir=self._workdir,
      watch=self._watch,
      log=self._log,
    )

  def _title(self, key: work_lib.Key) -> str:
    regime = self._design.Regime(**key['regime'])
    name = f'{regime.name}: {key.get("row") or key["method"]}, {key["column"]}'
    return f'{name}, draw {key["draw"]}' if 'draw' in key else name


def best(
  design: Design, trials: Sequence[Mapping[str, Any]]
) -> dict[tuple[AnyRegime, str], dict[str, Any]]:
  """{(regime, method): the weights with the best mean over the columns}."""
  scores: dict[tuple[AnyRegime, str], dict[str, list[float]]] = {}
  for trial in trials:
    group = design.Regime(**trial['regime']), trial['method']
    scores.setdefault(group, {}).setdefault(
      json.dumps(trial['weights']), []
    ).append(trial['validation']['mean'])
  choose = min if design.LOWER_IS_BETTER else max
  return {
    group: json.loads(
      choose(
        # A mean over other columns could not be compared.
        (w for w, each in by.items() if len(each) == len(design.TUNED_ON)),
        key=lambda weights, by=by: np.mean(by[weights]),
      )
    )
    for group, by in scores.items()
  }


def run(
  title: str,
  designs: Mapping[str, Design],
  render: Callable[[str, pathlib.Path], None],
  *,
  workdir: str,
) -> None:
  """The command of a study: runs what is missing, then renders.

  Args:
    title: What --help begins with.
    designs: {--domain: what is compared}; the first is the default.
    render: Writes pages and figures, from a domain and the folder of results.
    workdir: The default folder of the runs.
  """
  parser = command_line.parser(
    title,
    workdir=workdir,
    results='the finished trials and cells, and the pages',
  )
  parser.add_argument('--domain', default=next(iter(designs)), choices=designs)
  parser.add_argument(
    '--render', action='store_true', help='render only; run nothing'
  )

  def command(args: argparse.Namespace, log: types.Log) -> None:
    if not args.render:
      design = designs[args.domain]
      study = Study(
        design,
        args.workdir,
        args.results,
        teacher=args.teacher,
        watch=process.watch(),
        log=log,
      )
      study.search(trials=design.TRIALS, seeds=design.TRIAL_SEEDS)
      study.cells(seeds=design.SEEDS)
    render(args.domain, args.results)

  command_line.run(parser, command)
