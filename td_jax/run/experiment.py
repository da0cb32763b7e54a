"""What a config describes, built: networks, method, feeds, programs."""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
import numpy as np

from td_jax import methods
from td_jax import models
from td_jax import types
from td_jax.data import feed as feed_lib
from td_jax.data import task as task_lib
from td_jax.devices import parallel as parallel_lib
from td_jax.models import split
from td_jax.models import students
from td_jax.run import teachers
from td_jax.training import evaluate
from td_jax.training import metrics
from td_jax.training import optim
from td_jax.training import scan
from td_jax.training import statistics
from td_jax.training import step as step_lib


class Experiment(NamedTuple):
  """A training program, and what it runs on."""

  # state, metrics = train(state, fixed, rows(start, stop))
  train: Callable[..., tuple[step_lib.TrainState, types.Metrics]]
  fixed: types.PyTree
  state: step_lib.TrainState  # At step 0.
  rows: Callable[[int, int], types.PyTree]  # Leaves [steps, seeds, b, ...].
  model: nn.Module  # The student.


def build(
  config: types.Config,
  parallel: parallel_lib.Parallel,
  task: task_lib.Task,
  teacher: teachers.Teacher | None,
) -> Experiment:
  """The training of `config.method`; without a teacher that of `scratch`."""
  model = models.build(config.model, task.model_args)
  feed = feed_lib.feed(task.train, task.make_batch)
  variables = teacher.variables if teacher else None
  # Of a student that starts from a teacher and is left alone there is none.
  talks = teacher if methods.needs_teacher(config.method) else None
  if talks and config.teacher.cache:
    feed = evaluate.with_teacher_states(
      feed,
      model=talks.model,
      teacher=variables,
      batch=config.eval_batch,
      keep=talks.keep,
    )
  elif not talks and feed.size:
    feed = feed._replace(columns=feed.columns._replace(teacher_x=None))
  parts = step_parts(config, task, model, talks.model if talks else None)
  seeds = seeds_of(config)
  init = functools.partial(
    step_lib.init, start=_start(config, model, teacher), **parts
  )
  state = jax.jit(jax.vmap(init, in_axes=(0, None, None)))(
    np.asarray(seeds), feed_lib.example(feed), variables
  )
  part = parallel.part(config.batch_size)

  def rows(start, stop):
    each = [
      feed.train_rows(seed, config.batch_size, start, stop, part)
      for seed in seeds
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *each)

  return Experiment(
    train=parallel.compile(
      train_program(parts, feed.make_batch, parallel), axis=2, updates=True
    ),
    fixed=(
      parallel.place(variables if talks else None),
      parallel.replicate(feed.columns),
    ),
    state=state,
    rows=rows,
    model=model,
  )


def abstract(
  config: types.Config,
  parallel: parallel_lib.Parallel,
  task: task_lib.Task,
) -> tuple[Any, tuple[Any, Any, Any]]:
  """The jitted training step, and shapes of its arguments to compile it for.

  Nothing is loaded or run: `parallel` may have the devices of another machine.
  """
  feed = feed_lib.feed(task.train, task.make_batch)
  example = feed_lib.example(feed)
  teacher, variables = None, None
  if methods.needs_teacher(config.method):
    teacher = models.build(config.teacher.model, task.model_args)
    variables = jax.eval_shape(
      lambda: teacher.init(
        jax.random.key(0), example.seen_by_teacher, train=False
      )
    )
  model, state = abstract_state(config, task, teacher)
  parts = step_parts(config, task, model, teacher)
  rows = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      (1, config.seeds, config.batch_size, *leaf.shape[2:]), leaf.dtype
    ),
    feed.train_rows(0, 1, 0, 1, slice(0, 1)),
  )
  return parallel.abstract(
    train_program(parts, feed.make_batch, parallel),
    state,
    (variables, feed.columns),
    rows,
    axis=2,
  )


