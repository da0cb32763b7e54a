"""Tables are generated, never typed, and a stopped command resumes."""

import collections
import itertools
import json
import pathlib

import conftest
import numpy as np
import pytest

from td_jax import errors
from td_jax.paper import cells as cells_lib
from td_jax.paper import figures
from td_jax.paper import markdown
from td_jax.paper import numbers
from td_jax.paper import plot
from td_jax.paper import table_specs
from td_jax.paper import tables
from td_jax.run import pipeline
from td_jax.run import results as results_lib
from td_jax.storage import results_log

ROOT = pathlib.Path(__file__).parents[1]


def _committed():
  return cells_lib.read(ROOT / 'results')


def _cell(column, row, scores=(1.0, 1.0), *, metric='rmse', first=0):
  return {
    'row': row,
    'column': column,
    'method': row.split(',')[0],
    'k': 1,
    'seeds': list(range(first, first + len(scores))),
    'steps': 5,
    'batch_size': 4,
    'best_step': [5, 5],
    'seconds': 60.0,
    'metric': metric,
    'test': {
      'mean': sum(scores) / len(scores),
      'standard_error': 0.1,
      'per_seed': list(scores),
    },
    'teachers': {'teacher': {'test': 0.5, 'folder': '/here'}},
    'baselines': {'mean rating': {'test': 2.0}},
    'commit': 'abc',
    'python': '3.11',
    'versions': {},
  }


def _rendered(name, *, movielens=(), images=()):
  return markdown.table(name, {'movielens': movielens, 'images': images})


def _shown(text, row):
  """The texts of one row of a table, without the marks of bold type."""
  lines = text.replace('*', '').splitlines()
  (line,) = (line for line in lines if line.startswith(f'| {row} '))
  return [part.strip() for part in line.split('|')[1:-1]]


def test_committed_tables_render_byte_for_byte():
  cells = _committed()
  committed = sorted((ROOT / 'results').glob('table*.md'))
  assert ROOT / 'results/table3.md' in committed
  for file in committed:
    text = markdown.table(file.stem.removeprefix('table'), cells)
    assert text == file.read_text()


def test_results_show_the_summary_of_table_3():
  page = (ROOT / 'docs/results.md').read_text()
  assert (
    f'<!-- table 3 summary -->\n{markdown.summary(_committed())}'
    '<!-- end of table 3 summary -->\n'
  ) in page


def test_rows_of_version_0_1_render_the_same():
  new = _cell('Drama', 'td')
  old = {k: v for k, v in new.items() if k not in ('teachers', 'baselines')}
  old |= {'teacher': new['teachers']['teacher'], 'controls': new['baselines']}
  texts = [
    _rendered('3', movielens=[results_lib.upgraded(cell)])
    for cell in (old, new)
  ]
  assert texts[0] == texts[1]
  assert '| teacher (frozen) | 0.5000 |' in texts[0]


def test_committed_rows_ran_in_all_columns():
  for domain, cells in _committed().items():
    ran = collections.Counter(
      (cell['row'], cell['column'], seed)
      for cell in cells
      for seed in cell['seeds']
    )
    assert set(ran.values()) == {1}
    rows = {row for row, _, _ in ran}
    wanted = {
      row
      for table in table_specs.TABLES.values()
      if table.domain == domain
      for row in table.rows
    }
    assert wanted == rows
    for at in itertools.product(rows, table_specs.COLUMNS[domain]):
      seeds = sorted(seed for *cell, seed in ran if tuple(cell) == at)
      assert seeds == list(range(max(3, len(seeds))))


def test_every_row_has_a_config_of_its_own():
  seen = {}
  for table in table_specs.TABLES.values():
    for row in table.rows:
      for column in table_specs.COLUMNS[table.domain][:1]:
        config = table_specs.config(
          table.domain,
          row,
          column,
          seeds=range(2, 5),
          teacher='t',
          cache_dir='',
        )
        assert (config.seed, config.seeds) == (2, 3)
        assert config.teacher.checkpoint == 't'
        text = config.to_json()
        assert seen.setdefault((table.domain, text), row) == row
  assert {'td, separately', table_specs.LONGER} <= set(seen.values())


@pytest.mark.parametrize('name', table_specs.TABLES)
def test_the_paper_has_the_rows_that_are_named(name):
  table = table_specs.TABLES[name]
  assert set(filter(None, table.rows.values())) <= set(table.printed)


