"""SHA-256 digests that identify data and weights."""

import hashlib
import json
from typing import Any

import numpy as np


def sha256(*parts: Any) -> str:
  """The hexadecimal SHA-256 of all parts, one after the other.

  Texts are encoded as UTF-8, arrays contribute their bytes in C order, and
  other values their JSON text with sorted keys. Digests are stored in
  checkpoints and caches, so the encoding must never change.
  """
  total = hashlib.sha256()
  for part in parts:
    if isinstance(part, str):
      total.update(part.encode())
    elif isinstance(part, bytes):
      total.update(part)
    elif hasattr(part, '__array__'):
      total.update(np.ascontiguousarray(part).data)
    else:
      total.update(json.dumps(part, sort_keys=True).encode())
  return total.hexdigest()
