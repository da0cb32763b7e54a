"""The study of the conversation: what helps, against what, on columns held back.

  python -m td_jax.study.conversation --workdir=runs/conversation
  python -m td_jax.study.conversation --domain=images --workdir=runs/talk --teacher=DIR
  python -m td_jax.study.conversation --render

`conversation_rows.py` lists the variants, and results/conversation_plan.md says what was
decided before any of them had run. Trials and runs are appended to
results/conversation_ratings*.jsonl and conversation_images*.jsonl; what is there is not
run again, and several processes share the work.
"""

if __name__ == '__main__':
  from td_jax.run import process

  process.watch()  # Hears signals before the imports that take time.

from collections.abc import Mapping
import pathlib

from td_jax.storage import results_log
from td_jax.study import conversation_images
from td_jax.study import conversation_page
from td_jax.study import conversation_ratings
from td_jax.study import design as design_lib

DESIGNS: Mapping[str, design_lib.Design] = {
  'ratings': conversation_ratings,
  'images': conversation_images,
}


def _render(domain: str, results: pathlib.Path) -> None:
  del domain  # One page shows all of them.
  conversation_page.render(
    {
      each: results_log.read(results / f'{design.NAME}.jsonl')
      for each, design in DESIGNS.items()
    },
    results,
  )


def main() -> None:
  """Runs what is missing, then renders the page and the figure."""
  design_lib.run(
    'The study of the conversation.',
    DESIGNS,
    _render,
    workdir='runs/conversation',
  )


if __name__ == '__main__':
  main()
