"""td_jax.distill: arrays and modules of the caller, through the same train loop."""

from flax import linen as nn
import jax
from jax import numpy as jnp
import numpy as np
import pytest

import td_jax
from td_jax import errors
from td_jax.data import arrays
from td_jax.methods import talk
from td_jax.run import preemption
from td_jax.run import results as results_lib
from td_jax.use import distill as distill_lib

pytestmark = pytest.mark.long  # `.ci/run` runs it on one Python.

_QUIET = {'log': lambda line: None}
_SHORT = {'steps': 6, 'batch_size': 8, **_QUIET}


class Net(nn.Module):
  """Two hidden states, and dropout that a test can see."""

  classes: int = 3
  dropout: float = 0.0

  def setup(self):
    self.first, self.second = nn.Dense(7), nn.Dense(5)
    self.drop = nn.Dropout(self.dropout)
    self.head = nn.Dense(self.classes or 1)

  def low(self, x):
    return nn.relu(self.first(x))

  def interpret(self, low, train):
    return self.drop(nn.relu(self.second(low)), deterministic=not train)

  def output(self, high):
    output = self.head(high)
    return output if self.classes else output[:, 0]

  def __call__(self, x):
    return self.output(self.interpret(self.low(x), False))


class Plain(nn.Module):
  """An output alone."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3)(x)


def _examples(count, seed=0):
  """(x [n, 4], classes [n]): the class is the largest of three of the inputs."""
  x = np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)
  return x, x[:, :3].argmax(axis=1)


def _oracle():
  """A teacher that knows the answer, with states of its own."""
  return td_jax.Frozen(
    {'scale': jnp.float32(5)},
    output=lambda params, high: params['scale'] * high[:, :3],
    low=lambda params, x: x,
    interpret=lambda params, low: low,
  )


def test_a_student_learns_from_examples_without_a_label():
  """Twelve labels do not tell the rule; the oracle's outputs elsewhere do."""
  x, y = _examples(12)
  more, _ = _examples(400, seed=1)
  options = {
    'validation': _examples(60, seed=2),
    'test': _examples(200, seed=3),
    'steps': 300,
    'learning_rate': 1e-2,
    **_QUIET,
  }
  alone = td_jax.distill(None, Plain(), x, y, method='scratch', **options)
  taught = td_jax.distill(
    _oracle(), Plain(), x, y, unlabelled=more, weights={'logit': 5.0}, **options
  )
  assert alone.results['test']['mean'] < 0.85 < taught.results['test']['mean']
  assert taught.results['teachers']['teacher']['test'] == 1
  assert taught.results['unlabelled'] == 400
  # What it predicts is what was scored.
  test_x, test_y = options['test']
  predicted = taught.predict(test_x, batch=64)
  assert np.mean(predicted.argmax(axis=1) == test_y) == pytest.approx(
    taught.results['test']['mean']
  )
  # The variables are those of the caller's own module.
  np.testing.assert_allclose(
    Plain().apply(taught.variables, test_x), predicted, rtol=1e-6
  )


@pytest.mark.parametrize('method', ['fd', 'fitnet', 'td_ld'])
def test_every_method(method):
  x, y = _examples(40)
  student = td_jax.distill(
    _oracle(), Net(dropout=0.5), x, y, method=method, k=2, seeds=2, **_SHORT
  )
  assert student.results['label'] == (
    'td_ld, k=2' if method == 'td_ld' else method
  )
  assert len(student.results['validation']['per_seed']) == 2
  assert student.predict(x).shape == (40, 3)


def test_dropout_is_on_in_training_and_off_in_predictions():
  x, y = _examples(40)

  def trained(dropout):
    net = Net(dropout=dropout)
    return td_jax.distill(None, net, x, y, method='scratch', **_SHORT)

  dropped, whole = trained(0.9), trained(0.0)
  kernels = [
    student.variables['params']['second']['kernel']
    for student in (dropped, whole)
  ]
  assert not np.allclose(*kernels, atol=1e-4)
  np.testing.assert_array_equal(dropped.predict(x), dropped.predict(x))


