"""The process of a command: it hears signals, and its outputs are open."""

import functools

from td_jax.run import preemption
from td_jax.run import terminal


@functools.cache
def watch() -> preemption.Watch:
  """The watch of this process, which hears signals from the first call on."""
  terminal.open_closed()  # First, or the pipe of the watch would take its place.
  return preemption.Watch()
