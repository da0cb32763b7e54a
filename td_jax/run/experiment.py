"""Builds what a config describes: networks, method, feeds and programs."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import functools
import json
from typing import Any
from typing import NamedTuple

from flax import linen as nn
import jax
import numpy as np

from td_jax import errors
from td_jax import methods
from td_jax import models
from td_jax import types
from td_jax.data import feed as feed_lib
from td_jax.data import task as task_lib
from td_jax.devices import parallel as parallel_lib
from td_jax.models import split
from td_jax.run import config as config_lib
from td_jax.run import teachers as teachers_lib
from td_jax.storage import files
from td_jax.training import optim
from td_jax.training import scan
from td_jax.training import step as step_lib
from td_jax.training import teacher_states

_EXAMPLES = 256  # For the statistics of hidden states.
Teachers = Mapping[str, teachers_lib.Teacher]


class Experiment(NamedTuple):
  """A training program and its arguments."""

  # state, metrics = train(state, fixed, rows(start, stop))
  train: Callable[..., tuple[step_lib.TrainState, types.Metrics]]
  fixed: types.PyTree
  state: step_lib.TrainState  # At step 0.
  rows: Callable[[int, int], types.PyTree]  # Leaves [steps, seeds, b, ...].
  model: nn.Module  # The student.
  # {name of a teacher: some of its answers}, of those of the user's own.
  samples: Mapping[str, Sequence[float]] = {}


def build(
  config: types.Config,
  parallel: parallel_lib.Parallel,
  task: task_lib.Task,
  teachers: Teachers,
  *,
  log: types.Log = types.no_log,
) -> Experiment:
  """Builds the training of `config.method`.

  Args:
    config: A valid config.
    parallel: The devices.
    task: The task to learn.
    teachers: By name; {} if the run needs none.
    log: Receives progress lines.
  """
  model = models.build(config.model, task.model_args)
  feed = task.train_feed
  # None when teachers only initialise the student (method='scratch').
  active = teachers if config_lib.needs(config) else {}
  feed = _with_teacher_inputs(feed, config, active)
  parts = step_parts(
    config, task, model, {name: t.model for name, t in active.items()}
  )
  seeds = config_lib.seeds(config)
  init = functools.partial(
    step_lib.init, start=_start(config, task, model, teachers, log), **parts
  )
  # Initialisation may read a teacher that the loss does not use.
  variables = {name: t.variables for name, t in teachers.items()}
  host_slice = parallel.host_slice(config.batch_size)

  def rows(start: int, stop: int) -> types.PyTree:
    per_seed = [
      feed.train_rows(seed, config.batch_size, start, stop, host_slice)
      for seed in seeds
    ]
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *per_seed)

  many = methods.Need.STATISTICS in parts['method'].needs
  first = feed_lib.example(feed, _EXAMPLES if many else 1)
  return Experiment(
    train=parallel.compile(
      train_program(parts, feed.make_batch, parallel), axis=2, updates=True
    ),
    fixed=(
      parallel.place({name: t.variables for name, t in active.items()}),
      parallel.replicate(feed.columns),
    ),
    state=jax.jit(jax.vmap(init, in_axes=(0, None, None)))(
      np.asarray(seeds), first, variables
    ),
    rows=rows,
    model=model,
    samples={
      name: teacher.sample for name, teacher in active.items() if teacher.sample
    },
  )


def abstract(
  config: types.Config,
  parallel: parallel_lib.Parallel,
  task: task_lib.Task,
) -> tuple[Any, tuple[Any, Any, Any]]:
  """The jitted training step, and shapes of its arguments to compile it for.

  Nothing is loaded or run, so `parallel` may have devices of another machine.
  """
  feed = task.train_feed
  example = feed_lib.example(feed)
  networks, variables = {}, {}
  if config_lib.needs(config):
    if config.teacher.build or config.teacher.states:
      raise errors.ConfigError(
        "what a step costs is counted without a teacher's weights, which works for "
        'networks of config.teacher.model alone; leave config.teacher.build and '
        'config.teacher.states empty.'
      )
    network = models.build(config.teacher.model, task.model_args)
    networks[types.TEACHER] = network
    variables[types.TEACHER] = jax.eval_shape(
      lambda: network.init(
        jax.random.key(0), example.input_of(types.TEACHER), train=False
      )
    )
  model, state = abstract_state(config, task, networks)
  parts = step_parts(config, task, model, networks)
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
  config: types.Config,
  task: task_lib.Task,
  teachers: Mapping[str, nn.Module],
) -> tuple[nn.Module, step_lib.TrainState]:
  """The student, and a training state of shapes."""
  model = models.build(config.model, task.model_args)
  example = feed_lib.example(feed_lib.feed(task.train, task.make_batch))
  parts = step_parts(config, task, model, teachers)

  def init(seed: types.Array) -> step_lib.TrainState:
    variables = {
      name: network.init(
        jax.random.key(seed), example.input_of(name), train=False
      )
      for name, network in teachers.items()
    }
    return step_lib.init(seed, example, variables, **parts)

  seeds = np.asarray(config_lib.seeds(config))
  return model, jax.eval_shape(jax.vmap(init), seeds)


def method_of(config: types.Config, task: task_lib.Task) -> methods.Method:
  """The method of a run; a teacher's own run learns from its task alone."""
  method = methods.build(
    'scratch' if config.method == types.TEACHER else config.method,
    config=config,
    task_loss=task.task_loss,
    start=config.stages[0],
  )
  return method if task.unit == 1 else methods.base.in_units(method, task.unit)


