"""The front of every command: flags, one-line errors and exit codes."""

from collections.abc import Callable
from collections.abc import Sequence
import difflib
import logging as python_logging
import pathlib
import re
import sys
import traceback
from typing import Any
from typing import NoReturn

from absl import flags
from absl import logging
from ml_collections import config_flags

from td_jax import configs
from td_jax import errors
from td_jax.run import terminal

_HELP = ('help', 'helpfull', 'helpshort', 'h')


def run(main: Callable[[], Any]) -> None:
  """Runs `main` as a process of its own: quiet libraries, one-line errors."""
  logging.set_verbosity(logging.WARNING)
  if not _debug():
    # orbax logs the tracebacks of faults that we report in one line, and asyncio
    # those of the other files of a checkpoint whose first file failed.
    logging.get_absl_logger().disabled = True
    python_logging.getLogger('asyncio').disabled = True
    sys.unraisablehook = lambda unraisable: None
  exit_on_error(main)


def exit_on_error(main: Callable[[], Any]) -> None:
  """Runs `main`; a TdError becomes one line on stderr and its exit code."""
  try:
    main()
  except errors.TdError as e:
    stop(e, str(e), e.exit_code)
  except Exception as e:
    # TensorFlow reads buckets, and its errors are no OSErrors.
    if not type(e).__module__.startswith('tensorflow.'):
      raise
    stop(
      e,
      f'a file in a bucket could not be read or written ({errors.one_line(e)}). '
      'Check its address, the network and your rights.',
      errors.IOFailedError.exit_code,
    )


def parse_flags(argv: Sequence[str]) -> list[str]:
  """Parses absl flags with a --config; any mistake in them is exit code 2.

  `--config=NAME` and `--config=NAME:ARGS` mean the packaged config of that
  name; anything that ends in .py is the path of a config file.
  """
  if any(word.lstrip('-') in _HELP for word in argv[1:]):
    terminal.show(_help())
    sys.exit(0)  # absl exits with 1, although nothing went wrong.
  try:
    rest = flags.FLAGS(_with_config_path(argv))
    config = flags.FLAGS['config'].value
    if config is None and _reads_a_run() and not rest[1:]:
      return rest
    if config is None and rest[1:]:
      raise errors.ConfigError(
        f'--config is missing; did you mean --config={rest[1]}?'
      )
    if config is None:
      raise errors.ConfigError(
        '--config is missing; name a packaged config, such as '
        '--config=movielens, or a file, such as --config=configs/movielens.py.'
      )
    config.to_dict()  # Only now does a missing file show.
    if rest[1:]:
      raise errors.ConfigError(
        f'{rest[1]!r} is not a flag; the arguments of a config follow a colon, '
        'as in --config=movielens:runlocal.'
      )
    return rest
  except Exception as e:  # A config file may raise anything.
    stop(e, _flag_error(e), errors.ConfigError.exit_code)


def _reads_a_run() -> bool:
  """Whether the flags ask for something that reads the config of a run."""
  return 'mode' in flags.FLAGS and flags.FLAGS.mode in ('eval', 'cka')


def config(value: str, overrides: Sequence[str]) -> Any:
  """The config of `--config=value` and of words such as --config.k=2.

  Raises:
    errors.ConfigError: There is no such config, or it cannot be built.
  """
  words = _with_config_path(['td_jax', f'--config={value}', *overrides])
  own = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=own, sys_argv=words)
  try:
    own(words)
    config: Any = own['config'].value
    config.to_dict()  # Only now does a missing file show.
  except Exception as e:  # A config file may raise anything.
    raise errors.ConfigError(_flag_error(e)) from e
  return config


def stop(error: Exception, message: str, code: int) -> NoReturn:
  """Prints an error in one line and exits."""
  if _debug():
    terminal.say(''.join(traceback.format_exception(error)).rstrip())
  terminal.say(f'error: {" ".join(message.split())}')
  sys.exit(code)


def _help() -> str:
  """The flags of the command, and those of config files."""
  lines = [
    'td_jax --config=NAME|FILE.py[:ARGS] [--workdir=DIR] [--mode=MODE] ...',
    '',
    f'Packaged configs: {", ".join(configs.NAMES)}. Any of their keys can be',
    'set on the command line, as in --config.k=2.',
  ]
  # absl shows the flags of the module that Python started, which is another
  # one for each way to start this command.
  for module, own in flags.FLAGS.flags_by_module_dict().items():
    if any(flag.name in ('config', 'workdir') for flag in own):
      lines.append(flags.FLAGS.module_help(module))
  return '\n'.join(lines)


def _with_config_path(argv: Sequence[str]) -> list[str]:
  """Replaces the names of packaged configs by their paths."""
  words = list(argv)
  for i, word in enumerate(words):
    match = re.fullmatch(r'(--?config=)(.*)', word)
    if match:
      words[i] = match[1] + _config_path(match[2])
    elif word in ('-config', '--config') and i + 1 < len(words):
      words[i + 1] = _config_path(words[i + 1])
  return words


def _config_path(value: str) -> str:
  name, colon, args = value.partition(':')
  if not re.fullmatch(r'\w+', name):
    return value
  folder = pathlib.Path(configs.__file__).parent
  if name not in configs.NAMES:
    near = difflib.get_close_matches(name, configs.NAMES, n=1)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    raise errors.ConfigError(
      f'--config={name} is not a packaged config; choose one of: '
      f'{", ".join(configs.NAMES)}, or the path of a .py file.{hint}'
    )
  return f'{folder / name}.py{colon}{args}'


def _flag_error(error: Exception) -> str:
  """What was wrong with the flags, without the frames of libraries."""
  message = str(error)
  wrong_key = re.match(r'\W*(\w+)\W*(?:n?Did you mean "(\w+)".*)?$', message)
  if isinstance(error, (AttributeError, KeyError)) and wrong_key:
    key, near = wrong_key.groups()
    hint = f' Did you mean {near!r}?' if near else ''
    return f'the config has no key {key!r}.{hint}'
  if 'Traceback' in message or isinstance(error, OSError):
    # ml_collections puts a whole traceback into the message. Its last line is
    # the error that the config file raised.
    return message.splitlines()[-1]
  return ' '.join(message.split())


def _debug() -> bool:
  """Whether --debug is given, even if the other flags cannot be parsed."""
  return any(re.fullmatch(r'--?debug(=(true|t|1))?', word) for word in sys.argv)
