"""Every config builds, means something, and says what is wrong with it."""

import importlib
import os
import pathlib
import re

import config_tables
import conftest
import ml_collections
import pytest

from td_jax import errors
from td_jax import methods
from td_jax.configs import common
from td_jax.data import movielens
from td_jax.data import splits
from td_jax.run import completion
from td_jax.run import config as config_lib
from td_jax.run import config_keys
from td_jax.run import plan

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = pathlib.Path(__file__).parent / 'golden'
RENEW = 'TD_JAX_RENEW_GOLDEN'  # Environment: write the texts anew.
NAMES = sorted(
  file.stem
  for file in (ROOT / 'configs').glob('*.py')
  if not file.stem.endswith(('__init__', 'common', 'allowed'))
)


def _get(name, arg=''):
  return importlib.import_module(f'configs.{name}').get_config(arg)


def _flat(config, prefix=''):
  """{'model.hidden': (128, 64), ...}"""
  flat = {}
  for key, value in config.items():
    if isinstance(value, ml_collections.ConfigDict):
      flat |= _flat(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def test_there_are_configs():
  assert 'movielens' in NAMES


@pytest.fixture
def completed(vision_data, vision_teacher, tmp_path):
  """A config that leaves its data or networks open -> one that does not."""

  def complete(config):
    if config.name == 'image_folder':
      config.data.dir = str(vision_data)
      config.teacher.checkpoint = str(vision_teacher)
    if config.domain == 'table':
      file = tmp_path / 'table.csv'
      rows = 'a,b,1,Rome\na,c,2.5,Rome\nd,b,3,Oslo\n' * 4
      file.write_text(f'user,item,rating,place\n{rows}')
      config.data.csv, config.data.target = str(file), 'rating'
    return completion.complete(config, log=lambda line: None)

  return complete


@pytest.mark.parametrize('name', NAMES)
def test_every_config_is_valid(name, completed):
  config = completed(_get(name))
  config_lib.validate(config)
  assert config.name == name
  if 'steps' in config.teacher:  # Else it is published.
    config_lib.validate(config_lib.as_teacher(config))
  doc = importlib.import_module(f'configs.{name}').__doc__
  assert f'--config=configs/{name}.py' in doc


@pytest.mark.parametrize('method', [*methods.METHODS, 'teacher'])
def test_every_method_can_be_asked_for(method):
  config = _get('movielens', f'method={method}')
  needs = methods.needs(config, task_loss='squared_error')
  if methods.Need.CLASS_LABELS in needs:
    with pytest.raises(errors.ConfigError, match='needs labels that are'):
      config_lib.validate(config)
  elif methods.Need.SEVERAL_TOKENS in needs:
    with pytest.raises(errors.ConfigError, match='no tokens'):
      config_lib.validate(config)
  else:
    config_lib.validate(config)
  assert config.method == method
  assert config.data.genre == ('' if method == 'teacher' else 'Drama')


@pytest.mark.parametrize('genre', movielens.GENRES)
def test_every_genre_can_be_asked_for(genre):
  assert _get('movielens', f'genre={genre}').data.genre == genre


@pytest.mark.parametrize('name', NAMES)
def test_values_are_those_that_were_reviewed(name):
  """The whole config as text, so that a changed value shows in a diff."""
  text = ''.join(
    f'{key} = {value!r}\n' for key, value in sorted(_flat(_get(name)).items())
  )
  file = GOLDEN / f'{name}.txt'
  if os.environ.get(RENEW):
    GOLDEN.mkdir(exist_ok=True)
    file.write_text(text)
  stored = file.read_text() if file.exists() else ''
  assert text == stored, (
    f'configs/{name}.py differs from {file}. If that is meant, run '
    f'`{RENEW}=1 python -m pytest tests/test_config.py` and commit the diff.'
  )


@pytest.mark.parametrize('name', NAMES)
def test_every_key_says_what_it_takes(name):
  config = _get(name)
  assert config_keys.known(config).keys() == _flat(config).keys()
  config_keys.check(config)


def test_the_tables_of_keys_are_those_of_the_docs():
  file = ROOT / 'docs/config.md'
  head, _, rest = file.read_text().partition(config_tables.START)
  stored, _, tail = rest.partition(config_tables.END)
  tables = f'\n{config_tables.markdown()}\n'
  if os.environ.get(RENEW):
    parts = head, config_tables.START, tables, config_tables.END, tail
    file.write_text(''.join(parts))
    stored = tables
  assert stored == tables, (
    f'{file} differs from the configs; `{RENEW}=1 python -m pytest '
    'tests/test_config.py` renews it.'
  )


@pytest.mark.parametrize('name', NAMES)
def test_every_key_is_read(name):
  source = '\n'.join(
    file.read_text()
    for file in (ROOT / 'td_jax').rglob('*.py')
    if file.parent.name != 'configs'  # They declare the keys.
  )
  source = re.sub(r'#.*', '', re.sub(r'(?s)""".*?"""', '', source))
  read = set(re.findall(r'\b\w+\b', source))
  keys = {part for key in _flat(_get(name)) for part in key.split('.')}
  assert len(keys) > 40
  assert keys <= read, f'nothing in td_jax reads {sorted(keys - read)}'


@pytest.mark.parametrize('name', NAMES)
def test_every_key_survives_json(name):
  config = _get(name)
  stored = ml_collections.ConfigDict(
    config_lib.json.loads(config_lib.to_json(config))
  )
  assert not config_lib.difference(stored.to_dict(), config)


@pytest.mark.parametrize('name', NAMES)
def test_runlocal_is_short(name, completed):
  config, whole = completed(_get(name, 'runlocal')), _get(name)
  if 'steps' not in config.teacher:
    config.teacher.checkpoint = 'published'  # The user names one.
  config_lib.validate(config)
  for short, long in ((config, whole), (config.teacher, whole.teacher)):
    if 'steps' not in long:
      continue
    assert short.steps <= 100 < long.steps
    assert short.optim.warmup < short.steps
    assert short.eval_every <= short.steps
  assert config.seeds <= 2


@pytest.mark.parametrize(
  ('name', 'arg', 'images'),
  [
    *(('vit_cifar10', arg, 50_000) for arg in ('', 'laptop', 'runlocal')),
    *(('vit_imagenet', arg, 1_281_167) for arg in ('', 'laptop', 'runlocal')),
    # The stand-in for ImageNet in test_vision_run.py.
    ('vit_imagenet', 'runlocal', 300),
  ],
)
def test_validation_has_no_image_of_the_training(name, arg, images):
  config = _get(name, arg)
  train, validation = (
    splits.cut(config.data[part], {'train': images}, name=name)
    for part in ('train', 'validation')
  )
  assert train.stop <= validation.start


@pytest.mark.parametrize('arg', ['genr=War', 'runlocal=Yes', '=War', 'a=b=c'])
def test_wrong_arguments(arg):
  with pytest.raises(ValueError, match='config argument'):
    _get('movielens', arg)


@pytest.mark.parametrize(
  ('name', 'argument'),
  [('movielens', 'genre=War'), ('ratings', 'genre=War'), ('table', 'task=a')],
)
def test_a_teacher_has_no_task_of_its_own(name, argument):
  with pytest.raises(ValueError, match=f"argument '{argument}': a teacher"):
    _get(name, f'method=teacher,{argument}')


def test_what_a_teacher_does_not_use_is_said():
  lines = []
  config = _get('movielens', 'method=teacher')
  plan.resolved(config, log=lines.append)
  assert lines == []
  config.data.genre = 'War'
  config.data.unlabelled.source = 'pairs'
  assert plan.resolved(config, log=lines.append).data.genre == ''
  (line,) = lines
  assert "data.genre: 'War' -> ''" in line
  assert "data.unlabelled.source: 'pairs' -> 'none'" in line


def test_arguments():
  args = common.parse('genre=War,fast,n=3', genre='Drama', fast=False, n=1)
  assert args.to_dict() == {'genre': 'War', 'fast': True, 'n': 3}
  assert common.parse('fast=False', fast=True).fast is False
  assert common.parse(None, n=1).n == 1


# Each: an override, and what the one line must say.
WRONG = [
  ({'k': -1}, 'config.k is -1; it must be a whole number from 0 to 1000'),
  (
    {'distill.temperature': 0.0},
    'temperature is 0.0; it must be a number above 0',
  ),
  (
    {'distill.temperature': -1.0},
    'temperature is -1.0; it must be a number above 0',
  ),
  (
    {'distill.weights.interact': -0.1},
    'weights.interact is -0.1; it must be a number at',
  ),
  (
    {'distill.weights.logit': float('nan')},
    'weights.logit is nan; it must be a number at',
  ),
  ({'distill.weights.message': ((0, 1.0), (0, 2.0))}, 'rising steps'),
  ({'distill.weights.message': ((5, 1.0), (0, 2.0))}, 'rising steps'),
  ({'distill.weights.state': ((0, 1.0), (9, -2.0))}, 'values at least 0'),
  ({'distill.weights.state': ()}, 'knots such as'),
  (
    {'distill.weights.hint': 'high'},
    "weights.hint is 'high'; it must be a number at",
  ),
  ({'seeds': 0}, 'config.seeds is 0; it must be a whole number from 1'),
  ({'seed': -1}, 'config.seed is -1; it must be a whole number from 0'),
  (
    {'batch_size': 0},
    'config.batch_size is 0; it must be a whole number from 1',
  ),
  ({'steps': 0}, 'config.steps is 0; it must be a whole number from 1'),
  ({'log_every': 0}, 'config.log_every is 0; it must be a whole number from 1'),
  ({'log_every': 6}, 'eval_every is 4; it must be a multiple of'),
  ({'teacher.batch_size': 0}, 'config.teacher.batch_size is 0'),
  ({'distill.hidden': 0}, 'config.distill.hidden is 0'),
  ({'distill.noise': -0.1}, 'config.distill.noise is -0.1'),
  (
    {'distill.dropout': 1.0},
    'config.distill.dropout is 1.0; it must be a number at least 0 and below 1',
  ),
  (
    {'model.dropout': -0.1},
    'config.model.dropout is -0.1; it must be a number at least 0',
  ),
  ({'teacher.model.unknown_rate': 1.5}, 'config.teacher.model.unknown_rate is'),
  ({'optim.learning_rate': 0.0}, 'config.optim.learning_rate is 0.0'),
  ({'optim.learning_rate': float('nan')}, 'config.optim.learning_rate is nan'),
  ({'optim.weight_decay': -1.0}, 'config.optim.weight_decay is -1.0'),
  ({'optim.clip': float('inf')}, 'config.optim.clip is inf'),
  (
    {'optim.skip_loss_above': 1.0},
    'config.optim.skip_loss_above is 1.0; it must be 0, or a number above 1',
  ),
  ({'model.split': None}, 'model.split is None; it must be two whole numbers'),
  ({'model.split': '12'}, "model.split is '12'; it must be two whole numbers"),
  ({'teacher.model.split': (1, 2, 2)}, 'config.teacher.model.split is'),
  ({'model.hidden': (8, 0)}, 'config.model.hidden is'),
  ({'model.hidden': (8, 4.5)}, 'config.model.hidden is'),
  ({'model.hidden': 'wide'}, "config.model.hidden is 'wide'"),
  ({'model.hidden': None}, 'config.model.hidden is None'),
  ({'stages': (0.5, 1)}, 'config.stages is'),
  ({'stages': (True, False)}, 'config.stages is'),
  ({'optim.warmup': 2**31}, 'optim.warmup is 2147483648; .* to 2147483647'),
  ({'optim.momentum': float('nan')}, 'config.optim.momentum is nan'),
  ({'optim.momentum': -1.0}, 'config.optim.momentum is -1.0'),
  ({'distill.temperature': float('nan')}, 'temperature is nan'),
  ({'distill.temperature': float('inf')}, 'temperature is inf'),
  ({'distill.dkd_beta': ((0, 1.0),)}, 'config.distill.dkd_beta is'),
  ({'seed': 2**64}, 'config.seed is 18446744073709551616'),
  ({'seed': 2**31 - 1}, 'last of 2 students would have a seed above'),
  ({'seeds': 2**31}, 'config.seeds is 2147483648'),
  ({'steps': 2**64}, 'config.steps is 18446744073709551616'),
  ({'k': 2**31}, 'config.k is 2147483648'),
  ({'k': True}, 'config.k is True'),
  ({'test': 1}, 'config.test is 1; it must be True or False'),
  ({'name': 'a\nb'}, r"name is 'a\\nb'; it must be text in one line"),
  ({'data.genre': 'Warr'}, "Did you mean 'War'?"),
  ({'optim.warmup': -1}, 'config.optim.warmup is -1'),
  ({'model.split': (0, 1)}, r'model.split is \(0, 1\).* 1 <= l < h <= 2'),
  ({'model.split': (1, 3)}, r'model.split is \(1, 3\).* 1 <= l < h <= 2'),
  ({'model.split': (2, 2)}, r'model.split is \(2, 2\).* 1 <= l < h <= 2'),
  ({'teacher.model.split': (1, 3)}, r'config.teacher.model.split is \(1, 3\)'),
  ({'stages': (1,)}, r'stages is \(1,\); it must be two whole numbers'),
  ({'stages': (-1, 2)}, r'stages is \(-1, 2\); it must be two whole numbers'),
  ({'stages': (6, 6)}, r'stages is \(6, 6\).* none of config.steps=12'),
  ({'method': 'tdd'}, "config.method is 'tdd'.* Did you mean 'td'?"),
  ({'method': 'fitnets'}, "Did you mean 'fitnet'?"),
  ({'domain': 'movielense'}, "Did you mean 'movielens'?"),
  ({'distill.distance': 'l3'}, 'one of: cosine, kl, l2, pearson'),
  ({'distill.interact_target': 'chain'}, "Did you mean 'chained'?"),
  ({'optim.name': 'adam'}, "Did you mean 'adamw'?"),
  ({'optim.decay': 'cosin'}, "Did you mean 'cosine'?"),
  ({'model.name': 'mpl'}, "Did you mean 'mlp'?"),
  ({'parallel.kind': 'pmab'}, "Did you mean 'pmap'?"),
  ({'parallel.devices': -1}, 'config.parallel.devices is -1'),
  (
    {'data.train_fraction': 0.0},
    r'data.train_fraction is 0.0; .* above 0 and at most 1\.',
  ),
  ({'data.train_fraction': 1.5}, 'data.train_fraction is 1.5'),
]


def _with(config, overrides):
  """The config with values of any type, as a config file may have them."""
  for key, value in overrides.items():
    *blocks, field = key.split('.')
    block = config
    for name in blocks:
      block = block[name]
    with block.ignore_type():
      block[field] = value
  return config


@pytest.mark.parametrize(
  ('overrides', 'said'), WRONG, ids=lambda value: str(value)[:40]
)
def test_what_cannot_work_is_one_line(overrides, said):
  config_lib.validate(conftest.small_config())
  with pytest.raises(errors.ConfigError, match=said) as e:
    config_lib.validate(_with(conftest.small_config(), overrides))
  assert e.value.exit_code == 2
  assert '\n' not in str(e.value)


def test_a_faulty_teacher_does_not_matter_where_none_is_needed():
  config = conftest.small_config('method=scratch')
  config.teacher.model.split = (5, 9)
  config_lib.validate(config)
  config.method = 'td'
  with pytest.raises(errors.ConfigError, match=r'config\.teacher'):
    config_lib.validate(config)


def test_choose():
  assert errors.choose('colour', 'red', ('red', 'blue')) == 'red'
  with pytest.raises(errors.ConfigError) as e:
    errors.choose('colour', 'redd', ('red', 'blue'))
  assert str(e.value) == (
    "colour is 'redd'; choose one of: blue, red. Did you mean 'red'?"
  )
  with pytest.raises(errors.ConfigError, match=r'one of: blue, red\.$'):
    errors.choose('colour', 'xyzzy', ('red', 'blue'))


def test_the_teachers_own_recipe():
  config = _get('movielens', 'genre=War')
  config.teacher.steps = 77
  config.stages = (10, 20)
  own = config_lib.as_teacher(config)
  flat, student = _flat(own), _flat(config)
  for key, value in _flat(config.teacher).items():
    if key not in ('checkpoint', 'build', 'states', 'cache', 'labels'):
      assert flat[key] == value, key
  assert (own.method, own.data.genre, own.seeds) == ('teacher', '', 1)
  assert own.steps == 77
  assert own.data.dir == config.data.dir
  # Stages are the student's and the communication's: a teacher has neither.
  assert own.stages == (0, 0)
  assert student['stages'] == (10, 20)  # And the student's config is as it was.
  assert config.method == 'td'


def test_difference():
  config = conftest.small_config()
  stored = config_lib.json.loads(config_lib.to_json(config))
  assert config_lib.difference(stored, config) == []
  config.k, config.model.dropout = 2, 0.25
  config.parallel.devices, config.data.dir = 4, '/x'
  del stored['seeds']
  assert config_lib.difference(stored, config) == [
    'k: 1 -> 2',
    'model.dropout: 0.1 -> 0.25',
    "seeds: 'absent' -> 2",
  ]


@pytest.mark.parametrize('stored', [{'optim': 1}, {'teacher': 2}, {}])
def test_a_damaged_config_is_completed_as_it_is(stored):
  assert config_lib.upgraded(dict(stored)) == stored


def test_own_configs_lack_keys():
  config = conftest.small_config()
  del config.distill['noise']
  with pytest.raises(errors.ConfigError, match=r"no key 'distill\.noise'"):
    config_lib.validate(config)
  config = conftest.small_config()
  del config.optim
  with pytest.raises(errors.ConfigError, match=r"no key 'optim\."):
    config_lib.validate(config)


@pytest.mark.parametrize(
  ('block', 'key', 'near'),
  [
    ('distill.weights', 'logti', 'distill.weights.logit'),
    ('', 'batchsize', 'batch_size'),
    ('teacher', 'batchsize', 'teacher.batch_size'),
    ('data', 'gener', 'data.genre'),
    ('parallel', 'device', 'parallel.devices'),
  ],
)
def test_own_configs_misspell_keys(block, key, near):
  config = conftest.small_config()
  place = config
  for name in filter(None, block.split('.')):
    place = place[name]
  with config.unlocked():
    place[key] = 1
  with pytest.raises(errors.ConfigError, match=f"Did you mean '{near}'"):
    config_lib.validate(config)