def step_parts(
  config: types.Config,
  task: task_lib.Task,
  model: nn.Module,
  teachers: Mapping[str, nn.Module],
) -> dict[str, Any]:
  """The arguments of `step.init` and `step.train_step` that are not arrays."""
  return {
    'model': model,
    'method': method_of(config, task),
    'optimizer': optim.build(
      config.optim, steps=config.steps, stages=config.stages
    ),
    'teacher_sides': functools.partial(_teacher_sides, teachers),
  }


def train_program(
  parts: Mapping[str, Any],
  make_batch: feed_lib.MakeBatch,
  parallel: parallel_lib.Parallel,
) -> Callable[..., Any]:
  """`scan.train` of this step; `axis_name` remains to be bound."""
  return functools.partial(
    scan.train,
    step=functools.partial(step_lib.train_step, **parts),
    make_batch=make_batch,
    unroll_seeds=parallel.platform == 'cpu',
  )


def _with_teacher_inputs(
  feed: feed_lib.Feed, config: types.Config, teachers: Teachers
) -> feed_lib.Feed:
  """Keeps on the device only what the active teachers need."""
  if not feed.size:
    return feed  # Streams carry no columns.
  inputs = {
    name: x for name, x in feed.columns.teacher_x.items() if name in teachers
  }
  feed = feed._replace(columns=feed.columns._replace(teacher_x=inputs))
  # Answers from elsewhere are states that were computed once, already.
  if config.teacher.cache and not config.teacher.states:
    for name, teacher in teachers.items():
      feed = teacher_states.precompute(
        feed,
        name=name,
        model=teacher.model,
        variables=teacher.variables,
        batch=config.eval_batch,
        cache=teacher.cache,
      )
  return feed


def _start(
  config: types.Config,
  task: task_lib.Task,
  model: nn.Module,
  teachers: Teachers,
  log: types.Log,
) -> step_lib.Start:
  """How the student starts: at random, or with layers of the teacher."""
  initialise = models.NETWORKS[config.model.name].initialise
  if config.student_init == 'random' or initialise is None:
    return lambda student, variables: student
  teacher = teachers[types.TEACHER]

  def copied(
    student: types.PyTree, variables: Mapping[str, types.PyTree]
  ) -> types.PyTree:
    return initialise(
      config.student_init,
      student,
      student=model,
      teacher=teacher.model,
      teacher_variables=variables[types.TEACHER],
    )

  if config.student_head != 'probe':
    return copied
  example = feed_lib.example(feed_lib.feed(task.train, task.make_batch))
  first = copied(
    model.init(jax.random.key(0), example.x, train=False),
    {types.TEACHER: teacher.variables},
  )
  digest = files.sha256(
    json.dumps([config.student_init, config.model.to_dict()])
  )
  # The copied layers, and so the head, are the same for every seed.
  head = dict(
    teacher.cache.get(
      f'student_head_{digest[:8]}',
      lambda: teachers_lib.fit_head(
        config,
        task,
        *teachers_lib.headless(config.model, first),
        name='the student',
        log=log,
      ),
    )
  )

  def with_head(
    student: types.PyTree, variables: Mapping[str, types.PyTree]
  ) -> types.PyTree:
    student = copied(student, variables)
    return {'params': {**student['params'], 'head': head}}

  return with_head


def _teacher_sides(
  networks: Mapping[str, nn.Module],
  variables: Mapping[str, types.PyTree],
  batch: types.Batch,
) -> dict[str, split.Side]:
  """Each teacher on a batch: precomputed, or evaluated now."""
  sides = {}
  for name, network in networks.items():
    if name in batch.teacher_states:
      states, output = batch.teacher_states[name]
      sides[name] = split.precomputed(states, output, network, variables[name])
    else:
      sides[name] = split.side(network, variables[name], batch.input_of(name))
  return sides
