"""The study of the conversation: what helps, against what, on columns held back.

  python -m td_jax.study.conversation --workdir=runs/conversation
  python -m td_jax.study.conversation --domain=images --workdir=runs/talk --teacher=DIR
  python -m td_jax.study.conversation --render

`conversation_rows.py` lists the variants, and results/conversation_plan.md says what was
decided before any of them had run. Trials and runs are appended to
results/conversation_ratings*.jsonl and conversation_images*.jsonl; what is there is not
run again, and several processes share the work.
"""

import argparse
from collections.abc import Mapping

from td_jax import types
from td_jax.run import command_line
from td_jax.run import preemption
from td_jax.storage import results_log
from td_jax.study import conversation_images
from td_jax.study import conversation_page
from td_jax.study import conversation_ratings
from td_jax.study import design as design_lib

DESIGNS: Mapping[str, design_lib.Design] = {
  'ratings': conversation_ratings,
  'images': conversation_images,
}


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
  conversation_page.render(
    {
      domain: results_log.read(args.results / f'{each.NAME}.jsonl')
      for domain, each in DESIGNS.items()
    },
    args.results,
  )


def main() -> None:
  """Runs what is missing, then renders the page and the figure."""
  parser = command_line.parser(
    'The study of the conversation.',
    workdir='runs/conversation',
    results='the finished trials and cells, the page and the figure',
  )
  parser.add_argument('--domain', default='ratings', choices=DESIGNS)
  parser.add_argument(
    '--render', action='store_true', help='render only; run nothing'
  )
  command_line.run(parser, _command)


if __name__ == '__main__':
  main()
