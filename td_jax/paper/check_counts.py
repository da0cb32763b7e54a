"""On how many test images the paper's accuracies were counted."""

from collections.abc import Collection
from fractions import Fraction

from td_jax.paper import check_section as section
from td_jax.paper import intervals
from td_jax.paper import numbers

# The batch size that explains the accuracies; the last table tries others.
_BATCH = 512
_TABLES = (numbers.TABLE4, numbers.TABLE6, numbers.TABLE9)


def denominators() -> section.Section:
  """Looks for counts of test images that give all printed accuracies."""
  distinct = [
    sorted({row[n] for table in _TABLES for row in table.values()})
    for n in range(len(section.DATASETS))
  ]
  # CIFAR10 and CIFAR100 have the same number of test images.
  groups = {
    'CIFAR': (10_000, distinct[0] + distinct[1]),
    'ImageNet': (50_000, distinct[2]),
  }
  lines, findings = [], []
  for name, (size, accuracies) in groups.items():
    whole = size - size % _BATCH
    # All counts are tried, not only round ones: few denominators should fit.
    fitting = [
      total
      for total in range(1, size + 1)
      if all(intervals.count(a, total, digits=5) for a in accuracies)
    ]
    lines += section.table(
      f'{name} | n of {whole} | n of {size}',
      [
        [f'{accuracy:.5f}']
        + [
          str(intervals.count(accuracy, total, digits=5) or '-')
          for total in (whole, size)
        ]
        for accuracy in accuracies
      ],
    )
    lines += [
      '',
      f'Denominators up to {size} that give all of them: '
      f'{section.listed(fitting)}. A number of five decimals equals some '
      f'n/{whole} by chance in '
      f'{intervals.show(Fraction(whole, 1000), 1)}% of cases.',
      '',
    ]
    findings.append(
      f'{name}: {_fitting(accuracies, whole)} distinct accuracies are n/{whole} '
      f'({whole} = {whole // _BATCH} * {_BATCH}), and '
      f'{_fitting(accuracies, size)} are n/{size}. The number of denominators '
      f'up to {size} that give them all is {len(fitting)}. An evaluation in '
      f'batches of {_BATCH} that drops the remainder, the last {size - whole} '
      'images, would count like this.'
    )
  lines += section.table(
    'batch | ' + ' | '.join(f'whole batches | {name}' for name in groups),
    [
      [str(batch)]
      + [
        text
        for size, accuracies in groups.values()
        for whole in [size - size % batch]
        for text in (str(whole), _fitting(accuracies, whole))
      ]
      for batch in (2**n for n in range(5, 13))
    ],
  )
  return section.Section('Test images behind an accuracy', lines, findings)


def _fitting(accuracies: Collection[float], total: int) -> str:
  """How many of the accuracies are some n / total."""
  counts = [intervals.count(a, total, digits=5) for a in accuracies]
  return f'{len(counts) - counts.count(None)} of {len(counts)}'
