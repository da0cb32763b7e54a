"""The paper's numbers are copied exactly, and the report on them is right.

Figures in the comments were worked out by hand from the printed tables.
"""

from fractions import Fraction
import os
import pathlib
import re

import pytest

from td_jax.data import movielens
from td_jax.paper import check
from td_jax.paper import check_ablations
from td_jax.paper import check_claims
from td_jax.paper import check_counts
from td_jax.paper import check_improvements as improvements
from td_jax.paper import check_section
from td_jax.paper import intervals
from td_jax.paper import numbers

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

ROOT = pathlib.Path(__file__).parents[1]
SHARED = pathlib.Path(os.environ.get('TD_JAX_SHARED', ROOT.parent / 'shared'))
# Labels of the rows, letters and digits alone.
_ROWS = {
  'NoDistillation': 'scratch',
  'TrainfromScratch': 'scratch',
  'Teacher': 'teacher',
  'LD': 'ld',
  'FD': 'fd',
  'FitNet': 'fitnet',
  'Hybrid': 'hybrid',
  'OurMethodTD': 'td',
  'NoInteraction': 'no_interaction',
  'NoInteractions': 'no_interaction',
  '1iteration': '1_iteration',
  '1iterations': 'more_iterations',  # > 1
  '2iterations': 'more_iterations',
  '2to3iterations': 'more_iterations',
  'NoLMC': 'no_message',
  'NoLSC': 'no_state',
  'AddNoise': 'noise',
  'NoNoise': 'no_noise',
  'TrainEDseparately': 'separately',
  'Traintogether': 'together',
}


def _cells(section):
  """The rows of all tables of a section, by their first cells."""
  lines = [line for line in section.lines if line.startswith('| ')]
  return [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]


def _parse(text):
  """Tables 1 to 9 from the text: {number: {row: tuples as printed}}."""
  tables, rows = {}, {}
  for line in text.splitlines():
    caption = re.match(r'Table (\d): ', line)
    if caption:
      tables[int(caption[1])], rows = rows, {}
      continue
    # A space was set before the point of numbers that are not bold.
    cells = re.sub(r'(?<=\d) \.', '.', line)
    numbers = r'[+-]\d+\.\d\d%|\d\.\d{4,5}(?:±\d\.\d{4})?'
    label = re.sub(r'[^A-Za-z0-9]', '', re.split(numbers, cells)[0])
    if label in _ROWS and re.search(numbers, cells):
      rows.setdefault(_ROWS[label], []).extend(re.findall(numbers, cells))
  return tables


def test_every_number_is_the_papers():
  file = SHARED / 'paper.txt'
  if not file.exists():
    pytest.skip(f'no text of the paper at {file}; set TD_JAX_SHARED')
  printed = _parse(file.read_text())
  assert sorted(printed) == list(range(1, 10))
  for number, rows in printed.items():
    ours = getattr(numbers, f'TABLE{number}')
    assert list(ours) == list(rows), f'table {number}'
    for name, cells in rows.items():
      if isinstance(ours[name], numbers.Scores):
        mean, error = zip(*(cell.split('±') for cell in cells), strict=True)
        assert ours[name].mean == tuple(map(float, mean)), (number, name)
        assert ours[name].error == tuple(map(float, error)), (number, name)
      else:
        want = tuple(float(cell.rstrip('%')) for cell in cells)
        assert tuple(ours[name]) == want, (number, name)


def test_tables_have_all_columns_and_cannot_be_changed():
  for number in (3, 5, 7, 8):
    for row in getattr(numbers, f'TABLE{number}').values():
      assert len(row.mean) == len(row.error) == len(movielens.GENRES)
  with pytest.raises(TypeError):
    numbers.TABLE3['td'] = numbers.TABLE3['scratch']


def test_committed_report_is_made_byte_for_byte():
  text = (ROOT / 'results/paper_check.md').read_text()
  assert text == check.report()


@pytest.mark.parametrize(
  ('value', 'printed', 'verdict'),
  [
    ('2.515', '2.52', 'yes'),  # The middle is either's.
    ('2.515', '2.51', 'yes'),
    ('2.5251', '2.52', 'within rounding'),  # From 2.5241 on.
    ('2.5271', '2.52', 'no'),  # From 2.5261 on: 2.525 is out of reach.
  ],
)
def test_agrees_as_far_as_digits_are_known(value, printed, verdict):
  value, lost = Fraction(value), Fraction('0.001')
  computed = intervals.Range(value - lost, value, value + lost)
  assert intervals.agrees(computed, Fraction(printed), digits=2) == verdict


def test_improvement_and_its_range():
  # RMSE 1.0 to 0.9 is 10% better. At worst 0.95 of 0.95, at best 0.85 of 1.05.
  result = intervals.improvement(
    Fraction('0.9'), Fraction(1), digits=1, better=intervals.LOWER
  )
  assert result == (0, 10, Fraction(100 * 20, 105))
  result = intervals.improvement(
    Fraction('0.9'), Fraction(1), digits=1, better=intervals.HIGHER
  )
  assert result.value == -10


@pytest.mark.parametrize(
  ('number', 'digits', 'shown', 'cut'),
  [
    (Fraction('2.515'), 2, '+2.52', Fraction('2.51')),
    (Fraction('-0.2198'), 2, '-0.22', Fraction('-0.21')),
    (Fraction(2, 3), 3, '+0.667', Fraction('0.666')),
  ],
)
def test_show_rounds_and_cut_does_not(number, digits, shown, cut):
  assert intervals.show(number, digits, '+') == shown
  assert intervals.cut(number, digits) == cut


