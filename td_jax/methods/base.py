"""What a distillation method is: a pair of pure functions, as in optax.

init(rng, lesson) -> params           its own parameters, {} if it has none
loss(params, lesson) -> (cost, terms) cost [b]; terms {name: [b]} to report
"""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
from jax import numpy as jnp
import optax

from td_jax import errors
from td_jax import types
from td_jax.models import split


class Lesson(NamedTuple):
  """All that a method may look at."""

  student: split.Side
  teacher: Any  # A split.Side; None where no term needs a teacher.
  batch: types.Batch
  step: types.Array  # int32 []
  rng: types.Key  # This step's, for this method alone.


Terms = dict[str, types.PerExample]


class Method(NamedTuple):
  init: Callable[[types.Key, Lesson], types.PyTree]
  loss: Callable[[types.PyTree, Lesson], tuple[types.PerExample, Terms]]


Weight = float | optax.Schedule
NO_PARAMS: types.PyTree = {}
FIXED = 'fixed'  # Parameters under this name are not even decayed.


def stateless(loss: Callable[[Lesson], tuple[types.PerExample, Terms]]):
  """A method without parameters of its own."""

  def init(rng, lesson):
    del rng, lesson  # There is nothing to initialise.
    return NO_PARAMS

  return Method(init, lambda params, lesson: loss(lesson))


def check_tokens(lesson: Lesson) -> None:
  """Raises a ConfigError unless both sides' states have the same tokens."""
  ours, theirs = (
    side.states.low.shape[1:-1] for side in (lesson.student, lesson.teacher)
  )
  if ours != theirs:
    raise errors.ConfigError(
      f'an image is {ours} tokens to the student and {theirs} to the teacher, '
      'which the method compares one by one; make patch and class_token of '
      "config.model and config.teacher.model the same, or take method='ld'."
    )


def is_off(weight: Weight) -> bool:
  """Whether a term is never used, so that it need not be computed."""
  return not callable(weight) and weight == 0


def scaled(weight: Weight, step: types.Array, cost: types.Array) -> Any:
  """`cost` times `weight`, or times the schedule's value at `step`."""
  return (weight(step) if callable(weight) else weight) * cost


def combine(**terms: tuple[Weight, Method]) -> Method:
  """The weighted sum of methods; parameters and reports go by name."""
  terms = {name: term for name, term in terms.items() if not is_off(term[0])}

  def own(lesson, number):
    return lesson._replace(rng=jax.random.fold_in(lesson.rng, number))

  def init(rng, lesson):
    params = {
      name: method.init(jax.random.fold_in(rng, number), own(lesson, number))
      for number, (name, (_, method)) in enumerate(terms.items())
    }
    return {name: tree for name, tree in params.items() if tree}

  def loss(params, lesson):
    total = jnp.zeros_like(lesson.batch.mask)
    report = {}
    for number, (name, (weight, method)) in enumerate(terms.items()):
      cost, parts = method.loss(
        params.get(name, NO_PARAMS), own(lesson, number)
      )
      total += scaled(weight, lesson.step, cost)
      report[name] = cost
      report |= {f'{name}/{part}': value for part, value in parts.items()}
    return total, report

  return Method(init, loss)
