"""--mode=config."""

import pytest

from td_jax import configs
from td_jax.run import config_keys
from td_jax.run import config_text


@pytest.mark.parametrize(
  ('name', 'domain'), [('movielens', 'movielens'), ('ratings', 'table')]
)
def test_every_key_has_a_comment(name, domain):
  known = config_text.comments(domain)
  config = _get(name)
  for key in config_keys.flatten(config.to_dict()):
    assert key in known, key


def test_images_have_comments_of_their_own():
  known = config_text.comments('images')
  for key in config_keys.flatten(_get('vit_cifar10').to_dict()):
    assert key in known, key
  assert known['data.dataset'] == 'Name in TFDS, or image_folder.'
  assert known['model.dropout'].startswith('On embeddings')
  assert known['teacher.model.gelu'].startswith('tanh (an approximation)')
  assert known['teacher.model.class_token'].endswith('without a class token.')


def _get(name):
  import importlib

  assert name in configs.NAMES
  return importlib.import_module(f'td_jax.configs.{name}').get_config('')


def test_lines_can_be_given_back():
  lines = config_text.text(_get('movielens'), log=lambda line: None)
  settings = [line.partition('  # ')[0].rstrip() for line in lines.splitlines()]
  flat = config_keys.flatten(_get('movielens').to_dict())
  assert settings == [f'{key}={value!r}' for key, value in flat.items()]
  assert "method='td'" in settings
