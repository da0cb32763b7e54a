"""The study of few labels: its cells, its work and its page."""

import itertools
import json
import pathlib
import threading

import conftest
import numpy as np
import pytest

from td_jax import errors
from td_jax import types
from td_jax.paper import table_specs
from td_jax.run import config as config_lib
from td_jax.storage import results_log
from td_jax.study import design as design_lib
from td_jax.study import few_labels
from td_jax.study import finished as finished_lib
from td_jax.study import images
from td_jax.study import images_page
from td_jax.study import ratings
from td_jax.study import ratings_page
from td_jax.study import search
from td_jax.study import work

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

ROOT = pathlib.Path(__file__).parents[1]
FEW = ratings.Regime(0.05, 'kept', 'rest')
ALONE = ratings.Regime(0.05, 'all', 'none')
DESIGNS = tuple(few_labels.DESIGNS.values())
IMAGES = [
  (regime, row, column)
  for regime, row in images.rows()
  for column in images.columns(regime)
]


@pytest.mark.parametrize('design', DESIGNS)
def test_every_row_has_trials_of_its_own_kind(design):
  rows = design.rows()
  assert len(set(rows)) == len(rows)
  for regime, row in rows:
    searched, method = design.tuned_as(regime, row)
    assert row.startswith(method)
    assert searched.unlabelled == regime.unlabelled or 'pairs' in regime
    # Weights are tried in columns that the regime has.
    assert set(design.TUNED_ON) <= set(design.columns(searched))
    # Nothing is chosen with labels that the row hides from scratch.
    assert not row.startswith('scratch') or searched == regime
    assert len(design.trials(method, design.TRIALS)) == design.TRIALS
    assert design.SEEDS % len(design.draws(regime)) == 0


@pytest.mark.parametrize('design', DESIGNS)
def test_trials_are_as_many_and_as_wide_for_every_method(design):
  for method in ('scratch', *search.METHODS):
    trials = design.trials(method, 6)
    assert len({json.dumps(trial) for trial in trials}) == 6
    assert trials == design.trials(method, 12)[:6]
  logits = [
    sorted(t['distill.weights.logit'] for t in design.trials(method, 6))
    for method in ('ld', 'hybrid', 'td_ld')
  ]
  assert logits[0] == logits[1] == logits[2]


@pytest.mark.parametrize(('regime', 'row'), ratings.rows())
def test_configs_are_valid_and_teachers_fit(regime, row):
  _, method = ratings.tuned_as(regime, row)
  (trial,) = ratings.trials(method, 1)
  config = ratings.config(
    regime, row, 'War', seeds=range(3), teacher='', weights=trial
  )
  config_lib.validate(config)
  assert config.data.labels.share == regime.share
  teacher = config_lib.as_teacher(ratings.teacher_config(regime, 'War'))
  config_lib.validate(teacher)
  expected = config_lib.as_teacher(config).data.labels
  assert teacher.data.labels.share == expected.share
  if expected.share < 1:
    assert teacher.data.labels == expected


@pytest.mark.parametrize(('regime', 'row', 'column'), IMAGES)
def test_configs_of_images_are_valid(regime, row, column):
  _, method = images.tuned_as(regime, row)
  (trial,) = images.trials(method, 1)
  config = images.config(
    regime, row, column, seeds=range(3), teacher='DIR', weights=trial
  )
  config_lib.validate(config)
  assert config.data.dataset == column
  assert config.data.labels.per_class == regime.per_class
  assert config.student_init == (
    'random' if row == images.RANDOM else 'first_n'
  )
  if row not in (images.SCRATCH, images.RANDOM):
    l2 = config.distill.logit_distance == 'l2'
    assert l2 == (row == table_specs.L2)


def _cell(regime, row, column, draw, extra):
  """A finished cell; RMSE 1 + a tenth of the genre's number + `extra` ± 0.5."""
  number = ratings.COLUMNS.index(column)
  scores = [1 + number / 10 + extra + seed for seed in (-0.5, 0.5)]
  return {
    'regime': regime._asdict(),
    'row': row,
    'column': column,
    'draw': draw,
    **{split: {'per_seed': scores} for split in ('validation', 'test')},
    'teachers': {'teacher': {'validation': 0.9, 'test': 0.95}},
    'baselines': {'user+movie bias': {'validation': 1.1, 'test': 1.2}},
  }


