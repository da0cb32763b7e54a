"""The numbers that the paper prints in its tables 1 to 9.

Source: Talking-model Distillation, arXiv 2310.03188: tables 1 and 2 (page 8),
3 and 4 (page 16), 5 and 6 (page 17), 7 and 8 (page 18), 9 (page 19).

A table is a read-only mapping from a row's name to its numbers. Rows are named
as in `methods.METHODS`. `teacher` is the frozen teacher, and `scratch` is also
the row that table 4 calls "no distillation". The rows of the ablations are:

  no_interaction    encoders and decoders with their consistency losses only
  1_iteration       k = 1
  more_iterations   k > 1: 2 or 3 on MovieLens, 2 on images
  no_message        without the message consistency loss, L_MC
  no_state          without the state consistency loss, L_SC
  noise, no_noise   on the state that the teacher interprets
  separately        a stage of its own for encoders and decoders
  together          one stage for everything
"""

from collections.abc import Mapping
import types
from typing import NamedTuple
from typing import TypeVar

_Row = TypeVar('_Row')


class Improvement(NamedTuple):
  """A row of tables 1 and 2: improvement over scratch, in percent."""

  dense: float  # MovieLens, one genre.
  sparse: float  # MovieLens, four genres.
  cifar10: float
  cifar100: float
  imagenet: float
  average: float  # As printed under "Avg."


class Scores(NamedTuple):
  """Test RMSE of genres 1 to 8, in the order of `movielens.GENRES`."""

  mean: tuple[float, ...]  # Over 5 runs.
  error: tuple[float, ...]  # Standard error of that mean.


class Accuracies(NamedTuple):
  """Test accuracy of one run per dataset, between 0 and 1."""

  cifar10: float
  cifar100: float
  imagenet: float


def _table(rows: dict[str, _Row]) -> Mapping[str, _Row]:
  return types.MappingProxyType(rows)


# Improvement over scratch, in percent: methods.
TABLE1 = _table(
  {
    'ld': Improvement(0.16, 1.49, 0.03, 1.86, -0.21, 0.83),
    'fd': Improvement(0.29, 2.68, -0.12, -0.08, -0.14, 0.66),
    'fitnet': Improvement(0.81, 2.19, -0.09, 0.53, 0.29, 0.93),
    'hybrid': Improvement(0.93, 2.91, 0.23, 1.94, 0.02, 1.50),
    'td': Improvement(1.34, 3.39, 0.45, 2.41, 2.56, 2.54),
  }
)

# Improvement over scratch, in percent: rounds of the conversation.
TABLE2 = _table(
  {
    'no_interaction': Improvement(0.81, 2.02, 0.43, 2.26, 2.44, 1.99),
    '1_iteration': Improvement(1.31, 3.08, 0.42, 2.31, 2.49, 2.40),
    'more_iterations': Improvement(1.34, 3.30, 0.45, 2.41, 2.56, 2.52),
  }
)

# RMSE on MovieLens: methods.
TABLE3 = _table(
  {
    'scratch': Scores(
      (1.0102, 1.0884, 1.0555, 1.0502, 1.1609, 1.1160, 1.0038, 1.0937),
      (0.0003, 0.0004, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000),
    ),
    'teacher': Scores(
      (1.0120, 1.0854, 1.0563, 1.0689, 1.1501, 1.1090, 1.0193, 1.0660),
      (0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000),
    ),
    'ld': Scores(
      (1.0083, 1.1029, 1.0601, 1.0826, 1.1964, 1.1415, 1.0088, 1.0602),
      (0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000),
    ),
    'fd': Scores(
      (1.0075, 1.0997, 1.0537, 1.0791, 1.1929, 1.1269, 1.0024, 1.0527),
      (0.0009, 0.0030, 0.0007, 0.0005, 0.0013, 0.0029, 0.0000, 0.0036),
    ),
    'fitnet': Scores(
      (1.0018, 1.1018, 1.0534, 1.0849, 1.1873, 1.1260, 1.0032, 1.0605),
      (0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000, 0.0000),
    ),
    'hybrid': Scores(
      (1.0015, 1.0955, 1.0517, 1.0737, 1.1843, 1.1215, 1.0076, 1.0499),
      (0.0008, 0.0013, 0.0012, 0.0014, 0.0008, 0.0028, 0.0009, 0.0014),
    ),
    'td': Scores(
      (0.9965, 1.0908, 1.0475, 1.0761, 1.1656, 1.1050, 1.0022, 1.0485),
      (0.0001, 0.0002, 0.0001, 0.0002, 0.0010, 0.0000, 0.0000, 0.0013),
    ),
  }
)

