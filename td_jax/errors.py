"""Errors that a user can act on, and the exit code of each kind.

The codes are an interface: managers of spot instances restart on 75 and leave
2 to a person. Every message is one line: what is wrong, its value, the valid
choices, and how to mend it. `run/command.py` prints it without a traceback;
`--debug` shows that as well.
"""

from collections.abc import Iterable
import difflib

_MOST_CHOICES = 30  # That a message lists.
_LONGEST = 200  # Characters of a foreign error that fit into a message.


class TdError(Exception):
  """A fault whose message is meant for the person who started the run."""

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
  """The process was asked to stop; everything resumable has been saved."""

  exit_code = 75


def one_line(error: object) -> str:
  """Shortens an exception, or a text, to one line of at most 200 characters.

  The name of the exception's type leads.
  """
  text = ' '.join(str(error).split())[:_LONGEST]
  if isinstance(error, Exception):
    return f'{type(error).__name__}: {text}'
  return text


def reason(error: Exception) -> str:
  """Why a file cannot be read, for a message that already names the file."""
  # The text of an OSError has the path too.
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return one_line(error)


def sentence(text: object) -> str:
  """A text, such as that of another error, with a full stop unless it has an end."""
  text = str(text)
  return text if text.endswith(('.', '?', '!')) else f'{text}.'


def choose(field: str, value: str, choices: Iterable[str]) -> str:
  """Returns `value` if it is one of `choices`, else raises a ConfigError."""
  choices = sorted(choices)
  if value in choices:
    return value
  near = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  shown = ', '.join(choices[:_MOST_CHOICES])
  if len(choices) > _MOST_CHOICES:
    shown += f', ... ({len(choices)} in all)'
  raise ConfigError(f'{field} is {value!r}; choose one of: {shown}.{hint}')
