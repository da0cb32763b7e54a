"""The study of few labels: trials, runs, tables and figures.

  python -m td_jax.study.few_labels --workdir=runs/few_labels
  python -m td_jax.study.few_labels --domain=images --workdir=runs/few_images --teacher=DIR
  python -m td_jax.study.few_labels --render

The modules `ratings` and `images` say what is compared: a regime is what a
student has to learn from, a row is a method in a regime, and a column is a genre
or a dataset. The weights of every method are chosen on validation first, with as
many trials for each; then every row runs in all columns, with the best weights.

Trials are appended to results/few_labels_search.jsonl and runs to
results/few_labels.jsonl; those of images to few_images_search.jsonl and
few_images.jsonl. What is there is not run again, and several processes share the
work: start one for each core (`taskset -c 0 python -m ... &`).
"""

import argparse
from collections.abc import Mapping

from td_jax import types
from td_jax.run import command_line
from td_jax.run import preemption
from td_jax.storage import results_log
from td_jax.study import design as design_lib
from td_jax.study import images
from td_jax.study import images_page
from td_jax.study import ratings
from td_jax.study import ratings_page

DESIGNS: Mapping[str, design_lib.Design] = {
  'ratings': ratings,
  'images': images,
}
_PAGES = {'ratings': ratings_page, 'images': images_page}


def _command(args: argparse.Namespace, log: types.Log) -> None:
  design = DESIGNS[args.domain]
  if not args.render:
    study = design_lib.Study(
      design,
      args.workdir,
      args.results,
      teacher=args.teacher,
      watch=preemption.Watch(),
      log=log,
    )
    study.search(trials=design.TRIALS, seeds=design.TRIAL_SEEDS)
    study.cells(seeds=design.SEEDS)
  rows = results_log.read(args.results / f'{design.NAME}.jsonl')
  _PAGES[args.domain].render(rows, args.results)


def main() -> None:
  """Runs what is missing, then renders the tables and figures."""
  parser = command_line.parser(
    'The study of few labels.',
    workdir='runs/few_labels',
    results='the finished trials and cells, tables and figures',
  )
  parser.add_argument('--domain', default='ratings', choices=DESIGNS)
  parser.add_argument(
    '--render', action='store_true', help='render only; run nothing'
  )
  command_line.run(parser, _command)


if __name__ == '__main__':
  main()
