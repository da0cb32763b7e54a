"""The form of results.json, and of the committed rows that are made from it."""

from collections.abc import Mapping
from typing import Any

_TEACHER = 'teacher'  # Name of the teacher that config.teacher describes.


def upgraded(mapping: Mapping[str, Any]) -> dict[str, Any]:
  """A copy of a results.json or a committed row in today's form.

  Runs before the redesign stored one teacher, or None, under 'teacher' and the
  scores of network-free models under 'controls'.
  """
  new = dict(mapping)
  if 'teacher' in new:
    teacher = new.pop('teacher')
    new['teachers'] = {_TEACHER: teacher} if teacher else {}
  if 'controls' in new:
    new['baselines'] = new.pop('controls')
  return new
