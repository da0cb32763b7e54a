"""The optimizer of student and method parameters."""

from typing import NamedTuple

import jax
from jax import lax
from jax import numpy as jnp
import optax

from td_jax import errors
from td_jax import types
from td_jax.methods import base
from td_jax.methods import schedules

_REMEMBERED = 0.99  # Of the running mean of losses, from step to step.


def _adamw(config, rate):
  return optax.chain(
    _scale_by_adam(),
    optax.add_decayed_weights(config.weight_decay, mask=_is_table_or_matrix),
    optax.scale_by_learning_rate(rate),
  )


def _scale_by_adam(b1=0.9, b2=0.999, eps=1e-8):
  """optax.scale_by_adam, its bias corrections taken out of the arrays.

  One division an element in place of three, which a CPU takes longest for.
  """
  adam = optax.scale_by_adam(b1, b2, eps)

  def update(updates, state, params=None):
    del params  # Adam looks at gradients only.
    count = optax.safe_increment(state.count)
    mu = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, updates, state.mu)
    nu = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * g * g, updates, state.nu)
    mu_scale, nu_scale = 1 / (1 - b1**count), lax.rsqrt(1 - b2**count)
    updates = jax.tree.map(
      lambda m, v: m * mu_scale / (jnp.sqrt(v) * nu_scale + eps), mu, nu
    )
    return updates, optax.ScaleByAdamState(count, mu, nu)

  return optax.GradientTransformation(adam.init, update)


def _sgd(config, rate):
  return optax.chain(
    optax.add_decayed_weights(config.weight_decay, mask=_is_table_or_matrix),
    optax.sgd(rate, momentum=config.momentum),
  )


class SpikeState(NamedTuple):
  inner: types.PyTree
  mean: types.Array  # float32 []: of the losses so far.
  skipped: types.Array  # int32 []: steps.


def skip_spikes(
  inner: optax.GradientTransformation, above: float
) -> optax.GradientTransformationExtraArgs:
  """`inner`, but for steps whose loss is above so many times the mean.

  Such a step changes nothing and is counted. The running mean takes it as if
  it were at the limit, so that losses that stay high are trained on in time.

  Args:
    inner: Updates in the other steps.
    above: Times the running mean of the loss, `value` of the update.
  """

  def init(params):
    return SpikeState(inner.init(params), jnp.float32(0), jnp.int32(0))

  def update(updates, state, params=None, **extra):
    value = extra['value']
    mean = jnp.where(state.mean > 0, state.mean, value)  # The first is its own.
    limit = above * mean
    spike = value > limit
    found = inner.update(updates, state.inner, params)
    kept = (jax.tree.map(jnp.zeros_like, updates), state.inner)
    updates, after = jax.tree.map(
      lambda old, new: jnp.where(spike, old, new), kept, found
    )
    mean += (1 - _REMEMBERED) * (jnp.minimum(value, limit) - mean)
    return updates, SpikeState(after, mean, state.skipped + spike)

  return optax.GradientTransformationExtraArgs(init, update)


OPTIMIZERS = {'adamw': _adamw, 'sgd': _sgd}


def build(
  config: types.Config, *, steps: int, stages: tuple[int, int]
) -> optax.GradientTransformation:
  """Clip, then the named optimizer, over {'student': ..., 'method': ...}.

  Args:
    config: `optim` of a config.
    steps: Of the whole run.
    stages: (n1, n2) of section 6.5: the student alone for n1 steps, then the
      communication alone for n2, then both. (0, 0) trains all from the start.

  Returns:
    The transformation; one that skips steps takes the loss as `value`. A group
    that rests gets updates of 0, its moments stay as they are, and its learning
    rate has that many steps less to run.
  """
  optimizer = _build(config, steps, stages)
  if config.skip_loss_above:
    return skip_spikes(optimizer, config.skip_loss_above)
  return optimizer


def _build(config, steps, stages):
  errors.choose('config.optim.name', config.name, OPTIMIZERS)
  clip = optax.identity()
  if config.clip:
    clip = optax.clip_by_global_norm(config.clip)

  def rule(steps):
    rate = schedules.learning_rate(
      config.learning_rate,
      warmup=config.warmup,
      decay=config.decay,
      steps=steps,
    )
    return OPTIMIZERS[config.name](config, rate)

  alone, apart = stages[0], sum(stages)
  if not apart:
    return optax.chain(clip, rule(steps))
  rests = {'student': (alone, apart), 'method': (0, alone)}

  def each_group(make):
    return optax.transforms.partition(
      {
        group: optax.conditionally_mask(
          make(steps - (stop - start)), _outside(start, stop)
        )
        for group, (start, stop) in rests.items()
      },
      lambda params: {
        group: jax.tree.map(lambda _, group=group: group, tree)
        for group, tree in params.items()
      },
    )

  # Who rests is silenced first, so that it does not count for the clip.
  silence = each_group(lambda steps: optax.identity())
  return optax.chain(silence, clip, each_group(rule))


def _outside(start, stop):
  """Whether a step is outside [start, stop): when a group learns."""
  return lambda step, **unused: (step < start) | (step >= stop)


def _is_table_or_matrix(params):
  """What is decayed: not biases and norms, nor what a method holds fixed."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      leaf.ndim > 1 and jax.tree_util.DictKey(base.FIXED) not in path
    ),
    params,
  )
