"""The runs behind results/diagnosis.md, and their finished rows.

benchmarks/diagnose.py executes the runs and renders the page.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from td_jax.training import statistics

FILE = 'diagnosis.jsonl'
TERMS = ('interact', 'message', 'state')
# Names of runs. They are keys of the committed rows; `full_name` is for readers.
SCRATCH = 'scratch'
ALL = 'all three'
LD = 'logit (LD)'
TD_LD = 'all three and logit (TD + LD)'
SILENT = 'k = 0'  # A conversation without L_interact.
_FULL_NAMES = {
  ALL: 'TD (all three losses)',
  LD: 'LD',
  TD_LD: 'TD + LD',
  'interact': 'L_interact alone',
  'message': 'L_MC alone',
  'state': 'L_SC alone',
}
_GENRES = ('Drama', 'War')  # The densest and the sparsest of the eight.
# {name: changes to the config}, beside the weight of L_interact.
_TALKS = {
  'k = 1': {'k': 1},
  'k = 2, chained': {'k': 2},
  'k = 2, original': {'k': 2, 'distill.interact_target': 'original'},
}
# The methods of the paper's table 3. They are named, so that a new method does not
# make the committed rows incomplete.
_METHODS = ('scratch', 'ld', 'fd', 'fitnet', 'hybrid', 'td', 'td_ld')

Key = tuple[str, str, float]  # Genre, name, x.


class Run(NamedTuple):
  """A line of one of the page's tables."""

  part: str  # The table.
  genre: str
  name: str  # What the student learns from.
  x: float  # What the part varies.
  method: str
  changes: dict[str, Any]  # To the method's config.
  share: float = 1.0  # The share of the genre's training ratings.


def full_name(name: str) -> str:
  """A run's name for readers."""
  return _FULL_NAMES.get(name, name)


def weights(
  method: str, weight: float, *terms: str
) -> tuple[str, dict[str, float]]:
  """(method, changes): `weight` for `terms`, and 0 for all others."""
  return method, {
    f'distill.weights.{name}': weight if name in terms else 0.0
    for name in ('logit', *TERMS)
  }


def runs() -> Iterator[Run]:
  """All runs, in the order of the page."""
  for genre in _GENRES:
    yield Run('weight', genre, SCRATCH, 0.0, 'scratch', {})
    for weight in (0.1, 1.0, 10.0):
      # Scratch has no weight: it runs once, above.
      for name, method, changes in list(_compared(weight))[1:]:
        yield Run('weight', genre, name, weight, method, changes)
      if genre == 'Drama':
        for name in TERMS:
          alone = weights('td', weight, name)
          yield Run('weight', genre, name, weight, *alone)
  for target in ('chained', 'original'):
    method, changes = weights('td', 1.0, *TERMS)
    changes |= {'k': 3, 'distill.interact_target': target}
    yield Run('iteration', 'Drama', target, 3.0, method, changes)
  # From here on scratch changes with x as well, and runs for each.
  for share in (0.01, 0.05, 0.2, 1.0):
    for name, method, changes in _compared(1.0):
      yield Run('share', 'Drama', name, share, method, changes, share)
  off = {'model.unknown_rate': 0.0}
  for genre in _GENRES:
    for name, method, changes in _compared(1.0):
      yield Run('unknown', genre, name, 0.0, method, changes | off)
  for factor in (2, 4, 8):
    narrow = {'model.hidden': (128 // factor, 64 // factor)}
    for name, method, changes in _compared(1.0):
      yield Run('width', 'Drama', name, 1 / factor, method, changes | narrow)
  yield from _with_chosen_weights()


def _compared(weight: float) -> Iterator[tuple[str, str, dict[str, Any]]]:
  """(name, method, changes) of what most parts compare; scratch is first."""
  yield SCRATCH, 'scratch', {}
  yield LD, *weights('ld', weight, 'logit')
  yield ALL, *weights('td', weight, *TERMS)
  yield TD_LD, *weights('td_ld', weight, 'logit', *TERMS)


def _with_chosen_weights() -> Iterator[Run]:
  """Runs with the weights of table 3, except for those that a part varies."""
  for genre in _GENRES:
    yield Run('answers', genre, SILENT, 0.0, 'td', {'k': 0})
    for weight in (0.3, 3.0):
      for name, talk in _TALKS.items():
        changes = talk | {'distill.weights.interact': weight}
        yield Run('answers', genre, name, weight, 'td', changes)
    for method in _METHODS:
      yield Run('stop', genre, method, 0.0, method, {})


class Rows:
  """The finished runs, by part, genre, name and x."""

  def __init__(self, rows: Iterable[Mapping[str, Any]]):
    self._rows = {
      (row['part'], row['genre'], row['name'], row['x']): row for row in rows
    }

  def __contains__(self, run: Run) -> bool:
    return run[:4] in self._rows

  def __getitem__(self, key: tuple[str, str, str, float]) -> Mapping[str, Any]:
    return self._rows[key]

  def gap(
    self,
    part: str,
    genre: str,
    name: str,
    x: float,
    *,
    against: tuple[str, float | None] = (SCRATCH, None),
    score: str = 'validation',
  ) -> dict[str, Any] | None:
    """RMSE minus that of another run, paired over seeds; None if one is absent.

    `against` is the other run's name and its x; None: the same x.
    """
    other, other_x = against
    ours = self._rows.get((part, genre, name, x))
    theirs = self._rows.get(
      (part, genre, other, x if other_x is None else other_x)
    )
    if ours is None or theirs is None:
      return None
    pairs = zip(
      ours[score]['per_seed'],
      theirs[score]['per_seed'],
      # Seeds count from 0, so that the first ones of both are the same.
      strict=False,
    )
    return statistics.mean_and_stderr([a - b for a, b in pairs])

  def source(self, part: str) -> str:
    """A sentence with the number of seeds and the commits behind a part."""
    rows = [self._rows[part, *key] for key in self.of(part)]
    counts = sorted({len(row['validation']['per_seed']) for row in rows})
    commits = sorted({row['commit'] for row in rows})
    seeds = ' or '.join(map(str, counts))
    return f'{seeds} seeds, commit {" and ".join(commits)}.'

  def of(self, part: str) -> list[Key]:
    """The keys of a part's finished runs, in the order of the page."""
    return [
      (run.genre, run.name, run.x)
      for run in runs()
      if run.part == part and run in self
    ]
