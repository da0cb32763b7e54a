"""The training loop: the only one, for teachers and students of all methods."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import functools
import time
from typing import Any

import jax
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.data import task as task_lib
from td_jax.devices import parallel as parallel_lib
from td_jax.run import experiment as experiment_lib
from td_jax.run import preemption
from td_jax.run import profile as profile_lib
from td_jax.run import progress
from td_jax.run import saved
from td_jax.run import scores
from td_jax.run import workdir
from td_jax.storage import checkpoint
from td_jax.training import metrics
from td_jax.training import step as step_lib

_LONG_DISPATCH = 1.0  # Seconds, beside which the host's work hardly counts.
_Metrics = dict[str, np.ndarray]  # Leaves [steps, seeds].
_Row = dict[str, np.ndarray]  # Leaves [seeds].
# (state, row) -> (state with the best students updated, row with the scores)
_Validate = Callable[
  [step_lib.TrainState, _Row], tuple[step_lib.TrainState, _Row]
]


def train(
  experiment: experiment_lib.Experiment,
  config: types.Config,
  folder: workdir.Workdir,
  *,
  parallel: parallel_lib.Parallel,
  task: task_lib.Task,
  watch: preemption.Watch,
  log: types.Log,
  profile: profile_lib.Steps | None = None,
) -> tuple[step_lib.TrainState, float]:
  """Trains all seeds to the end, resuming from the latest checkpoint.

  With `profile` these steps are traced.

  Returns:
    The final state, and the seconds of training, earlier processes included.

  Raises:
    errors.PreemptedError: The process was asked to stop, and has saved.
    errors.NonFiniteError: A loss or gradient is not finite.
    errors.IOFailedError: A file could not be written.
  """
  start_time = time.monotonic()
  validate = _validation(experiment, config, parallel, task)
  with contextlib.ExitStack() as stack:

    def close_at_end(resource: Any) -> Any:
      return stack.enter_context(contextlib.closing(resource))

    checkpoints = close_at_end(
      checkpoint.Checkpoints(folder.path / workdir.CHECKPOINTS)
    )
    state, record = _restore(experiment, checkpoints, folder.path, task)
    state, start = parallel.place(state), record['step']
    if start >= config.steps:
      return state, record['seconds']
    if start:
      log(f'resumed {folder.path} at step {start}')
      start_time -= record['seconds']
    history = _History(record['pending'], checkpoints.latest)
    rows = close_at_end(folder.rows(start, config, log))
    bar = close_at_end(
      progress.Bar(
        f'{config.method} {task.name}',
        start=start,
        total=config.steps,
        log=log,
      )
    )

    profiler = close_at_end(profile_lib.Profiler(profile, folder.path, log))

    def save(step: int, state: step_lib.TrainState) -> None:
      checkpoints.save(
        step,
        parallel.gather(_items(state)),
        {
          'step': step,
          'seconds': time.monotonic() - start_time,
          'dataset': task.fingerprint,
          'unlabelled': task.unlabelled_fingerprint,
          'samples': {k: list(v) for k, v in experiment.samples.items()},
          'pending': history.pending_lists(),
        },
      )

    settle = functools.partial(_settle, checkpoints, folder.path)
    stack.enter_context(watch.settling(settle))
    row_time = time.monotonic()
    for step, stop in _dispatches(start, config):
      profiler.before(step, stop)
      state, step_metrics = experiment.train(
        state, experiment.fixed, experiment.rows(step, stop)
      )
      history.add(step_metrics)
      profiler.after(stop, step_metrics)
      ends_row = stop % config.log_every == 0 or stop == config.steps
      # Devices run ahead of the host until a row ends or a signal arrives.
      if not (ends_row or parallel.any_process(watch.requested)):
        continue
      history.fetch(stop)
      due = stop % config.eval_every == 0 or stop == config.steps
      if ends_row:
        row, steps = history.take_row()
        if due:
          state, row = validate(state, row)
        now = time.monotonic()
        rows.write(stop, row, seconds_per_step=(now - row_time) / steps)
        bar.update(stop, ', '.join(_notes(row)))
        row_time = now
      stopping = parallel.any_process(watch.requested)
      if due or stopping:
        with watch.saving():
          save(stop, state)
          if stopping:
            checkpoints.wait()
      if stopping:
        watch.stop(f'saved step {stop} in {folder.path}')
    # The last save must be on disk before the results say that all is done.
    with watch.saving():
      watch.state = settle()
    return state, time.monotonic() - start_time


def _settle(checkpoints: checkpoint.Checkpoints, path: types.Path) -> str:
  """Waits for a save that is being written; returns what is safe then."""
  step = checkpoints.latest()
  if step is None:
    return preemption.NOTHING
  return f'the last save is of step {step} in {path}'


class _History:
  """Metrics of the steps since the last row of metrics.jsonl.

  Those of a preempted run go into its checkpoint as `pending`, so that the
  resumed run writes the same rows as an uninterrupted one.
  """

  def __init__(self, pending: _Metrics, latest: Callable[[], int | None]):
    self._pending, self._latest = pending, latest
    self._on_devices: list[Any] = []
    self._last_add = time.monotonic()

  def add(self, step_metrics: types.Metrics) -> None:
    """Adds the metrics of a dispatch, and waits for the one before the last.

    Two keep the devices busy; more would delay the answer to a signal. So would a
    second one where a dispatch takes long: then it waits for the one it adds.
    """
    self._on_devices.append(step_metrics)
    now = time.monotonic()
    wait_for = 1 if now - self._last_add > _LONG_DISPATCH else 3
    self._last_add = now
    if len(self._on_devices) >= wait_for:
      jax.block_until_ready(self._on_devices[-wait_for])

  def fetch(self, stop: int) -> None:
    """Waits for all dispatches up to step `stop` and checks their metrics.

    Raises:
      errors.NonFiniteError: One of them is not finite.
    """
    parts = jax.device_get(self._on_devices)
    self._on_devices = []
    if self._pending:
      parts = [self._pending, *parts]
    self._pending = {
      name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    }
    _check_finite(self._pending, stop - self._steps, self._latest)

  def take_row(self) -> tuple[_Row, int]:
    """(means over the steps, number of steps); starts the next row."""
    steps = self._steps
    row = {name: value.mean(axis=0) for name, value in self._pending.items()}
    self._pending = {}
    return row, steps

  def pending_lists(self) -> dict[str, Any]:
    """The metrics that no row holds yet, as plain lists."""
    return {name: value.tolist() for name, value in self._pending.items()}

  @property
  def _steps(self) -> int:
    return len(self._pending['loss'])


def _dispatches(start: int, config: types.Config) -> Iterator[tuple[int, int]]:
  """(first step, step after the last) of each dispatch."""
  for step in range(start, config.steps, config.steps_per_dispatch):
    yield step, min(step + config.steps_per_dispatch, config.steps)


def _validation(
  experiment: experiment_lib.Experiment,
  config: types.Config,
  parallel: parallel_lib.Parallel,
  task: task_lib.Task,
) -> _Validate:
  metric = metrics.METRICS[task.metric]
  keep_best = jax.jit(jax.vmap(step_lib.keep_best), donate_argnums=0)
  score = None
  if task.validation is not None:
    score = scores.scorer(
      config, experiment.model, task.validation, task=task, parallel=parallel
    )

  def validate(
    state: step_lib.TrainState, row: _Row
  ) -> tuple[step_lib.TrainState, _Row]:
    if score is None:
      # Without validation the latest students count as the best.
      loss = -jax.device_get(state.step).astype(np.float32)
      return keep_best(state, loss), row
    values = score(state.params['student'])
    state = keep_best(state, values if metric.lower_is_better else -values)
    return state, row | {f'validation_{task.metric}': values}

  return validate


def _restore(
  experiment: experiment_lib.Experiment,
  checkpoints: checkpoint.Checkpoints,
  path: types.Path,
  task: task_lib.Task,
) -> tuple[step_lib.TrainState, dict[str, Any]]:
  """The state to start from, and the record that was saved with it."""
  state = experiment.state

  def check(record: dict[str, Any]) -> None:
    saved.check_dataset(path, task, record)
    # Absent in checkpoints of version 0.1.
    if record.get('unlabelled', '') != task.unlabelled_fingerprint:
      raise errors.DataError(
        f'{path} was trained with other unlabelled examples; choose another '
        'workdir, or the unlabelled examples as they were.'
      )

  restored = checkpoints.restore(_items(state), check=check)
  if not restored:
    return state, {'step': 0, 'seconds': 0.0, 'pending': {}}
  items, record = restored
  for name, sample in record.get('samples', {}).items():
    now = experiment.samples.get(name, ())
    # Another device or version of JAX may change the last digits.
    if len(now) != len(sample) or not np.allclose(now, sample, 1e-2, 1e-3):
      raise errors.DataError(
        f'{path} has learnt from a teacher that answered otherwise: '
        f'{_few(sample)} to the first examples, and now {_few(now)}. Choose another '
        'workdir, or the teacher as it was.'
      )
  pending = {
    name: np.asarray(values, np.float32)
    for name, values in record['pending'].items()
  }
  state = items['state']._replace(best=items['best'])
  return state, record | {'pending': pending}


def _few(values: Sequence[float]) -> str:
  return ', '.join(f'{value:.4g}' for value in values[:3])


def _items(state: step_lib.TrainState) -> dict[str, types.PyTree]:
  """The items of a checkpoint; evaluation restores `best` alone."""
  return {'state': state._replace(best=None), 'best': state.best}


def _notes(row: _Row) -> Iterator[str]:
  """What the progress line shows of a row."""
  for name, value in row.items():
    shown = name == 'loss' or (name == 'skipped' and value.any())
    if shown or name.startswith('validation_'):
      yield f'{name.replace("_", " ")} {value.mean():.4f}'


def _check_finite(
  values: _Metrics, start: int, latest: Callable[[], int | None]
) -> None:
  """Raises a NonFiniteError for the first step that is not finite."""
  bad_steps = {
    name: np.flatnonzero(~np.isfinite(value).all(axis=1))
    for name, value in values.items()
  }
  # `loss` is the sum of the other terms, so it is named last: the term that
  # made it non-finite says more.
  names = sorted(
    (steps[0], name == 'loss', name == 'grad_norm', name)
    for name, steps in bad_steps.items()
    if len(steps)
  )
  if names:
    step, *_, name = names[0]
    last = latest()
    known = 'nothing has been saved yet'
    if last is not None:
      known = f'the last checkpoint, of step {last}, is finite'
    raise errors.NonFiniteError(
      f'{name} is not finite at step {start + int(step) + 1}; {known}. Lower '
      'config.optim.learning_rate or the weight of that term.'
    )
