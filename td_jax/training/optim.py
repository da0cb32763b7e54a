"""The optimizer of student and method parameters."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
from jax import lax
from jax import numpy as jnp
import optax

from td_jax import errors
from td_jax import types
from td_jax.methods import base
from td_jax.methods import schedules

_REMEMBERED = 0.99  # Decay of the running mean of losses, per step.


def _adamw(
  config: types.Config, rate: optax.Schedule
) -> optax.GradientTransformation:
  return optax.chain(
    _scale_by_adam(),
    optax.add_decayed_weights(config.weight_decay, mask=_is_table_or_matrix),
    optax.scale_by_learning_rate(rate),
  )


def _scale_by_adam(
  b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
  """optax.scale_by_adam, with the bias corrections applied as scalars.

  Each element then needs one division instead of three, and divisions are what
  a CPU spends most of this update on.
  """
  adam = optax.scale_by_adam(b1, b2, eps)

  def update(
    updates: types.PyTree,
    state: Any,  # optax.ScaleByAdamState, which optax does not promise.
    params: types.PyTree = None,
  ) -> tuple[types.PyTree, optax.ScaleByAdamState]:
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


def _sgd(
  config: types.Config, rate: optax.Schedule
) -> optax.GradientTransformation:
  return optax.chain(
    optax.add_decayed_weights(config.weight_decay, mask=_is_table_or_matrix),
    optax.sgd(rate, momentum=config.momentum),
  )


class SpikeState(NamedTuple):
  inner: types.PyTree
  mean: types.Array  # float32 []: running mean of the losses.
  skipped: types.Array  # int32 []: number of skipped steps.


def skip_spikes(
  inner: optax.GradientTransformation, above: float
) -> optax.GradientTransformationExtraArgs:
  """Skips the steps of `inner` whose loss exceeds a multiple of the mean.

  A skipped step changes nothing and is counted. It enters the running mean as if
  its loss were at the limit, so that the mean rises and losses that stay high
  are trained on after a while.

  Args:
    inner: Updates in the other steps.
    above: The limit, as a multiple of the running mean. The loss is the argument
      `value` of the update.
  """

  def init(params: types.PyTree) -> SpikeState:
    return SpikeState(inner.init(params), jnp.float32(0), jnp.int32(0))

  def update(
    updates: types.PyTree,
    state: Any,  # SpikeState.
    params: types.PyTree = None,
    **extra: Any,
  ) -> tuple[types.PyTree, SpikeState]:
    value = extra['value']
    # The first step has no mean yet: its own loss takes that place.
    mean = jnp.where(state.mean > 0, state.mean, value)
    limit = above * mean
    spike = value > limit
    taken = inner.update(updates, state.inner, params)
    skipped = (jax.tree.map(jnp.zeros_like, updates), state.inner)
    updates, after = jax.tree.map(
      lambda old, new: jnp.where(spike, old, new), skipped, taken
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
    config: The block `optim` of a config.
    steps: Number of steps of the whole run.
    stages: (n1, n2) of section 6.5: the student trains alone for n1 steps, then
      the communication alone for n2, then both. (0, 0) trains both from the
      start.

  Returns:
    The transformation; one that skips steps takes the loss as `value`. A group
    that does not train gets updates of 0, its moments stay as they are, and the
    schedule of its learning rate is shorter by that many steps.
  """
  optimizer = _build(config, steps, stages)
  if config.method_learning_rate:
    factor = config.method_learning_rate / config.learning_rate
    optimizer = optax.chain(optimizer, _times('method', factor))
  if config.skip_loss_above:
    return skip_spikes(optimizer, config.skip_loss_above)
  return optimizer


def _build(
  config: types.Config, steps: int, stages: tuple[int, int]
) -> optax.GradientTransformation:
  errors.choose('config.optim.name', config.name, OPTIMIZERS)
  clip = optax.identity()
  if config.clip:
    clip = optax.clip_by_global_norm(config.clip)

  def rule(steps: int) -> optax.GradientTransformation:
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

  def each_group(
    make: Callable[[int], optax.GradientTransformation],
  ) -> optax.GradientTransformation:
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

  # Gradients of a resting group are zeroed first, so that they do not count
  # towards the norm that is clipped.
  silence = each_group(lambda steps: optax.identity())
  return optax.chain(silence, clip, each_group(rule))


def _times(group: str, factor: float) -> optax.GradientTransformation:
  """Multiplies the updates of a group, which acts as a larger learning rate."""

  def update(updates: types.PyTree, params: types.PyTree) -> types.PyTree:
    del params  # The factor is a constant.
    scaled = jax.tree.map(lambda leaf: factor * leaf, updates[group])
    return {**updates, group: scaled}

  return optax.stateless(update)


def _outside(start: int, stop: int) -> Callable[..., types.Array]:
  """Tells whether a step is outside [start, stop), so that a group trains."""
  return lambda step, **unused: (step < start) | (step >= stop)


def _is_table_or_matrix(params: types.PyTree) -> types.PyTree:
  """True for leaves with weight decay: no biases, norms or fixed parameters."""

  def decays(path: tuple[Any, ...], leaf: Any) -> bool:
    names = [getattr(entry, 'key', '') for entry in path]
    # The shape alone does not tell: those of stacked blocks are matrices.
    is_vector = names[-1] == 'bias' or str(names[-1]).endswith('scale')
    return leaf.ndim > 1 and not is_vector and base.FIXED not in names

  return jax.tree_util.tree_map_with_path(decays, params)