def _rows():
  """Cells of five choices of labels, the last first."""
  return [
    *(
      _cell(regime, row, column, draw, extra * (1 + draw % 2))
      for regime, row, extra in ((ALONE, 'scratch', 0.02), (FEW, 'ld', 0.01))
      for column in ratings.COLUMNS
      for draw in (4, 3, 2, 1, 0)
    ),
    # Not in every genre, so that its mean could not be compared.
    *(_cell(FEW, 'td', 'Drama', draw, 0.0) for draw in range(5)),
    # Not with every choice of labels.
    *(_cell(FEW, 'fd', column, 0, 0.0) for column in ratings.COLUMNS),
  ]


def test_the_page_by_hand():
  finished = finished_lib.Finished(_rows(), ratings, ratings.COLUMNS)
  text = ratings_page.page(finished)
  # 1.35 is the mean over the genres. LD adds 1, 2, 1, 2 and 1 hundredths and
  # gains as much: the mean is 1.4, the deviation sqrt(0.3), the error that over
  # sqrt(5), 0.245. The seeds of a draw, a whole unit apart, count once.
  assert (
    '| Label distillation (LD) | with the pairs of the hidden ratings '
    '| 1.3640 ± 0.0024 | +0.0140 ± 0.0024 | 1.3640 ± 0.0024 |'
  ) in text
  assert '| From scratch | labelled ratings only | 1.3780 ± 0.0049 |' in text
  assert '| Teacher (frozen) |  | 0.9000 ± 0.0000 |' in text
  assert '| TD' not in text
  assert '| Feature' not in text


def test_what_the_best_rows_gain_by_hand():
  """Students with pairs beat scratch, and not the teacher, whose score is 0.95."""
  every = ratings.Regime(1.0, 'all', 'none')
  rows = [
    *_rows(),
    *(_cell(every, 'scratch', column, 0, 0.1) for column in ratings.COLUMNS),
  ]
  finished = finished_lib.Finished(rows, ratings, ratings.COLUMNS)
  text = ratings_page.page(finished)
  about = '| 5%, honest teacher | Label distillation (LD) | '
  # 0.01, 0.02, 0.01, 0.02, 0.01 less; t = 0.014 / 0.00245 of 4 degrees.
  gap = '-0.0140 ± 0.0024 (p = 0.0046)'
  assert f'{about}scratch | {gap} | {gap} |' in text
  # 1.364 - 1.2.
  assert f'{about}user+movie bias | +0.2640 ± 0.0024 (p = 4.4e-08) | ' in text
  assert f'{about}the teacher | +0.4640 ± 0.0024' in text
  # 1.364 - 1.45; the seeds of the latter, a unit apart, have an error of 0.5.
  assert f'{about}scratch with all ratings | -0.0860 ± 0.5000 | ' in text
  assert 'LD with the same pairs' not in text
  assert '| 100% |' not in text


def test_the_headline_by_hand():
  few = [
    _cell(ratings.Regime(0.05, teacher, source), row, column, draw, extra)
    for teacher, extra in (('all', 0.0), ('kept', 0.05))
    for source, row in (
      ('none', 'ld'), ('rest', 'ld'), ('rest', 'fitnet'), ('rest', 'td_ld'),
    )
    for column in ratings.COLUMNS
    for draw in range(5)
  ]  # fmt: skip
  scratch = [
    _cell(ALONE, 'scratch', column, draw, 0.07)
    for column in ratings.COLUMNS
    for draw in range(5)
  ]
  every = [
    _cell(ratings.Regime(1.0, 'all', 'none'), 'scratch', column, 0, 0.1)
    for column in ratings.COLUMNS
  ]

  def headline(rows):
    return ratings_page.headline(
      finished_lib.Finished(rows, ratings, ratings.COLUMNS)
    )

  text = headline(few + scratch + every)
  assert '| From scratch | 1.4200 ± 0.0000 | 1.4200 ± 0.0000 |' in text
  assert (
    '| TD + LD, k = 1, with unlabelled pairs | 1.4000 ± 0.0000 '
    '| 1.3500 ± 0.0000 |'
  ) in text
  assert '| Teacher (frozen) | 0.9500 ± 0.0000 | 0.9500 ± 0.0000 |' in text
  assert '| From scratch, with all ratings | 1.4500 ± 0.5000 |' in text
  assert not headline(few + scratch)


def test_committed_pages_show_the_committed_cells():
  rows = results_log.read(ROOT / 'results/few_labels.jsonl')
  finished = finished_lib.Finished(rows, ratings, ratings.COLUMNS)
  page = ratings_page.page(finished)
  assert page == (ROOT / 'results/few_labels.md').read_text()
  block = f'<!-- few labels -->\n{ratings_page.headline(finished)}'
  for name in ('README.md', 'docs/when-it-pays.md'):
    assert block in (ROOT / name).read_text(), name


