"""Traces, Weights & Biases: what a run does beside training."""

import json
import sys
import types

import numpy as np
import pytest

from td_jax import errors
from td_jax.configs import table as table_config
from td_jax.run import pipeline
from td_jax.run import preemption
from td_jax.run import profile

_STEPS = {'steps': 12, 'steps_per_dispatch': 2, 'log_every': 4, 'eval_every': 4}


@pytest.fixture
def config(tmp_path):
  """A run of a few steps on a table."""
  x = np.random.default_rng(0).normal(size=50)
  lines = [f'{a:.3f},{2 * a:.3f}' for a in x]
  (tmp_path / 'table.csv').write_text('\n'.join(['a,b', *lines]) + '\n')
  made = table_config.get_config(
    f'data={tmp_path / "table.csv"},target=b,method=scratch,runlocal'
  )
  made.update({**_STEPS, 'seeds': 1})
  return made


def _run(config, path, **options):
  lines = []
  pipeline.run(
    config,
    path,
    watch=preemption.Watch(signals=()),
    log=lines.append,
    **options,
  )
  return lines


def test_some_steps_are_traced(config, tmp_path):
  path = tmp_path / 'run'
  lines = _run(config, path, profile=profile.parse('3:6'))
  assert list((path / 'profile').rglob('*.xplane.pb'))
  (end,) = (i for i, line in enumerate(lines) if line.startswith('trace in '))
  # It ends with its steps, not with the run.
  assert any('step 12/12' in line for line in lines[end:])
  # A trace that the run does not reach the end of is written all the same.
  lines = _run(config, tmp_path / 'other', profile=profile.parse('10:99'))
  assert list((tmp_path / 'other' / 'profile').rglob('*.xplane.pb'))


@pytest.mark.parametrize('text', ['3', '6:3', '3:3', 'a:b', '3:-4'])
def test_steps_that_cannot_be_traced(text):
  with pytest.raises(errors.ConfigError, match=f"--profile is '{text}'"):
    profile.parse(text)
  assert profile.parse('') is None


def test_weights_and_biases_get_the_rows(config, tmp_path, monkeypatch):
  logged, started = [], {}
  run = types.SimpleNamespace(
    log=lambda values, step: logged.append((step, values)),
    finish=lambda: logged.append('finished'),
  )

  def init(**arguments):
    started.update(arguments)
    return run

  monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
  config.wandb = 'houses'
  _run(config, tmp_path / 'run')
  assert logged.pop() == 'finished'
  text = (tmp_path / 'run' / 'metrics.jsonl').read_text()
  rows = [json.loads(line) for line in text.splitlines()]
  assert [step for step, _ in logged] == [row['step'] for row in rows]
  assert logged[0][1]['loss'] == pytest.approx(np.mean(rows[0]['loss']))
  assert (started['project'], started['name']) == ('houses', 'run')
  assert started['config']['steps'] == 12 and started['resume'] == 'allow'
  # A resumed run goes on in the same place, and its project may change.
  monkeypatch.setitem(sys.modules, 'wandb', None)
  config.wandb = 'other'
  with pytest.raises(errors.ConfigError, match="'other', which takes pip inst"):
    _run(config, tmp_path / 'new')
