"""The interface of a distillation method: a pair of pure functions, as in optax.

  init(rng, lesson) -> params            # Its own parameters, or {}.
  loss(params, lesson) -> (cost, terms)  # [b], and {name: [b]} to report.

The parameters are trained together with the student's. Terms are only reported.
"""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Mapping
import enum
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
from jax import numpy as jnp
import jaxtyping as jt
import optax

from td_jax import errors
from td_jax import types
from td_jax.models import split


class Lesson(NamedTuple):
  """Everything that a method may look at."""

  student: split.Side
  teachers: Mapping[str, split.Side]  # By name; {} if no term needs any.
  batch: types.Batch
  step: types.Array  # int32 []
  rng: types.Key  # The key of this step, for this method alone.
  # 0 for an example without a label; the others share the weight of the whole
  # batch, so that the mean over the batch is the mean over the labelled
  # examples. None: every example has a label.
  label_weight: types.PerExample | None = None
  # The axis of devices that share the batch, if each of them sees its part alone.
  axis_name: str | None = None

  @property
  def teacher(self) -> split.Side:
    """The only teacher.

    Raises:
      errors.ConfigError: There are none, or several.
    """
    if len(self.teachers) != 1:
      names = ', '.join(self.teachers) or 'none'
      raise errors.ConfigError(
        f'the method learns from one teacher, but the teachers are: {names}. '
        'A term that looks at a teacher declares it in its needs, such as '
        'Need.TEACHER_OUTPUT.'
      )
    (side,) = self.teachers.values()
    return side


class Need(enum.Enum):
  """What a method requires of the teacher, student, task or config."""

  # Implied by the needs for a teacher's outputs or states.
  TEACHER = 'a frozen teacher'
  TEACHER_OUTPUT = "the teacher's outputs for the task"
  TEACHER_STATES = "the teacher's hidden states on the input"
  TEACHER_LAYERS = "the teacher's layers, for states that were messages"
  # `combine` leaves examples without a label out of such a term.
  LABELS = 'a label of each example'
  CLASS_LABELS = 'labels that are classes'
  # The lesson of `init` then has many examples in place of one.
  STATISTICS = 'statistics of the hidden states'
  SAME_TOKENS = 'states with the same tokens on both sides'
  SEVERAL_TOKENS = 'states of several tokens'
  ROUNDS = 'config.k, the rounds of the conversation'


Needs = frozenset[Need]
_OF_TEACHER = frozenset({Need.TEACHER_OUTPUT, Need.TEACHER_STATES})
Terms = dict[str, types.PerExample]
Init = Callable[[types.Key, Lesson], types.PyTree]
Loss = Callable[[types.PyTree, Lesson], tuple[types.PerExample, Terms]]
# (params, lesson) -> the messages of student and teacher, [b, ..., m] each.
Messages = Callable[[types.PyTree, Lesson], tuple[types.Message, types.Message]]


class Method(NamedTuple):
  """A method, or a term of one."""

  init: Init
  loss: Loss
  needs: Needs = frozenset()
  messages: Messages | None = None  # If both sides encode their states.


Weight = float | optax.Schedule
NO_PARAMS: types.PyTree = {}
# The optimizer skips parameters under this name: even weight decay would change
# them.
FIXED = 'fixed'


def stateless(
  loss: Callable[[Lesson], tuple[types.PerExample, Terms]],
  *,
  needs: Collection[Need] = (),
) -> Method:
  """A method without parameters of its own."""

  def init(rng: types.Key, lesson: Lesson) -> types.PyTree:
    del rng, lesson  # There is nothing to initialise.
    return NO_PARAMS

  return Method(init, lambda params, lesson: loss(lesson), frozenset(needs))


def in_units(method: Method, unit: float) -> Method:
  """A method that sees labels and outputs in units of `unit`.

  So costs and their weights do not depend on whether a price is in dollars or in
  thousands of them. Reported costs are in the square of the unit, too.
  """

  return seeing_outputs(
    method, lambda values: values / unit, labels=lambda y: y / unit
  )


def seeing_outputs(
  method: Method,
  change: Callable[[types.Array], types.Array],
  *,
  labels: Callable[[types.Array], types.Array] = lambda y: y,
) -> Method:
  """A method that sees changed outputs of the student and of all teachers.

  Args:
    method: What sees them.
    change: From an output to the one that is seen.
    labels: The same for labels.
  """

  def of(side: split.Side) -> split.Side:
    return side._replace(
      output=change(side.output),
      output_of=lambda state, key: change(side.output_of(state, key)),
    )

  def inside(lesson: Lesson) -> Lesson:
    return lesson._replace(
      student=of(lesson.student),
      teachers={name: of(side) for name, side in lesson.teachers.items()},
      batch=lesson.batch._replace(y=labels(lesson.batch.y)),
    )

  return method._replace(
    init=lambda rng, lesson: method.init(rng, inside(lesson)),
    loss=lambda params, lesson: method.loss(params, inside(lesson)),
  )


def check_tokens(lesson: Lesson) -> None:
  """Raises a ConfigError unless all states have the same tokens."""
  student = split.tokens(lesson.student.states)
  teacher = split.tokens(lesson.teacher.states)
  if student != teacher:
    raise tokens_differ(student, teacher)


def tokens_differ(
  student: tuple[int, ...], teacher: tuple[int, ...]
) -> errors.ConfigError:
  """The error for states that cannot be compared token by token."""
  return errors.ConfigError(
    f"the student's states have tokens {student} and the teacher's {teacher}, "
    'but the method compares them token by token; give config.model and '
    "config.teacher.model the same tokens, or choose config.method='ld'."
  )