def _image_cells(regime, row, scores):
  """Finished cells, a score for each choice of labels."""
  return [
    {
      'regime': regime._asdict(),
      'row': row,
      'column': 'cifar10',
      'draw': draw,
      **{split: {'per_seed': [score]} for split in ('validation', 'test')},
      'teachers': {'teacher': {'validation': 0.7, 'test': 0.6}},
      'train_examples': 2000,
    }
    for draw, score in enumerate(scores)
  ]


def _image_rows():
  few = images.Regime(50, 'none')
  return [
    *_image_cells(few, images.SCRATCH, [0.4, 0.42, 0.41]),
    *_image_cells(few._replace(unlabelled='rest'), 'ld', [0.5, 0.53, 0.53]),
  ]


def test_the_page_of_images_by_hand(tmp_path):
  images_page.render(_image_rows(), tmp_path)
  text = (tmp_path / 'few_images.md').read_text()
  assert (
    '| Label distillation (LD) | with the other images, unlabelled '
    '| 0.5200 ± 0.0100 | +0.1100 ± 0.0058 | 0.5200 ± 0.0100 |'
  ) in text
  assert (
    "| Task only, from the teacher's blocks | labelled images only "
    '| 0.4100 ± 0.0058 |  | 0.4100 ± 0.0058 |  |'
  ) in text
  assert (
    '| Teacher (frozen, a linear head) | labelled images only | 0.7' in text
  )
  assert (tmp_path / 'few_images.png').read_bytes()[1:4] == b'PNG'


def test_all_labels_come_from_the_tables(tmp_path, monkeypatch):
  """A line of the figure ends with the cell of results/images.jsonl."""
  few = images.Regime(50, 'none')
  cell = {
    'row': images.SCRATCH,
    'column': 'cifar10',
    'method': 'scratch',
    'k': 1,
    **{s: {'per_seed': [0.55, 0.57]} for s in ('validation', 'test')},
    'teachers': {'teacher': {'validation': 0.7, 'test': 0.6}},
    'train_examples': 20_000,
  }
  (tmp_path / 'images.jsonl').write_text(json.dumps(cell) + '\n')
  drawn = []
  monkeypatch.setattr(
    images_page.finished_lib, 'plot', lambda axes, lines: drawn.extend(lines)
  )
  monkeypatch.setattr(images_page.figures, 'save', lambda *args: None)
  images_page.render(
    _image_cells(few, images.SCRATCH, [0.4, 0.42, 0.41]), tmp_path
  )
  lines = {line.label: line.points for line in drawn}
  first, last = lines["Task only, from the teacher's blocks"]
  assert (first[0], last[0]) == (50, 2000)  # Labels in each class.
  assert last[1] == (pytest.approx(0.56), pytest.approx(0.01))
  assert 'All labels' not in (tmp_path / 'few_images.md').read_text()


def test_rendering_writes_page_and_figure(tmp_path):
  ratings_page.render(_rows(), tmp_path)
  assert (tmp_path / 'few_labels.md').read_text().startswith('# Few labels')
  assert (tmp_path / 'few_labels.png').read_bytes()[1:4] == b'PNG'


def test_the_best_weights_have_the_best_mean_of_both_genres():
  trials = [
    {
      'regime': FEW._asdict(),
      'method': 'ld',
      'column': column,
      'weights': {'distill.weights.logit': weight},
      'validation': {'mean': mean},
    }
    for weight, column, mean in (
      (1.0, 'Drama', 0.9),
      (1.0, 'War', 1.1),
      (3.0, 'Drama', 0.95),
      (3.0, 'War', 1.0),
      (10.0, 'War', 0.5),  # The other genre has not run.
    )
  ]
  for order in itertools.permutations(trials):
    assert design_lib.best(ratings, order) == {
      (FEW, 'ld'): {'distill.weights.logit': 3.0}
    }


