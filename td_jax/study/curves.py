"""Learning curves on CIFAR-10: which recipe is worth a laptop's time.

  python -m td_jax.study.curves --workdir=runs/curves --teacher=DIR
  python -m td_jax.study.curves --render

The recipes around which the laptop's was chosen have 2 blocks; the laptop now has 4.
Every recipe trains students and validates them on the way; test is never scored.
The finished curves are rows of results/curves.jsonl and are not run again;
results/curves.md and curves.png show them. Several processes share the work.
"""

if __name__ == '__main__':
  from td_jax.run import process

  process.watch()  # Hears signals before the imports that take time.

import argparse
from collections.abc import Iterable
from collections.abc import Mapping
import pathlib
from typing import Any
from typing import NamedTuple

import jax
from jax import numpy as jnp
import numpy as np

from td_jax import models
from td_jax import types
from td_jax.configs import vit_cifar10
from td_jax.paper import figures
from td_jax.paper import tables
from td_jax.run import command_line
from td_jax.run import preemption
from td_jax.run import process
from td_jax.run import terminal
from td_jax.storage import files
from td_jax.storage import results_log
from td_jax.study import finished as finished_lib
from td_jax.study import work as work_lib
from td_jax.use import cost

NAME = 'curves'
_EVALUATIONS = 8  # Validations in a run, evenly spaced.
_FIELDS = (
  'method', 'seeds', 'batch_size', 'train_examples', 'seconds', 'validation',
  'curve', 'teachers', 'commit',
)  # fmt: skip


class Recipe(NamedTuple):
  """What a student is trained with."""

  group: str  # A key of `GROUPS`.
  # To the config `vit_cifar10:laptop,method=ld` with a student of 2 blocks.
  changes: Mapping[str, Any]


GROUPS = {
  'length': 'How long: steps of 64 images',
  'start': 'How the student starts, and its learning rate',
  'size': 'How large, and 4 blocks in place of 2',
}


