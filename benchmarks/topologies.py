"""Compiles the ImageNet step for TPU topologies: results/compile_imagenet.md.

  python benchmarks/topologies.py        # needs `pip install -e '.[tpu_compile]'`

A case takes minutes; cases that the .jsonl already has are not compiled again.
The step is TD with k = 2. One teacher is that of configs/vit_imagenet.py, at
384 pixels; the other has 1 B parameters, at 224 pixels, sharded over 8 chips.
Nothing is loaded or run.
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence
import json
import pathlib
from typing import Any

from td_jax import types
from td_jax.configs import vit_imagenet
from td_jax.run import command
from td_jax.run import environment
from td_jax.storage import results_log
from td_jax.tpu_cost import chips
from td_jax.tpu_cost import cost_table
from td_jax.tpu_cost import estimate


def _base() -> types.Config:
  """The paper's: ViT-B/32 teaches its first 4 blocks, at 384 pixels."""
  return vit_imagenet.get_config()


def _giant() -> types.Config:
  """ViT-g/14 teaches its first 4 blocks, at 224 pixels; scanned, 8 shards."""
  config = vit_imagenet.get_config('size=224')
  for model in (config.model, config.teacher.model):
    model.update({'width': 1408, 'heads': 16, 'mlp_width': 6144, 'patch': 14})
    model.scan = True
  config.teacher.model.update({'depth': 40, 'split': (20, 40)})
  config.parallel.fsdp = 8
  return config


CONFIGS = {'B/32': _base, 'g/14': _giant}  # By the teacher's name.
CASES = (  # Teacher, topology, global batch size.
  ('B/32', 'v4:2x2x1', 512),
  ('B/32', 'v5e:2x2', 512),
  ('B/32', 'v5e:4x4', 512),
  ('B/32', 'v5e:16x16', 4096),
  ('g/14', 'v5e:4x4', 512),
)
_HEADS = (
  'teacher', 'parameters', 'shards', 'topology', 'global batch', 'HBM used',
  'model FLOPs', 'all-reduces', 'their size', 'other collectives',
  'collectives in loops', 'roofline', 'bound by', 'MFU for 12 h', 'hours',
  'dollars',
)  # fmt: skip


def render(rows: Sequence[Mapping[str, Any]]) -> str:
  """The table in Markdown."""
  first = rows[0]
  lines = [
    'The training step of `configs/vit_imagenet.py` (TD, k = 2), compiled by '
    '`benchmarks/topologies.py`. Figures are for one chip and one step.',
    '',
    '- **teacher**: B/32 sees 384 pixels; g/14 sees 224 pixels and scans its '
    'blocks. Each teaches a student of 4 such blocks.',
    '- **parameters**: those of the teacher, the student and the communication '
    'together.',
    '- **shards**: `config.parallel.fsdp`.',
    '- **MFU for 12 h**: the share of the peak FLOP/s that 20,000 steps need to '
    "finish in the paper's 12 hours.",
    '- **hours, dollars**: for 20,000 steps on all chips, at an assumed MFU of '
    f'{first["plan"]["mfu_stated"]:.0%}. Nobody has measured this MFU.',
    '',
    '| ' + ' | '.join(_HEADS) + ' |',
    '|---' * len(_HEADS) + '|',
  ]
  lines += ['| ' + ' | '.join(_cells(row)) + ' |' for row in rows]
  versions = ', '.join(f'{k} {v}' for k, v in first['versions'].items())
  commits = ', '.join(dict.fromkeys(row['commit'] for row in rows))
  lines += ['', f'Compiled with {versions}, at commits {commits}.', '']
  return '\n'.join(lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
  memory, plan = row['memory'], row['plan']
  reduces = [c for c in row['collectives'] if c['kind'] == 'all-reduce']
  others = [c for c in row['collectives'] if c['kind'] != 'all-reduce']
  return [
    row['teacher'],
    f'{row["parameters"] / 1e6:.0f} M',
    str(row['fsdp']),
    row['topology'],
    str(row['batch_size']),
    f'{memory["used"] / chips.GIB:.2f} of {memory["size"] / chips.GIB:.0f} GiB',
    f'{row["work"]["model_flops"] / 1e12:.2f} T',
    str(sum(c['count'] for c in reduces)),
    f'{sum(c["bytes"] for c in reduces) / 1e6:.0f} MB',
    ', '.join(map(_collective, others)) or 'none',
    str(sum(c['in_loops'] for c in row['collectives'])),
    f'{1e3 * row["times"]["roofline"]:.1f} ms',
    row['times']['bound'],
    f'{plan["mfu_needed"]:.1%}',
    f'{plan["hours"]:.2f}',
    f'{plan["dollars"]:,.0f}',
  ]


def _collective(total: Mapping[str, Any]) -> str:
  return f'{total["count"]} {total["kind"]} ({total["bytes"] / 1e9:.2f} GB)'


def main() -> None:
  """Compiles the cases that are missing, then writes the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--out',
    default='results/compile_imagenet.jsonl',
    type=pathlib.Path,
    help='the rows; the table is written beside them, as .md',
  )
  parser.add_argument(
    '--mfu',
    default=0.3,
    type=float,
    help='the assumed share of the peak FLOP/s, for hours and dollars',
  )
  args = parser.parse_args()
  rows = results_log.read(args.out)
  done = {(row['teacher'], row['topology']) for row in rows}
  for teacher, topology, batch in CASES:
    if (teacher, topology) in done:
      continue
    config = CONFIGS[teacher]()
    config.batch_size = batch
    report = estimate.cost(config, topology, mfu=args.mfu)
    print(cost_table.table(report), flush=True)
    row = json.loads(cost_table.as_json(report))
    row |= {
      'teacher': teacher,
      'fsdp': config.parallel.fsdp,
      'batch_size': batch,
      'commit': environment.environment()['commit'],
    }
    rows.append(row)
    results_log.append(args.out, row)
  args.out.with_suffix('.md').write_text(render(rows))


if __name__ == '__main__':
  command.run(main)