def test_rows_are_paired_with_the_best_baseline_seed_by_seed():
  text = _rendered(
    '3',
    movielens=[
      _cell('Drama', 'scratch', (1.0, 2.0)),
      _cell('Drama', 'ld', (0.9, 1.9)),
      _cell('Drama', 'td', (0.8, 1.6)),
    ],
  )
  # -0.1 and -0.3 to LD: their mean, half the distance of two, and t = -2 at
  # one degree of freedom, which is p = 2 (1/2 - atan(2) / pi) = 0.295.
  assert _shown(text, 'td (k=1)')[4] == '-0.2000 ± 0.1000 to ld (0.3)'
  # LD's best is scratch, and (1.5 - 1.4) / 1.5 is 6.67%.
  assert _shown(text, 'ld')[3] == '+6.67%'
  assert _shown(text, 'ld')[4].startswith('-0.1000 ± 0.0000 to scratch')


def test_an_ablation_is_compared_with_td_too():
  text = _rendered(
    '5',
    movielens=[
      _cell('Drama', 'scratch', (1.0, 2.0)),
      _cell('Drama', 'td', (0.8, 1.6)),
      _cell('Drama', 'td, k=2', (0.9, 1.8)),
    ],
  )
  assert '| minus best baseline (p) | minus td (p) |' in text
  # 0.1 and 0.2: t = 3 at one degree of freedom, 1 - 2 atan(3) / pi = 0.205.
  assert _shown(text, 'td, k=2')[5] == '+0.1500 ± 0.0500 to td (0.2)'
  assert _shown(text, 'td (k=1)')[5] == ''


def test_a_gain_and_its_error_are_paired_seed_by_seed():
  finished = cells_lib.FinishedCells(
    'movielens',
    [
      _cell('Drama', 'scratch', (1.0, 3.0)),  # Mean 2.
      _cell('Drama', 'td', (0.9, 2.5)),  # Better by 5% and 25% of it.
      _cell('Comedy', 'scratch', (4.0, 4.0)),
      _cell('Comedy', 'td', (4.0, 3.6)),  # By 0% and 10%.
    ],
  )
  assert list(finished.over_scratch('td')) == pytest.approx([15.0, 5.0])
  # 2.5% and 17.5%: half their distance.
  assert finished.error_over_scratch('td') == pytest.approx(7.5)


