"""Tables of one's own: what is read, how rows are cut, and what is wrong."""

import csv
import json
import re

import conftest
import jax
from jax import numpy as jnp
import numpy as np
import pyarrow as pa
from pyarrow import parquet
import pytest

import td_jax
from td_jax import errors
from td_jax import methods
from td_jax import types
from td_jax.configs import ratings as ratings_config
from td_jax.configs import table as table_config
from td_jax.data import movielens
from td_jax.data import own_table
from td_jax.data import table_file
from td_jax.data import table_inputs
from td_jax.methods import base
from td_jax.run import completion
from td_jax.run import config as config_lib
from td_jax.run import pipeline
from td_jax.use import card
from td_jax.use import export
from td_jax.use import predict

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

CITIES = ('Rome', 'Oslo', 'Lima')
ROWS = 400


def _write(path, rows):
  with open(path, 'w', newline='', encoding='utf-8') as opened:
    writer = csv.DictWriter(opened, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  return str(path)


def _houses():
  """Flats: a price that city, area and floor explain; some have none."""
  rng = np.random.default_rng(0)
  rows = []
  for i in range(ROWS):
    city, area = int(rng.integers(3)), rng.normal(90, 30)
    rows.append(
      {
        'id': f'flat {i}',
        'city': CITIES[city],
        'area': '' if i % 10 == 3 else f'{area:.1f}',
        'floor': i % 5,
        'sold': ('no', 'yes')[i % 2],
        'price': '' if i % 8 == 5 else f'{1000 * (2 * area + 100 * city):.0f}',
      }
    )
  return rows


@pytest.fixture(scope='module')
def houses(tmp_path_factory):
  return _write(tmp_path_factory.mktemp('houses') / 'houses.csv', _houses())


@pytest.fixture(scope='module')
def movies(tmp_path_factory):
  """The ratings of `small_ratings` in files of the layout of MovieLens-25M."""
  folder = tmp_path_factory.mktemp('movies')
  ratings = conftest.small_ratings()
  shuffled = np.random.default_rng(1).permutation(len(ratings.rating))
  rows = [
    {
      'userId': f'u{ratings.user_id[i]}',
      'movieId': int(ratings.movie_id[i]),
      'rating': float(ratings.rating[i]),
      # Ties would be broken in another way.
      'timestamp': int(i),
    }
    for i in shuffled.tolist()
  ]
  about = [
    {
      'movieId': movie,
      'title': ratings.titles[movie],
      'genres': '|'.join(
        name
        for name, has in zip(
          ratings.genre_names, ratings.genres[movie], strict=True
        )
        if has
      ),
    }
    for movie in range(1, len(ratings.titles))
  ]
  return (
    _write(folder / 'ratings.csv', rows),
    _write(folder / 'movies.csv', about),
  )


def _complete(config, log=types.no_log, **changes):
  config.update_from_flattened_dict(changes)
  return completion.complete(config, log=log)


def _table(path, arg='', **changes):
  return _complete(table_config.get_config(f'data={path},{arg}'), **changes)


def _ratings(files, arg='', **changes):
  path, details = files
  return _complete(
    ratings_config.get_config(f'data={path},details={details},{arg}'), **changes
  )


def _rows(config):
  return own_table.read(config, log=types.no_log)


def _small(config):
  config.seeds, config.steps, config.eval_every = 2, 12, 4
  config.steps_per_dispatch = config.log_every = 2
  config.model.hidden, config.teacher.model.hidden = (12, 8), (20, 16)
  config.teacher.steps = config.teacher.eval_every = 4
  config.teacher.steps_per_dispatch = config.teacher.log_every = 2
  config.optim.warmup = config.teacher.optim.warmup = 1
  config.batch_size = config.teacher.batch_size = 16
  config.distill.hidden, config.distill.message = 14, 10
  config.parallel.devices = 1
  return config


def _run(config, folder):
  pipeline.run(_small(config), folder, watch=conftest.Watch(), log=types.no_log)
  return json.loads((folder / 'results.json').read_text())


@pytest.fixture(scope='module')
def price(houses, tmp_path_factory):
  """A finished run that predicts prices."""
  folder = tmp_path_factory.mktemp('price') / 'run'
  config = table_config.get_config(f'data={houses},target=price,method=ld')
  return folder, _run(config, folder)


def test_a_folder_called_teacher_is_left_alone(houses, tmp_path, monkeypatch):
  """The run's own teacher is in RUN/teacher, wherever the command is started."""
  (tmp_path / 'teacher').mkdir()
  (tmp_path / 'teacher' / 'model.safetensors').touch()
  monkeypatch.chdir(tmp_path)
  config = table_config.get_config(f'data={houses},target=price,method=ld')
  assert 'validation' in _run(config, tmp_path / 'run')


def test_what_is_no_run_is_not_replaced(houses, tmp_path):
  """Such as published weights in the folder of the teacher-to-be."""
  (tmp_path / 'teacher').mkdir()
  file = tmp_path / 'teacher' / 'config.json'
  file.write_text('{"model_type": "vit"}')
  config = table_config.get_config(f'data={houses},target=price,method=ld')
  with pytest.raises(errors.ConfigError, match='is not of a run; it would be'):
    _run(config, tmp_path)
  assert file.read_text() == '{"model_type": "vit"}'


# Files.


def test_columns_of_a_csv_file(tmp_path):
  file = tmp_path / 'some.csv'
  file.write_text(
    '\ufeffu,i,r,t\n1,x,3,2024-05-01\n\n2,"y, z",NA,2024-05-02 17:00\n'
    '1 ,"a\nb", 4.5 ,2024-05-01T10:00:00\n',
    encoding='utf-8',
  )
  found = table_file.read(
    str(file), text=['u', 'i'], numbers=['r'], times=['t']
  )
  assert found.text['u'].values == ['', '1', '2']
  assert found.text['u'].numbers.tolist() == [1, 2, 1]
  assert found.text['i'].values == ['', 'x', 'y, z', 'a\nb']
  np.testing.assert_array_equal(found.numbers['r'], [3, np.nan, 4.5])
  assert np.argsort(found.times['t']).tolist() == [0, 2, 1]


def test_blocks_do_not_matter(houses, monkeypatch):
  whole = table_file.read(houses, text=['city', 'id'], numbers=['area'])
  monkeypatch.setattr(table_file, '_BLOCK_BYTES', 500)
  parts = table_file.read(houses, text=['city', 'id'], numbers=['area'])
  jax.tree.map(np.testing.assert_array_equal, whole, parts)
  assert len(parts.numbers['area']) == ROWS
  few = table_file.read(houses, text=['city'], rows=20)
  assert 20 <= len(few.text['city'].numbers) < ROWS


def test_a_parquet_file_says_the_same(tmp_path, houses):
  rows = _houses()
  file = tmp_path / 'houses.parquet'
  columns = {
    'id': [row['id'] for row in rows],
    'city': pa.array([row['city'] for row in rows]).dictionary_encode(),
    'area': [float(row['area']) if row['area'] else None for row in rows],
    'floor': [row['floor'] for row in rows],
    'sold': [[row['sold']] for row in rows],
    'price': [float(row['price'] or 'nan') for row in rows],
  }
  parquet.write_table(pa.table(columns), file)
  ours = [_rows(_table(path, 'target=price')).table for path in (houses, file)]
  jax.tree.map(np.testing.assert_array_equal, *ours)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('u,r\n1,2\n\n2,"x\ny"\n', r'line 5: r is .x\\ny., which is no number'),
    ('u,r\n1,2\n\n2,3,4\n', r'line 4 has 3 values, but .* names 2 columns'),
    ('u,r\n1,inf\n', r"line 2: r is 'inf', which is not finite as float32"),
    ('u,r\n1,1_0\n', r"line 2: r is '1_0', which is no number"),
    (
      f'u,r\n1,{"x" * 1000}\n',
      r"line 2: r is 'x{59}\.\.\. \(1,000 characters\), which is no number",
    ),
    ('', 'is empty; its first line has to name the columns'),
    ('u,u\n1,2\n', "has two columns 'u'"),
    ('u,s\n1,2\n', "has no column 'r'; its columns are u, s"),
  ],
)
def test_what_is_wrong_is_found_by_line_and_column(tmp_path, text, message):
  file = tmp_path / 'bad.csv'
  file.write_text(text)
  with pytest.raises(errors.DataError, match=message):
    table_file.read(str(file), numbers=['r'])