def test_a_student_is_known_in_another_process():
  """There its functions lie elsewhere in memory."""
  one, same, other = (
    distill_lib._described(nn.Sequential([nn.Dense(n), lambda x: x]))
    for n in (3, 3, 4)
  )
  assert one == same != other
  assert '0x' not in one


def test_numbers_are_a_regression_and_the_best_seed_is_returned():
  x, _ = _examples(60)
  y = 100 * x[:, 0] + 7
  student = td_jax.distill(
    None, Net(classes=0), x, y, method='scratch', seeds=3, **_SHORT
  )
  scores = student.results['validation']['per_seed']
  held_out = np.arange(60) % 10 == 9
  error = student.predict(x[held_out]) - y[held_out]
  assert np.sqrt(np.mean(error**2)) == pytest.approx(min(scores), rel=1e-5)
  mean = y[~held_out].mean()
  assert student.results['baselines']['mean']['validation'] == pytest.approx(
    np.sqrt(np.mean((y[held_out] - mean) ** 2)), rel=1e-5
  )


def test_the_same_call_resumes(tmp_path, monkeypatch):
  x, y = _examples(40)

  def run(folder):
    return td_jax.distill(
      _oracle(), Net(), x, y, workdir=folder, **_SHORT | {'steps': 40}
    )

  whole = run(tmp_path / 'whole')
  asked = iter(range(100))
  monkeypatch.setattr(
    preemption.Watch, 'requested', property(lambda self: next(asked) > 4)
  )
  with pytest.raises(errors.PreemptedError):
    run(tmp_path / 'parts')
  monkeypatch.undo()
  lines = []
  again = td_jax.distill(
    _oracle(),
    Net(),
    x,
    y,
    workdir=tmp_path / 'parts',
    **_SHORT | {'steps': 40, 'log': lines.append},
  )
  assert any('resum' in line for line in lines)
  jax.tree.map(np.testing.assert_array_equal, whole.variables, again.variables)
  stored = results_lib.read(tmp_path / 'parts')
  assert stored['validation'] == whole.results['validation']
  with pytest.raises(errors.ConfigError, match=r'a run of td_jax\.distill'):
    td_jax.load(tmp_path / 'parts')
  for changes, message in (
    ({'teacher': _oracle()._replace(params={'scale': -5.0})}, 'otherwise: '),
    ({'student': Net(dropout=0.5)}, 'another config'),
  ):
    arguments = {'teacher': _oracle(), 'student': Net(), 'x': x, 'y': y}
    with pytest.raises(errors.TdError, match=message):
      td_jax.distill(
        **arguments | changes,
        workdir=tmp_path / 'parts',
        **_SHORT | {'steps': 40},
      )
  other, _ = _examples(40, seed=9)
  with pytest.raises(errors.TdError, match='other data'):
    td_jax.distill(
      _oracle(),
      Net(),
      other,
      y,
      workdir=tmp_path / 'parts',
      **_SHORT | {'steps': 40},
    )


