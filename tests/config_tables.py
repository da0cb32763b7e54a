"""The tables of all keys in docs/config.md, made from the configs and the checks."""

import importlib

from td_jax.configs import allowed
from td_jax.run import config_keys
from td_jax.run import config_text

START, END = '<!-- Keys: made by tests/test_config.py. -->\n', '<!-- End. -->\n'
# (title, the config whose keys and defaults are shown, their block)
_SECTIONS = (
  ('The run', 'movielens', ''),
  ('Networks: an MLP', 'movielens', 'model.'),
  ('Networks: a ViT', 'vit_cifar10', 'model.'),
  ('The teacher, if it is trained', 'movielens', 'teacher.'),
  ('The teacher, if it is published', 'vit_cifar10', 'teacher.'),
  ('Data: `movielens`', 'movielens', 'data.'),
  ('Data: `ratings` and `table`', 'table', 'data.'),
  ('Data: images', 'vit_cifar10', 'data.'),
)
_BLOCKS = ('model.', 'teacher.', 'data.')


def markdown():
  return '\n'.join(_section(*section) for section in _SECTIONS)


def _section(title, name, block):
  config = importlib.import_module(f'td_jax.configs.{name}').get_config('')
  comments = config_text.comments(config.domain)
  values = config_keys.flatten(config.to_dict())
  lines = [
    f'### {title}',
    '',
    '| Key | Default | Allowed | Meaning |',
    '|---|---|---|---|',
  ]
  for key, takes in config_keys.known(config).items():
    if not (key.startswith(block) if block else not key.startswith(_BLOCKS)):
      continue
    # What a trained teacher has in common with the student is shown once.
    if block == 'teacher.' and key.removeprefix(block) in values:
      continue
    if block == 'teacher.' and key.startswith('teacher.model.'):
      continue
    words = allowed.words(takes), comments.get(key, '')
    cells = [f'`{key}`', f'`{values[key]!r}`', *words]
    row = ' | '.join(cell.replace('|', r'\|') for cell in cells)
    lines.append(f'| {row} |')
  return '\n'.join([*lines, ''])