def test_times_that_are_none(tmp_path):
  file = tmp_path / 'bad.csv'
  file.write_text('t\n2\nyesterday\n')
  with pytest.raises(errors.DataError, match="line 3: t is 'yesterday'"):
    table_file.read(str(file), times=['t'])
  file.write_text('t,u\n2,1\n,2\n')
  with pytest.raises(errors.DataError, match="line 3: t is '', which is no"):
    table_file.read(str(file), times=['t'])


def test_files_that_are_none(tmp_path):
  with pytest.raises(errors.DataError, match='is no file'):
    table_file.header(str(tmp_path / 'no.csv'))
  with pytest.raises(errors.DataError, match='not a local file'):
    table_file.header('gs://bucket/ratings.csv')
  (tmp_path / 'no.parquet').write_text('hello')
  with pytest.raises(errors.DataError, match='cannot be read as a Parquet'):
    table_file.header(str(tmp_path / 'no.parquet'))
  (tmp_path / 'no.csv').write_bytes(b'u,r\n\xff,2\n')
  with pytest.raises(errors.DataError, match='cannot be read as a CSV'):
    table_file.read(str(tmp_path / 'no.csv'), text=['u'])


# What a config leaves to the file.


def test_a_table_is_understood(houses):
  lines = []
  config = _complete(
    table_config.get_config(f'data={houses},target=price'), log=lines.append
  )
  config_lib.validate(config)
  assert config.data.numbers == ('area', 'floor')
  assert config.data.categories == ('city', 'sold')
  assert (config.data.kind, config.data.order) == ('regression', 'random')
  # Rows without a price are seen without a label.
  assert config.data.unlabelled.source == 'rest'
  assert 'most values differ: id' in lines[0]
  assert '350 rows with price, for regression, and 50 without' in lines[1]
  # What is named stays, and the kind follows from the values.
  config = _table(houses, 'target=sold', **{'data.numbers': ('area',)})
  assert config.data.kind == 'classification'
  assert config.data.numbers == ('area', 'floor', 'price')
  assert config.data.unlabelled.source == 'none'