# Accuracy on images: methods.
TABLE4 = _table(
  {
    'scratch': Accuracies(0.93678, 0.74764, 0.48683),
    'ld': Accuracies(0.93709, 0.76162, 0.48576),
    'fd': Accuracies(0.93565, 0.74702, 0.48615),
    'fitnet': Accuracies(0.93586, 0.75164, 0.48828),
    'hybrid': Accuracies(0.93894, 0.76213, 0.48691),
    'td': Accuracies(0.94100, 0.76562, 0.49930),
  }
)

# RMSE on MovieLens: rounds of the conversation.
TABLE5 = _table(
  {
    'no_interaction': Scores(
      (1.0018, 1.1016, 1.0475, 1.0767, 1.1864, 1.1249, 1.0022, 1.0656),
      (0.0002, 0.0002, 0.0001, 0.0000, 0.0014, 0.0000, 0.0000, 0.0000),
    ),
    '1_iteration': Scores(
      (0.9971, 1.0908, 1.0502, 1.0783, 1.1667, 1.1134, 1.0033, 1.0496),
      (0.0003, 0.0002, 0.0007, 0.0002, 0.0008, 0.0008, 0.0002, 0.0026),
    ),
    'more_iterations': Scores(
      (0.9965, 1.0921, 1.0508, 1.0761, 1.1663, 1.1050, 1.0039, 1.0495),
      (0.0001, 0.0005, 0.0002, 0.0002, 0.0016, 0.0000, 0.0004, 0.0004),
    ),
  }
)

# Accuracy on images: rounds of the conversation.
TABLE6 = _table(
  {
    'no_interaction': Accuracies(0.94089, 0.76460, 0.49873),
    '1_iteration': Accuracies(0.94069, 0.76511, 0.49893),
    'more_iterations': Accuracies(0.94100, 0.76562, 0.49930),
  }
)

# RMSE on MovieLens: consistency losses.
TABLE7 = _table(
  {
    'no_message': Scores(
      (0.9965, 1.0908, 1.0481, 1.0767, 1.1683, 1.1104, 1.0035, 1.0485),
      (0.0001, 0.0003, 0.0010, 0.0003, 0.0007, 0.0007, 0.0000, 0.0013),
    ),
    'no_state': Scores(
      (0.9968, 1.0916, 1.0501, 1.0763, 1.1658, 1.1058, 1.0034, 1.0494),
      (0.0003, 0.0004, 0.0002, 0.0002, 0.0012, 0.0002, 0.0001, 0.0004),
    ),
    'td': Scores(
      (0.9965, 1.0908, 1.0475, 1.0761, 1.1656, 1.1050, 1.0022, 1.0485),
      (0.0001, 0.0002, 0.0001, 0.0002, 0.0010, 0.0000, 0.0000, 0.0013),
    ),
  }
)

# RMSE on MovieLens: noise; a stage for encoders and decoders.
TABLE8 = _table(
  {
    'noise': Scores(
      (0.9966, 1.0910, 1.0511, 1.0762, 1.1663, 1.1052, 1.0033, 1.0487),
      (0.0001, 0.0002, 0.0003, 0.0003, 0.0009, 0.0001, 0.0001, 0.0014),
    ),
    'no_noise': Scores(
      (0.9966, 1.0912, 1.0475, 1.0766, 1.1668, 1.1051, 1.0026, 1.0504),
      (0.0002, 0.0004, 0.0001, 0.0002, 0.0015, 0.0002, 0.0003, 0.0012),
    ),
    'separately': Scores(
      (1.0008, 1.1066, 1.0475, 1.0812, 1.1782, 1.1165, 1.0022, 1.0603),
      (0.0002, 0.0001, 0.0001, 0.0000, 0.0002, 0.0002, 0.0000, 0.0002),
    ),
    'together': Scores(
      (0.9965, 1.0908, 1.0508, 1.0761, 1.1656, 1.1050, 1.0061, 1.0485),
      (0.0001, 0.0002, 0.0002, 0.0002, 0.0010, 0.0000, 0.0001, 0.0013),
    ),
  }
)

# Accuracy on images: the state consistency loss; noise.
TABLE9 = _table(
  {
    'no_state': Accuracies(0.94069, 0.76398, 0.49930),
    'noise': Accuracies(0.94089, 0.76562, 0.49917),
    'no_noise': Accuracies(0.94100, 0.76511, 0.49930),
    'td': Accuracies(0.94100, 0.76562, 0.49930),
  }
)
