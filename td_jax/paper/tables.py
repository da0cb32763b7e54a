"""The paper's tables, run and rendered: every cell through the one train loop.

  python -m td_jax.paper.tables --table=1,2,3,5,7,8 --workdir=runs/tables --seeds=10
  python -m td_jax.paper.tables --table=4,6,9 --workdir=runs/tables --seeds=3 --teacher=DIR
  python -m td_jax.paper.tables --table=3 --row=td --row=td_ld --seeds=20
  python -m td_jax.paper.tables --table=3 --render

A finished cell is not run again, and an unfinished one resumes where it
stopped, so the same command carries on after any interruption. Several
processes started with the same command share the cells; small networks train
fastest with one process per core (`taskset -c 0 python -m td_jax.paper.tables
... &`, and so on). Cells are appended to results/movielens.jsonl or
results/images.jsonl. Each table is rendered from them to results/tableN.md and
results/tableN.png, and a summary of table 3 goes into docs/results.md.
"""

if __name__ == '__main__':
  from td_jax.run import process

  process.watch()  # Hears signals before the imports that take time.

import argparse
import collections
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import datetime
import pathlib
import time
from typing import Any

import jax

from td_jax import errors
from td_jax import types
from td_jax.configs import movielens as movielens_config
from td_jax.paper import cells as cells_lib
from td_jax.paper import markdown
from td_jax.paper import plot
from td_jax.paper import table_specs
from td_jax.run import command_line
from td_jax.run import environment
from td_jax.run import pipeline
from td_jax.run import preemption
from td_jax.run import process
from td_jax.run import results as results_lib
from td_jax.run import terminal
from td_jax.storage import files
from td_jax.storage import results_log

Cell = tuple[str, str, str]  # Domain, row, column.

_ROOT = pathlib.Path(__file__).resolve().parents[2]
# What a row of results/*.jsonl holds from a run's results.json.
_FIELDS = (
  'method', 'k', 'seeds', 'steps', 'batch_size', 'train_examples',
  'best_step', 'seconds', 'metric', 'validation', 'test', 'teachers',
  'baselines', 'commit', 'python', 'versions',
)  # fmt: skip


def run(
  names: Sequence[str],
  workdir: pathlib.Path,
  results: pathlib.Path,
  *,
  seeds: int,
  rows: Sequence[str] = (),
  teacher: str = '',
  watch: preemption.Watch,
  log: types.Log,
) -> None:
  """Runs the cells that tables `names` lack, and appends each to its file.

  Args:
    names: Keys of `table_specs.TABLES`.
    workdir: The folder of the runs.
    results: The folder of the result files.
    seeds: How many seeds each cell should have; only the missing ones run.
    rows: The rows to run; empty: all rows of the tables.
    teacher: For images: the folder of published weights.
    watch: Tells the train loop when to stop.
    log: Receives progress lines.
  """
  begin(workdir, results)
  cells = list(
    dict.fromkeys(
      (table_specs.TABLES[name].domain, row, column)
      for name in names
      for row in table_specs.TABLES[name].rows
      if row in rows or not rows
      for column in table_specs.COLUMNS[table_specs.TABLES[name].domain]
    )
  )
  began, missing = time.monotonic(), _missing(cells, results, seeds)
  for cell in missing:
    domain, row, column = cell
    name = f'{column}-{row}'.replace(' ', '_').replace(',', '')
    with results_log.lock(workdir / f'{name}.lock') as acquired:
      # Read again under the lock: another process may have finished the cell
      # since `missing` was computed.
      first = _missing([cell], results, seeds).get(cell, seeds)
      if not acquired or first == seeds:
        continue
      outcome = results_lib.upgraded(
        pipeline.run(
          table_specs.config(
            domain,
            row,
            column,
            seeds=range(first, seeds),
            teacher=teacher_of(domain, workdir, teacher, watch=watch, log=log),
            # The name is part of the stored configs, which a resumed run has
            # to match.
            cache_dir=str(workdir / 'kept'),
          ),
          workdir / f'{name}-{first}-{seeds}',
          watch=watch,
          log=log,
        )
      )
      with watch.saving():
        results_log.append(
          results / f'{domain}.jsonl',
          _shared_fields(outcome) | {'row': row, 'column': column},
        )
    left = len(_missing(cells, results, seeds))
    pace = (time.monotonic() - began) / (len(missing) - left)
    score = outcome['test']
    log(
      f'{column}, {row}: {score["mean"]:.4f} +- '
      f'{score["standard_error"] or 0:.4f}; {left} of {len(cells)} cells left, '
      f'ETA {datetime.timedelta(seconds=round(pace * left))}'
    )