def test_columns_with_usual_names_are_found(movies):
  lines = []
  config = _complete(
    ratings_config.get_config(f'data={movies[0]},details={movies[1]}'),
    log=lines.append,
  )
  config_lib.validate(config)
  assert lines[0].endswith(
    'target=rating, user=userId, item=movieId, time=timestamp, title=title, '
    'genres=genres'
  )
  assert config.data.order == 'time'
  # Completing a complete config changes nothing.
  assert completion.complete(config, log=types.no_log) == config


@pytest.mark.parametrize(
  ('arg', 'changes', 'message'),
  [
    ('', {}, 'say which is to be predicted'),
    ('target=prize', {}, "Did you mean 'price'"),
    ('target=price', {'data.numbers': ('areas',)}, "Did you mean 'area'"),
    ('target=price', {'data.user': 'auto'}, 'say which has the user'),
    ('target=price,by=town', {}, "config.data.by is 'town'"),
    ('target=price,task=Rome', {}, 'does not say which column has the tasks'),
    ('target=price', {'data.test_share': 1.0}, 'config.data.test_share is 1'),
    ('target=price', {'data.kind': 'text'}, 'config.data.kind'),
    ('target=price', {'data.order': 'first'}, 'config.data.order'),
    ('target=price', {'data.unlabelled.pairs': -1}, 'unlabelled.pairs'),
  ],
)
def test_a_config_that_cannot_work(houses, arg, changes, message):
  with pytest.raises(errors.ConfigError, match=message):
    config_lib.validate(_table(houses, arg, **changes))


@pytest.mark.parametrize('values', [['1.0'], ['yes'], ['yes', '']])
def test_a_target_that_is_always_the_same(tmp_path, values):
  rows = [{'a': i, 'b': values[i % len(values)]} for i in range(60)]
  _write(tmp_path / 'rows.csv', rows)
  config = _table(tmp_path / 'rows.csv', 'target=b')
  with pytest.raises(errors.DataError, match='b is the same in every row'):
    _rows(config)


