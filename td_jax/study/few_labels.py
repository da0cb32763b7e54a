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

if __name__ == '__main__':
  from td_jax.run import process

  process.watch()  # Hears signals before the imports that take time.

from collections.abc import Mapping
import pathlib

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


def _render(domain: str, results: pathlib.Path) -> None:
  rows = results_log.read(results / f'{DESIGNS[domain].NAME}.jsonl')
  _PAGES[domain].render(rows, results)


def main() -> None:
  """Runs what is missing, then renders the tables and figures."""
  design_lib.run(
    'The study of few labels.', DESIGNS, _render, workdir='runs/few_labels'
  )


if __name__ == '__main__':
  main()
