"""Validation and test scores of students and teachers."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from flax import linen as nn
import jax
import numpy as np

from td_jax import types
from td_jax.data import feed as feed_lib
from td_jax.data import task as task_lib
from td_jax.devices import parallel as parallel_lib
from td_jax.run import teachers as teachers_lib
from td_jax.training import evaluate
from td_jax.training import metrics
from td_jax.training import statistics


def scorer(
  config: types.Config,
  model: nn.Module,
  split: task_lib.Split,
  *,
  task: task_lib.Task,
  parallel: parallel_lib.Parallel,
  teacher: str = '',
) -> Callable[[types.PyTree], np.ndarray]:
  """networks [seeds, ...] -> scores [seeds] on a split of `task`.

  With a `teacher` the networks get the input of the teacher with this name.
  """
  if isinstance(split, types.Batch):
    # Only what is read is put on the device.
    own = {name: x for name, x in split.teacher_x.items() if name == teacher}
    split = split._replace(teacher_x=own)
  feed = feed_lib.feed(split, task.make_batch)

  def make_batch(*args: Any) -> types.Batch:
    batch = feed.make_batch(*args)
    return batch._replace(x=batch.input_of(teacher), teacher_x={})

  return evaluate.scorer(
    feed._replace(make_batch=make_batch),
    model=model,
    metric=metrics.METRICS[task.metric],
    parallel=parallel,
    batch=config.eval_batch,
  )


def score(
  config: types.Config,
  model: nn.Module,
  students: types.PyTree,
  *,
  task: task_lib.Task,
  teachers: Mapping[str, teachers_lib.Teacher],
  parallel: parallel_lib.Parallel,
) -> dict[str, Any]:
  """Scores of all seeds by split, and of the teachers under 'teachers'."""
  splits = {}
  if task.validation is not None:
    splits['validation'] = task.validation
  if config.test and task.test is not None:
    splits['test'] = task.test
  scores: dict[str, Any] = {}
  for name, split in splits.items():
    score = scorer(config, model, split, task=task, parallel=parallel)
    scores[name] = statistics.mean_and_stderr(score(students))
  scores['teachers'] = {
    name: _teacher_scores(
      name, teacher, config, splits=splits, task=task, parallel=parallel
    )
    for name, teacher in teachers.items()
  }
  return scores


def _teacher_scores(
  name: str,
  teacher: teachers_lib.Teacher,
  config: types.Config,
  *,
  splits: Mapping[str, task_lib.Split],
  task: task_lib.Task,
  parallel: parallel_lib.Parallel,
) -> dict[str, Any]:
  # Scorers expect a leading axis of seeds.
  variables = parallel.place(
    jax.tree.map(lambda leaf: leaf[None], teacher.variables)
  )
  scores: dict[str, Any] = {'folder': teacher.folder}
  for split_name, split in splits.items():

    def compute(split: task_lib.Split = split) -> dict[str, np.ndarray]:
      score = scorer(
        config,
        teacher.model,
        split,
        task=task,
        parallel=parallel,
        teacher=name,
      )
      return {'score': score(variables)}

    cached = teacher.cache.get(split_name, compute)
    scores[split_name] = float(cached['score'][0])
  return scores