class Normed(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    x = nn.BatchNorm(use_running_average=not train)(x)
    return nn.Dense(3)(x)


_X, _Y = _examples(20)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'method': 'tdd'}, "method is 'tdd'; choose one of.*Did you mean 'td'"),
    ({'teacher': None}, "method is 'ld', which needs a teacher"),
    ({'teacher': 3}, r'the teacher does not fit: it is int; it must be a td'),
    ({'student': Plain(), 'method': 'td'}, 'has __call__ alone, but method'),
    ({'student': Normed()}, 'variables batch_stats, which no step updates'),
    ({'student': Net(classes=4)}, r'shape \[b, 4\]; it must be \[b, 3\], for'),
    ({'x': _X[:, :2]}, r'an input of test is float32\[4\], and one of train'),
    ({'x': _X[:9]}, 'inputs of 9 examples and 20 labels'),
    ({'y': _Y.astype(str)}, 'the labels of the training examples are <U'),
    ({'y': _Y.astype(float)}, 'integers in one split and floats in another'),
    ({'x': _X[:5], 'y': _Y[:5]}, 'give validation='),
    ({'test': (_X, _Y + 1)}, r'labels of test go up to 3; those of train'),
    ({'unlabelled': _X[:, :2]}, 'an input of unlabelled is'),
    ({'weights': {'logits': 1.0}}, "weights is 'logits'.*Did you mean 'logit'"),
    ({'distill.temperatur': 1.0}, "Did you mean 'distill.temperature'"),
    ({'k': 'two'}, "the setting 'k' is 'two'"),
    ({'optim.clip': 10**400}, "the setting 'optim.clip' is 1"),
    ({'steps': 0}, 'steps is 0; it must be a whole number from 1'),
    ({'student': Net}, r'it must be a Linen module, such as MyNet\(\)'),
    (
      {'x': _X * np.nan},
      'are not finite in 20 of 20 examples, first in number 0',
    ),
    ({'test': (_X * np.inf, _Y)}, 'the inputs of test are not finite'),
    ({'x': None}, 'have leaves of no examples'),
    ({'x': 3.0}, 'they must be numbers'),
    ({'x': {'a': _X, 'b': _X[:3]}}, 'leaves of 3, 20 examples'),
    ({'x': _X * 1j}, 'have complex64'),
    ({'y': _Y - 1}, 'are -1 to 1; integers are classes, which count from 0'),
    ({'y': _Y + 2**40}, 'integers are classes'),
    ({'unlabelled': _X[:0]}, 'unlabelled has no examples'),
    ({'data.labels.share': 0.5}, 'a setting of td_jax.distill is'),
    ({'domain': 'movielens'}, 'a setting of td_jax.distill is'),
    (
      {'teacher': td_jax.Frozen({}, lambda _, x: {'logits': x})},
      'its output is dict; it must be one array',
    ),
  ],
)
def test_arguments_that_cannot_work(changes, message):
  arguments = {
    'teacher': _oracle(),
    'student': Net(),
    'x': _X,
    'y': _Y,
    'test': (_X, _Y),
    **_SHORT,
    **changes,
  }
  with pytest.raises(errors.ConfigError, match=message) as caught:
    td_jax.distill(**arguments)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('params', [{}, None, {'scale': 5.0}, 5.0])
def test_parameters_may_be_anything(params):
  """Also none at all, where a function has what it needs in itself."""
  x, y = _examples(20)
  teacher = td_jax.Frozen(params, lambda params, x: 5 * x[:, :3])
  student = td_jax.distill(teacher, Plain(), x.tolist(), y, **_SHORT)
  assert student.results['teachers']['teacher']['validation'] == 1
  assert student.predict(x[:0]).shape == (0, 3)
  with pytest.raises(errors.ConfigError, match=r'an input of these is'):
    student.predict(x[0])


def test_arguments_of_another_type():
  """Tests check all types; a user's call does not."""
  assert distill_lib._number('steps', np.int64(4), int) == 4
  with pytest.raises(
    errors.ConfigError, match=r'steps is 4\.5; it must be a wh'
  ):
    distill_lib._number('steps', 4.5, int)
  with pytest.raises(
    errors.ConfigError, match="rate is 'big'; it must be a num"
  ):
    distill_lib._number('rate', 'big', float)
  with pytest.raises(errors.ConfigError, match=r'test is bool; it must be \(x'):
    arrays.examples('test', True)


def test_what_the_package_offers():
  assert td_jax.converse is talk.converse
  assert td_jax.methods.METHODS and td_jax.losses.DISTANCES
  with pytest.raises(AttributeError, match='no attribute'):
    _ = td_jax.distil
