"""td_jax.distill: a teacher into a student, on arrays, from Python."""

from collections.abc import Mapping
import contextlib
import operator
import os
import re
import tempfile
from typing import Any

from flax import linen as nn
import jax
from jax import numpy as jnp
import ml_collections
import numpy as np

from td_jax import errors
from td_jax import methods
from td_jax import types
from td_jax.configs import common
from td_jax.data import arrays
from td_jax.models import frozen
from td_jax.models import given
from td_jax.models import layers
from td_jax.run import config as config_lib
from td_jax.run import config_keys
from td_jax.run import pipeline
from td_jax.run import preemption
from td_jax.run import saved
from td_jax.run import terminal
from td_jax.storage import paths
from td_jax.use import student as student_lib

_HELD_OUT = 10  # Every tenth example, if no validation is given.
_VALIDATIONS = 20  # Of a run.
_DISPATCH = 10  # Steps at a time, if there are enough.
# Keys of the config that mean something here; a dot at the end: all below.
_SETTINGS = (
  'allow_changed_config', 'data.unlabelled.share', 'distill.', 'eval_batch',
  'eval_every', 'k', 'log_every', 'optim.', 'parallel.', 'seed', 'stages',
  'steps_per_dispatch', 'wandb',
)  # fmt: skip


class Distilled:
  """A trained student.

  Attributes:
    module: The student's module, as it was given.
    variables: Its variables, of the best seed on validation.
    results: The scores of all seeds, of the teacher and of simple baselines: what a
      run of td_jax stores in results.json.
  """

  def __init__(
    self,
    module: nn.Module,
    variables: Any,
    results: Mapping[str, Any],
    example: types.PyTree,
  ):
    """Is made by `distill`; `example` is an input, leaves [1, ...]."""
    self.module, self.variables, self.results = module, variables, results
    self._example = example
    network = given.Given(module)
    self._apply = jax.jit(
      lambda variables, x: layers.apply(
        network, {'params': {'module': variables['params']}}, x
      )[-1]
    )

  def predict(self, x: types.PyTree, *, batch: int = 256) -> np.ndarray:
    """The student's outputs for inputs [n, ...]: logits [n, classes], or [n].

    Raises:
      errors.ConfigError: They differ in shape or dtype from those of training.
    """
    x = arrays.inputs('these', x)
    arrays.check_shapes('these', x, self._example)
    # Without any examples one is computed, for the shape.
    starts = range(0, arrays.count(x), batch)
    parts = (
      [
        self._outputs(jax.tree.map(lambda leaf: leaf[start : start + batch], x))  # noqa: B023
        for start in starts
      ]
      or [self._outputs(self._example)[:0]]
    )
    return np.concatenate(parts)

  def _outputs(self, x: types.PyTree) -> np.ndarray:
    return np.asarray(self._apply(self.variables, jax.tree.map(jnp.asarray, x)))