@pytest.mark.usefixtures('small_movielens')
def test_the_study_resumes(tmp_path, monkeypatch):
  """Trials, then cells with the best weights; what is done is not run again."""
  monkeypatch.setattr(ratings, 'rows', lambda: [(FEW, 'ld')])
  monkeypatch.setattr(ratings, 'COLUMNS', ('War',))
  monkeypatch.setattr(ratings, 'TUNED_ON', ('War',))
  monkeypatch.setattr(ratings, '_DRAWS', 2)
  small = conftest.small_config('method=teacher')

  def shrunk(make):
    def config(*args, **kwargs):
      made = make(*args, **kwargs)
      for learner, model in (
        (made, small.model),
        (made.teacher, small.teacher.model),
      ):
        learner.update({'steps': 4, 'batch_size': 16, 'eval_every': 2})
        learner.update({'steps_per_dispatch': 2, 'log_every': 2})
        learner.model.hidden = model.hidden
        learner.optim.warmup = 1
      made.parallel.devices = 1
      return made

    return config

  monkeypatch.setattr(ratings, 'config', shrunk(ratings.config))
  monkeypatch.setattr(ratings, 'teacher_config', shrunk(ratings.teacher_config))

  def run():
    study = design_lib.Study(
      ratings,
      tmp_path / 'work',
      tmp_path / 'results',
      watch=conftest.Watch(),
      log=types.no_log,
    )
    study.search(trials=2, seeds=1)
    study.cells(seeds=4)

  run()
  files = [
    tmp_path / f'results/{ratings.NAME}{part}.jsonl' for part in ('_search', '')
  ]
  trials, cells = (
    [json.loads(line) for line in file.read_text().splitlines()]
    for file in files
  )
  assert len(trials) == 2
  assert [cell['seeds'] for cell in cells] == [[0, 1], [2, 3]]
  cell, other = cells
  assert cell['test'] != other['test']
  assert (
    cell['weights']
    == min(trials, key=lambda trial: trial['validation']['mean'])['weights']
  )
  assert cell['labels'] < cell['unlabelled']
  assert np.isfinite(cell['test']['mean'])
  assert 'folder' not in cell['teachers'][types.TEACHER]
  before = [file.read_bytes() for file in files]
  # A teacher for each choice of the labels that are hidden from it.
  for draw in range(2):
    folder = tmp_path / f'work/teacher-0.05-War-{draw}'
    stored = json.loads((folder / 'config.json').read_text())
    assert stored['data']['labels']['draw'] == draw
  run()
  assert [file.read_bytes() for file in files] == before


def test_two_processes_share_the_work(tmp_path):
  """A piece that another process is running is waited for, and not run again."""
  file, locks = tmp_path / 'rows.jsonl', tmp_path / 'trials'
  locks.mkdir()
  pieces = [{'number': number} for number in range(3)]
  ran, lines = [], []

  def run(key):
    ran.append(key['number'])
    return {'validation': {'mean': 1.0}}

  def log(line):
    lines.append(line)
    # The other process ends its piece while this one is at the next.
    if other.is_alive():
      ended.set()
      other.join()

  started, ended = threading.Event(), threading.Event()

  def elsewhere():
    with results_log.lock(locks / f'{work.digest(pieces[0])}.lock'):
      started.set()
      ended.wait(60)
      results_log.append(file, pieces[0] | {'validation': {'mean': 2.0}})

  other = threading.Thread(target=elsewhere, daemon=True)
  other.start()
  started.wait()
  work.run_all(
    'trials',
    pieces,
    file,
    run,
    title=lambda key: str(key['number']),
    workdir=tmp_path,
    watch=conftest.Watch(),
    log=log,
  )
  assert ran == [1, 2]
  assert len(results_log.read(file)) == 3
  assert lines[-1].startswith('2: 1.0000; 0 of 3 trials left, ETA 0:00:00')


def test_a_stop_says_where_the_finished_work_is(tmp_path):
  """The run that is stopped is in a temporary folder, which is removed."""
  file, watch = tmp_path / 'rows.jsonl', conftest.Watch()

  def run(key):
    if key['number'] == 1:
      watch.stop('saved step 2 in a folder')
    return {'validation': {'mean': 1.0}}

  with pytest.raises(errors.PreemptedError) as e:
    work.run_all(
      'trials',
      [{'number': number} for number in range(2)],
      file,
      run,
      title=str,
      workdir=tmp_path,
      watch=watch,
      log=types.no_log,
    )
  assert f': the finished trials are in {file}. Run the' in str(e.value)
  assert len(results_log.read(file)) == 1


def test_no_signal_tears_a_row(tmp_path, monkeypatch):
  watch, free = conftest.Watch(), []
  monkeypatch.setattr(
    work.results_log,
    'append',
    lambda *args: free.append(watch._saving.acquire(blocking=False)),
  )
  work.run_all(
    'trials',
    [{'number': 1}],
    tmp_path / 'rows.jsonl',
    lambda key: {'validation': {'mean': 1.0}},
    title=str,
    workdir=tmp_path,
    watch=watch,
    log=types.no_log,
  )
  # The second time it waits for other processes.
  assert free == [False, False]
