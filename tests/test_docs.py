"""What the README and the docs show is accepted, and their Python runs."""

import ast
import importlib
import pathlib
import re
import shlex
import sys

import doc_blocks
from flax import linen as nn
import jax
import numpy as np
import pytest

import td_jax
from td_jax import main
from td_jax.run import command as command_lib
from td_jax.run import command_line
from td_jax.run import terminal

_ROOT = pathlib.Path(__file__).parents[1]
_FILES = (
  *(_ROOT / name for name in ('README.md', 'WORKSPACE.md', 'CONTRIBUTING.md')),
  *sorted((_ROOT / 'docs').glob('*.md')),
)


def _blocks(language):
  """(page, text) of each block of code in a language."""
  for file in _FILES:
    for block in doc_blocks.blocks(file, language):
      yield file.name, block


def _commands():
  """(page, words) of each command of td_jax."""
  for page, block in _blocks('sh'):
    for line in block.replace('\\\n', ' ').splitlines():
      words = shlex.split(line, comments=True)
      for start, word in enumerate(words):
        if word == 'td_jax' or words[start - 1 : start + 1] == ['-m', word]:
          if word.startswith('td_jax') and words[start - 1] != 'TPU_NAME':
            yield page, words[start:]
          break


COMMANDS = [
  pytest.param(words, id=f'{page} {" ".join(words)}'[:90])
  for page, words in _commands()
  if words != ['td_jax']  # The folder of a clone.
]


def test_the_commands_are_found():
  assert len(COMMANDS) > 40


@pytest.mark.filterwarnings('ignore:the load_module:DeprecationWarning')
@pytest.mark.parametrize('words', COMMANDS)
def test_a_command_is_accepted(words, monkeypatch):
  """Its options exist, and its config can be built; nothing is run."""
  program, *args = words
  parsed = []

  def parse(parser, command, argv=None):
    del command
    # Those of a config are read by `command.config`.
    known, others = parser.parse_known_args(argv)
    assert all(word.startswith('--config.') for word in others)
    parsed.append(known)

  monkeypatch.setattr(command_line, 'run', parse)
  if program in ('td_jax', 'td_jax.main'):
    if args[0] in main._COMMANDS:
      importlib.import_module(main._COMMANDS[args[0]]).main(args[1:])
    flags = dict(word[2:].partition('=')[::2] for word in args if '=' in word)
    if 'config' in flags:
      _check_config(flags, args, run=args[0].startswith('--'))
  else:
    monkeypatch.setattr(sys, 'argv', words)
    module = importlib.import_module(program)
    module.main()
    assert parsed


def _check_config(flags, args, *, run):
  if flags['config'] == 'my_experiment.py':
    return
  overrides = [word for word in args if word.startswith('--config.')]
  command_lib.config(flags['config'], overrides)
  own = main.flags.FLAGS.flags_by_module_dict()['td_jax.main']
  names = {flag.name for flag in own}
  for name in flags if run else ():
    assert name.startswith('config.') or name in names


# What a page has explained before its code.
_x = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
_big, _small = nn.Dense(3), nn.Dense(3)
_BEFORE = {
  'td_jax': td_jax,
  'big': _big,
  'params': jax.jit(_big.init)(jax.random.key(0), _x),
  'Small': lambda: _small,
  'x': _x,
  'y': _x[:, :3].argmax(axis=1),
  'more_x': _x,
  'new_x': _x,
}


@pytest.mark.parametrize(
  ('page', 'block'),
  [
    pytest.param(page, block, id=f'{page} {i}')
    for i, (page, block) in enumerate(_blocks('python'))
  ],
)
def test_python_runs(page, block, monkeypatch):
  ast.parse(block)
  # Needs PyTorch, a run, or a network in place of the dots.
  if 'import torch' in block or "load('runs/" in block or '= ...' in block:
    return
  monkeypatch.setattr(terminal, 'say', lambda line: None)
  scope = dict(_BEFORE)
  # A few steps show that it runs.
  exec(re.sub(r'\bsteps=\d+', 'steps=3', block), scope)
  assert len(scope) > len(_BEFORE)
