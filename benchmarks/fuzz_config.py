"""Tries random values of random keys of configs and reports tracebacks.

  python benchmarks/fuzz_config.py --cases=3000

A case sets one key, as a config file or as the command line does, and plans the run:
it completes and checks the config, and traces networks and optimizers. If all is
accepted, the task and the training state are made, as shapes. Anything but a
`errors.TdError` is a traceback that a user would see.
"""

import argparse
import collections
from collections.abc import Mapping
import json
import pathlib
import sys
import tempfile
from typing import Any
from typing import NamedTuple

import hypothesis
from hypothesis import strategies

from td_jax import data
from td_jax import errors
from td_jax import models
from td_jax import types
from td_jax.configs import allowed
from td_jax.run import command
from td_jax.run import config_keys
from td_jax.run import experiment
from td_jax.run import plan

_CONFIGS = (
  'movielens:runlocal',
  'movielens:runlocal,method=fd',
  'table:runlocal,data={csv},target=price',
  'ratings:runlocal,data={csv}',
  'vit_cifar10:runlocal,teacher=/none.npz',
)
_ROWS = 'user,item,rating,price\na,x,1,2\nb,y,2,3\na,y,3,1\nb,x,4,5\n'
Keys = Mapping[str, allowed.Allowed]
_NUMBERS = (-1, 0, 1, 2, 3, 0.5, 1e-9, 2**31, 2**64, 10**400, 1e300)
_WORDS = ('', 'auto', 'none', '/', 'a\nb', '\0', '\ud800', '-1', '%', ':')


class Case(NamedTuple):
  """One config, and the key that is changed."""

  name: str
  key: str
  value: Any
  is_text: bool  # Given on the command line.


def values() -> strategies.SearchStrategy[Any]:
  """Values of all types, most of which no key takes."""
  single = strategies.one_of(
    strategies.sampled_from(_NUMBERS),
    strategies.floats(),
    strategies.floats(0, 1),
    strategies.integers(-5, 20),
    strategies.booleans(),
    strategies.none(),
    strategies.sampled_from(_WORDS),
    strategies.text(max_size=5),
  )
  several = strategies.lists(single, max_size=3).map(tuple)
  several |= strategies.tuples(*[strategies.integers(0, 3)] * 2)
  return single | several | strategies.lists(several, max_size=2).map(tuple)


@strategies.composite
def cases(draw: Any, known: Mapping[str, Keys]) -> Case:
  """A case of one of the configs in {name: its keys}."""
  name = draw(strategies.sampled_from(sorted(known)))
  keys = known[name]
  key = draw(strategies.sampled_from(sorted(keys)))
  words = sorted(keys[key].choices) or [key]
  some = values() | strategies.sampled_from(words)
  tried = draw(strategies.lists(some, min_size=1, max_size=8))
  # One that passes the first check, if there is any, since most do not.
  value = next(filter(keys[key].holds, tried), tried[0])
  return Case(name, key, value, draw(strategies.booleans()))


def outcome(case: Case, path: pathlib.Path, datasets: dict[str, Any]) -> str:
  """'accepted' or 'refused'; raises what a user would see as a traceback."""
  try:
    if case.is_text:
      text = str(case.value).replace('\0', '')
      config = command.config(case.name, [f'--config.{case.key}={text}'])
    else:
      config = command.config(case.name, ())
      _set(config, case.key, case.value)
    *_, stage = plan.make(config, path).stages
    _trace(stage.config, datasets)
  except errors.TdError as e:
    if '\n' in str(e):
      raise AssertionError(f'{e!r} has several lines') from e
    return 'refused'
  return 'accepted'


def _set(config: Any, key: str, value: Any) -> None:
  *blocks, field = key.split('.')
  for block in blocks:
    config = config[block]
  with config.ignore_type():
    try:
      config[field] = value
    except (TypeError, ValueError, OverflowError) as e:
      # A config file that does this is reported in one line, too.
      raise errors.ConfigError(errors.one_line(e)) from e


def _trace(config: types.Config, datasets: dict[str, Any]) -> None:
  """Makes the task and the training state of a config, as shapes."""
  domain = data.DOMAINS[config.domain]
  if config.domain == 'images':
    task = domain.shapes(config)
  else:
    # Keys that choose the data make others.
    own = json.dumps(config.data.to_dict(), sort_keys=True)
    if own not in datasets:
      datasets[own] = domain.read(config, log=types.no_log)
    task = domain.task(config, datasets[own])
  network = models.build(config.teacher.model, task.model_args)
  experiment.abstract_state(config, task, {types.TEACHER: network})


def run(
  count: int, folder: pathlib.Path, *, seed: int = 0
) -> collections.Counter[str]:
  """Runs `count` cases and prints tracebacks; returns how many ended in what way."""
  table = folder / 'table.csv'
  table.write_text(_ROWS + _ROWS.partition('\n')[2] * 9)
  names = [name.format(csv=table) for name in _CONFIGS]
  known = {name: config_keys.known(command.config(name, ())) for name in names}
  ends: collections.Counter[str] = collections.Counter()
  datasets: dict[str, Any] = {}

  @hypothesis.seed(seed)
  @hypothesis.settings(
    max_examples=count,
    deadline=None,
    database=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
  )
  @hypothesis.given(cases(known))
  def check(case: Case) -> None:
    try:
      ends[outcome(case, folder / 'run', datasets)] += 1
    except Exception as e:
      where = errors.one_line(e)
      ends['tracebacks'] += 1
      print(f'{case.name} {case.key}={case.value!r}: {where}', flush=True)

  check()
  return ends


def main() -> None:
  """Prints each traceback and how many there were."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--cases', type=int, default=3000)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    ends = run(args.cases, pathlib.Path(folder), seed=args.seed)
  print(', '.join(f'{count} {end}' for end, count in sorted(ends.items())))
  sys.exit(bool(ends['tracebacks']))


if __name__ == '__main__':
  main()