def _blue_rows(file):
  """How many separate bands of a picture's lines hold the dots' blue."""
  image = pytest.importorskip('matplotlib.image')
  pixels = image.imread(file)[..., :3]
  rgb = [int(figures.BLUE[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  blue = np.abs(pixels - rgb).max(axis=2) < 0.01
  heights = np.flatnonzero(blue.any(axis=1))
  return np.count_nonzero(np.diff(heights) > 4) + 1


def test_a_figure_has_a_mark_for_every_row(tmp_path):
  finished = cells_lib.FinishedCells('movielens', _committed()['movielens'])
  file = tmp_path / 'table3.png'
  plot.draw('3', finished, file)
  rows = set(table_specs.TABLES['3'].rows) - {'scratch'}
  assert rows <= set(finished.rows)
  # One more in the legend.
  assert _blue_rows(file) == len(rows) + 1


def _gains(**rows):
  """Rows of a figure with these gains, in percent, of two columns and seeds."""
  return [
    plot._Row(name, np.array(gains), np.array(gains), 0.1, None)
    for name, gains in rows.items()
  ]


def test_an_extreme_row_does_not_squeeze_the_others():
  rows = _gains(a=[0.1, 0.3], b=[-0.1, 0.2], c=[0.2, 0.4], scratch=[-3.0, -1.0])
  *others, extreme = rows
  assert plot._off_scale(rows) == [extreme]
  # The others take -0.1 ... 0.4, and 8% of it on both sides.
  assert plot._limits(others) == pytest.approx((-0.14, 0.44))
  assert plot._off_scale(others) == []
  # Two extreme rows are no exception: the axis is theirs too.
  assert plot._off_scale([*rows, extreme._replace(name='d')]) == []


def test_the_title_names_what_cannot_be_told_apart():
  """Differences to the best by seed: 1.9 and 2.1; -2 and 3."""
  best, worse, close = _gains(a=[4.0, 6.0], b=[2.1, 3.9], c=[6.0, 3.0])
  # t = 2 / 0.1 = 20 at one degree: p = 1 - 2 atan(20) / pi = 0.032.
  assert plot._finding([worse, best]) == 'a gains most (+5.00 ± 0.10%)'
  # t = 0.5 / 2.5 = 0.2: p = 0.87.
  assert plot._finding([close, best]) == (
    'No row differs significantly from the best (a, +5.00 ± 0.10%)'
  )
  assert plot._finding([close, worse, best]) == (
    'a gains most (+5.00 ± 0.10%),\nnot significantly more than c'
  )


def test_only_a_winner_is_bold():
  scratch = _cell('Drama', 'scratch', (1.0, 1.1, 1.2))
  # TD is better by 0.10, 0.11 and 0.12.
  clear = _cell('Drama', 'td', (0.9, 0.99, 1.08))
  text = _rendered('3', movielens=[scratch, clear])
  assert '| **td (k=1)** |' in text
  assert '| **0.9900** |' in text
  # t = 0.11 / (0.01 / sqrt(3)) = 19.05 at two degrees: p = 0.0027.
  assert (
    'Bold: the best row, which beats the best baseline, scratch, with p = '
    '0.0027 (t-test paired over seeds)'
  ) in text
  # By 0, 0 and 0.3; and worse by 0.1.
  for unclear in ((1.0, 1.1, 0.9), (1.1, 1.21, 1.3)):
    td = _cell('Drama', 'td', unclear)
    text = _rendered('3', movielens=[scratch, td])
    assert '| **' not in text and 'Bold' not in text


def test_the_summary_has_the_paper_beside_ours():
  cells = {
    'movielens': [
      _cell('Drama', 'scratch', (1.0, 2.0)),
      _cell('Drama', 'td', (0.8, 1.6)),
    ]
  }
  # (1.5 - 1.2) / 1.5; and (1.0102 - 0.9965) / 1.0102 = 1.356% of the paper.
  assert _shown(markdown.summary(cells), 'TD, k = 1') == [
    'TD, k = 1', '1.2000', '+20.00%', '+1.36%',
  ]  # fmt: skip
  with pytest.raises(errors.DataError, match='needs its row scratch'):
    markdown.summary({'movielens': [_cell('Drama', 'td')]})


def test_the_folder_of_a_teacher_is_not_committed(tmp_path, monkeypatch):
  _recorded(monkeypatch)
  _grid(tmp_path, ['6'], rows=['td'])
  cells = results_log.read(tmp_path / 'images.jsonl')
  assert len(cells) == 2
  for cell in cells:
    assert cell['teachers'] == {'teacher': {'test': 0.5}}
    assert 'teacher' not in cell and 'controls' not in cell


def test_more_accuracy_is_an_improvement():
  text = _rendered(
    '4',
    images=[
      _cell('cifar10', 'scratch', (0.5, 0.5), metric='accuracy'),
      _cell('cifar10', 'fd', (0.4, 0.4), metric='accuracy'),
      _cell('cifar10', 'td', (0.6, 0.6), metric='accuracy'),
    ],
  )
  assert _shown(text, 'td (k=1)')[3] == '+20.00%'
  assert 'to scratch' in _shown(text, 'td (k=1)')[4]
  # (0.94100 - 0.93678) / 0.93678 of the paper.
  assert _shown(text, 'td (k=1)')[6] == '+0.45%'


def test_means_are_of_rows_that_ran_in_all_columns():
  cells = [_cell('Drama', name) for name in ('scratch', 'ld', 'td')]
  cells += [_cell('Comedy', name, (3.0, 3.0)) for name in ('scratch', 'ld')]
  text = _rendered('3', movielens=cells)
  shown = _shown(text, 'ld')
  # The paper's mean of Drama and Comedy by hand: (1.0083 + 1.1029) / 2, and
  # ours (1 + 3) / 2.
  assert (shown[3], shown[6]) == ('2.0000', '1.0556')
  assert '| td' not in text


def test_seeds_of_several_runs_are_joined():
  cells = [
    _cell('Drama', 'td', (1.0, 2.0)),
    _cell('Drama', 'td', (9.0, 6.0), first=1),  # Seed 1 once more.
  ]
  text = _rendered('3', movielens=cells)
  assert 'over 3 seeds' in text
  # 1, 9 and 6: mean 16/3, sum of squares 294/9, error sqrt(294/9 / 2 / 3); of
  # the 60 s of two seeds each, 30 s a seed.
  shown = _shown(text, 'td (k=1)')
  assert (shown[1], shown[-1]) == ('5.3333 ± 2.3333', '30.0')


def test_overall_is_of_the_five_columns_that_are_there():
  movielens = [
    _cell(genre, row, (score, score))
    for genre in table_specs.COLUMNS['movielens']
    for row, score in (
      ('scratch', 1.0),
      ('td', 0.9 if genre == 'Drama' else 0.8),
    )
  ]
  images = [
    _cell(column, row, (score, score), metric='accuracy')
    for column in table_specs.COLUMNS['images']
    for row, score in (('scratch', 0.5), ('td', 0.6))
  ]
  text = _rendered('1', movielens=movielens, images=images)
  shown = _shown(text, 'td')
  # 10, 20, 20 and 20 percent; their mean by hand.
  assert shown[1:7] == ['+10.00', '+20.00', '+20.00', '+20.00', '', '+17.50']
  # (1.34 + 3.39 + 0.45 + 2.41 + 2.56) / 5.
  assert shown[-1] == '+2.03'
  assert numbers.TABLE1['td'].average == 2.54


def test_results_of_another_folder(tmp_path, monkeypatch, capsys):
  """They go to that folder, which is made, and not into the docs."""
  _recorded(monkeypatch)
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(tables, '_ROOT', tmp_path)
  page = tmp_path / 'docs/results.md'
  page.parent.mkdir()
  page.write_text('<!-- table 3 summary -->\n<!-- end of table 3 summary -->\n')
  monkeypatch.setattr(
    'sys.argv',
    [
      'tables',
      '--table=6',
      '--row=td',
      '--seeds=2',
      '--teacher=x',
      '--results=new/own',
    ],
  )
  tables.main()
  assert '| td (k=1) |' in capsys.readouterr().out
  assert len(results_log.read(tmp_path / 'new/own/images.jsonl')) == 2
  assert '| td' in (tmp_path / 'new/own/table6.md').read_text()
  assert '| td' not in page.read_text()


def test_a_folder_that_cannot_be_written_is_one_line(
  tmp_path, monkeypatch, capsys
):
  (tmp_path / 'file').write_text('')
  argv = ['tables', '--table=6', '--teacher=x', f'--workdir={tmp_path}/w']
  monkeypatch.setattr('sys.argv', [*argv, f'--results={tmp_path}/file/own'])
  with pytest.raises(SystemExit) as e:
    tables.main()
  assert e.value.code == 74
  assert 'file/own cannot be made' in capsys.readouterr().err
  with pytest.raises(errors.IOFailedError, match='could not write'):
    results_log.append(tmp_path, {})


def test_nothing_to_show_is_an_error():
  for name in ('1', '7'):
    with pytest.raises(errors.DataError, match='without --render'):
      _rendered(name)


def _recorded(monkeypatch, stop_at=0):
  """Replaces training; returns the list of configs that 'ran'."""
  ran = []

  def run(config, path, **_):
    del path
    ran.append(config)
    if len(ran) == stop_at:
      raise KeyboardInterrupt  # As a kill in that cell would.
    scores = [1.0] * config.seeds
    return _cell('', config.method, scores, first=config.seed)

  monkeypatch.setattr(pipeline, 'run', run)
  return ran


def _grid(folder, names, seeds=2, rows=()):
  tables.run(
    names,
    folder,
    folder,
    seeds=seeds,
    rows=rows,
    teacher='weights',
    watch=conftest.Watch(),
    log=lambda line: None,
  )


def test_a_stopped_command_resumes(tmp_path, monkeypatch):
  (tmp_path / 'teacher').mkdir()
  (tmp_path / 'teacher/results.json').write_text('{}')
  ran = _recorded(monkeypatch, stop_at=3)
  with pytest.raises(KeyboardInterrupt):
    _grid(tmp_path, ['3'])
  _grid(tmp_path, ['3'])
  names = [(config.data.genre, config.method, config.steps) for config in ran]
  assert names[2] == names[3]  # The interrupted cell, once more.
  assert len(names) - 1 == 8 * len(table_specs.TABLES['3'].rows)
  done = len(ran)
  _grid(tmp_path, ['3'])
  assert len(ran) == done
  # TD has run; of table 7 the other two rows have not.
  _grid(tmp_path, ['7'])
  assert len(ran) - done == 2 * 8
  # More seeds than there are: those that lack.
  done = len(ran)
  _grid(tmp_path, ['7'], seeds=5)
  assert len(ran) - done == 3 * 8
  assert {(config.seed, config.seeds) for config in ran[done:]} == {(2, 3)}


def test_more_seeds_of_some_rows(tmp_path, monkeypatch):
  ran = _recorded(monkeypatch)
  _grid(tmp_path, ['6'], rows=['td'])
  assert [config.k for config in ran] == [1, 1]
  _grid(tmp_path, ['6'])
  _grid(tmp_path, ['6'], seeds=3, rows=['td, k=0', 'td, k=2'])
  assert [config.k for config in ran[6:]] == [0, 0, 2, 2]


def test_rows_of_different_seeds_are_compared_on_those_of_both():
  cells = [
    _cell('Drama', 'scratch', (1.0, 3.0)),
    _cell('Drama', 'td', (0.9, 2.5, 99.0)),
  ]
  finished = cells_lib.FinishedCells('movielens', cells)
  assert list(finished.over_scratch('td')) == pytest.approx([15.0])
  assert finished.error_over_scratch('td') == pytest.approx(10.0)  # 5% and 25%.
  text = _rendered('3', movielens=cells)
  shown = _shown(text, 'td (k=1)')
  # -0.1 and -0.5; t = 1.5 at one degree: 1 - 2 atan(1.5) / pi = 0.374.
  assert shown[4] == '-0.3000 ± 0.2000 to scratch (0.37)'


def test_a_table_is_of_the_seeds_that_all_its_rows_have():
  text = _rendered(
    '5',
    movielens=[
      _cell('Drama', 'scratch', (1.0, 3.0, 3.0)),
      _cell('Drama', 'td', (0.9, 2.5, 99.0)),
      _cell('Drama', 'td, k=2', (0.9, 1.5)),
    ],
  )
  assert 'over 2 seeds' in text
  assert _shown(text, 'td (k=1)')[1][:6] == '1.7000'
  assert _shown(text, 'td (k=1)')[-1] == '20.0'  # Of 60 s of 3 seeds.


def test_runs_of_other_settings_are_not_joined():
  cells = [_cell('Drama', 'td', (1.0,), first=i) | {'k': i} for i in (0, 1)]
  with pytest.raises(errors.DataError, match='Drama has runs that differ'):
    _rendered('3', movielens=cells)


def test_a_row_whose_columns_have_different_seeds():
  finished = cells_lib.FinishedCells(
    'movielens',
    [
      _cell('Drama', 'td', (1.0, 2.0, 9.0)),
      _cell('Comedy', 'td', (3.0, 5.0)),
    ],
  )
  assert finished.per_seed('td').tolist() == [[1.0, 2.0], [3.0, 5.0]]


def test_two_processes_share_the_cells(tmp_path, monkeypatch):
  ran = _recorded(monkeypatch)
  theirs = 'cifar10-td'
  with results_log.lock(tmp_path / f'{theirs}.lock') as acquired:
    assert acquired
    _grid(tmp_path, ['6'])
  assert len(ran) == 5
  # If it died without writing a row, the next process runs that cell.
  _grid(tmp_path, ['6'])
  assert len(ran) == 6
  assert len(results_log.read(tmp_path / 'images.jsonl')) == 6


def test_what_another_process_has_finished_meanwhile(tmp_path, monkeypatch):
  ran = _recorded(monkeypatch)
  alone = pipeline.run

  def run(config, path, **more):
    # While one is run here, another process runs all others.
    others = [
      _cell(column, row)
      for row in table_specs.TABLES['6'].rows
      for column in table_specs.COLUMNS['images']
      if (row, column) != ('td, k=0', 'cifar10')
    ]
    lines = ''.join(json.dumps(cell) + '\n' for cell in others)
    (tmp_path / 'images.jsonl').write_text(lines)
    return alone(config, path, **more)

  monkeypatch.setattr(pipeline, 'run', run)
  _grid(tmp_path, ['6'])
  assert len(ran) == 1
  assert len(results_log.read(tmp_path / 'images.jsonl')) == 6


def test_grid_trains_the_teacher_of_ratings_first(tmp_path, monkeypatch):
  ran = _recorded(monkeypatch, stop_at=2)
  with pytest.raises(KeyboardInterrupt):
    _grid(tmp_path, ['5'])
  assert ran[0].method == 'teacher'
  assert ran[1].teacher.checkpoint == str(tmp_path / 'teacher')


def test_images_learn_from_the_weights_that_are_named(tmp_path, monkeypatch):
  ran = _recorded(monkeypatch)
  _grid(tmp_path, ['6'])
  assert {config.teacher.checkpoint for config in ran} == {'weights'}
  cells = results_log.read(tmp_path / 'images.jsonl')
  assert [json.dumps(cell['seeds']) for cell in cells] == ['[0, 1]'] * 6


def test_overall_tables_go_without_images_that_have_no_teacher():
  assert tables._to_run(['1', '2'], '') == ['3', '5']
  assert tables._to_run(['1', '6'], '') == ['3', '6']
  assert tables._to_run(['1', '6'], 'weights') == ['3', '4', '6']
