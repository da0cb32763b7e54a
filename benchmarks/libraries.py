"""What libraries cost that might stand in for code of our own.

  pip install grain optuna seaborn
  python benchmarks/libraries.py --out=results/libraries.json

For each library it measures the time of its import in a fresh process, beside one
that imports NumPy alone, and the size of what it brings that td_jax does not
require already. Optuna is also timed at its work: to propose the settings of a
trial, record its outcome in a file and read it back, beside `search.latin` and
`results_log`. benchmarks/decode.py measures Grain at its work.
"""

from collections.abc import Callable
import contextlib
import importlib
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app
from absl import flags
import numpy as np

_OUT = flags.DEFINE_string('out', '', 'JSON file of the figures.')

# {library: what is imported of it}. We use the first three.
_LIBRARIES = {
  **{'matplotlib': 'matplotlib.pyplot', 'clu': 'clu.metrics', 'chex': 'chex'},
  **{'grain': 'grain', 'optuna': 'optuna', 'seaborn': 'seaborn'},
}
_IMPORTS = 5  # Of each library; the median counts.
_TRIALS = 50


def _required(name: str, seen: set[str]) -> set[str]:
  """The distributions that `name` needs, itself included, without extras."""
  name = re.sub(r'[-_.]+', '-', name).lower()
  if name in seen:
    return seen
  with contextlib.suppress(importlib.metadata.PackageNotFoundError):
    needs = importlib.metadata.requires(name) or []
    seen.add(name)
    for need in needs:
      if 'extra ==' not in need:
        match = re.match(r'[\w.-]+', need)
        assert match
        _required(match[0], seen)
  return seen


def _megabytes(names: set[str]) -> float:
  files = (
    file.locate()
    for name in names
    for file in importlib.metadata.files(name) or ()
  )
  return (
    sum(
      path.stat().st_size
      for path in map(pathlib.Path, map(str, files))
      if path.is_file()
    )
    / 1e6
  )


def _import_seconds(module: str) -> float:
  """The median time from a fresh process to the end of the import."""
  times = []
  for _ in range(_IMPORTS + 1):  # The first one reads the disk.
    began = time.perf_counter()
    subprocess.run(
      [sys.executable, '-c', f'import numpy; import {module}'], check=True
    )
    times.append(time.perf_counter() - began)
  return float(np.median(times[1:]))


def _seconds(work: Callable[[], Any]) -> float:
  began = time.perf_counter()
  work()
  return time.perf_counter() - began


def _search(folder: pathlib.Path) -> dict[str, float]:
  """Milliseconds to propose and record one trial, by Optuna and by ours."""
  from td_jax.storage import results_log
  from td_jax.study import search

  values = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
  space = search.weights('td_ld', logit=values, others=values)

  def ours() -> None:
    file = folder / 'ours.jsonl'
    for weights in search.latin(space, _TRIALS):
      results_log.append(file, {'weights': weights, 'validation': 1.0})
      results_log.read(file)

  optuna: Any = importlib.import_module('optuna')
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  storage = optuna.storages.JournalStorage(
    optuna.storages.journal.JournalFileBackend(str(folder / 'optuna.log'))
  )
  study = optuna.create_study(
    storage=storage, sampler=optuna.samplers.TPESampler(seed=0)
  )

  def objective(trial: Any) -> float:
    for name, choices in space.items():
      trial.suggest_categorical(name, choices)
    return 1.0

  theirs = _seconds(lambda: study.optimize(objective, n_trials=_TRIALS))
  return {
    'ours_ms': 1e3 * _seconds(ours) / _TRIALS,
    'optuna_ms': 1e3 * theirs / _TRIALS,
  }


def main() -> None:
  """Prints the figures and writes them to --out."""
  base = _required('td_jax', set())
  bare = _import_seconds('sys')
  rows: list[dict[str, Any]] = []
  for name, module in _LIBRARIES.items():
    if name not in _required(name, set()):
      print(f'{name} is not installed', file=sys.stderr)
      continue
    brings = _required(name, set()) - base
    rows.append(
      {
        'library': name,
        'version': importlib.metadata.version(name),
        'import_s': _import_seconds(module) - bare,
        'brings': sorted(brings),
        'brings_mb': _megabytes(brings),
      }
    )
    print(rows[-1], file=sys.stderr)
  figures: dict[str, Any] = {'libraries': rows}
  with (
    contextlib.suppress(ImportError),
    tempfile.TemporaryDirectory() as folder,
  ):
    figures['search'] = _search(pathlib.Path(folder))
  print(json.dumps(figures, indent=1))
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
  app.run(lambda argv: main())
