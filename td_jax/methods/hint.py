"""L_fitnet = d({s_g; e_g}, D_g({s_h; e_h})): FitNet (Romero et al., 2014).

s is a low state and e a high state; g is the student and h the teacher.
"""

from jax import numpy as jnp

from td_jax import types
from td_jax.methods import base
from td_jax.methods import channel
from td_jax.methods import losses
from td_jax.models import layers


def hint(
  *, hidden: int, dropout: float, distance: losses.Distance, original: bool
) -> base.Method:
  """The distance between one network's states and the other's, decoded.

  Args:
    hidden: Width of the decoder's ReLU layer.
    dropout: Rate inside the decoder.
    distance: d, applied to low and high states separately.
    original: Decode the student's states into the teacher's, as Romero et al.
      do. The default is the opposite direction, as printed in section 3.2.
  """

  def roles(
    lesson: base.Lesson,
  ) -> tuple[channel.Decoder, types.Hidden, types.States]:
    """(decoder, its input, its target)."""
    source, target = lesson.teacher.states, lesson.student.states
    if original:
      source, target = target, source
    decoder = channel.Decoder(
      hidden=hidden,
      widths=(target.low.shape[-1], target.high.shape[-1]),
      dropout=dropout,
    )
    return decoder, jnp.concatenate(source, axis=-1), target

  def init(rng: types.Key, lesson: base.Lesson) -> types.PyTree:
    base.check_tokens(lesson)
    decoder, states, _ = roles(lesson)
    return decoder.init(rng, states, train=False)

  def loss(
    params: types.PyTree, lesson: base.Lesson
  ) -> tuple[types.PerExample, base.Terms]:
    decoder, states, target = roles(lesson)
    decoded = layers.apply(decoder, params, states, key=lesson.rng)
    # Distances take (prediction, target), and the target is always on the
    # teacher's side. By default that is the state decoded from the teacher's.
    pair = (decoded, target) if original else (target, decoded)
    return losses.between_states(distance, *pair), {}

  return base.Method(
    init,
    loss,
    needs=frozenset(
      {base.Need.TEACHER, base.Need.TEACHER_STATES, base.Need.SAME_TOKENS}
    ),
  )