def distill(
  teacher: Any,
  student: Any,
  x: types.PyTree,
  y: Any,
  *,
  method: str = 'ld',
  unlabelled: types.PyTree | None = None,
  validation: tuple[Any, Any] | None = None,
  test: tuple[Any, Any] | None = None,
  steps: int = 1000,
  batch_size: int = 64,
  learning_rate: float = 1e-3,
  weight_decay: float = 0.0,
  seeds: int = 1,
  weights: Mapping[str, Any] | None = None,
  workdir: str | os.PathLike[str] = '',
  log: types.Log | None = terminal.say,
  **settings: Any,
) -> Distilled:
  """Trains `student` to do a task, with the help of a frozen `teacher`.

  >>> frozen = td_jax.Frozen(params, teacher.apply)
  >>> student = td_jax.distill(frozen, SmallNet(), x, y, unlabelled=more_x)
  >>> student.predict(new_x).argmax(axis=1)

  Args:
    teacher: A `td_jax.Frozen`; or (module, variables), a Linen module with the
      methods low, interpret and output. None for method='scratch'.
    student: A Linen module. With `__call__(x)` alone it can learn by methods that
      look at outputs; with low(x), interpret(low) and output(high) by all. Each may
      have a keyword `train`, for dropout.
    x: Inputs, leaves [n, ...], as both networks see them.
    y: Labels [n]: integers from 0 are classes, floats are numbers. The outputs of
      both networks are logits [b, classes], or [b].
    method: A key of `td_jax.methods.METHODS`.
    unlabelled: Further inputs, which half of each batch is drawn from. All terms but
      the task's own learn from them.
    validation: (x, y) that choose the best step and seed; by default every tenth
      example.
    test: (x, y) that are only scored.
    steps: Updates.
    batch_size: Examples of an update.
    learning_rate: The peak of AdamW's, with a warm-up and cosine decay.
    weight_decay: On matrices.
    seeds: Students that are trained side by side.
    weights: Weights of the method's terms, such as {'logit': 5.0}.
    workdir: A folder for the run, where the same call resumes; by default nothing is
      kept. A student is known by its fields and a teacher by some of its answers, so
      other code inside the student's methods is not noticed.
    log: Receives lines of progress; None for silence.
    **settings: Further keys of the config, with dots as in
      **{'distill.temperature': 2.0}; k=2 are the rounds of a conversation. Those of
      data, networks and files have no meaning here.

  Raises:
    errors.ConfigError: An argument cannot work; the message says which.
  """
  errors.choose('method', method, methods.METHODS)
  if not isinstance(student, nn.Module):
    raise errors.ConfigError(
      f'the student is {student!r}; it must be a Linen module, such as MyNet().'
    )
  x, y = arrays.examples('the training examples', (x, y))
  if validation is None:
    (x, y), validation = _held_out(x, y)
  parts = {'train': (x, y), 'validation': validation}
  if test is not None:
    parts['test'] = test
  parts = {name: arrays.examples(name, part) for name, part in parts.items()}
  dataset = arrays.dataset(
    parts, unlabelled=unlabelled, student=student, teacher=teacher
  )
  config = _config(
    method,
    dataset,
    steps=_number('steps', steps, int),
    batch_size=_number('batch_size', batch_size, int),
    learning_rate=_number('learning_rate', learning_rate, float),
    weight_decay=_number('weight_decay', weight_decay, float),
    seeds=_number('seeds', seeds, int),
    weights=weights or {},
    settings=settings,
  )
  _check_student(config, dataset)
  if teacher is None and config_lib.teacher_names(config):
    raise errors.ConfigError(
      f"method is {method!r}, which needs a teacher; give one, or take 'scratch'."
    )
  with contextlib.ExitStack() as stack:
    folder = os.fspath(workdir) or stack.enter_context(
      tempfile.TemporaryDirectory()
    )
    path = paths.as_path(paths.absolute(folder))
    results = pipeline.run(
      config,
      path,
      # A caller's own handlers of signals stay.
      watch=preemption.Watch(signals=()),
      log=log or types.no_log,
      dataset=dataset,
    )
    networks = saved.load(path, arrays.task(config, dataset))
  best = results['seeds'].index(student_lib.best_seed(results))
  variables = jax.tree.map(lambda leaf: leaf[best], networks.variables)
  return Distilled(
    student,
    {'params': variables['params']['module']},
    results,
    jax.tree.map(lambda leaf: leaf[:1], dataset.parts['train'].x),
  )


def _number(name: str, value: Any, kind: type) -> Any:
  """`value` as an int or float; raises a ConfigError if it is another."""
  try:
    return operator.index(value) if kind is int else float(value)
  except (TypeError, ValueError, OverflowError) as e:
    what = 'a whole number' if kind is int else 'a number'
    raise errors.ConfigError(f'{name} is {value!r}; it must be {what}.') from e


