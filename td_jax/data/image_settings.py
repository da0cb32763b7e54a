"""What the settings of images may be: the checks of a config's `data` block."""

from td_jax import errors
from td_jax import types
from td_jax.data import labels as label_lib

# Mixtures for each labelled image, if their number is not given.
MIXTURES_PER_IMAGE = 10
_CHOICES = {'memory': ('device', 'stream'), 'augment': ('inception', 'none')}
_UNLABELLED = ('none', 'rest', 'dataset', 'mixtures')


def check(config: types.Config) -> None:
  """Raises a ConfigError for a `data` block that cannot work."""
  data = config.data
  for field, choices in _CHOICES.items():
    errors.choose(f'config.data.{field}', data[field], choices)
  _check_preprocessing(data)
  _check_labels(data, config.teacher.states)
  if config.test and not data.test:
    raise errors.ConfigError(
      "config.data.test is '', but config.test is True; name a split, or set "
      'config.test=False.'
    )
  if data.limit < 0 or (data.limit and data.memory == 'stream'):
    raise errors.ConfigError(
      f'config.data.limit is {data.limit}; it must be at least 0, and 0 for '
      "config.data.memory='stream': there name a part of a split, such as "
      "config.data.train='train[:5000]'."
    )
  if data.memory == 'stream' and data.augment == 'none':
    raise errors.ConfigError(
      "config.data.augment is 'none', but config.data.memory='stream' crops; "
      "choose augment='inception', or memory='device'."
    )
  if data.skip_corrupt and data.memory != 'stream':
    raise errors.ConfigError(
      "config.data.skip_corrupt is True, but config.data.memory is 'device', which "
      "decodes every image before the run; choose config.data.memory='stream'."
    )
  if data.fixed_crops < 0 or (
    data.fixed_crops and (data.memory == 'stream' or data.augment == 'none')
  ):
    raise errors.ConfigError(
      f'config.data.fixed_crops is {data.fixed_crops}; it must be at least 0, '
      "and 0 for config.data.memory='stream' or config.data.augment='none'."
    )
  if config.teacher.states and (data.memory == 'stream' or data.fixed_crops):
    raise errors.ConfigError(
      'config.teacher.states has one answer for each image, which fits '
      "config.data.memory='device' and config.data.fixed_crops=0."
    )
  if config.refit_on_validation:
    raise errors.ConfigError(
      'config.refit_on_validation is True, which is for MovieLens; for images '
      'name more examples in config.data.train.'
    )
  if config.teacher.cache and not _is_fixed(data):
    raise errors.ConfigError(
      "config.teacher.cache is True, but the teacher's view of an image "
      "changes from epoch to epoch; choose config.data.augment='none', a number "
      'of config.data.fixed_crops, or config.teacher.cache=False.'
    )


def _check_labels(data: types.Config, states: str) -> None:
  label_lib.check(data, _UNLABELLED)
  count, source = data.labels.per_class, data.unlabelled.source
  if count < 0 or (count and data.labels.share < 1):
    raise errors.ConfigError(
      f'config.data.labels.per_class is {count}, and config.data.labels.share '
      f'is {data.labels.share}; give a number of labels in each class, or a '
      'share, and leave the other at 0 or 1.0.'
    )
  if source == 'mixtures' and (data.memory == 'stream' or states):
    raise errors.ConfigError(
      "config.data.unlabelled.source is 'mixtures', which mixes images in memory and "
      "asks the teacher about them; it needs config.data.memory='device' and no "
      'config.teacher.states.'
    )
  if data.unlabelled.mixtures < 0:
    raise errors.ConfigError(
      f'config.data.unlabelled.mixtures is {data.unlabelled.mixtures}; it must be at '
      f'least 1, or 0 for {MIXTURES_PER_IMAGE} for each labelled image.'
    )
  if data.memory == 'stream' and (
    count or data.labels.share < 1 or source == 'rest'
  ):
    raise errors.ConfigError(
      "config.data.memory is 'stream', which reads no labels in advance and so "
      'cannot choose some; name the labelled part in config.data.train, such '
      "as 'train[:5%]', and with config.data.unlabelled.source='dataset' the "
      "other part in config.data.unlabelled.split, such as 'train[5%:]'."
    )
  if source == 'rest' and not count and data.labels.share == 1:
    raise errors.ConfigError(
      "config.data.unlabelled.source is 'rest', but all labels are kept; choose "
      'a smaller config.data.labels.share, or config.data.labels.per_class.'
    )
  if source == 'dataset' and not data.unlabelled.split:
    raise errors.ConfigError(
      "config.data.unlabelled.source is 'dataset', but "
      "config.data.unlabelled.split is ''; name a split, such as 'train'."
    )


def _check_preprocessing(data: types.Config) -> None:
  if data.size < 1:
    raise errors.ConfigError(
      f'config.data.size is {data.size}; it must be at least 1 pixel.'
    )
  if len(data.area) != 2 or not 0 < data.area[0] <= data.area[1] <= 1:
    raise errors.ConfigError(
      f'config.data.area is {data.area}; it takes two shares of an image, '
      'such as (0.05, 1.0).'
    )
  if len(data.mean) != 3 or len(data.std) != 3 or min(data.std) <= 0:
    raise errors.ConfigError(
      f'config.data.mean is {data.mean} and config.data.std is {data.std}; '
      'each takes 3 grey levels, of red, green and blue, and std is above 0.'
    )
  if data.smaller_side and data.smaller_side < data.size:
    raise errors.ConfigError(
      f'config.data.smaller_side is {data.smaller_side}; it must be at least '
      f'config.data.size, {data.size}, or 0 to stretch the whole image.'
    )


def _is_fixed(data: types.Config) -> bool:
  """Whether the input made of an example depends on its id alone."""
  return data.augment == 'none' or data.fixed_crops > 0