def no_tokens() -> errors.ConfigError:
  """The error for states without tokens, whose maps have nothing to say."""
  return errors.ConfigError(
    'the method compares where networks look, over tokens, and their states have '
    "no tokens; choose config.method='ld', or networks such as ViTs."
  )


def whole_batch(lesson: Lesson, values: types.PyTree) -> types.PyTree:
  """Values [b, ...] for the examples of all devices, for terms that relate them.

  Where a batch is shared by compiled code, as under `mesh`, it is whole already.
  """
  if lesson.axis_name is None:
    return values
  return lax.all_gather(values, lesson.axis_name, tiled=True)


def related_features(
  lesson: Lesson,
) -> tuple[jt.Float[jt.Array, 'n _'], jt.Float[jt.Array, 'n _'], types.Array]:
  """(the student's features, the teacher's, mask [n]) of the whole batch.

  Features are high states, `pooled`.
  """
  sides = lesson.student, lesson.teacher
  return whole_batch(
    lesson, (*(pooled(s.states.high) for s in sides), lesson.batch.mask)
  )


def for_each(lesson: Lesson, cost: types.Array) -> types.PerExample:
  """The cost [] of a whole batch as the cost of each example, [b]."""
  return jnp.broadcast_to(cost, lesson.batch.mask.shape)


def pooled(states: types.Hidden) -> jt.Float[jt.Array, 'b _']:
  """States [b, d] as they are; of states [b, t, d] the mean over tokens."""
  return states.reshape(len(states), -1, states.shape[-1]).mean(axis=1)


def rows(output: types.Array) -> jt.Float[jt.Array, 'b _']:
  """Outputs as [b, classes]; ratings [b] become [b, 1]."""
  return output.reshape(len(output), -1)


def is_off(weight: Weight) -> bool:
  """Whether a term's weight is 0 at every step, so that it is left out."""
  return not callable(weight) and weight == 0


def scaled(weight: Weight, step: types.Array, cost: types.Array) -> Any:
  """`cost` times `weight`, or times the schedule's value at `step`.

  `cost` has any shape.
  """
  return (weight(step) if callable(weight) else weight) * cost


def weighted_sum(
  lesson: Lesson, costs: Mapping[str, tuple[Weight, types.PerExample]]
) -> tuple[types.PerExample, Terms]:
  """(the sum of weight x cost, the unweighted costs by name)."""
  # Starts from zeros of the batch, so that without any term the cost is still
  # float32 [b].
  total = jnp.zeros_like(lesson.batch.mask)
  for weight, cost in costs.values():
    total += scaled(weight, lesson.step, cost)
  return total, {name: cost for name, (_, cost) in costs.items()}


def combine(**terms: tuple[Weight, Method]) -> Method:
  """The weighted sum of methods.

  Args:
    **terms: (weight, method) by name. Their parameters and reports go by this
      name.

  Returns:
    A method with the needs of all terms that are on, and with the messages of
    the first of them that has any. It copes with examples without a label: a
    term that needs labels averages over the labelled examples, every other
    term over all examples.
  """
  # A term that is off is neither initialised nor traced.
  terms = {name: term for name, term in terms.items() if not is_off(term[0])}

  def own(lesson: Lesson, number: int) -> Lesson:
    """The lesson with a key for this term alone."""
    return lesson._replace(rng=jax.random.fold_in(lesson.rng, number))

  def init(rng: types.Key, lesson: Lesson) -> types.PyTree:
    # Keys go by a term's position among those that are on, so a change of this
    # order changes the results of every run.
    params = {
      name: method.init(jax.random.fold_in(rng, number), own(lesson, number))
      for number, (name, (_, method)) in enumerate(terms.items())
    }
    # Terms without parameters leave no empty folder in checkpoints.
    return {name: tree for name, tree in params.items() if tree}

  def loss(
    params: types.PyTree, lesson: Lesson
  ) -> tuple[types.PerExample, Terms]:
    costs, details = {}, {}
    for number, (name, (weight, method)) in enumerate(terms.items()):
      cost, parts = _checked(
        name,
        method.loss(params.get(name, NO_PARAMS), own(lesson, number)),
        lesson.batch.mask.shape,
      )
      if Need.LABELS in method.needs and lesson.label_weight is not None:
        cost = cost * lesson.label_weight
        parts = {
          part: value * lesson.label_weight for part, value in parts.items()
        }
      costs[name] = weight, cost
      details |= {f'{name}/{part}': value for part, value in parts.items()}
    total, report = weighted_sum(lesson, costs)
    return total, report | details

  united = frozenset[Need]().union(*(m.needs for _, m in terms.values()))
  if united & _OF_TEACHER:
    united |= {Need.TEACHER}
  return Method(
    init, loss, needs=united - {Need.LABELS}, messages=_messages(terms)
  )


def _checked(
  name: str, returned: Any, shape: tuple[int, ...]
) -> tuple[types.PerExample, Terms]:
  """What the loss of a term returned, if it has the right form."""
  if not isinstance(returned, tuple) or len(returned) != 2:
    raise errors.ConfigError(
      f'the loss of the term {name!r} returns {type(returned).__name__}; it must '
      'return (cost, terms): the cost of each example, and {} or {name: values}.'
    )
  cost, parts = returned
  for part, value in {name: cost, **parts}.items():
    if jnp.shape(value) != shape:
      raise errors.ConfigError(
        f'the term {name!r} returns {part!r} with shape {jnp.shape(value)}; a '
        f'loss returns one value for each example, here {shape}: do not average '
        'over the batch.'
      )
  return cost, parts


def _messages(terms: Mapping[str, tuple[Weight, Method]]) -> Messages | None:
  """The messages of the first term that has any."""
  for name, (_, method) in terms.items():
    if method.messages is not None:
      own = method.messages
      return lambda params, lesson: own(params[name], lesson)
  return None
