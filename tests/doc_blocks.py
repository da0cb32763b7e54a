"""Blocks of code in Markdown files."""

import re


def blocks(file, language):
  """The text of each block of code of `file` in `language`."""
  return re.findall(rf'```{language}\n(.*?)```', file.read_text(), re.DOTALL)
