"""Statistics over seeds."""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np


def mean_and_stderr(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
  """Mean, standard error of the mean, and the values of the single seeds.

  The standard error is None for a single value.
  """
  values = [float(value) for value in values]
  error = None
  if len(values) > 1:
    error = float(np.std(values, ddof=1) / math.sqrt(len(values)))
  return {
    'mean': float(np.mean(values)),
    'standard_error': error,
    'per_seed': values,
  }
