"""The paper's tables, run and rendered: every cell through the one loop.

  python -m td_jax.paper.tables --table=1,2,3,5,7,8 --workdir=runs/tables --seeds=10
  python -m td_jax.paper.tables --table=4,6,9 --workdir=runs/tables --seeds=3 --teacher=DIR
  python -m td_jax.paper.tables --table=3 --row=td --row=td_ld --seeds=20
  python -m td_jax.paper.tables --table=3 --render

A finished cell is not run again, and an unfinished one goes on where it
stopped; so the same command carries on after any interruption. Started several
times at once it shares the work out, cell by cell; small networks gain from a
process a core (`taskset -c 0 python -m td_jax.paper.tables ... &`, and so on). Cells
go to results/movielens.jsonl or results/images.jsonl, and each table is rendered
from them to results/tableN.md, and into README.md where it has a place for it.
"""

import argparse
import collections
from collections.abc import Sequence
import datetime
import pathlib
import sys
import time

from absl import logging
import jax

from td_jax import errors
from td_jax.configs import movielens as movielens_config
from td_jax.paper import markdown
from td_jax.paper import plot
from td_jax.paper import table_specs
from td_jax.run import environment
from td_jax.run import pipeline
from td_jax.run import preemption
from td_jax.storage import results_log

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_KEPT = (
    'method', 'k', 'seeds', 'steps', 'batch_size', 'train_examples',
    'best_step', 'seconds', 'metric', 'validation', 'test', 'teacher',
    'controls', 'commit', 'python', 'versions',
)  # fmt: skip


def run(
  names: Sequence[str],
  workdir: pathlib.Path,
  results: pathlib.Path,
  *,
  seeds: int,
  rows: Sequence[str] = (),
  teacher: str = '',
  watch,
  log,
) -> None:
  """Runs the cells that tables `names` lack; each is a line of its file.

  Args:
    names: Of `table_specs.TABLES`.
    workdir: Where the runs are.
    results: The folder of the files.
    seeds: Of each cell; only those that it lacks are run.
    rows: Of the tables, those to run; none: all.
    teacher: Of images: the folder of published weights.
    watch: Says when to stop.
    log: Takes lines for whoever watches.
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
    with results_log.lock(workdir / f'{name}.lock') as ours:
      first = _missing([cell], results, seeds).get(cell, seeds)
      if not ours or first == seeds:
        continue  # Another process is at it, or has been.
      found = pipeline.run(
        table_specs.config(
          domain,
          row,
          column,
          seeds=range(first, seeds),
          teacher=teacher_of(domain, workdir, teacher, watch=watch, log=log),
          kept=str(workdir / 'kept'),
        ),
        workdir / f'{name}-{first}-{seeds}',
        watch=watch,
        log=log,
      )
      kept = {name: found.get(name) for name in _KEPT}
      if kept['teacher']:  # Where it lies is of this machine alone.
        kept['teacher'].pop('folder', None)
      results_log.append(
        results / f'{domain}.jsonl', kept | {'row': row, 'column': column}
      )
    left = len(_missing(cells, results, seeds))
    pace = (time.monotonic() - began) / (len(missing) - left)
    score = found['test']
    log(
      f'{column}, {row}: {score["mean"]:.4f} +- '
      f'{score["standard_error"] or 0:.4f}; {left} of {len(cells)} cells left, '
      f'ETA {datetime.timedelta(seconds=round(pace * left))}'
    )


def begin(workdir: pathlib.Path, results: pathlib.Path) -> None:
  """What a process does before its first run."""
  environment.environment()  # Of the code that this process has read.
  for folder in (workdir, results):
    try:
      folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
      raise errors.IOFailedError(
        f'{folder} cannot be made: {e.strerror or e}.'
      ) from e
  # Programs of a row are the same in all genres, and take seconds to compile.
  jax.config.update('jax_compilation_cache_dir', str(workdir / 'compiled'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)


def _to_run(names, teacher):
  """Tables 1 and 2 go without images where those have no teacher."""
  return [
    part
    for name in names
    for part in markdown.needs(name)
    if part == name or teacher or table_specs.TABLES[part].domain != 'images'
  ]


def _missing(cells, results, seeds):
  """{cell: its first seed that has not run} of those that lack some."""
  done = collections.defaultdict(set)
  for domain in table_specs.COLUMNS:
    for row in results_log.read(results / f'{domain}.jsonl'):
      done[domain, row['row'], row['column']].update(row['seeds'])
  lacking = {cell: set(range(seeds)) - done[cell] for cell in cells}
  return {cell: min(left) for cell, left in lacking.items() if left}


def teacher_of(
  domain: str, workdir: pathlib.Path, teacher: str, *, watch, log
) -> str:
  """The teacher's folder; that of ratings is trained if it is absent."""
  if domain != 'movielens':
    return teacher
  folder = workdir / 'teacher'
  with results_log.lock(workdir / 'teacher.lock', wait=True):
    if not (folder / 'results.json').exists():
      config = movielens_config.get_config('method=teacher')
      pipeline.run(config, folder, watch=watch, log=log)
  return str(folder)


def main() -> None:
  """Runs what is missing of tables, then renders them."""
  logging.set_verbosity(logging.WARNING)
  parser = argparse.ArgumentParser(description="The paper's tables.")
  parser.add_argument(
    '--table', default='3', help=f'some of {",".join(markdown.NAMES)}'
  )
  parser.add_argument('--workdir', default='runs/tables', type=pathlib.Path)
  parser.add_argument('--results', default='results', type=pathlib.Path)
  parser.add_argument('--seeds', default=5, type=int, help='of each cell')
  parser.add_argument(
    '--row', default=[], action='append', help='to run; may be repeated'
  )
  parser.add_argument('--teacher', default='', help='of images: its weights')
  parser.add_argument('--render', action='store_true', help='run nothing')
  args = parser.parse_args()
  names = args.table.split(',')
  try:
    for name in names:
      errors.choose('--table', name, markdown.NAMES)
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
        watch=preemption.Watch(),
        log=lambda line: print(line, file=sys.stderr, flush=True),
      )
    cells = {
      domain: results_log.read(args.results / f'{domain}.jsonl')
      for domain in table_specs.COLUMNS
    }
    for name in names:
      text = markdown.table(name, cells)
      (args.results / f'table{name}.md').write_text(text)
      if name in table_specs.TABLES:
        shown = table_specs.TABLES[name]
        found, _ = markdown.common(shown.domain, shown.rows, cells)
        if 'scratch' in found.rows:  # Else there is nothing to be better than.
          plot.draw(name, found, args.results / f'table{name}.png')
      if args.results.resolve() == _ROOT / 'results':  # Which README shows.
        markdown.insert(_ROOT / 'README.md', f'table {name}', text)
      print(text)
  except errors.TdError as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(e.exit_code)


if __name__ == '__main__':
  main()