def abstract_state(
  config: types.Config, task: task_lib.Task, teacher: nn.Module | None
) -> tuple[nn.Module, step_lib.TrainState]:
  """The student, and a state of shapes."""
  model = models.build(config.model, task.model_args)
  example = feed_lib.example(feed_lib.feed(task.train, task.make_batch))
  parts = step_parts(config, task, model, teacher)

  def init(seed):
    variables = None
    if teacher is not None:
      variables = teacher.init(
        jax.random.key(seed), example.seen_by_teacher, train=False
      )
    return step_lib.init(seed, example, variables, **parts)

  seeds = np.asarray(seeds_of(config))
  return model, jax.eval_shape(jax.vmap(init), seeds)


def _start(config, model, teacher) -> step_lib.Start:
  """How the student starts: as it is initialised, or from the teacher."""
  if teacher is None or config.student_init == 'random':
    return lambda student, variables: student
  return lambda student, variables: students.initialise(
    config.student_init,
    student,
    student=model,
    teacher=teacher.model,
    teacher_variables=variables,
  )


def step_parts(
  config: types.Config,
  task: task_lib.Task,
  model: nn.Module,
  teacher: nn.Module | None,
) -> dict[str, Any]:
  """What `step.init` and `step.train_step` take besides arrays."""
  return {
    'model': model,
    'method': methods.build(
      config.method if config.method in methods.METHODS else 'scratch',
      config=config,
      cost=task.task_loss,
      start=config.stages[0],
    ),
    'optimizer': optim.build(
      config.optim, steps=config.steps, stages=config.stages
    ),
    'teacher_side': functools.partial(_teacher_side, teacher),
  }


def train_program(
  parts: dict[str, Any],
  make_batch: feed_lib.MakeBatch,
  parallel: parallel_lib.Parallel,
) -> Callable[..., Any]:
  """`scan.train` of this step; `axis_name` is still to be given."""
  return functools.partial(
    scan.train,
    step=functools.partial(step_lib.train_step, **parts),
    make_batch=make_batch,
    unroll_seeds=parallel.platform == 'cpu',
  )


def scorer(
  config: types.Config,
  model: nn.Module,
  part: task_lib.Split,
  *,
  task: task_lib.Task,
  parallel: parallel_lib.Parallel,
  as_teacher: bool = False,
) -> Callable[[types.PyTree], np.ndarray]:
  """students [seeds, ...] -> scores [seeds] on a split of `task`."""
  if as_teacher and isinstance(part, types.Batch):
    part = part._replace(x=part.seen_by_teacher)
  if isinstance(part, types.Batch):
    part = part._replace(teacher_x=None)
  return evaluate.scorer(
    feed_lib.feed(part, task.make_batch),
    model=model,
    metric=metrics.METRICS[task.metric],
    parallel=parallel,
    batch=config.eval_batch,
  )


def scores(
  config: types.Config,
  model: nn.Module,
  students: types.PyTree,
  *,
  task: task_lib.Task,
  teacher: teachers.Teacher | None,
  parallel: parallel_lib.Parallel,
) -> dict[str, Any]:
  """Validation and test scores of all seeds, and of the teacher."""
  splits = {}
  if task.validation is not None:
    splits['validation'] = task.validation
  if config.test:
    splits['test'] = task.test
  found: dict[str, Any] = {'teacher': None}
  for name, part in splits.items():
    score = scorer(config, model, part, task=task, parallel=parallel)
    found[name] = statistics.mean_and_stderr(score(students))
  if teacher:
    one = parallel.place(
      jax.tree.map(lambda leaf: leaf[None], teacher.variables)
    )
    taught: dict[str, Any] = {'folder': teacher.folder}
    found['teacher'] = taught
    for name, part in splits.items():
      score = scorer(
        config,
        teacher.model,
        part,
        task=task,
        parallel=parallel,
        as_teacher=True,
      )
      kept = teacher.keep(name, lambda score=score: {'score': score(one)})
      taught[name] = float(kept['score'][0])
  return found


def seeds_of(config: types.Config) -> list[int]:
  return list(range(config.seed, config.seed + config.seeds))


def _teacher_side(model, variables, batch):
  """The teacher on a batch: computed before, or now."""
  if model is None:
    return None
  if batch.teacher_states is not None:
    states, output = batch.teacher_states
    return split.Side(
      states, output, split.interpreter(model, variables, train=False)
    )
  return split.side(model, variables, batch.seen_by_teacher)
