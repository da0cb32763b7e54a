"""Chooses hyper-parameters on validation, with the same budget a method.

  python benchmarks/search.py --what=teacher --out=results/search.jsonl
  python benchmarks/search.py --what=recipe --teacher=DIR --out=...
  python benchmarks/search.py --what=td --teacher=DIR --out=...
  python benchmarks/search.py --domain=images --what=td --trials=3 --seeds=1 \
      --teacher=DIR --out=results/search_images.jsonl

`teacher`, `recipe` and `steps` (the student's own settings, tried on scratch)
come first; then each method's own, with what was chosen before in the config.
A teacher of ratings is scored by its mean over the genres it will teach. A row
a trial is appended; trials that are there already are not run again. The test
split is never scored.
"""

import json
import pathlib
import sys
import tempfile

from absl import app
from absl import flags
from absl import logging
import numpy as np

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

from configs import movielens
from configs import vit_cifar10
from td_jax import errors
from td_jax import experiment
from td_jax import parallel
from td_jax import preemption
from td_jax import report
from td_jax import saved
from td_jax import train
from td_jax.data import movielens as ratings

GENRES = ('Drama', 'War')  # The densest and the sparsest of the 8.
WEIGHTS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
RECIPE = {
  'model.dropout': (0.1, 0.2, 0.3, 0.5),
  'model.unknown_rate': (0.1, 0.2, 0.3, 0.4),
  'optim.weight_decay': (0.1, 0.3, 1.0, 2.0),
  'optim.learning_rate': (3e-4, 1e-3, 3e-3),
  'steps': (500, 1000, 2000),
  'batch_size': (256, 512),
}
_IMAGE_WEIGHTS = (0.01, 0.1, 1.0)
_SPACES = {
  'movielens': {
    'teacher': {
      'teacher.model.dropout': (0.3, 0.4, 0.5, 0.6),
      'teacher.model.unknown_rate': (0.05, 0.1, 0.2),
      'teacher.optim.weight_decay': (0.1, 0.3, 1.0, 2.0, 4.0),
      'teacher.optim.learning_rate': (1e-3, 2e-3, 3e-3, 5e-3),
      'teacher.steps': (300, 500, 700, 1000),
      'teacher.batch_size': (512, 1024),
    },
    'recipe': RECIPE,
    'steps': {'steps': (200, 300, 500, 700, 1000, 1500)},
    'ld': {'distill.weights.logit': WEIGHTS},
    'fd': {'distill.weights.feature': WEIGHTS},
    'fitnet': {'distill.weights.hint': WEIGHTS},
    'hybrid': {
      'distill.weights.logit': WEIGHTS,
      'distill.weights.feature': WEIGHTS,
    },
    'td': {
      'distill.weights.interact': WEIGHTS,
      'distill.weights.message': WEIGHTS,
      'distill.weights.state': WEIGHTS,
      'k': (1, 2),
    },
    'td_ld': {
      'distill.weights.logit': WEIGHTS,
      'distill.weights.interact': WEIGHTS,
      'distill.weights.message': WEIGHTS,
      'distill.weights.state': WEIGHTS,
      'k': (1, 2),
    },
  },
  'images': {
    'rate': {'optim.learning_rate': (3e-3, 1e-2, 3e-2)},
    'ld': {'distill.weights.logit': (0.3, 1.0, 3.0)},
    'fd': {'distill.weights.feature': _IMAGE_WEIGHTS},
    'fitnet': {'distill.weights.hint': _IMAGE_WEIGHTS},
    'hybrid': {
      'distill.weights.logit': (0.3, 1.0, 3.0),
      'distill.weights.feature': _IMAGE_WEIGHTS,
    },
    'td': {
      'distill.weights.interact': _IMAGE_WEIGHTS,
      'distill.weights.message': _IMAGE_WEIGHTS,
      'distill.weights.state': _IMAGE_WEIGHTS,
    },
    'td_ld': {
      'distill.weights.logit': (0.3, 1.0, 3.0),
      'distill.weights.interact': _IMAGE_WEIGHTS,
      'distill.weights.message': _IMAGE_WEIGHTS,
      'distill.weights.state': _IMAGE_WEIGHTS,
    },
  },
}

_DOMAIN = flags.DEFINE_enum('domain', 'movielens', list(_SPACES), 'Of tasks.')
_WHAT = flags.DEFINE_string('what', 'recipe', 'What to choose.')
_STEPS = flags.DEFINE_integer('steps', 0, "Of images; 0: the laptop's.")
_KEPT = flags.DEFINE_string('kept', '', "Of images: the teacher's states.")
_TEACHER = flags.DEFINE_string('teacher', '', 'Folder of the teacher run.')
_TRIALS = flags.DEFINE_integer('trials', 4, 'Settings tried, of each method.')
_SEEDS = flags.DEFINE_integer('seeds', 2, 'Students of each trial and genre.')
_BEST = flags.DEFINE_bool('best', False, "Only print each method's best.")
_OUT = flags.DEFINE_string('out', 'results/search.jsonl', 'Rows go here.')


