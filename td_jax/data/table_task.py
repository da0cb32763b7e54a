"""The task of a table: which rows are for what, and what students know of them.

Rows come in an order, of time or at random. The last rows with a target are for
the test, those before them for validation, and the rest for training; this is cut
before the rows of one task are selected. Rows without a target are never judged.

Values that do not occur in a network's own training rows share row 0 of its
embedding tables, the unknown row.

`config.data.labels` hides targets of the training part from the students, and with
`config.teacher.labels='kept'` from the teacher too. Validation keeps all of its
targets. `config.data.unlabelled` lets students see rows without a target: those
that are hidden or absent, or random pairs of a user and an item.
"""

from collections.abc import Mapping
import math
from typing import Any
from typing import NamedTuple

import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.configs import allowed
from td_jax.data import answers
from td_jax.data import baselines
from td_jax.data import feed
from td_jax.data import table as table_lib
from td_jax.data import table_inputs
from td_jax.data import task as task_lib

# Task losses, keys of `losses.TASK_LOSSES`, of numbers and of classes.
REGRESSION, CLASSIFICATION = 'squared_error', 'cross_entropy'
# Whose labels a teacher of our own learns from: all, as in the paper, or the kept
# ones alone.
TEACHER_LABELS = ('all', 'kept')
UNLABELLED = ('none', 'rest', 'pairs')
ALLOWED = {
  'data.unlabelled.pairs': allowed.integer(0),
  'teacher.labels': allowed.one_of(TEACHER_LABELS),
}
_PAIRS_STREAM = 1  # Separates the draw of pairs from that of labels.


class Cuts(NamedTuple):
  """Where the rows with a target are cut."""

  train: float = 0.9  # Share of all; the rest is the test split.
  fit: float = 0.9  # Share of the training part; the rest is validation.
  fraction: float = 1.0  # The training part ends after this share of it.


class Selection(NamedTuple):
  """The rows of one task among those of all."""

  name: str  # Shown in tables and progress lines.
  rows: np.ndarray  # bool [N]
  hideable: np.ndarray  # bool [N]: whose targets `data.labels` may hide.
  whose: str  # Completes messages: "of config.data.genre='War'".


class Parts(NamedTuple):
  """Row numbers of the three splits, in order."""

  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray


def check(config: types.Config) -> None:
  """Raises a ConfigError for settings of labels that cannot work."""
  if (
    config.method == types.TEACHER
    and config.data.labels.share < 1
    and config.teacher.labels == 'all'
  ):
    raise errors.ConfigError(
      f'config.data.labels.share is {config.data.labels.share}, but '
      "config.teacher.labels='all' gives a teacher all labels; choose 'kept'."
    )


def use_all_tasks(config: types.Config, key: str) -> None:
  """Makes the run of `config` use the rows of all tasks.

  With `teacher.labels='kept'` those that are hidden in its task stay hidden.

  Args:
    config: Is changed in place.
    key: The key of the task, in `config.data` and in `config.data.labels`.
  """
  data = config.data
  if config.teacher.labels == 'kept' and data.labels.share < 1:
    data.labels[key] = data.labels[key] or data[key]
  else:
    data.labels.share = 1.0
  data[key] = ''


