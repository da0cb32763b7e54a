"""With which ablations the paper's TD rows coincide."""

from collections.abc import Sequence

from td_jax.paper import check_section as section
from td_jax.paper import numbers

_TD = numbers.TABLE3['td']
_TD_IMAGES = numbers.TABLE4['td']
# The ablations on images: {'table 6: no_interaction': accuracies, ...}.
_IMAGE_ROWS = {
  f'table {number}: {name}': row
  for number, table in ((6, numbers.TABLE6), (9, numbers.TABLE9))
  for name, row in table.items()
  if name != 'td'
}


def ablations() -> section.Section:
  """Compares TD of tables 3 and 4 with the ablations of tables 5 to 9."""
  repeated = (numbers.TABLE7['td'], numbers.TABLE9['td']) == (_TD, _TD_IMAGES)
  return section.Section(
    'TD of tables 3 and 4, and the ablations of tables 5 to 9',
    [
      *section.table(
        'RMSE | td | rows that print the same | '
        + ' | '.join(f'best of {part}' for part in section.ABLATIONS),
        _rating_rows(),
      ),
      '',
      'An asterisk means that the standard error is the same too. Tables 7 and '
      f'9 repeat TD of tables 3 and 4: {"yes" if repeated else "no"}.',
      '',
      *section.table('accuracy | td | rows that print the same', _image_rows()),
      '',
      *section.table(
        'tables 1, 2 | ' + ' | '.join(numbers.Improvement._fields),
        [
          [name, *section.signed(section.IMPROVEMENTS[name])]
          for name in ('td', 'more_iterations')
        ],
      ),
    ],
    [_finding_best(), _finding_stages(), _finding_below()],
  )


# Exact equality of the printed decimals is meant here: the question is which
# rows are copies of each other.
def _best(part: str, column: int) -> float:
  """The best RMSE of a part's rows in a column."""
  return min(row.mean[column] for row in section.ABLATIONS[part].values())


def _rating_rows() -> list[list[str]]:
  """For each genre, the ablations that print TD's RMSE."""
  rows = []
  for column, genre in enumerate(section.GENRES):
    # The mean alone may agree by chance; mean and error together hardly do.
    names = [
      name + '*' * (row.error[column] == _TD.error[column])
      for name, row in section.ABLATION_ROWS.items()
      if row.mean[column] == _TD.mean[column]
    ]
    rows.append(
      [section.genres(genre), f'{_TD.mean[column]:.4f}', ', '.join(names)]
      + [f'{_best(part, column):.4f}' for part in section.ABLATIONS]
    )
  return rows


def _image_rows() -> list[list[str]]:
  """For each dataset, the ablations that print TD's accuracy."""
  rows = []
  for column, dataset in enumerate(section.DATASETS):
    accuracy = _TD_IMAGES[column]
    names = [
      name for name, row in _IMAGE_ROWS.items() if row[column] == accuracy
    ]
    rows.append([dataset, f'{accuracy:.5f}', ', '.join(names)])
  return rows


def _finding_best() -> str:
  """In how many columns TD is as good as the best ablation."""
  lowest = sum(
    _TD.mean[n] <= min(row.mean[n] for row in section.ABLATION_ROWS.values())
    for n in range(len(section.GENRES))
  )
  highest = sum(
    _TD_IMAGES[n] >= max(row[n] for row in _IMAGE_ROWS.values())
    for n in range(len(_TD_IMAGES))
  )
  same = [
    name for name, row in section.ABLATION_ROWS.items() if row.mean == _TD.mean
  ]
  return (
    f'TD is as good as the best of all ablation rows in {lowest} of 8 genres '
    f'and on {highest} of {len(_TD_IMAGES)} image datasets, and equals one or '
    f'more of them each time; {len(same)} rows equal it in all genres. '
    'Choosing the best of several settings for each genre by its test score '
    'would give such a row.'
  )


def _finding_stages() -> str:
  """Where TD is not the row that trains everything together."""
  together, separately, none = (
    section.ABLATION_ROWS[name].mean
    for name in ('together', 'separately', 'no_interaction')
  )
  differs = [g for g in section.GENRES if together[g - 1] != _TD.mean[g - 1]]

  def scores(mean: Sequence[float]) -> str:
    return ', '.join(f'{mean[genre - 1]:.4f}' for genre in differs)

  return (
    f'{section.genres(*differs)}: the row that trains everything together, as '
    'section 6.5 says of all experiments, has an RMSE of '
    f'{scores(together)}. TD has {scores(_TD.mean)}, like the row of separate '
    f'stages ({scores(separately)}) and that of no interaction '
    f'({scores(none)}).'
  )


def _finding_below() -> str:
  """Where TD is better than every row of a complete ablation."""
  below = {
    part: [
      genre
      for genre in section.GENRES
      if _TD.mean[genre - 1] < _best(part, genre - 1)
    ]
    for part in ('iterations', 'noise')
  }
  return (
    'Table 5 has a row for every number of iterations that was tried (section '
    '6.3), and noise is either added or not. Yet TD is better than all rows of '
    f'iterations in {section.genres(*below["iterations"])}, and than both rows '
    f'of noise in {section.genres(*below["noise"])}.'
  )
