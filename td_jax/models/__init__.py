"""Networks by name.

To add a network, write a file with a `split.Network`, `check` and `tokens`, and
add a line to `NETWORKS`. Code outside of this room asks an entry of `NETWORKS`
what a network can do, and never asks for a network's name.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from flax import linen as nn

from td_jax import errors
from td_jax import types
from td_jax.models import mlp
from td_jax.models import pretrained
from td_jax.models import students
from td_jax.models import vit


class Architecture(NamedTuple):
  """A kind of network; `settings` below is a `model` block of a config.

  `inputs` is the dataset's description of its examples, such as
  `{'image_size': 384}`. It is empty if nothing about them can vary.
  """

  module: type[nn.Module]  # Implements `split.Network`.
  # (name of the settings in messages, settings, inputs); raises a ConfigError.
  check: Callable[[str, Any, Mapping[str, Any]], None]
  # (settings, inputs) -> the axes of the states between batch and width.
  tokens: Callable[[Any, Mapping[str, Any]], tuple[int, ...]]
  # Reads published weights, as `pretrained.load` does; None if there are none.
  load_published: Callable[..., pretrained.Teacher] | None = None
  # Starts a student from its teacher, as `students.initialise` does; None if a
  # student can only start at random.
  initialise: Callable[..., Mapping[str, Any]] | None = None


NETWORKS: dict[str, Architecture] = {
  'mlp': Architecture(mlp.MLP, mlp.check, mlp.token_axes),
  'vit': Architecture(
    vit.ViT,
    vit.check,
    vit.token_axes,
    load_published=pretrained.load,
    initialise=students.initialise,
  ),
}


def check(
  name: str, config: types.Config, inputs: Mapping[str, Any] | None = None
) -> None:
  """Raises a ConfigError for a `model` block that cannot work.

  Args:
    name: How messages refer to the block, such as `config.model`.
    config: The block.
    inputs: See `Architecture`; None if the dataset is not known.
  """
  errors.choose(f'{name}.name', config.name, NETWORKS)
  network = NETWORKS[config.name]
  fields = network.module.__dataclass_fields__
  unknown = [field for field in config if field not in fields]
  if unknown:
    raise errors.ConfigError(
      f'{name}.name is {config.name!r}, which has no setting '
      f'{", ".join(unknown)}; take another network, or a config for this one.'
    )
  network.check(name, config, inputs or {})


def build(config: types.Config, from_data: Mapping[str, Any]) -> nn.Module:
  """Builds the network that a `model` block and the data describe.

  Args:
    config: The block; `name` is the network, all other keys are its fields.
    from_data: The network's remaining fields, such as the number of classes.
  """
  settings = {name: config[name] for name in config if name != 'name'}
  return NETWORKS[config.name].module(**settings, **from_data)


def tokens(config: types.Config, inputs: Mapping[str, Any]) -> tuple[int, ...]:
  """The token axes of both states: () for an MLP, (t,) for a ViT.

  Args:
    config: A `model` block.
    inputs: See `Architecture`.

  Raises:
    errors.ConfigError: the network cannot read such inputs.
  """
  return NETWORKS[config.name].tokens(config, inputs)