def test_average_of_td():
  rows = {row[0]: row for row in _cells(improvements.averages())}
  # 1.34 + 3.39 + 0.45 + 2.41 + 2.56 = 10.15.
  assert rows['td'][2:] == ['10.15', '2.5375', '2.030', '2.54', 'yes', 'no']
  # 0.93 + 2.91 + 0.23 + 1.94 + 0.02 = 6.03; a quarter of it is 1.5075.
  assert rows['hybrid'][2:6] == ['6.03', '1.5075', '1.206', '1.50']
  assert rows['hybrid'][6:] == ['within rounding', 'no']


def test_improvements_by_genre():
  # (1.0937 - 1.0485) / 1.0937 = 0.0452 / 1.0937 = 4.13276%.
  value = improvements.genre_improvement('td', 8).value
  assert intervals.show(value, 4) == '4.1328'
  # (1.0102 - 1.0083) / 1.0102 = 0.188%, and 0.16 is printed.
  rows = {row[0]: row for row in _cells(improvements.dense())}
  assert rows['ld'][1:3] == ['+0.16', '+0.188']
  # FD in Genre 7: (1.0038 - 1.0024) / 1.0038 = 0.139%.
  assert rows['fd'][8] == '+0.139'


def test_two_genres_by_either_way():
  # LD: 0.18808 and 3.06300, their mean 1.62554. Means of RMSE 1.05195 and
  # 1.03425, of which 0.0177 / 1.05195 = 1.68259%.
  ways = improvements.mean_of_improvements, improvements.improvement_of_mean
  shown = [intervals.show(way('ld', (1, 8)).value, 4) for way in ways]
  assert shown == ['1.6255', '1.6826']


def test_sets_of_genres_are_all_tried():
  four = improvements.fits(['ld'], [4])
  assert len(four) == 2 * 70
  assert len(improvements.fits(['ld'], range(1, 9))) == 2 * 255
  assert four[0].gap == min(fit.gap for fit in four)


def test_a_set_that_explains_the_column_is_found(monkeypatch):
  # LD's mean over Genres 1, 3, 7, 8 is (0.1881 - 0.4358 - 0.4981 + 3.0630) / 4
  # = 0.5793, whose printed form is 0.58.
  row = numbers.TABLE1['ld']._replace(sparse=0.58)
  monkeypatch.setitem(check_section.IMPROVEMENTS, 'ld', row)
  best = improvements.fits(['ld'], [4])[0]
  assert best.genres == (1, 3, 7, 8)
  assert (best.way, best.matches) == ('mean of improvements', 1)


def test_more_than_any_four_genres_give():
  # Five of LD's genres are worse than scratch: its best four are the others
  # and Genre 3. Their mean RMSE: 4.1632 to 4.1374, 0.0258 / 4.1632 = 0.6197%.
  limit, genres = improvements.most('ld', 4)
  assert (intervals.show(limit, 3), genres) == ('0.620', (1, 3, 7, 8))


@pytest.mark.parametrize(
  ('dataset', 'name', 'cells'),
  [
    # (0.76162 - 0.74764) / 0.74764 = 0.01398 / 0.74764.
    ('cifar100', 'ld', ['+1.86', '+1.8699', 'cut off']),
    # 0.01747 / 0.74764.
    ('cifar100', '1_iteration', ['+2.31', '+2.3367', 'no']),
    # 0.01247 / 0.48683.
    ('imagenet', 'td', ['+2.56', '+2.5615', 'yes']),
  ],
)
def test_improvements_on_images(dataset, name, cells):
  rows = {tuple(row[:2]): row for row in _cells(improvements.images())}
  row = rows[dataset, name]
  assert [row[2], row[3], row[5]] == cells


def test_rows_with_which_td_coincides():
  rows = {row[0]: row for row in _cells(check_ablations.ablations())}
  assert rows['Genre 3'][2] == 'no_interaction*, no_noise*, separately*'
  # The mean alone: 0.0003 is the error without L_MC, 0.0002 TD's.
  assert rows['Genre 2'][2] == '1_iteration*, no_message, together*'
  assert rows['Genre 5'][2:4] == ['together*', '1.1663']
  assert rows['cifar100'][2] == 'table 6: more_iterations, table 9: noise'


def test_accuracies_as_counts():
  # 9113 / 9728 = 0.936780..., 9367.8 of 10000; 7273 / 9728 = 0.747635...
  assert intervals.count(0.93678, 9728, digits=5) == 9113
  assert intervals.count(0.93678, 10000, digits=5) is None
  assert intervals.count(0.74764, 9728, digits=5) == 7273
  rows = {row[0]: row for row in _cells(check_counts.denominators())}
  assert rows['0.94100'] == ['0.94100', '9154', '9410']
  assert rows['256'][1:] == ['9984', '2 of 17', '49920', '3 of 9']
  assert rows['512'][1:] == ['9728', '17 of 17', '49664', '9 of 9']


def test_genres_in_which_td_is_better():
  td = numbers.TABLE3['td']
  others = ['ld', 'fd', 'fitnet', 'hybrid']
  assert check_claims.better_than(td, others) == [1, 2, 3, 5, 6, 7, 8]
  assert check_claims.better_than(td, ['scratch']) == [1, 3, 6, 7, 8]
  assert check_claims.better_than(td, ['teacher']) == [1, 3, 6, 7, 8]
  assert not check_claims.better_than(td, ['td'])  # As good is not better.


def test_claims_are_counted():
  rows = {row[1]: row for row in _cells(check_claims.claims()) if len(row) == 4}
  # Table 5: k > 1 loses Genre 2 to k = 1, Genres 3 and 7 to no interaction.
  assert rows['the same, table 5'][2:] == ['5 of 8', 'no']
  assert rows['TD beats the baselines in 7 genres'][2:] == ['7 of 8', 'yes']