def _held_out(x: Any, y: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
  """((x, y) for training, (x, y) of every tenth example)."""
  is_held = np.arange(len(y)) % _HELD_OUT == _HELD_OUT - 1
  if not is_held.any():
    raise errors.ConfigError(
      f'there are {len(y)} labelled examples, of which every tenth would be held '
      'out; give validation=(x, y).'
    )

  def part(mask: np.ndarray) -> tuple[Any, Any]:
    return jax.tree.map(lambda leaf: leaf[mask], x), y[mask]

  return part(~is_held), part(is_held)


def _described(student: nn.Module) -> str:
  """The text by which a resumed run knows its student, in one line."""
  # Where a function lies in memory differs between processes.
  return ' '.join(re.sub(r' at 0x[0-9a-f]+', '', repr(student)).split())


def _config(
  method: str,
  dataset: arrays.Dataset,
  *,
  steps: int,
  batch_size: int,
  learning_rate: float,
  weight_decay: float,
  seeds: int,
  weights: Mapping[str, Any],
  settings: Mapping[str, Any],
) -> Any:
  """The config of the run: every key that `td_jax --config=...` has."""
  cfg: Any = common.run()
  cfg.name = cfg.domain = arrays.NAME
  cfg.method, cfg.seeds = method, seeds
  cfg.update(
    common.learner(
      # Another module in the same folder is another run.
      ml_collections.ConfigDict(
        {'name': 'given', 'description': _described(dataset.student)}
      ),
      steps=steps,
      batch_size=batch_size,
      optimizer_name='adamw',
      learning_rate=learning_rate,
      weight_decay=weight_decay,
      clip=0.0,
    )
  )
  cfg.optim.warmup = min(100, steps // 10)
  dispatch = _DISPATCH if steps >= _DISPATCH * _VALIDATIONS else 1
  cfg.steps_per_dispatch = dispatch
  cfg.log_every = cfg.eval_every = dispatch * max(
    steps // (dispatch * _VALIDATIONS), 1
  )
  cfg.teacher = common.own_teacher()
  cfg.teacher.update(
    {'checkpoint': '', 'build': 'td_jax:distill', 'cache': False}
  )
  cfg.data = common.few_labels(arrays.NAME)
  cfg.data.kind = (
    arrays.CLASSIFICATION if dataset.classes else arrays.REGRESSION
  )
  if dataset.unlabelled is not None:
    cfg.data.unlabelled.source = 'given'
  if dataset.classes:
    cfg.distill.logit_distance = 'kl'
  cfg.test = 'test' in dataset.parts
  known = cfg.to_dict()
  for name, value in weights.items():
    errors.choose('a key of weights', name, cfg.distill.weights)
    _set(cfg, known, f'distill.weights.{name}', value)
  for key, value in settings.items():
    _set(cfg, known, key, value)
  config_lib.validate(cfg)
  return cfg


def _set(cfg: Any, known: Mapping[str, Any], key: str, value: Any) -> None:
  """Sets a dotted key of the config, which must exist."""
  allowed = [
    name
    for name in config_keys.flatten(known)
    if any(
      name == each or (each.endswith('.') and name.startswith(each))
      for each in _SETTINGS
    )
  ]
  errors.choose('a setting of td_jax.distill', key, allowed)
  *parents, last = key.split('.')
  for parent in parents:
    cfg = cfg[parent]
  try:
    cfg[last] = value
  except (TypeError, ValueError, OverflowError) as e:
    raise errors.ConfigError(
      f'the setting {key!r} is {value!r}: {errors.one_line(e)}.'
    ) from e


def _check_student(config: types.Config, dataset: arrays.Dataset) -> None:
  """Raises a ConfigError if the student cannot do the task by this method."""
  network = given.Given(dataset.student)
  x = jax.tree.map(lambda leaf: leaf[:1], dataset.parts['train'].x)
  try:
    variables = jax.eval_shape(
      lambda x: network.init(jax.random.key(0), x, train=False), x
    )
    frozen.check(network, variables, x, classes=dataset.classes)
  except errors.ConfigError as e:
    raise errors.ConfigError(
      errors.sentence(f'the student does not fit: {e}')
    ) from e
  except Exception as e:  # A module of the caller may raise anything.
    raise errors.ConfigError(
      f'the student cannot be initialised: {errors.one_line(e)}'
    ) from e
  if set(variables) != {'params'}:
    others = ', '.join(sorted(set(variables) - {'params'}))
    raise errors.ConfigError(
      f'the student has the variables {others}, which no step updates; take layers '
      'without a state of their own, such as LayerNorm in place of BatchNorm.'
    )
  looks = {methods.Need.TEACHER_STATES, methods.Need.TEACHER_LAYERS}
  if config_lib.needs(config) & looks and not network.has_states:
    raise errors.ConfigError(
      f'the student has __call__ alone, but method {config.method!r} looks at hidden '
      "states; give it the methods low, interpret and output, or choose 'ld'."
    )
