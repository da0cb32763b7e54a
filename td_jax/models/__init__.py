"""Networks by name. A new one is a file with `check` and a line here.

All follow the contract of `split.py`.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from td_jax import errors
from td_jax import types
from td_jax.models import mlp
from td_jax.models import vit

MODELS: dict[str, type[nn.Module]] = {
  'mlp': mlp.MLP,
  'vit': vit.ViT,
}

# Raises a ConfigError: (what the message calls it, a `model` block).
_CHECKS: dict[str, Callable[[str, Any], None]] = {
  'mlp': mlp.check,
  'vit': vit.check,
}


def check(name: str, config: types.Config) -> None:
  """Raises a ConfigError for a `model` block that cannot work."""
  errors.choose(f'{name}.name', config.name, MODELS)
  fields = MODELS[config.name].__dataclass_fields__
  strange = [field for field in config if field not in fields]
  if strange:
    raise errors.ConfigError(
      f'{name}.name is {config.name!r}, which has no setting '
      f'{", ".join(strange)}; take another network, or a config made for this.'
    )
  _CHECKS[config.name](name, config)


def build(config: types.Config, from_data: Mapping[str, Any]) -> nn.Module:
  """The network that `config` (a `model` block) and the data describe."""
  settings = {name: config[name] for name in config if name != 'name'}
  return MODELS[config.name](**settings, **from_data)
