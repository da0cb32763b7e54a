"""What can go wrong, and the exit code each kind ends the process with.

The codes are an interface: managers of spot instances restart on 75 and leave
2 to a person. A message is one line: what, its value, the valid choices, the
mend. `main.py` prints it without a traceback (`--debug` shows that too).
"""

from collections.abc import Iterable
import difflib


class TdError(Exception):
  """A fault with a message fit to be read by whoever started the run."""

  exit_code = 1


class ConfigError(TdError):
  """The config asks for something that does not exist or cannot work."""

  exit_code = 2


class DataError(TdError):
  """A dataset or a checkpoint is missing, damaged or of another kind."""

  exit_code = 65


class NonFiniteError(TdError):
  """The loss, a gradient or a parameter is NaN or infinite."""

  exit_code = 70


class IOFailedError(TdError):
  """A file could not be written or read."""

  exit_code = 74


class PreemptedError(TdError):
  """The process was told to stop; what can be resumed has been saved."""

  exit_code = 75


def one_line(error: object) -> str:
  """A short text of an error, on one line."""
  kind = f'{type(error).__name__}: ' if isinstance(error, Exception) else ''
  return kind + ' '.join(str(error).split())[:200]


def check_rate(what: str, value: float) -> None:
  """Raises a ConfigError unless 0 <= value < 1."""
  if not 0 <= value < 1:
    raise ConfigError(f'{what} is {value}; a rate is at least 0 and below 1.')


def choose(what: str, value: str, choices: Iterable[str]) -> str:
  """Returns `value` if it is one of `choices`, else raises a ConfigError."""
  choices = sorted(choices)
  if value in choices:
    return value
  near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  raise ConfigError(
    f'{what} is {value!r}, which is none of: {", ".join(choices)}.{hint}'
  )