@pytest.mark.parametrize('name', ['when', 'price'])
def test_differences_that_float32_does_not_keep(tmp_path, name):
  """Seconds since 1970, within a minute: in steps of 128 s nothing is left."""
  rows = [{'when': i, 'price': 2 * i} for i in range(60)]
  for row in rows:
    row[name] += 1_700_000_000
  _write(tmp_path / 'rows.csv', rows)
  with pytest.raises(errors.DataError, match=f'{name} has .* lost in float32'):
    _rows(_table(tmp_path / 'rows.csv', 'target=price'))
  # Over years they are kept, and a column that never changes loses nothing.
  for number, row in enumerate(rows):
    row[name] += 1_000_000 * number
    row['same'] = 16_777_217
  _write(tmp_path / 'rows.csv', rows)
  _rows(_table(tmp_path / 'rows.csv', 'target=price'))


def test_a_class_may_be_spelt_in_several_ways(tmp_path):
  rows = [{'a': i, 'b': ('1', '1.0', '10', '')[i % 4]} for i in range(80)]
  _write(tmp_path / 'rows.csv', rows)
  table = _rows(_table(tmp_path / 'rows.csv', 'target=b')).table
  assert table.class_names == ('1', '10')
  assert np.bincount(table.target).tolist() == [40, 20]


def test_details_name_items_as_the_table_does(movies):
  ratings, about = movies
  config = ratings_config.get_config(f'data={about},details={ratings}')
  config.data.update({'target': 'genres', 'user': 'title', 'item': 'movieId'})
  config.data.details = ratings.replace('ratings.csv', 'about.csv')
  with open(config.data.details, 'w', encoding='utf-8') as opened:
    opened.write('id,title,genres\n1,A,War\n')
  with pytest.raises(
    errors.ConfigError, match=r"its items in 'movieId'; give both"
  ):
    _complete(config)


def test_a_run_that_cannot_start_leaves_no_folder(tmp_path):
  rows = [{'a': 'x' if i == 50 else i, 'b': i / 7} for i in range(80)]
  _write(tmp_path / 'rows.csv', rows)
  config = table_config.get_config(
    f'data={tmp_path}/rows.csv,target=b,method=scratch'
  )
  with pytest.raises(errors.DataError, match='line 52'):
    _run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
  (tmp_path / 'mine').mkdir()
  with pytest.raises(errors.DataError, match='line 52'):
    _run(config, tmp_path / 'mine')
  assert (tmp_path / 'mine').is_dir()


def test_many_classes_are_worth_a_warning(tmp_path):
  rows = [{'a': i, 'b': f'x{i % 20}'} for i in range(60)]
  _write(tmp_path / 'rows.csv', rows)
  lines = []
  own_table.read(_table(tmp_path / 'rows.csv', 'target=b'), log=lines.append)
  assert any('20 classes in 60 rows' in line for line in lines)


def test_a_table_is_needed():
  with pytest.raises(errors.ConfigError, match='--config=table:data=FILE'):
    _complete(table_config.get_config('target=price'))


# The rows.


def test_ratings_from_files_are_those_of_movielens(movies, small_movielens):
  """The same rows, splits and inputs, in the same order of time."""
  del small_movielens
  ours = own_table.load(_ratings(movies, 'genre=War'), log=types.no_log)
  theirs = movielens.load(conftest.small_config('genre=War'), log=types.no_log)
  for split in ('train', 'validation', 'test'):
    one, other = getattr(ours, split), getattr(theirs, split)
    np.testing.assert_array_equal(one.y, other.y)
    np.testing.assert_array_equal(one.mask, other.mask)
    rows = np.arange(np.count_nonzero(one.mask))
    x, expected = (
      task.examples(columns, rows).x
      for task, columns in ((ours, one), (theirs, other))
    )
    np.testing.assert_array_equal(x['title'], expected['title'])
    # Genres are sorted: Comedy, Drama, War.
    np.testing.assert_array_equal(
      x['genres'], expected['genres'][:, np.asarray([2, 0, 1])]
    )
    # Ids have other numbers, but the same are equal and the same unknown.
    for name in ('user', 'movie'):
      for left, right in ((x, expected), (expected, x)):
        pairs = {
          int(a): int(b) for a, b in zip(left[name], right[name], strict=True)
        }
        np.testing.assert_array_equal(
          [pairs[int(a)] for a in left[name]], right[name]
        )
      np.testing.assert_array_equal(x[name] == 0, expected[name] == 0)
  assert ours.baselines()['userId+movieId bias'] == pytest.approx(
    theirs.baselines()['user+movie bias']
  )
  assert ours.unit == pytest.approx(conftest.real(ours.train).y.std())


