"""The study of the conversation: its configs, its trials and its page."""

import json

import pytest

from td_jax.run import config as config_lib
from td_jax.study import conversation
from td_jax.study import conversation_images
from td_jax.study import conversation_page
from td_jax.study import conversation_ratings
from td_jax.study import conversation_rows

CASES = [
  (design, regime, row, column)
  for design in conversation.DESIGNS.values()
  for regime, row in design.rows()
  for column in (design.COLUMNS[0], design.HELD_BACK[-1])
]
RATINGS = conversation_ratings.Regime(0.05, 'rest')


@pytest.mark.parametrize(('design', 'regime', 'row', 'column'), CASES)
def test_configs_are_valid(design, regime, row, column):
  trials = design.trials(row, design.TRIALS)
  assert len({json.dumps(trial) for trial in trials}) == design.TRIALS
  config = design.config(
    regime, row, column, seeds=range(2), teacher='DIR', weights=trials[0]
  )
  config_lib.validate(config)
  variant = conversation_rows.VARIANTS[row]
  assert config.method == variant.method
  for key, value in (variant.changes | trials[0]).items():
    *folders, name = key.split('.')
    node = config
    for folder in folders:
      node = node[folder]
    assert node[name] == value
  source = config.data.unlabelled.source
  if row == conversation_rows.MIXED_INPUTS:
    assert source in ('mixtures', 'pairs')
  else:
    assert source == getattr(regime, 'unlabelled', 'none')


@pytest.mark.parametrize('design', conversation.DESIGNS.values())
def test_nothing_is_chosen_by_what_is_held_back(design):
  assert not set(design.TUNED_ON) & set(design.HELD_BACK)
  assert set(design.TUNED_ON) | set(design.HELD_BACK) <= set(design.COLUMNS)
  for regime, row in design.rows():
    assert design.tuned_as(regime, row) == (regime, row)
    # What a row is compared with changes one key of the config less.
    variant = conversation_rows.VARIANTS[row]
    if variant.against:
      other = conversation_rows.VARIANTS[variant.against]
      changed = dict(variant.changes).items() ^ dict(other.changes).items()
      one_method = variant.method == other.method
      assert len({key for key, _ in changed}) <= 1 or not one_method


def _cells(row, scores, *, extra=0.0):
  """Cells of every genre; `extra` is added to those held back."""
  return [
    {
      'regime': RATINGS._asdict(),
      'row': row,
      'column': column,
      'draw': draw,
      'seconds': 20.0 if row == 'ask' else 10.0,
      'weights': {'distill.weights.logit': 3.0},
      'terms': {'ask/channel_state': [0.7, 0.9]}
      if row == 'ask'
      else {'loss': [1.0]},
      **{
        split: {
          'per_seed': [
            score + extra * (column in conversation_ratings.HELD_BACK)
          ]
        }
        for split in ('validation', 'test')
      },
    }
    for column in conversation_ratings.COLUMNS
    for draw, score in enumerate(scores)
  ]


def _rows():
  return [
    *_cells('ld', [1.0, 1.0, 1.0, 1.0, 1.0]),
    *_cells('ask', [0.98, 0.97, 0.98, 0.97, 0.98], extra=0.1),
    # Not with every choice of labels.
    *_cells('mix', [0.5]),
  ]


def test_the_page_by_hand():
  page = conversation_page.page({'ratings': _rows(), 'images': []}, 'Found.')
  assert '\nFound.\n' in page
  # 0.976 in six genres, and 0.1 more in two: -0.076 of LD, better in 6 of 8.
  assert (
    '| Questions in messages, between inputs | 0.9760 ± 0.0024 | 1.0760 ± 0.0024 '
    '| -0.0760 ± 0.0024 (p = 6.4e-06; 6 of 8) |  | 2.0 |'
  ) in page
  assert '| LD: the outputs on the inputs | 1.0000 ± 0.0000 |' in page
  assert '| Questions in messages, between inputs | 0.8000 ± 0.0000 |' in page
  assert 'Mixed states' not in page
  assert 'CIFAR' not in page


def test_rendering_keeps_the_findings(tmp_path):
  (tmp_path / 'conversation_findings.md').write_text('Words by hand.\n')
  conversation_page.render({'ratings': _rows(), 'images': []}, tmp_path)
  assert 'Words by hand.' in (tmp_path / 'conversation.md').read_text()
  assert (tmp_path / 'conversation.png').read_bytes()[1:4] == b'PNG'


def test_images_are_those_of_the_laptop():
  (regime, row), *_ = conversation_images.rows()
  config = conversation_images.config(
    regime, row, 'cifar100', seeds=range(1), teacher='DIR', weights={}
  )
  assert config.steps == 320
  assert config.data.labels.per_class == 50