def task(
  config: types.Config,
  table: table_lib.Table,
  selection: Selection,
  *,
  cuts: Cuts,
  standardise: bool,
  metadata: Mapping[str, Any],
) -> task_lib.Task:
  """The task of the selected rows.

  Args:
    config: Says which labels are kept and what is seen without one.
    table: The rows of all tasks.
    selection: Those of this task.
    cuts: Where the splits end.
    standardise: Whether methods see numbers in units of the standard deviation
      of the training labels.
    metadata: Is copied into results.json.

  Raises:
    errors.ConfigError: There are no unlabelled rows.
    errors.DataError: A split is empty.
  """
  everyone = np.ones_like(selection.rows)
  count = len(table.target)
  all_tasks = parts(count, everyone, cuts)
  before_refit = parts(count, selection.rows, cuts)
  for name, rows in before_refit._asdict().items():
    if not len(rows):
      raise errors.DataError(f'there are no rows for {name} {selection.whose}.')
  chosen = before_refit
  if config.refit_on_validation:
    all_tasks, chosen = _refit(all_tasks), _refit(before_refit)
  hidden = _hidden(config, table, selection.hideable, cuts)
  kept, seen_by_teacher = _without(chosen, hidden), all_tasks
  if config.teacher.labels == 'kept':
    seen_by_teacher = _without(all_tasks, hidden)
  if not len(kept.train):
    raise errors.DataError(
      f'config.data.labels.share={config.data.labels.share} keeps none of the '
      f'{len(chosen.train)} training labels {selection.whose}.'
    )
  further = _unlabelled(config, table, selection.rows, chosen.train, kept.train)
  student = table_inputs.vocabulary(table, table.rows(kept.train), *further)
  # The teacher has trained on all tasks, so it knows more values.
  teacher = table_inputs.vocabulary(table, table.rows(seen_by_teacher.train))
  inputs = table_inputs.Inputs(table, all_tasks.train)
  states = config.teacher.states
  answered = answers.Index(states) if states else None

  def seen(examples: table_lib.Examples) -> Any:
    """What the teacher sees of examples."""
    if answered is None:
      return inputs.columns(examples, teacher)
    if examples.lines is None:
      raise errors.ConfigError(
        f'config.teacher.states is {states!r}, but these examples are in no file; '
        'choose a config of --config=ratings or table, and another '
        'config.data.unlabelled.source than pairs.'
      )
    lines = [str(line) for line in examples.lines.tolist()]
    return answered.rows(lines, what='the table')

  def columns(examples: table_lib.Examples, target: np.ndarray) -> types.Batch:
    return types.Batch(
      x=inputs.columns(examples, student),
      teacher_x={types.TEACHER: seen(examples)},
      y=target,
      mask=np.ones(len(target), np.float32),
    )

  def split(name: str) -> types.Batch:
    rows = getattr(kept, name)
    return columns(table.rows(rows), table.target[rows])

  # All tasks and shares of labels are padded to one length, so that they share
  # one compiled program.
  longest = {name: len(rows) for name, rows in all_tasks._asdict().items()}
  train, unlabelled = split('train'), None
  if not further:
    train = feed.padded(train, longest['train'])
  for examples in further:
    total = longest['train'] + table.size - count
    if config.data.unlabelled.source == 'pairs':
      total = longest['train'] + max(longest['train'], len(examples))
    batch = columns(examples, np.zeros(len(examples), table.target.dtype))
    unlabelled = feed.Unlabelled(
      feed.padded(batch, total - len(kept.train)), config.data.unlabelled.share
    )
  labels_of_train = table.target[kept.train]
  unit = 1.0
  if standardise and not table.class_names and np.ptp(labels_of_train) > 0:
    unit = float(labels_of_train.std(dtype=np.float64))
  about_target, loss, metric = _about_target(table, labels_of_train, unit)
  return task_lib.Task(
    name=selection.name,
    metadata={
      **metadata,
      'labels': len(kept.train),
      'unlabelled': sum(map(len, further)),
    },
    train=train,
    validation=None
    if config.refit_on_validation
    else feed.padded(split('validation'), longest['validation']),
    test=feed.padded(split('test'), longest['test']),
    unlabelled=unlabelled,
    make_batch=inputs.make_batch,
    model_args=inputs.model_args | about_target,
    task_loss=loss,
    metric=metric,
    unit=unit,
    fingerprint=table.fingerprint,
    baselines=lambda: _baselines(table, _without(before_refit, hidden), kept),
    inputs=lambda: inputs.keep(student),
  )


def parts(count: int, rows: np.ndarray, cuts: Cuts) -> Parts:
  """Cuts the rows with a target, then selects those of a task.

  Args:
    count: The number of rows with a target, L.
    rows: bool [N], those of the task.
    cuts: Where the splits end.
  """
  test = int(count * cuts.train)
  end = int(test * cuts.fraction)
  fit = int(end * cuts.fit)
  numbers = np.arange(count)
  splits = (numbers[:fit], numbers[fit:end], numbers[test:])
  return Parts(*(split[rows[split]] for split in splits))