def _trials(space):
  """Distinct random settings, the same at every call."""
  rng = np.random.default_rng(0)
  seen = []
  size = np.prod([len(values) for values in space.values()])
  while len(seen) < min(_TRIALS.value, size):
    trial = {
      name: values[rng.integers(len(values))] for name, values in space.items()
    }
    if trial not in seen:
      seen.append(trial)
  return seen


def _config(genre):
  what = str(_WHAT.value)
  method = {
    'recipe': 'scratch',
    'steps': 'scratch',
    'rate': 'scratch',
  }.get(what, what)
  if _DOMAIN.value == 'movielens':
    return movielens.get_config(f'genre={genre},method={method}')
  config = vit_cifar10.get_config(f'laptop,method={method}')
  config.teacher.kept = _KEPT.value
  if _STEPS.value:
    config.steps = config.eval_every = _STEPS.value
  return config


def _run(settings, genre, watch):
  what = _WHAT.value
  config = _config(genre)
  config.test = config.refit = False
  config.seeds = _SEEDS.value
  config.teacher.checkpoint = _TEACHER.value
  config.update_from_flattened_dict(settings)
  with tempfile.TemporaryDirectory() as folder:
    results = train.run(
      config, pathlib.Path(folder), watch=watch, log=lambda line: None
    )
    validation = results['validation']
    if _DOMAIN.value == 'movielens' and not genre:
      validation = _over_genres(config, pathlib.Path(folder))
  return {
    'what': what,
    'genre': genre,
    'settings': settings,
    'validation': validation,
    'best_step': results['best_step'],
    'seconds': results['seconds'],
  }


def _over_genres(config, folder):
  """Validation scores of the teachers in `folder`, the mean over the genres.

  Genres overlap, so that this is not the score on all ratings.
  """
  scores = []
  for genre in ratings.GENRES:
    config.data.genre = genre
    task = ratings.load(config, log=lambda line: None)
    found = saved.load(folder, task)
    score = experiment.scorer(
      config,
      found.model,
      task.validation,
      task=task,
      parallel=parallel.Parallel('single', 1, batch_size=0),
      as_teacher=True,
    )
    scores.append(score(found.variables))
  return report.spread(np.mean(scores, axis=0))


def _show_best(rows):
  """Prints each method's best setting: best mean over its genres."""
  tried = {}
  for row in rows:
    key = row['what'], json.dumps(row['settings'])
    tried.setdefault(key, []).append(row['validation']['mean'])
  for what in _SPACES[str(_DOMAIN.value)]:
    whole = max((len(s) for (w, _), s in tried.items() if w == what), default=0)
    if not whole:
      continue
    scores = {
      settings: np.mean(scores)
      for (w, settings), scores in tried.items()
      if w == what and len(scores) == whole
    }
    choose = min if _DOMAIN.value == 'movielens' else max  # RMSE, accuracy.
    best = choose(scores, key=lambda settings: scores[settings])
    print(f'{what}: {scores[best]:.5f} of {len(scores)} trials, {best}')


def main(argv):
  del argv  # Flags say it all.
  watch = preemption.Watch()
  out = pathlib.Path(_OUT.value)
  out.touch()
  rows = [json.loads(line) for line in out.read_text().splitlines()]
  done = {
    (row['what'], row['genre'], json.dumps(row['settings'])) for row in rows
  }
  if _BEST.value:
    _show_best(rows)
    return
  spaces = _SPACES[str(_DOMAIN.value)]
  errors.choose('--what', _WHAT.value, spaces)
  genres = GENRES
  if _DOMAIN.value == 'images' or _WHAT.value == 'teacher':
    genres = ('',)  # All of them.
  for settings in _trials(spaces[str(_WHAT.value)]):
    for genre in genres:
      if (_WHAT.value, genre, json.dumps(settings)) in done:
        continue
      row = _run(settings, genre, watch)
      with out.open('a') as f:
        f.write(json.dumps(row) + '\n')
      print(
        f'{row["what"]} {genre} {settings} '
        f'{row["validation"]["mean"]:.5f} at {row["best_step"]}, '
        f'{row["seconds"]:.0f} s',
        flush=True,
      )


if __name__ == '__main__':
  logging.set_verbosity(logging.WARNING)
  app.run(main)
