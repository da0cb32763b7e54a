"""Networks by name.

A new network is a file with a Linen module, a subclass of
`split.Network`,
and a line in `NETWORKS`. Nothing outside this package knows its settings.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

from flax import linen as nn

from td_jax import errors
from td_jax import types
from td_jax.configs import allowed
from td_jax.models import footprint
from td_jax.models import given
from td_jax.models import mlp
from td_jax.models import pretrained
from td_jax.models import split
from td_jax.models import students
from td_jax.models import vit

INITS = tuple(students.INITS)  # Values of config.student_init.
HEADS = ('zeros', 'probe')  # Values of config.student_head.


class Published(NamedTuple):
  """What can be done with the published weights of a network, by their path."""

  load: Callable[..., pretrained.Teacher]
  # What they say of themselves.
  describe: Callable[[str], pretrained.Description]
  # (path, settings): raises a ConfigError if they are of another network.
  check: Callable[[str, Mapping[str, Any]], None]


class Architecture(NamedTuple):
  """A network, and what the package needs to know about it."""

  module: type[split.Network]
  # {setting in a config: what it takes}.
  keys: Mapping[str, allowed.Allowed]
  # (field, settings, inputs): raises a ConfigError for settings that cannot work
  # together, on inputs that the dataset describes, such as {'image_size': 384}.
  check: Callable[[str, Any, Mapping[str, Any]], None]
  # (settings, inputs) -> the token axes of its states, () or (t,).
  tokens: Callable[[Any, Mapping[str, Any]], tuple[int, ...]]
  # (settings, inputs) -> the least memory that the network takes.
  footprint: Callable[[Any, Mapping[str, Any]], footprint.Footprint]
  # None if nobody publishes weights of this network.
  published: Published | None = None
  # Initialises a student with layers of its teacher, see `students`.
  initialise: Callable[..., Mapping[str, Any]] | None = None
  # (kind, settings, settings of the teacher): raises a ConfigError if they cannot be
  # the same layers.
  check_copy: Callable[[str, Any, Any], None] | None = None


NETWORKS: dict[str, Architecture] = {
  'given': Architecture(
    given.Given,
    given.ALLOWED,
    given.check,
    given.tokens,
    # Only the caller knows the module.
    footprint=lambda settings, inputs: footprint.Footprint(),
  ),
  'mlp': Architecture(
    mlp.MLP,
    mlp.ALLOWED,
    mlp.check,
    mlp.tokens,
    footprint=lambda settings, inputs: footprint.mlp(settings),
  ),
  'vit': Architecture(
    vit.ViT,
    vit.OPEN,
    vit.check,
    vit.token_axes,
    footprint=lambda settings, inputs: footprint.vit(
      settings, *vit.token_axes(settings, inputs)
    ),
    published=Published(pretrained.load, pretrained.describe, pretrained.check),
    initialise=students.initialise,
    check_copy=students.check,
  ),
}


def check(field: str, config: types.Config, inputs: Mapping[str, Any]) -> None:
  """Raises a ConfigError for a `model` block that cannot work.

  Args:
    field: The name of the block in messages, such as 'config.model'.
    config: The block.
    inputs: What the dataset says about its inputs.
  """
  check_settings(field, config)
  NETWORKS[config.name].check(field, config, inputs)


def check_settings(field: str, config: types.Config) -> None:
  """Raises a ConfigError for a `model` block with settings of another network."""
  errors.choose(f'{field}.name', config.name, NETWORKS)
  architecture = NETWORKS[config.name]
  known = architecture.module.__dataclass_fields__
  unknown = [name for name in config if name not in (*known, 'name')]
  if unknown:
    raise errors.ConfigError(
      f'{field}.name is {config.name!r}, which has no setting '
      f'{", ".join(unknown)}; choose another network, or a config made for '
      'this one.'
    )


def check_init(config: types.Config) -> None:
  """Raises a ConfigError if the student cannot start from its teacher."""
  network = config.model.name
  if config.student_init != 'random' and NETWORKS[network].initialise is None:
    raise errors.ConfigError(
      f'config.student_init is {config.student_init!r}, but a {network!r} '
      "cannot take over layers of its teacher; choose 'random'."
    )
  if config.student_head == 'probe' and config.student_init == 'random':
    raise errors.ConfigError(
      "config.student_head is 'probe', which fits a head to blocks of the "
      "teacher, but config.student_init is 'random'; choose "
      "config.student_head='zeros', or another config.student_init."
    )


def check_copy(config: types.Config, teacher: types.Config) -> None:
  """Raises a ConfigError if the student cannot take over layers of its teacher.

  Args:
    config: A whole config.
    teacher: The settings of the teacher's network.
  """
  check = NETWORKS[config.model.name].check_copy
  if config.student_init == 'random' or check is None:
    return
  if teacher.name != config.model.name:
    raise errors.ConfigError(
      f'config.student_init is {config.student_init!r}, but the student is a '
      f'{config.model.name!r} and its teacher a {teacher.name!r}; choose '
      "config.student_init='random', or another teacher."
    )
  check(config.student_init, config.model, teacher)


def published_reader(config: types.Config) -> tuple[Published, dict[str, Any]]:
  """How published weights of a teacher are read, and what a config says of them.

  Args:
    config: A whole config, whose `teacher.checkpoint` is published weights.

  Returns:
    How the weights are read, and the settings that they must have.

  Raises:
    errors.ConfigError: Nobody publishes weights of this network.
  """
  network = config.teacher.model
  found = NETWORKS[network.name].published
  if found is None:
    raise errors.ConfigError(
      f'config.teacher.checkpoint is {config.teacher.checkpoint!r}, which holds '
      f'published weights, but config.teacher.model.name is {network.name!r}, which '
      'cannot load any; name the folder of a run.'
    )
  return found, {key: network[key] for key in network if key != 'name'}


def build(config: types.Config, from_data: Mapping[str, Any]) -> nn.Module:
  """The network that `config` (a `model` block) and the data describe."""
  settings = {name: config[name] for name in config if name != 'name'}
  return NETWORKS[config.name].module(**settings, **from_data)


def tokens(config: types.Config, inputs: Mapping[str, Any]) -> tuple[int, ...]:
  """The token axes of the states of a network: () or (t,)."""
  return NETWORKS[config.name].tokens(config, inputs)