def _refit(parts: Parts) -> Parts:
  """Moves the validation rows into the training rows."""
  return parts._replace(
    train=np.concatenate([parts.train, parts.validation]),
    validation=parts.validation[:0],
  )


def _hidden(
  config: types.Config,
  table: table_lib.Table,
  hideable: np.ndarray,
  cuts: Cuts,
) -> np.ndarray:
  """bool [L]: the training rows whose targets `config.data.labels` hides.

  Each split keeps its share on its own, so that a refit hides the same targets
  as the run before it. A smaller share is a subset of a larger one.
  """
  settings = config.data.labels
  hidden = np.zeros(len(table.target), bool)
  order = np.random.default_rng(settings.draw).random(len(hidden))
  part = parts(len(hidden), hideable, cuts)
  # Without a refit the targets of the validation split only judge.
  for rows in (part.train, part.validation):
    ranked = rows[np.argsort(order[rows])]
    hidden[ranked[round(settings.share * len(rows)) :]] = True
  return hidden


def _without(parts: Parts, hidden: np.ndarray) -> Parts:
  """Leaves out the hidden rows of the training split."""
  return parts._replace(train=parts.train[~hidden[parts.train]])


def _unlabelled(
  config: types.Config,
  table: table_lib.Table,
  of_task: np.ndarray,
  seen: np.ndarray,
  kept: np.ndarray,
) -> list[table_lib.Examples]:
  """[the examples that students see without a target], or []."""
  settings = config.data.unlabelled
  if settings.source == 'none':
    return []
  if settings.source == 'rest':
    blank = np.arange(len(table.target), table.size)
    rest = np.concatenate([np.setdiff1d(seen, kept), blank[of_task[blank]]])
    if not len(rest):
      raise errors.ConfigError(
        "config.data.unlabelled.source is 'rest', but config.data.labels.share "
        f'is {config.data.labels.share}, which hides no label, and every row has '
        "one; choose 'pairs', or a smaller share."
      )
    return [table.rows(rest)]
  if [*table.ids] != [table_lib.USER, table_lib.ITEM] or table.number_names:
    raise errors.ConfigError(
      "config.data.unlabelled.source is 'pairs', which draws a user and an item, "
      f'but rows have the features {", ".join(_features(table))}; choose '
      "'rest' or 'none'."
    )
  rng = np.random.default_rng((config.data.labels.draw, _PAIRS_STREAM))
  known = {name: np.unique(ids) for name, ids in table.rows(seen).ids.items()}
  there = math.prod(map(len, known.values()))
  if settings.pairs > there:
    raise errors.ConfigError(
      f'config.data.unlabelled.pairs is {settings.pairs}, but the users and items of '
      f'the task make {there} pairs; choose fewer.'
    )
  count = settings.pairs or len(seen)
  drawn = {name: rng.choice(ids, count) for name, ids in known.items()}
  return [table_lib.Examples(drawn, np.zeros((count, 0), np.float32))]


def _features(table: table_lib.Table) -> tuple[str, ...]:
  return (*table.columns.values(), *table.number_names)


def _about_target(
  table: table_lib.Table, train: np.ndarray, unit: float
) -> tuple[dict[str, Any], str, str]:
  """(what networks need to know of the target, task loss, metric)."""
  if table.class_names:
    return {'classes': len(table.class_names)}, CLASSIFICATION, 'accuracy'
  args = {'mean': float(train.mean())}
  if unit != 1:
    args['unit'] = unit
  return args, REGRESSION, 'rmse'


def _baselines(
  table: table_lib.Table, before_refit: Parts, chosen: Parts
) -> baselines.Scores:
  if table.class_names:
    return baselines.of_classes(
      table,
      before_refit.train,
      {'validation': before_refit.validation, 'test': before_refit.test},
    )
  return baselines.of_numbers(
    table,
    fit=before_refit.train,
    train=chosen.train,
    validation=before_refit.validation,
    test=chosen.test,
  )