def _blocks(depth: int) -> dict[str, Any]:
  return {'model.depth': depth, 'model.split': (depth // 2, depth)}


_RANDOM = {
  'student_init': 'random',
  'student_head': 'zeros',
  'optim.learning_rate': 1e-3,
}
_NARROW = {
  'model.width': 192,
  'model.heads': 3,
  'model.mlp_width': 768,
  **_blocks(4),
  **_RANDOM,
}
RECIPES: Mapping[str, Recipe] = {
  **{
    f'{steps} steps': Recipe('length', {'steps': steps})
    for steps in (160, 320, 640, 1280)
  },
  **{
    f'fitted head, rate {rate:g}': Recipe(
      'start', {'optim.learning_rate': rate}
    )
    for rate in (1e-5, 1e-4)
  },
  'head of zeros': Recipe('start', {'student_head': 'zeros'}),
  'head reads the class token': Recipe('start', {'model.pooling': 'token'}),
  'random start, rate 0.001': Recipe('start', _RANDOM),
  '4 blocks': Recipe('size', _blocks(4)),
  **{
    f'4 blocks, {steps} steps': Recipe('size', {**_blocks(4), 'steps': steps})
    for steps in (160, 640)
  },
  **{
    f'4 blocks, rate {rate:g}': Recipe(
      'size', {**_blocks(4), 'optim.learning_rate': rate}
    )
    for rate in (1e-5, 1e-4)
  },
  '4 blocks of half the width, random start': Recipe('size', _NARROW),
}


def config(recipe: str, *, teacher: str, seeds: range) -> types.Config:
  """The config of a recipe."""
  cfg = vit_cifar10.get_config('laptop,method=ld')
  cfg.teacher.checkpoint, cfg.seed, cfg.seeds = teacher, seeds.start, len(seeds)
  cfg.test = False
  cfg.update_from_flattened_dict({**_blocks(2), **RECIPES[recipe].changes})
  cfg.log_every = cfg.eval_every = cfg.steps // _EVALUATIONS
  cfg.steps_per_dispatch = cfg.eval_every
  return cfg


def flops(cfg: types.Config, settings: types.Config) -> int:
  """FLOPs of a network on one image: its matrix products."""
  model = models.build(settings, {'classes': cfg.data.classes})
  image = jnp.zeros((1, cfg.data.size, cfg.data.size, 3))
  variables = jax.eval_shape(
    lambda: model.init(jax.random.key(0), image, train=False)
  )
  return cost.flops(model, variables, image)


def run(
  workdir: pathlib.Path,
  results: pathlib.Path,
  *,
  recipes: Iterable[str],
  teacher: str,
  seeds: int,
  watch: preemption.Watch,
  log: types.Log,
) -> None:
  """Runs those of `recipes` that results/curves.jsonl lacks."""
  tables.begin(workdir, results)

  def train(key: work_lib.Key) -> dict[str, Any]:
    cfg = config(key['recipe'], teacher=teacher, seeds=range(seeds))
    cfg.teacher.cache_dir = str(workdir / 'kept')
    outcome = work_lib.train(
      cfg, _FIELDS, workdir=workdir, watch=watch, log=log
    )
    compute = flops(cfg, cfg.model) / flops(cfg, cfg.teacher.model)
    return outcome | {'share_of_teachers_flops': compute}

  work_lib.run_all(
    'curves',
    [{'recipe': recipe} for recipe in recipes],
    results / f'{NAME}.jsonl',
    train,
    title=lambda key: key['recipe'],
    workdir=workdir,
    watch=watch,
    log=log,
  )


def page(rows: Mapping[str, Mapping[str, Any]]) -> str:
  """All curves as a table in Markdown; `rows` are named by recipe."""
  lines = [
    '# Learning curves on CIFAR-10',
    '',
    'Written by `python -m td_jax.study.curves --render`. Label distillation '
    'with the recipe of `vit_cifar10:laptop`, but 2 blocks in place of its 4, and '
    'the change that a row names. Accuracy on '
    'validation, ± the standard error over seeds. The best step is what counts; '
    'the last quarter is what the validation gained after three quarters of the '
    'steps. FLOPs are those of the student on one image over those of the '
    'teacher.',
    '',
  ]
  for group, title in GROUPS.items():
    body = [
      [
        name,
        f'{row["curve"][-1][0] * row["batch_size"]:,}',
        _best(row).text(),
        f'{_last_quarter(row):+.4f}',
        f'{row["share_of_teachers_flops"]:.1%}',
        f'{row["seconds"] / len(row["seeds"]):.0f}',
      ]
      for name, row in rows.items()
      if RECIPES[name].group == group
    ]
    if body:
      head = [
        'recipe',
        'images seen',
        'best step',
        'last quarter',
        'FLOPs',
        's',
      ]
      lines += [f'## {title}', '', *finished_lib.table(head, body)]
  teachers = [row['teachers'] for row in rows.values() if row['teachers']]
  if teachers:
    score = teachers[0][types.TEACHER]['validation']
    lines += [f'The teacher, with a linear head: {score:.4f}.', '']
  return '\n'.join(lines).rstrip() + '\n'


def draw(rows: Mapping[str, Mapping[str, Any]], file: pathlib.Path) -> None:
  """Accuracy against the images seen, one panel for each group."""
  figure = figures.new(12.0, 4.2)
  panels = figure.subplots(1, len(GROUPS), sharey=True)
  for axes, (group, title) in zip(panels, GROUPS.items(), strict=True):
    for name, row in rows.items():
      if RECIPES[name].group != group:
        continue
      steps, scores = zip(*row['curve'], strict=True)
      means = np.mean(scores, axis=1)
      axes.plot(
        np.asarray(steps) * row['batch_size'] / 1000,
        means,
        marker='o',
        ms=3,
        label=name,
      )
      if row['teachers']:
        axes.axhline(
          row['teachers'][types.TEACHER]['validation'],
          color=figures.GREY,
          linestyle=':',
        )
    axes.set_title(title, fontsize='medium')
    axes.set_xlabel('thousand images seen')
    axes.grid(alpha=0.3)
    if axes.lines:
      axes.legend(fontsize='x-small', frameon=False, loc='lower right')
  panels[0].set_ylabel('validation accuracy (dotted: teacher)')
  figures.save(figure, file)


def _best(row: Mapping[str, Any]) -> finished_lib.Score:
  return finished_lib.Score(
    row['validation']['mean'], row['validation']['standard_error']
  )


def _last_quarter(row: Mapping[str, Any]) -> float:
  """What the last quarter of the steps added to the mean accuracy."""
  curve = {step: float(np.mean(scores)) for step, scores in row['curve']}
  last = max(curve)
  before = max(step for step in curve if step <= 0.75 * last)
  return curve[last] - curve[before]


def _command(args: argparse.Namespace, log: types.Log) -> None:
  if not args.render:
    run(
      args.workdir,
      args.results,
      recipes=args.recipe or RECIPES,
      teacher=args.teacher,
      seeds=args.seeds,
      watch=process.watch(),
      log=log,
    )
  found = results_log.read(args.results / f'{NAME}.jsonl')
  # In the order of `RECIPES`, whatever finished first.
  by_name = {row['recipe']: row for row in found}
  rows = {name: by_name[name] for name in RECIPES if name in by_name}
  text = page(rows)
  files.write_atomically(args.results / f'{NAME}.md', text)
  terminal.show(text)
  draw(rows, args.results / f'{NAME}.png')


def main() -> None:
  """Runs what is missing, then renders the table and the figure."""
  parser = command_line.parser(
    'Learning curves on CIFAR-10.',
    workdir='runs/curves',
    results='the finished curves, the table and the figure',
  )
  parser.add_argument(
    '--recipe',
    default=[],
    action='append',
    choices=RECIPES,
    help='run only this recipe; may be repeated',
  )
  parser.add_argument(
    '--seeds', default=2, type=int, help='students per recipe'
  )
  parser.add_argument(
    '--render', action='store_true', help='render only; run nothing'
  )
  command_line.run(parser, _command)


if __name__ == '__main__':
  main()
