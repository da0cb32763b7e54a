"""Distillation methods by name: the terms that are added to the task's loss.

To add a method, write its term in a file of this folder, a builder below and a
line in `METHODS`, and declare its weight in `configs/common.py:distill`.
"""

from collections.abc import Callable
import functools

from td_jax import errors
from td_jax import types
from td_jax.methods import asking
from td_jax.methods import at
from td_jax.methods import base
from td_jax.methods import bd_kd
from td_jax.methods import channel
from td_jax.methods import dist
from td_jax.methods import dkd
from td_jax.methods import feature
from td_jax.methods import hint
from td_jax.methods import logit
from td_jax.methods import logit_std
from td_jax.methods import losses
from td_jax.methods import mixing
from td_jax.methods import pkt
from td_jax.methods import rkd
from td_jax.methods import schedules
from td_jax.methods import sp
from td_jax.methods import srrl
from td_jax.methods import standardised
from td_jax.methods import talking
from td_jax.methods import task
from td_jax.methods import vkd
from td_jax.methods.base import Lesson as Lesson
from td_jax.methods.base import Method as Method
from td_jax.methods.base import Need as Need

# From a weight in the config to a number or a schedule.
Weigh = Callable[[schedules.Spec], base.Weight]
Term = tuple[base.Weight, base.Method]


def _distance(name: str, distill: types.Config) -> losses.Distance:
  if name == 'kl':
    return functools.partial(losses.kl, temperature=distill.temperature)
  return losses.DISTANCES[name]


def _in_units(method: base.Method, distill: types.Config) -> base.Method:
  if distill.states == 'raw':
    return method
  return standardised.standardised(method)


def _logit(config: types.Config, weigh: Weigh) -> Term:
  distill = config.distill
  distance = _distance(distill.logit_distance, distill)
  return weigh(distill.weights.logit), logit.logit(distance)


def _dkd(config: types.Config, weigh: Weigh) -> Term:
  distill = config.distill
  return weigh(distill.weights.dkd), dkd.dkd(
    alpha=distill.dkd_alpha,
    beta=distill.dkd_beta,
    temperature=distill.temperature,
  )


def _feature(config: types.Config, weigh: Weigh) -> Term:
  distill = config.distill
  method = feature.feature(
    encoder=channel.Encoder(
      hidden=distill.hidden, message=distill.message, dropout=distill.dropout
    ),
    distance=_distance(distill.distance, distill),
    fixed_teacher=distill.feature_target == 'teacher',
  )
  return weigh(distill.weights.feature), _in_units(method, distill)


def _hint(config: types.Config, weigh: Weigh) -> Term:
  distill = config.distill
  method = hint.hint(
    hidden=distill.hidden,
    dropout=distill.dropout,
    distance=_distance(distill.distance, distill),
    original=distill.hint_direction == 'original',
  )
  return weigh(distill.weights.hint), _in_units(method, distill)


def _talking(config: types.Config, weigh: Weigh) -> Term:
  distill = config.distill
  method = talking.talking(
    weights=talking.Weights(
      interact=weigh(distill.weights.interact),
      message=weigh(distill.weights.message),
      state=weigh(distill.weights.state),
    ),
    hidden=distill.hidden,
    message=distill.message,
    dropout=distill.dropout,
    distance=_distance(distill.distance, distill),
    student_encodes_high=distill.student_encodes == 'low_and_high',
    k=config.k,
    original_target=distill.interact_target == 'original',
    hold_answer=distill.interact_teaches == 'student',
    noise=distill.noise,
    remat=distill.remat,
    unroll=distill.unroll,
  )
  # Its three losses have weights of their own.
  return 1.0, _in_units(method, distill)


def _asking(config: types.Config, weigh: Weigh) -> Term:
  distill = config.distill
  method = asking.asking(
    hidden=distill.hidden,
    message=distill.message,
    dropout=distill.dropout,
    distance=_distance(distill.logit_distance, distill),
    between=distill.questions == 'between',
  )
  return weigh(distill.weights.ask), standardised.standardised(method)


def _mixing(config: types.Config, weigh: Weigh) -> Term:
  distill = config.distill
  distance = _distance(distill.logit_distance, distill)
  return weigh(distill.weights.mix), mixing.mixing(distance)


def _logit_std(config: types.Config, weigh: Weigh) -> Term:
  distill = config.distill
  method = logit.logit(_distance('kl', distill))
  return weigh(distill.weights.logit_std), logit_std.logit_std(method)


def _dkd_std(config: types.Config, weigh: Weigh) -> Term:
  weight, method = _dkd(config, weigh)
  return weight, logit_std.logit_std(method)


def _dist(config: types.Config, weigh: Weigh) -> Term:
  distill = config.distill
  return weigh(distill.weights.dist), dist.dist(
    beta=distill.dist_beta,
    gamma=distill.dist_gamma,
    temperature=distill.temperature,
  )


def _bd_kd(config: types.Config, weigh: Weigh) -> Term:
  distill = config.distill
  return weigh(distill.weights.bd_kd), bd_kd.bd_kd(
    nu=distill.bd_nu, temperature=distill.temperature
  )