def begin(workdir: pathlib.Path, results: pathlib.Path) -> None:
  """Prepares a process for its first run.

  Raises:
    errors.IOFailedError: a folder cannot be made.
  """
  # The commit is read once per process, and must be that of the code which is
  # loaded now, not of what is checked out hours later.
  environment.environment()
  for folder in (workdir, results):
    try:
      folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
      raise errors.IOFailedError(
        f'{folder} cannot be made: {e.strerror or e}.'
      ) from e
  # A row compiles the same programs in every genre, for seconds each.
  jax.config.update('jax_compilation_cache_dir', str(workdir / 'compiled'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def teacher_of(
  domain: str,
  workdir: pathlib.Path,
  teacher: str,
  *,
  watch: preemption.Watch,
  log: types.Log,
) -> str:
  """The teacher directory of a domain.

  The teacher of ratings is trained in `workdir` unless it is there; that of
  images is `teacher`, which the user names.
  """
  if domain != 'movielens':
    return teacher
  folder = workdir / 'teacher'
  # The other processes wait here until the first has trained the teacher.
  with results_log.lock(workdir / 'teacher.lock', wait=True):
    if not (folder / 'results.json').exists():
      config = movielens_config.get_config('method=teacher')
      pipeline.run(config, folder, watch=watch, log=log)
  return str(folder)


def _shared_fields(outcome: Mapping[str, Any]) -> dict[str, Any]:
  """The part of a results.json that makes sense on other machines."""
  # `get`, since ratings have no train_examples, and no validation scores once
  # they are refitted.
  fields = {name: outcome.get(name) for name in _FIELDS}
  fields['teachers'] = {
    name: {key: value for key, value in scores.items() if key != 'folder'}
    for name, scores in outcome['teachers'].items()
  }
  return fields


def _to_run(names: Iterable[str], teacher: str) -> list[str]:
  """The tables to run; 1 and 2 leave out images if these have no teacher."""
  return [
    part
    for name in names
    for part in markdown.needs(name)
    if part == name or teacher or table_specs.TABLES[part].domain != 'images'
  ]


def _missing(
  cells: Iterable[Cell], results: pathlib.Path, seeds: int
) -> dict[Cell, int]:
  """{cell: its first seed that has not run} of the unfinished cells."""
  done = collections.defaultdict(set)
  for domain in table_specs.COLUMNS:
    for row in results_log.read(results / f'{domain}.jsonl'):
      done[domain, row['row'], row['column']].update(row['seeds'])
  lacking = {cell: set(range(seeds)) - done[cell] for cell in cells}
  return {cell: min(left) for cell, left in lacking.items() if left}


def _render(names: Iterable[str], results: pathlib.Path) -> None:
  """Writes and prints the tables."""
  cells = cells_lib.read(results)
  # Only the committed results belong into the page.
  page = (
    _ROOT / 'docs/results.md'
    if results.resolve() == _ROOT / 'results'
    else None
  )
  for name in names:
    text = markdown.table(name, cells)
    files.write_atomically(results / f'table{name}.md', text)
    terminal.show(text)
    if name not in table_specs.TABLES:
      continue
    spec = table_specs.TABLES[name]
    finished, _ = cells_lib.common(spec.domain, spec.rows, cells)
    # The figure shows gains over scratch, and needs it.
    if 'scratch' in finished.rows:
      plot.draw(name, finished, results / f'table{name}.png')
    if name == '3' and page:
      short = markdown.summary(cells)
      markdown.insert(page, 'table 3 summary', short)
      terminal.show(short)


def _command(args: argparse.Namespace, log: types.Log) -> None:
  names = args.table.split(',')
  for name in names:
    errors.choose('--table', name, markdown.NAMES)
  # Names are checked before anything runs, which may take hours.
  parts = _to_run(names, args.teacher)
  known = {row for part in parts for row in table_specs.TABLES[part].rows}
  for row in args.row:
    errors.choose('--row', row, known)
  if not args.render:
    run(
      parts,
      args.workdir,
      args.results,
      seeds=args.seeds,
      rows=args.row,
      teacher=args.teacher,
      watch=process.watch(),
      log=log,
    )
  _render(names, args.results)


def main() -> None:
  """Runs the missing cells of tables, then renders the tables."""
  parser = command_line.parser(
    "Run and render the paper's tables.",
    workdir='runs/tables',
    results='the finished cells and the rendered tables',
  )
  parser.add_argument(
    '--table',
    default='3',
    help=f'tables, separated by commas: {",".join(markdown.NAMES)}',
  )
  parser.add_argument('--seeds', default=5, type=int, help='students per cell')
  parser.add_argument(
    '--row',
    default=[],
    action='append',
    help='run only this row; may be repeated',
  )
  parser.add_argument(
    '--render', action='store_true', help='render only; run nothing'
  )
  command_line.run(parser, _command)


if __name__ == '__main__':
  main()
