"""Compiles the ImageNet step for TPU topologies: results/compile_imagenet.md.

  python benchmarks/topologies.py        # needs `pip install -e '.[tpu_compile]'`

Minutes each; what is in the .jsonl already is not compiled again. TD, k = 2, the
whole of configs/vit_imagenet.py at 384 pixels; and a teacher of 1 B parameters
at 224, in pieces. Nothing is loaded or run.
"""

import argparse
import json
import pathlib

from td_jax.configs import vit_imagenet
from td_jax.run import environment
from td_jax.storage import results_log
from td_jax.tpu_cost import estimate
from td_jax.tpu_cost import step_cost


def _paper():
  """ViT-B/32 teaches its first 4 blocks, at 384 pixels."""
  return vit_imagenet.get_config()


def _giant():
  """ViT-g/14 teaches its first 4 blocks, at 224 pixels: scanned, in 8 pieces."""
  config = vit_imagenet.get_config('size=224')
  for model in (config.model, config.teacher.model):
    model.update({'width': 1408, 'heads': 16, 'mlp_width': 6144, 'patch': 14})
    model.scan = True
  config.teacher.model.update({'depth': 40, 'split': (20, 40)})
  config.parallel.fsdp = 8
  return config


TEACHERS = {'B/32': _paper, 'g/14': _giant}
CASES = (  # Teacher, topology, global batch.
  ('B/32', 'v4:2x2x1', 512),
  ('B/32', 'v5e:2x2', 512),
  ('B/32', 'v5e:4x4', 512),
  ('B/32', 'v5e:16x16', 4096),
  ('g/14', 'v5e:4x4', 512),
)
_HEADS = (
  'teacher', 'parameters', 'pieces', 'topology', 'global batch', 'HBM used of',
  'model FLOPs', 'all-reduces', 'their bytes', 'others', 'in loops', 'roofline',
  'bound by', 'MFU for 12 h', 'hours', 'dollars',
)  # fmt: skip


def render(rows):
  """The table in Markdown."""
  gib = 2**30
  lines = [
    'The training step of `configs/vit_imagenet.py` (TD, k = 2), compiled by '
    '`benchmarks/topologies.py`; per chip and step. B/32 is at 384 pixels, g/14 '
    'at 224, its blocks scanned; each teaches a student of 4 such blocks. '
    'Pieces: `config.parallel.fsdp`. Parameters: the teacher, the student and '
    'the communication. Hours and '
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
      row['teacher'],
      f'{row["parameters"] / 1e6:.0f} M',
      str(row['fsdp']),
      row['topology'],
      str(row['batch_size']),
      f'{memory["used"] / gib:.2f} of {memory["size"] / gib:.0f} GiB',
      f'{row["work"]["model_flops"] / 1e12:.2f} T',
      str(sum(c['count'] for c in reduces)),
      f'{sum(c["bytes"] for c in reduces) / 1e6:.0f} MB',
      ', '.join(map(_other, others)) or 'none',
      str(sum(c['in_loops'] for c in row['collectives'])),
      f'{1e3 * row["times"]["roofline"]:.1f} ms',
      row['times']['bound'],
      f'{plan["mfu_needed"]:.1%}',
      f'{plan["hours"]:.2f}',
      f'{plan["dollars"]:,.0f}',
    ]
    lines.append('| ' + ' | '.join(texts) + ' |')
  versions = ', '.join(f'{k} {v}' for k, v in rows[0]['versions'].items())
  commits = ', '.join(dict.fromkeys(row['commit'] for row in rows))
  lines += ['', f'{versions}; commits {commits}.', '']
  return '\n'.join(lines)


def _other(found):
  return f'{found["count"]} {found["kind"]} ({found["bytes"] / 1e9:.2f} GB)'


def main():
  """Compiles the cases that are missing, then writes the table."""
  parser = argparse.ArgumentParser(description='The ImageNet step on TPUs.')
  parser.add_argument(
    '--out', default='results/compile_imagenet.jsonl', type=pathlib.Path
  )
  parser.add_argument(
    '--mfu', default=0.3, type=float, help='stated for the estimate of hours'
  )
  args = parser.parse_args()
  rows = results_log.read(args.out)
  done = {(row['teacher'], row['topology']) for row in rows}
  for teacher, topology, batch in CASES:
    if (teacher, topology) in done:
      continue
    config = TEACHERS[teacher]()
    config.batch_size = batch
    found = estimate.cost(config, topology, mfu=args.mfu)
    print(step_cost.table(found), flush=True)
    row = json.loads(step_cost.as_json(found))
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
  main()