def _rkd(config: types.Config, weigh: Weigh) -> Term:
  distill = config.distill
  return weigh(distill.weights.rkd), rkd.rkd(
    distance=distill.rkd_distance, angle=distill.rkd_angle
  )


def _sp(config: types.Config, weigh: Weigh) -> Term:
  return weigh(config.distill.weights.sp), sp.sp()


def _pkt(config: types.Config, weigh: Weigh) -> Term:
  return weigh(config.distill.weights.pkt), pkt.pkt()


def _at(config: types.Config, weigh: Weigh) -> Term:
  return weigh(config.distill.weights.at), at.at(power=config.distill.at_power)


def _vkd(config: types.Config, weigh: Weigh) -> Term:
  return weigh(config.distill.weights.vkd), vkd.vkd()


def _srrl(config: types.Config, weigh: Weigh) -> Term:
  distill = config.distill
  method = srrl.srrl(classifier=distill.srrl_classifier)
  return weigh(distill.weights.srrl), method


METHODS: dict[str, dict[str, Callable[[types.Config, Weigh], Term]]] = {
  'scratch': {},
  'ld': {'logit': _logit},
  'dkd': {'dkd': _dkd},
  'fd': {'feature': _feature},
  'fitnet': {'hint': _hint},
  'hybrid': {'logit': _logit, 'feature': _feature},
  'td': {'talk': _talking},
  'td_ld': {'logit': _logit, 'talk': _talking},
  'mix': {'logit': _logit, 'mix': _mixing},
  'ask': {'logit': _logit, 'ask': _asking},
  # Of others, each with the settings of its authors.
  'logit_std': {'logit_std': _logit_std},
  'logit_std_dkd': {'dkd': _dkd_std},
  'dist': {'dist': _dist},
  'bd_kd': {'bd_kd': _bd_kd},
  'rkd': {'rkd': _rkd},
  'sp': {'sp': _sp},
  'pkt': {'pkt': _pkt},
  'at': {'at': _at},
  'vkd': {'vkd': _vkd},
  'srrl': {'srrl': _srrl},
}


def build(
  name: str, *, config: types.Config, task_loss: str, start: int = 0
) -> base.Method:
  """The method `name` of `METHODS`.

  Args:
    name: A key of `METHODS`.
    config: A whole config, of which `k` and `distill` are read.
    task_loss: A key of `losses.TASK_LOSSES`.
    start: Before this step the student learns from its task alone.

  Returns:
    The task's loss plus the method's terms.
  """
  terms = _terms(name, config, start)
  return base.combine(
    task=(1.0, task.task(losses.TASK_LOSSES[task_loss])), **terms
  )


def uses_unlabelled(config: types.Config) -> bool:
  """Whether the method of a config can learn from examples without a label."""
  if config.method not in METHODS:
    return False  # A teacher's own run.
  return any(
    base.Need.LABELS not in method.needs and not base.is_off(weight)
    for weight, method in _terms(config.method, config).values()
  )


def needs(config: types.Config, *, task_loss: str) -> base.Needs:
  """The needs of the method of a config; none for a teacher's own run."""
  if config.method not in METHODS:
    return frozenset()
  return build(config.method, config=config, task_loss=task_loss).needs


def check(config: types.Config, *, task_loss: str) -> None:
  """Raises a ConfigError if the task or teacher lacks what the method needs."""
  required = needs(config, task_loss=task_loss)
  is_ratings = task_loss == 'squared_error'
  if base.Need.CLASS_LABELS in required and is_ratings:
    raise errors.ConfigError(
      f'config.method is {config.method!r}, which needs labels that are '
      'classes, and those of this data are numbers; choose one of: '
      f'{", ".join(_for_ratings(config, task_loss))}.'
    )
  if base.Need.TEACHER_OUTPUT not in required:
    return
  distance = config.distill.logit_distance
  if is_ratings and distance != 'l2':
    raise errors.ConfigError(
      f'config.distill.logit_distance is {distance!r}, which compares '
      "distributions; a rating is one number, so it must be 'l2'."
    )
  # A teacher that we train ourselves has no key `head`: it always has outputs.
  if config.teacher.get('head') == 'none':
    raise errors.ConfigError(
      "config.teacher.head is 'none', but config.method="
      f"{config.method!r} learns from the teacher's outputs; choose 'probe', "
      "or 'stored' if the teacher has a head for the task."
    )


def _terms(name: str, config: types.Config, start: int = 0) -> dict[str, Term]:
  """The terms that the method `name` adds to the task's loss."""
  weigh = functools.partial(schedules.build, start=start)
  return {term: make(config, weigh) for term, make in METHODS[name].items()}


def _for_ratings(config: types.Config, task_loss: str) -> list[str]:
  """The methods that work without classes."""
  return [
    name
    for name in METHODS
    if base.Need.CLASS_LABELS
    not in build(name, config=config, task_loss=task_loss).needs
  ]
