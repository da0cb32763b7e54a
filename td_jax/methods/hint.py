"""L_fitnet = d({s_g; e_g}, D_g({s_h; e_h})): FitNet (Romero et al., 2014)."""

from jax import numpy as jnp

from td_jax.methods import base
from td_jax.methods import channel
from td_jax.methods import losses
from td_jax.models import layers


def hint(
  *, hidden: int, dropout: float, distance: losses.Distance, original: bool
) -> base.Method:
  """One network's states decoded into the other's.

  Args:
    hidden: Width of the decoder's ReLU layer.
    dropout: Rate inside the decoder.
    distance: d, on low and high states apart.
    original: The student's states are decoded into the teacher's, as Romero
      et al. do. By default it is the other way round, as section 3.2 prints.
  """

  def roles(lesson):
    speaker, hearer = lesson.teacher.states, lesson.student.states
    if original:
      speaker, hearer = hearer, speaker
    decoder = channel.Decoder(
      hidden=hidden,
      widths=(hearer.low.shape[-1], hearer.high.shape[-1]),
      dropout=dropout,
    )
    return decoder, jnp.concatenate(speaker, axis=-1), hearer

  def init(rng, lesson):
    base.check_tokens(lesson)
    decoder, message, _ = roles(lesson)
    return decoder.init(rng, message, train=False)

  def loss(params, lesson):
    decoder, message, hearer = roles(lesson)
    heard = layers.apply(decoder, params, message, key=lesson.rng)
    # Of two sides the second is the one that is believed: the teacher's.
    pair = (heard, hearer) if original else (hearer, heard)
    return losses.between_states(distance, *pair), {}

  return base.Method(init, loss)