def test_titles_and_genres_may_be_in_the_same_file(tmp_path, movies):
  with open(movies[1], encoding='utf-8') as opened:
    about = {row['movieId']: row for row in csv.DictReader(opened)}
  with open(movies[0], encoding='utf-8') as opened:
    rows = [row | about[row['movieId']] for row in csv.DictReader(opened)]
  one = _write(tmp_path / 'one.csv', rows)
  config = _complete(ratings_config.get_config(f'data={one}'))
  ours, theirs = _rows(config).table, _rows(_ratings(movies)).table
  np.testing.assert_array_equal(ours.titles, theirs.titles)
  np.testing.assert_array_equal(ours.tags, theirs.tags)
  assert ours.fingerprint == theirs.fingerprint


def test_a_random_order_has_a_seed(houses):
  first, again, other = (
    _rows(_table(houses, 'target=price', **{'data.order_seed': seed})).table
    for seed in (0, 0, 1)
  )
  assert first.fingerprint == again.fingerprint != other.fingerprint
  np.testing.assert_array_equal(np.sort(first.target), np.sort(other.target))
  assert np.any(np.diff(first.target) < 0)


def test_rows_without_a_target_are_seen_and_never_judged(houses):
  task = own_table.load(_table(houses, 'target=price'), log=types.no_log)
  sizes = [
    np.count_nonzero(getattr(task, split).mask)
    for split in ('train', 'validation', 'test')
  ]
  assert sizes == [283, 32, 35]
  assert task.metadata['unlabelled'] == 50
  real = conftest.real(task.unlabelled.split)
  assert len(real.y) == 50
  assert not np.any(real.y)
  filled = [row for row in _houses() if row['price']]
  judged = np.concatenate(
    [
      conftest.real(getattr(task, split)).y
      for split in ('train', 'validation', 'test')
    ]
  )
  np.testing.assert_array_equal(
    np.sort(judged), np.sort([np.float32(row['price']) for row in filled])
  )
  # Hidden labels join them.
  task = own_table.load(
    _table(houses, 'target=price', **{'data.labels.share': 0.1}),
    log=types.no_log,
  )
  assert task.metadata['labels'] == 28
  assert task.metadata['unlabelled'] == 283 - 28 + 50


