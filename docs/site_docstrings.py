"""Extension of griffe: indented paragraphs of docstrings become code blocks.

The docstrings of td_jax indent equations and commands by two spaces, but Markdown
takes four.
"""

import re
from typing import Any

import griffe


class CodeBlocks(griffe.Extension):
  """Indents paragraphs of which every line is indented."""

  def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
    """Changes the docstring of a module, class or function in place."""
    del kwargs  # Tools of griffe that are not needed here.
    if obj.docstring:
      paragraphs = obj.docstring.value.split('\n\n')
      obj.docstring.value = '\n\n'.join(map(_indented, paragraphs))


def _indented(paragraph: str) -> str:
  lines = paragraph.split('\n')
  # Sections such as `Args:` start with a line that is not indented.
  if not all(re.match(' {2}', line) for line in lines if line):
    return paragraph
  return '\n'.join(f'    {line}' for line in lines)
