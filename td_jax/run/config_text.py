"""--mode=config: every key of a config, its value and its comment."""

from collections.abc import Iterator
import pathlib
import re

from td_jax import configs
from td_jax import types
from td_jax.run import completion
from td_jax.run import config as config_lib
from td_jax.run import config_keys

# Of each function in `td_jax/configs/`, where its keys stand in a config.
_BLOCKS = {
  'run': ('',),
  'parallel': ('parallel.',),
  'distill': ('distill.',),
  'optimizer': ('optim.', 'teacher.optim.'),
  'learner': ('', 'teacher.'),
  'mlp': ('model.', 'teacher.model.'),
  'vit': ('model.', 'teacher.model.'),
  'published': ('teacher.',),
  'own_teacher': ('teacher.',),
  'images': ('data.',),
  'table': ('data.',),
  'few_labels': ('data.',),
  'get_config': ('',),
  'config': ('',),
}
# Blocks that not every domain has.
_TABLES = ('movielens', 'table')
_OF_DOMAINS = {
  'images': ('images',),
  'table': ('table',),
  'vit': ('images',),
  'mlp': _TABLES,
}
_FILES = ('common', 'table_common', 'movielens')
_WIDTH = 40  # Of a setting before its comment, at least.


def text(config: types.Config, *, log: types.Log) -> str:
  """A line for each key, as --config.KEY takes it; comments follow a #.

  Args:
    config: What data and weights of a teacher determine is filled in first.
    log: Receives lines about that.

  Raises:
    errors.TdError: The config cannot work.
  """
  config = completion.complete(config, log=log)
  config_lib.validate(config)
  known = comments(config.domain)
  lines = []
  for key, value in config_keys.flatten(config.to_dict()).items():
    setting = f'{key}={value!r}'
    comment = known.get(key, '')
    lines.append(f'{setting:<{_WIDTH}}  # {comment}' if comment else setting)
  return '\n'.join(lines)


def comments(domain: str) -> dict[str, str]:
  """{key of a config of this domain: its comment}, as its files declare them."""
  found: dict[str, str] = {}
  for name in _FILES:
    file = pathlib.Path(configs.__file__).parent / f'{name}.py'
    if name == 'movielens' != domain:
      continue
    for function, key, comment in _declared(file.read_text()):
      if domain not in _OF_DOMAINS.get(function, (domain,)):
        continue
      for prefix in _BLOCKS.get(function, ()):
        found.setdefault(prefix + key, comment)
  return found


def _declared(source: str) -> Iterator[tuple[str, str, str]]:
  """(function, key, comment) of each assignment `cfg.KEY = ...` with a comment."""
  function, above = '', []
  for line in source.splitlines():
    if match := re.match(r'def (\w+)', line):
      function, above = match[1], []
    elif match := re.fullmatch(r'\s+# (.*)', line):
      above.append(match[1])
    else:
      # Two keys may be set in one line.
      for key in re.findall(r'\bcfg\.([\w.]+)(?=[^=]*(?<![=!])=(?!=))', line):
        trailing = re.search(r'  # (.*)$', line)
        comment = trailing[1] if trailing else ' '.join(above)
        if comment:
          yield function, key, comment
      above = []