def test_numbers_are_scaled_by_the_training_rows(houses):
  rows = _rows(_table(houses, 'target=price'))
  task = own_table.load(_table(houses, 'target=price'), log=types.no_log)
  train = rows.table.numbers[:283].astype(np.float64)
  mean, std = np.nanmean(train, axis=0), np.nanstd(train, axis=0)
  x = task.examples(task.train, np.arange(283)).x['numbers']
  # Only the area has gaps; where it has one, the mean stands in.
  gaps = np.isnan(train[:, 0])
  expected = np.where(np.isnan(train), 0, (train - mean) / std)
  np.testing.assert_allclose(x[:, :2], expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(x[:, 2], gaps)
  assert x.shape == (283, 3)


def test_a_task_is_a_part_of_the_rows(houses):
  config = _table(houses, 'target=price,by=city,task=Oslo')
  # A teacher of all cities has to know which is which.
  assert config.data.categories == ('city', 'sold')
  task = own_table.load(config, log=types.no_log)
  everyone = own_table.load(_table(houses, 'target=price'), log=types.no_log)
  mine, all_rows = (
    {float(y) for y in conftest.real(each.train).y} for each in (task, everyone)
  )
  assert mine < all_rows
  assert task.name == 'Oslo'
  # A teacher of our own learns from all tasks.
  own_table.use_all_tasks(config)
  assert config.data.task == ''
  with pytest.raises(errors.ConfigError, match='Lima, Oslo, Rome'):
    own_table.load(
      _table(houses, 'target=price,by=city,task=Oslos'), log=types.no_log
    )


def test_a_split_without_rows(tmp_path):
  path = _write(tmp_path / 'few.csv', _houses()[:2])
  with pytest.raises(errors.DataError, match='no rows for train of'):
    own_table.load(_table(path, 'target=price'), log=types.no_log)


def test_pairs_need_a_user_and_an_item(houses, movies):
  config = _table(houses, 'target=price', **{'data.unlabelled.source': 'pairs'})
  with pytest.raises(errors.ConfigError, match='features city, sold, area'):
    own_table.load(config, log=types.no_log)
  config = _ratings(movies, **{'data.unlabelled.source': 'pairs'})
  task = own_table.load(config, log=types.no_log)
  assert task.metadata['unlabelled'] == 1215


# Units.


@pytest.mark.parametrize('name', ['scratch', 'td_ld', 'fitnet'])
def test_costs_do_not_depend_on_the_unit(name):
  """A method on thousands is that on units, gradients and all."""
  config = conftest.small_config()
  method = methods.build(name, config=config, task_loss='squared_error')

  def lesson(unit):
    rng = np.random.default_rng(0)
    output, other, labels = rng.normal(size=(3, 8)).astype(np.float32) * unit
    states = rng.normal(size=(2, 8, 5)).astype(np.float32)
    made = conftest.lesson(*map(jnp.asarray, (output, other, labels)))
    pair = types.States(*map(jnp.asarray, states))
    return made._replace(
      student=made.student._replace(states=pair),
      teachers={types.TEACHER: made.teacher._replace(states=pair)},
    )

  plain, large = lesson(np.float32(1)), lesson(np.float32(1024))
  scaled = base.in_units(method, 1024.0)
  params = method.init(jax.random.key(0), plain)
  jax.tree.map(
    np.testing.assert_array_equal, params, scaled.init(jax.random.key(0), large)
  )
  np.testing.assert_array_equal(
    method.loss(params, plain)[0], scaled.loss(params, large)[0]
  )


# A student in use.


def test_prices_score_what_the_run_has_scored(price, houses):
  folder, results = price
  student = td_jax.load(folder)
  rows = {row['price']: row for row in _houses() if row['price']}
  table = _rows(_table(houses, 'target=price')).table
  test = table.target[315:]
  chosen = [rows[f'{value:.0f}'] for value in test]
  error = student.predict(chosen) - test
  index = results['seeds'].index(student.seed)
  assert np.sqrt(np.mean(error**2)) == pytest.approx(
    results['test']['per_seed'][index], rel=1e-5
  )
  # Prices are in the hundred thousands; a fresh network starts at their mean.
  assert results['baselines']['mean price']['test'] > 50_000
  assert (
    results['test']['mean'] < 2 * results['baselines']['mean price']['test']
  )


def test_rows_of_predictions(price, houses, tmp_path, capfd):
  folder, _ = price
  student = td_jax.load(folder)
  rows = list(predict.rows(student, [houses], batch=150))
  assert len(rows) == ROWS
  assert rows[3]['area'] == ''
  assert [*rows[0]] == ['city', 'sold', 'area', 'floor', 'price', 'unknown']
  assert np.isfinite([row['price'] for row in rows]).all()
  new = [{'city': 'Pune', 'area': 3, 'floor': 1, 'sold': 'yes'}]
  (row,) = predict.rows(student, [_write(tmp_path / 'new.csv', new)])
  assert row['unknown'] == ['city']
  for wrong, message in (
    ({'city': 'Rome'}, 'it lacks sold, area, floor'),
    (new[0] | {'area': 'big'}, '1 of 1 examples could not be read'),
  ):
    file = _write(tmp_path / 'wrong.csv', [wrong])
    with pytest.raises(errors.DataError, match=message):
      list(predict.rows(student, [file]))
  with pytest.raises(
    errors.DataError, match='a CSV or Parquet file with the columns'
  ):
    list(predict.rows(student, ['Rome,3']))
  with pytest.raises(errors.DataError, match=re.escape("('Rome', '3')")):
    student.predict([('Rome', '3')])
  with pytest.raises(errors.DataError, match='no value of sold'):
    student.predict([{'city': 'Rome', 'area': 1, 'floor': 1}])


def test_programs_say_what_predict_says(price):
  student = td_jax.load(price[0])
  rows = _houses()[:20]
  (batch,) = jax.export.symbolic_shape('batch')
  exported = jax.export.export(jax.jit(export.program(student)))(
    export._abstract(student, batch)
  )
  np.testing.assert_allclose(
    exported.call(student.preprocess.arrays(rows)),
    student.predict(rows),
    rtol=1e-5,
  )
  text = card.text(student, 'stablehlo')
  assert '- `category_0`: `city`' in text
  assert '`numbers` is float32 [b, 2], of area, floor' in text
  assert 'houses.csv' in text


def test_classes_of_a_table(houses, tmp_path):
  """With a teacher of all cities."""
  folder = tmp_path / 'run'
  config = table_config.get_config(
    f'data={houses},target=sold,by=city,task=Rome,method=ld'
  )
  results = _run(config, folder)
  assert results['metric'] == 'accuracy'
  assert results['task'] == 'Rome'
  assert 0.3 < results['baselines']['most frequent class']['test'] < 0.8
  student = td_jax.load(folder)
  assert student.class_names == ('no', 'yes')
  rows = list(predict.rows(student, [houses], top=2))
  assert {row['class'] for row in rows} <= {'no', 'yes'}
  np.testing.assert_allclose(
    [sum(each['probability'] for each in row['top']) for row in rows],
    1,
    rtol=1e-5,
  )


def test_ratings_in_use(movies, tmp_path):
  folder = tmp_path / 'run'
  path, details = movies
  _run(
    ratings_config.get_config(
      f'data={path},details={details},genre=War,method=ld'
    ),
    folder,
  )
  student = td_jax.load(folder)
  (row,) = predict.rows(student, ['u1,3'])
  assert row['title'] == 'The Film No 3 (1995)'
  assert [*row] == ['userId', 'movieId', 'title', 'rating', 'unknown']
  np.testing.assert_allclose(
    student.predict([('u1', 3)]),
    student.predict([{'userId': 'u1', 'movieId': '3'}]),
  )


# What a newcomer met.


def test_a_config_is_complete_after_the_first_time(movies):
  """`compare` completes it, and then each run once more."""
  config = _ratings(movies, 'genre=War')
  assert completion.complete(config, log=types.no_log) == config
  assert config.data.by == 'genres'


@pytest.mark.parametrize(
  ('changes', 'source'),
  [({}, 'none'), ({'data.task': 'Oslo'}, 'rest'), ({'data.by': ''}, 'rest')],
)
def test_rows_without_a_target_are_those_of_the_task(tmp_path, changes, source):
  rows = [
    row | {'price': '' if row['city'] == 'Oslo' and i % 5 else i}
    for i, row in enumerate(_houses())
  ]
  path = _write(tmp_path / 'some.csv', rows)
  config = table_config.get_config(
    f'data={path},target=price,by=city,task=Rome'
  )
  if 'data.by' in changes:
    config.data.task = ''
  assert _complete(config, **changes).data.unlabelled.source == source
  # What the user says is left alone.
  config = table_config.get_config(f'data={path},target=price')
  config.data.unlabelled.source = 'none'
  assert _complete(config).data.unlabelled.source == 'none'


@pytest.mark.parametrize(
  ('arg', 'changes', 'message'),
  [
    ('target=price', {'data.categories': ('price',)}, 'to be predicted, so no'),
    ('target=price,by=price', {}, 'to be predicted, so no other'),
    (
      'target=price',
      {'data.numbers': ('area', 'area')},
      "'area' is named twice",
    ),
    ('target=price', {'data.others': 'ignore'}, 'no column from which'),
    ('target=price', {'data.order': 'time'}, 'names no column'),
  ],
)
def test_columns_have_one_role(houses, arg, changes, message):
  with pytest.raises(errors.ConfigError, match=message):
    config_lib.validate(_table(houses, arg, **changes))


def test_one_bad_value_does_not_change_what_a_column_is(tmp_path):
  rows = [{'a': i, 'b': i % 7, 'y': i / 3} for i in range(100)]
  rows[50]['y'] = '1,000'
  config = _table(_write(tmp_path / 'some.csv', rows), 'target=b')
  assert config.data.numbers == ('a', 'y')
  with pytest.raises(errors.DataError, match="line 52: y is '1,000', which is"):
    _rows(config)


def test_marks_of_missing_values(tmp_path):
  rows = [
    {'a': ('NA', i)[i % 4 > 0], 'sure': ('0', '1', 'NA')[i % 3]}
    for i in range(90)
  ]
  config = _table(_write(tmp_path / 'some.csv', rows), 'target=sure')
  assert config.data.kind == 'classification'
  table = _rows(config).table
  assert table.class_names == ('0', '1')
  assert (len(table.target), table.size) == (60, 90)


def test_nothing_is_known_of_an_item_that_is_missing(tmp_path):
  rows = [
    {
      'user': i % 9,
      'item': i % 7 or '',
      'rating': i % 5,
      'title': f'Film {i % 7}',
    }
    for i in range(90)
  ]
  config = _complete(
    ratings_config.get_config(f'data={_write(tmp_path / "some.csv", rows)}')
  )
  assert _rows(config).table.titles[0] == ''


def test_values_of_parquet_and_python(tmp_path, price):
  """Are called the same, whatever their type."""
  file = tmp_path / 'some.parquet'
  columns = {'flag': [True, False], 'f': [5.0, 5.5], 'i': [5, 2**60]}
  parquet.write_table(pa.table(columns), file)
  found = table_file.read(str(file), text=list(columns), numbers=['i'])
  assert [found.text[name].values[1:] for name in columns] == [
    ['true', 'false'], ['5', '5.5'], ['5', str(2**60)],
  ]  # fmt: skip
  student = td_jax.load(price[0])
  row = {'city': 'Rome', 'area': 'NA', 'floor': 1, 'sold': 'yes'}
  same = row | {'city': ' Rome ', 'area': None, 'floor': 1.0}
  assert len(set(student.predict([row, same]).tolist())) == 1
  for wrong in (None, row | {'area': float('inf')}):
    with pytest.raises(errors.DataError):
      student.predict([wrong])


def test_columns_of_parquet_that_cannot_be_used(tmp_path):
  file = tmp_path / 'some.parquet'
  when = pa.array([2, None], pa.timestamp('ns'))
  parquet.write_table(pa.table({'s': [{'a': 1}] * 2, 'when': when}), file)
  with pytest.raises(errors.DataError, match='neither text nor numbers'):
    table_file.read(str(file), text=['s'])
  with pytest.raises(errors.DataError, match="row 2: when is '', which is no"):
    table_file.read(str(file), times=['when'])


def test_another_delimiter_is_guessed(tmp_path):
  file = tmp_path / 'some.csv'
  file.write_text('a;b\n1;2\n')
  with pytest.raises(errors.DataError, match="is ';' between its values"):
    table_file.header(str(file))
  assert table_file.header(str(file), delimiter=';') == ('a', 'b')
  with pytest.raises(errors.ConfigError, match='it is one character'):
    table_file.header(str(file), delimiter='')


def test_dates_among_numbers(tmp_path):
  file = tmp_path / 'some.csv'
  file.write_text('t\n2024-01-01\n5\n')
  with pytest.raises(
    errors.DataError, match="line 3: t is '5', which is not of"
  ):
    table_file.read(str(file), times=['t'])
  found = table_file.read(_write(file, [{'t': 3}]), numbers=['t'], times=['t'])
  assert found.numbers['t'] == found.times['t'] == [3]


def test_a_file_of_names_alone_is_not_predicted(tmp_path, price):
  file = tmp_path / 'none.csv'
  file.write_text('area,city,floor,sold\n')
  with pytest.raises(errors.DataError, match='and no rows'):
    predict._table(td_jax.load(price[0]), str(file))


def test_columns_with_the_names_of_predictions(tmp_path, price):
  student = td_jax.load(price[0])
  example = {'price': 1, 'unknown': 2}
  row = predict._table_row(
    student,
    example | {'city': 'Rome', 'area': 1, 'floor': 1, 'sold': 'no'},
    np.float32(3),
    5,
  )
  assert (row['price'], row['unknown']) == (1, 2)
  assert (row['predicted_price'], row['predicted_unknown']) == (3, [])


def test_values_of_python_are_called_as_in_files():
  for value, text in (
    (True, 'true'), (np.bool_(False), 'false'), (5.0, '5'), (np.float32(5.5), '5.5'),
    (None, ''), (' a ', 'a'), (7, '7'),
  ):  # fmt: skip
    assert table_inputs._text(value) == text


def test_a_bad_value_in_a_later_block(tmp_path, monkeypatch):
  monkeypatch.setattr(table_file, '_BLOCK_BYTES', 50)
  rows = [{'a': i if i != 70 else 'x'} for i in range(90)]
  with pytest.raises(errors.DataError, match="line 72: a is 'x'"):
    table_file.read(_write(tmp_path / 'some.csv', rows), numbers=['a'])
