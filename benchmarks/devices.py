"""How far runs on several devices drift from a run on one: results/devices.json.

  python benchmarks/devices.py --teacher=TEACHER --out=results/devices.json

TD trains on MovieLens with the config's own optimizer, without dropout, from the same
student and on the same batches: on one device, on several, and on one device from
parameters that are one unit in the last place (ulp) away. Sums over several devices are
rounded in another order. If they are right, the drift is that of the ulp: a difference
that float32 cannot avoid, and that training amplifies.

The devices are shares of the CPU; what they compute does not depend on that.
"""

import argparse
from collections.abc import Mapping
import json
import os
import pathlib
from typing import Any

_DEVICES = 8
# XLA reads it when JAX starts.
os.environ['XLA_FLAGS'] = (
  f'{os.environ.get("XLA_FLAGS", "")} '
  f'--xla_force_host_platform_device_count={_DEVICES}'
)

# Imported after the line above.
import jax  # noqa: E402
from jax import numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from td_jax import types  # noqa: E402
from td_jax.configs import movielens  # noqa: E402
from td_jax.run import command  # noqa: E402
from td_jax.run import environment  # noqa: E402
from td_jax.run import pipeline  # noqa: E402
from td_jax.storage import files  # noqa: E402

_STEPS = (1, 10, 60)  # When the runs are compared.
_RUNS = {
  'one ulp away': ('single', 1, True),
  'pmap, 2 devices': ('pmap', 2, False),
  'pmap, 8 devices': ('pmap', _DEVICES, False),
  'mesh, 8 devices': ('mesh', _DEVICES, False),
}


def _config(kind: str, devices: int, teacher: str) -> types.Config:
  config = movielens.get_config('genre=War,method=td')
  config.teacher.checkpoint = teacher
  config.parallel.kind, config.parallel.devices = kind, devices
  # Every device draws its own noise.
  config.model.dropout = config.model.unknown_rate = 0.0
  config.seeds, config.k, config.steps_per_dispatch = 1, 2, 1
  config.refit_on_validation = False
  return config


def _train(
  config: types.Config, *, moved: bool
) -> dict[int, tuple[Mapping[str, Any], Any]]:
  """{steps: (metrics of the last step, parameters)}."""
  run, fixed, state, rows, *_ = pipeline.prepare(config)
  if moved:
    state = state._replace(
      params=jax.tree.map(
        lambda leaf: jnp.nextafter(leaf, jnp.inf), state.params
      )
    )
  found = {}
  for step in range(1, _STEPS[-1] + 1):
    state, metrics = run(state, fixed, rows(step - 1, step))
    if step in _STEPS:
      found[step] = jax.device_get((metrics, state.params))
  return found


def _drift(ours: Any, theirs: Any) -> dict[str, float]:
  """The largest differences of the loss, relative, and of a parameter."""
  (metrics, params), (other_metrics, other_params) = ours, theirs
  loss, other = (float(m['loss'][0, 0]) for m in (metrics, other_metrics))
  return {
    'loss': abs(loss - other) / abs(other),
    'parameters': max(
      float(np.abs(mine - their).max())
      for mine, their in zip(
        jax.tree.leaves(params), jax.tree.leaves(other_params), strict=True
      )
    ),
  }


def main() -> None:
  """Trains all runs, prints their drift and writes it."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    '--teacher', required=True, help='the folder of the run of a teacher'
  )
  parser.add_argument('--out', type=pathlib.Path, help='a file of JSON')
  args = parser.parse_args()
  single = _train(_config('single', 1, args.teacher), moved=False)
  drifts = {}
  for name, (kind, devices, moved) in _RUNS.items():
    found = _train(_config(kind, devices, args.teacher), moved=moved)
    drifts[name] = {
      str(step): _drift(found[step], single[step]) for step in _STEPS
    }
    print(name, drifts[name], flush=True)
  if args.out:
    report = {
      'config': 'movielens:genre=War,method=td, k = 2, no dropout, one seed',
      'drift after steps': drifts,
      'environment': environment.environment(),
    }
    files.write_atomically(args.out, json.dumps(report, indent=2) + '\n')


if __name__ == '__main__':
  command.run(main)
