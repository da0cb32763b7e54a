"""--mode=cka: what student and teacher of a run represent, class by class.

Figure 3 of the paper: low and high states, and messages if the method has them.
"""

import json
from typing import Any

import jax
import numpy as np

from td_jax import data
from td_jax import errors
from td_jax import types
from td_jax.data import feed as feed_lib
from td_jax.methods import base
from td_jax.methods import channel
from td_jax.models import layers
from td_jax.models import split
from td_jax.paper import cka
from td_jax.run import experiment
from td_jax.run import saved
from td_jax.run import teachers
from td_jax.storage import files
from td_jax.storage import paths
from td_jax.training import evaluate

# Where a method keeps the encoders of student and teacher.
_ENCODERS = (
  ('talk', 'student_encoder', 'teacher_encoder'),
  ('feature', 'student', 'teacher'),
  ('feature', 'student', base.FIXED),
)


def compare(
  config: types.Config, path: types.Path, *, examples: int = 20, log
) -> dict[str, Any]:
  """CKA matrices of the run's first seed; kept as cka.json and cka.png.

  Args:
    config: Of its keys `data.dir`, `eval_batch` and `checkpoint` count.
    path: The run, where `config.checkpoint` names none.
    examples: Of each class, of the test split.
    log: Takes lines for whoever watches.

  Returns:
    What cka.json holds.

  Raises:
    errors.ConfigError: the task has no classes, or the method no teacher.
  """
  path = paths.as_path(config.checkpoint) if config.checkpoint else path
  trained = saved.config_of(path)
  trained.data.dir, trained.eval_batch = config.data.dir, config.eval_batch
  task = data.DOMAINS[trained.domain].load(trained, log=log)
  taught = files.read_json(path / 'results.json')['teacher']
  if not taught or 'classes' not in task.model_args:
    raise errors.ConfigError(
      f'--mode=cka compares student and teacher class by class, and {path} '
      f'has no {"classes" if taught else "teacher"}.'
    )
  teacher = teachers.load(
    trained, task, path=path, folder=taught['folder'], log=log
  )
  model, template = experiment.abstract_state(trained, task, teacher.model)
  items, _ = saved.restore(path, {'state': template._replace(best=None)}, task)
  params = jax.tree.map(lambda leaf: leaf[0], items['state'].params)
  features, labels = _features(
    trained, task, params, model=model, teacher=teacher, examples=examples
  )
  panels = {
    name: cka.per_class(
      student,
      other,
      labels,
      classes=task.model_args['classes'],
      examples=examples,
    )
    for name in ('low', 'high', 'message')
    if name in features
    for student, other in [features[name]]
  }
  summary = cka.summary(panels)
  (path / 'cka.json').write_text(json.dumps(summary, indent=1) + '\n')
  cka.render(panels, path / 'cka.png')
  log(f'wrote {path / "cka.json"} and {path / "cka.png"}')
  return summary


def _features(config, task, params, *, model, teacher, examples):
  """({name: (student's [n, d], teacher's [n, d'])}, labels [n])."""
  encoder = channel.Encoder(
    hidden=config.distill.hidden,
    message=config.distill.message,
    dropout=config.distill.dropout,
  )
  own_encoders = _encoders(params['method'])
  sends_low = config.distill.student_encodes == 'low'

  @jax.jit
  def run(params, encoders, variables, batch):
    own = split.side(model, params['student'], batch.x).states
    other = split.side(
      teacher.model, variables, batch.input_of('teacher')
    ).states
    found = {'low': (own.low, other.low), 'high': (own.high, other.high)}
    if encoders:
      found['message'] = (
        layers.apply(encoder, encoders[0], own[:1] if sends_low else own),
        layers.apply(encoder, encoders[1], other),
      )
    # All tokens of an example make one feature.
    return jax.tree.map(lambda leaf: leaf.reshape(len(leaf), -1), found)

  feed = feed_lib.feed(task.test, task.make_batch)
  room = np.full(task.model_args['classes'], examples)
  parts, labels = [], []
  for batch in evaluate.batches(feed, config.eval_batch):
    chosen = _first(np.asarray(batch.y), np.asarray(batch.mask) > 0, room)
    if chosen:
      found = run(params, own_encoders, teacher.variables, batch)
      parts.append(
        jax.tree.map(lambda leaf, at=chosen: np.asarray(leaf)[at], found)
      )
      labels.append(np.asarray(batch.y)[chosen])
    if not room.any():
      break
  features = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
  return features, np.concatenate(labels)


def _first(labels, real, room):
  """Rows that still have room in their class, which they then take up."""
  chosen = []
  for row in np.flatnonzero(real):
    if room[labels[row]]:
      room[labels[row]] -= 1
      chosen.append(row)
  return chosen


def _encoders(params):
  """(E_g, E_h) of a method's parameters, or None."""
  for term, student, teacher in _ENCODERS:
    if teacher in params.get(term, {}):
      return params[term][student], params[term][teacher]
  return None
