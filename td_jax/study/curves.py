"""Learning curves of the laptop's students: which recipe is worth its time.

  python -m td_jax.study.curves --workdir=runs/curves --teacher=DIR
  python -m td_jax.study.curves --render

Every recipe trains students of CIFAR-10 and validates them as it goes; test is
never scored. The rows are in results/curves.jsonl, and results/curves.md and
curves.png show them. What is there is not run again.
"""

import argparse
from collections.abc import Mapping
import pathlib
from typing import Any

from td_jax import types
from td_jax.configs import vit_cifar10
from td_jax.paper import command_line
from td_jax.paper import tables
from td_jax.run import preemption
from td_jax.storage import results_log
from td_jax.study import work as work_lib

FILE = 'curves.jsonl'
_EVALUATIONS = 8  # Validations in a run, evenly spaced.

_ADAMW = {'optim.name': 'adamw', 'optim.weight_decay': 0.05, 'optim.warmup': 50}
_BOTH = {'model.pooling': 'token_and_mean'}
_TWO = {'model.depth': 2, 'model.split': (1, 2)}
# {recipe: (method, changes to the laptop's config)}.
_HEAD = {'student_head': 'probe'}
RECIPES: Mapping[str, tuple[str, dict[str, Any]]] = {
  'p5': (
    'ld',
    {
      **_ADAMW,
      **_BOTH,
      **_HEAD,
      **_TWO,
      'optim.learning_rate': 1e-5,
      'steps': 160,
    },
  ),
  'p5b': (
    'ld',
    {
      **_ADAMW,
      **_BOTH,
      **_HEAD,
      **_TWO,
      'optim.learning_rate': 3e-5,
      'steps': 160,
    },
  ),
  'p3': (
    'ld',
    {**_ADAMW, **_BOTH, **_HEAD, 'optim.learning_rate': 1e-5, 'steps': 160},
  ),
}


def config(recipe: str, *, teacher: str, seeds: range) -> types.Config:
  """The config of a recipe."""
  method, changes = RECIPES[recipe]
  cfg = vit_cifar10.get_config(f'laptop,method={method}')
  cfg.teacher.checkpoint, cfg.seed, cfg.seeds = teacher, seeds.start, len(seeds)
  cfg.test = False
  cfg.update_from_flattened_dict(changes)
  cfg.log_every = cfg.eval_every = cfg.steps // _EVALUATIONS
  return cfg


def run(
  workdir: pathlib.Path,
  results: pathlib.Path,
  *,
  teacher: str,
  seeds: int,
  watch: preemption.Watch,
  log: types.Log,
) -> None:
  """Runs the recipes that results/curves.jsonl lacks."""
  tables.begin(workdir, results)

  def train(key: work_lib.Key) -> dict[str, Any]:
    cfg = config(key['recipe'], teacher=teacher, seeds=range(seeds))
    cfg.teacher.cache_dir = str(workdir / 'kept')
    return work_lib.train(
      cfg,
      ('method', 'batch_size', 'train_examples', 'seeds', 'seconds', 'curve',
       'validation', 'teachers', 'commit'),
      workdir=workdir, watch=watch, log=log,
    )  # fmt: skip

  work_lib.run_all(
    'curves',
    [{'recipe': recipe} for recipe in RECIPES],
    results / FILE,
    train,
    title=lambda key: key['recipe'],
    workdir=workdir,
    log=log,
  )


def _command(args: argparse.Namespace, log: types.Log) -> None:
  run(
    args.workdir,
    args.results,
    teacher=args.teacher,
    seeds=args.seeds,
    watch=preemption.Watch(),
    log=log,
  )
  for row in results_log.read(args.results / FILE):
    print(row['recipe'], row['seconds'], row['curve'])


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('--workdir', type=pathlib.Path, default='runs/curves')
  parser.add_argument('--results', type=pathlib.Path, default='results')
  parser.add_argument('--teacher', default='')
  parser.add_argument('--seeds', type=int, default=1)
  command_line.run(parser, _command)


if __name__ == '__main__':
  main()
