"""Compiles the ImageNet step for TPU topologies: results/compile_imagenet.md.

  python benchmarks/topologies.py        # needs `pip install -e '.[tpu_compile]'`

Minutes each; what is in the .jsonl already is not compiled again. TD, k = 2, at
384 pixels, the whole of configs/vit_imagenet.py; batch 512, and 4096 on 256
chips. Nothing is loaded or run.
"""

import json
import pathlib
import sys

from absl import app
from absl import flags

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from configs import vit_imagenet
from td_jax import compile as compile_lib
from td_jax import planning
from td_jax import report

TOPOLOGIES = {
  'v4:2x2x1': 512,
  'v5e:2x2': 512,
  'v5e:4x4': 512,
  'v5e:16x16': 4096,
}
_OUT = flags.DEFINE_string('out', 'results/compile_imagenet.jsonl', 'Rows.')
_MFU = flags.DEFINE_float('mfu', 0.3, 'Stated for the estimate of hours.')
_HEADS = (
  'topology', 'global batch', 'HBM used of', 'model FLOPs', 'all-reduces',
  'their bytes', 'others', 'in loops', 'roofline', 'bound by',
  'MFU for 12 h', 'hours', 'dollars',
)  # fmt: skip


def render(rows):
  """The table in Markdown."""
  gib = 2**30
  lines = [
    'The training step of `configs/vit_imagenet.py` (TD, k = 2, 384 pixels), '
    'compiled by `benchmarks/topologies.py`; per chip and step. Hours and '
    f'dollars of 20,000 steps are at a stated MFU, {rows[0]["plan"]["mfu_stated"]:.0%}, '
    'which nobody measured.',
    '',
    '| ' + ' | '.join(_HEADS) + ' |',
    '|---' * len(_HEADS) + '|',
  ]
  for row in rows:
    memory, plan = row['memory'], row['plan']
    reduces = [c for c in row['collectives'] if c['kind'] == 'all-reduce']
    others = [c for c in row['collectives'] if c['kind'] != 'all-reduce']
    texts = [
      row['topology'],
      str(row['batch_size']),
      f'{memory["used"] / gib:.2f} of {memory["size"] / gib:.0f} GiB',
      f'{row["work"]["model_flops"] / 1e12:.2f} T',
      str(sum(c['count'] for c in reduces)),
      f'{sum(c["bytes"] for c in reduces) / 1e6:.0f} MB',
      ', '.join(f'{c["count"]} {c["kind"]}' for c in others) or 'none',
      str(sum(c['in_loops'] for c in row['collectives'])),
      f'{1e3 * row["times"]["roofline"]:.1f} ms',
      row['times']['bound'],
      f'{plan["mfu_needed"]:.1%}',
      f'{plan["hours"]:.2f}',
      f'{plan["dollars"]:,.0f}',
    ]
    lines.append('| ' + ' | '.join(texts) + ' |')
  first = rows[0]
  versions = ', '.join(f'{k} {v}' for k, v in first['versions'].items())
  lines += [
    '',
    f'{first["parameters"] / 1e6:.0f} M parameters, the teacher and the '
    f'communication included; {versions}; commit {first["commit"]}.',
    '',
  ]
  return '\n'.join(lines)


def main(argv):
  del argv  # Flags say it all.
  out = pathlib.Path(_OUT.value)
  out.touch()
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  done = {row['topology'] for row in rows}
  for topology, batch in TOPOLOGIES.items():
    if topology in done:
      continue
    config = vit_imagenet.get_config()
    config.batch_size = batch
    found = planning.cost(config, topology, mfu=_MFU.value)
    print(compile_lib.table(found), flush=True)
    row = json.loads(compile_lib.as_json(found))
    row |= {'batch_size': batch, 'commit': report.environment()['commit']}
    rows.append(row)
    with out.open('a') as f:
      f.write(json.dumps(row, sort_keys=True) + '\n')
  out.with_suffix('.md').write_text(render(rows))


if __name__ == '__main__':
  app.run(main)
