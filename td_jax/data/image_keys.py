"""The keys of `config.data` for images, and what cannot work together."""

from td_jax import errors
from td_jax import types
from td_jax.configs import allowed
from td_jax.data import labels

_OPEN = (0, 3)  # Grey levels of 3 channels, or () for those of the weights.
ALLOWED = {
  **{
    f'data.{key}': allowed.text()
    for key in ('dataset', 'dir', 'train', 'validation', 'test')
  },
  'data.classes': allowed.integer(0, 10**6),
  'data.limit': allowed.integer(0),
  'data.memory': allowed.one_of(('device', 'stream')),
  'data.size': allowed.integer(0, allowed.WIDEST),
  'data.augment': allowed.one_of(('inception', 'none')),
  'data.area': allowed.several(
    allowed.number(above=0, at_most=1),
    'two shares of an image, above 0 and at most 1, such as (0.05, 1.0)',
    2,
  ),
  'data.smaller_side': allowed.integer(0, allowed.WIDEST),
  'data.skip_corrupt': allowed.boolean(),
  'data.fixed_crops': allowed.integer(0, 1000),
  'data.mean': allowed.several(
    allowed.number(), '3 grey levels, of red, green and blue', *_OPEN
  ),
  'data.std': allowed.several(
    allowed.number(above=0),
    '3 grey levels above 0, of red, green and blue',
    *_OPEN,
  ),
  'data.labels.per_class': allowed.integer(0),
  'data.unlabelled.mixtures': allowed.integer(0),
  **{
    f'data.unlabelled.{key}': allowed.text()
    for key in ('dataset', 'split', 'dir')
  },
  **labels.keys(('none', 'rest', 'dataset', 'mixtures')),
}


def check(config: types.Config) -> None:
  """Raises a ConfigError for a `data` block that cannot work."""
  data = config.data
  _check_preprocessing(data)
  _check_labels(data, config.teacher.states)
  if config.test and not data.test:
    raise errors.ConfigError(
      "config.data.test is '', but config.test is True; name a split, or set "
      'config.test=False.'
    )
  if data.limit and data.memory == 'stream':
    raise errors.ConfigError(
      f'config.data.limit is {data.limit}; it must be 0 for '
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
  if data.fixed_crops and (data.memory == 'stream' or data.augment == 'none'):
    raise errors.ConfigError(
      f'config.data.fixed_crops is {data.fixed_crops}; it must be 0 for '
      "config.data.memory='stream' or config.data.augment='none'."
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
  # Else the input that is made of an image depends on more than its id.
  is_fixed = data.augment == 'none' or data.fixed_crops > 0
  if config.teacher.cache and not is_fixed:
    raise errors.ConfigError(
      "config.teacher.cache is True, but the teacher's view of an image "
      "changes from epoch to epoch; choose config.data.augment='none', a number "
      'of config.data.fixed_crops, or config.teacher.cache=False.'
    )


def _check_labels(data: types.Config, states: str) -> None:
  count, source = data.labels.per_class, data.unlabelled.source
  if count and data.labels.share < 1:
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
  if data.area[0] > data.area[1]:
    raise errors.ConfigError(
      f'config.data.area is {data.area}; the smaller share comes first, as in '
      '(0.05, 1.0).'
    )
  if not (data.mean and data.std):
    raise errors.ConfigError(
      f'config.data.mean is {data.mean} and config.data.std is {data.std}; '
      'without config.teacher.as_stored each takes 3 grey levels.'
    )
  if data.smaller_side and data.smaller_side < data.size:
    raise errors.ConfigError(
      f'config.data.smaller_side is {data.smaller_side}; it must be at least '
      f'config.data.size, {data.size}, or 0 to stretch the whole image.'
    )
