"""Fills in what a config leaves to its data and to its teacher's weights."""

import os
from typing import Any

from td_jax import data
from td_jax import errors
from td_jax import models
from td_jax import types
from td_jax.data import preprocess
from td_jax.models import pretrained
from td_jax.run import config_keys
from td_jax.run import saved
from td_jax.run import workdir
from td_jax.storage import paths

# What no weights determine; the second line is the student's own.
_RUNNING = ('name', 'split', 'dropout', 'dtype', 'remat', 'scan')
_STUDENTS = ('depth', 'pooling', 'pre_logits_width')
_PATCHES = 8  # On each side of an image, if its size is not given.


def complete(config: types.Config, *, log: types.Log) -> types.Config:
  """A copy of `config` that leaves nothing open.

  Args:
    config: What may be open: `data.classes`, the names of splits, and with
      `teacher.as_stored` the networks and the size and scale of images. Nothing
      that it states is changed.
    log: Receives lines about what was found.

  Raises:
    errors.ConfigError: It is not known where to look.
    errors.DataError: The data or the teacher cannot be read.
  """
  config = config.copy_and_resolve_references()
  config_keys.check(config)
  config.teacher.checkpoint = os.path.expanduser(config.teacher.checkpoint)
  if config.teacher.get('as_stored', False):
    own = config.teacher.build or config.teacher.states
    if not config.teacher.checkpoint and own:
      raise errors.ConfigError(
        f'config.teacher names {own!r}; give it after the colon, which also chooses a '
        f'student for it: --config={config.name}:data=DIR,teacher=FILE.py:function, '
        'or states=FILE.npz.'
      )
    if not config.teacher.checkpoint:
      raise errors.ConfigError(
        f'{config.name} needs a teacher: give its weights as --config='
        f'{config.name}:data=DIR,teacher=DIR_OR_NPZ.'
      )
    _take_over(config, log)
  _make_absolute(config.teacher)
  data.DOMAINS[config.domain].complete(config, log)
  return config


def _make_absolute(teacher: types.Config) -> None:
  """Names the files of an own teacher independently of the current directory."""
  if teacher.states:
    teacher.states = paths.absolute(os.path.expanduser(teacher.states))
  module, _, function = teacher.build.rpartition(':')
  if module.endswith('.py'):
    file = paths.absolute(os.path.expanduser(module))
    teacher.build = f'{file}:{function}'


def _take_over(config: types.Config, log: types.Log) -> None:
  """Completes networks and images by the weights of the teacher, in place."""
  stored, scale = _stored(config)
  teacher, student = config.teacher.model, config.model
  teacher.update(stored)
  _fit_split('config.teacher.model', teacher, log)
  for key, value in stored.items():
    # A student may be narrower than its teacher.
    stated = key in ('width', 'heads', 'mlp_width') and student[key]
    if key not in _STUDENTS and not stated:
      student[key] = value
  if student.depth > teacher.depth:
    log(
      f'config.model.depth is {student.depth}, and becomes {teacher.depth}, the depth '
      'of the teacher'
    )
    student.depth = teacher.depth
  _fit_split('config.model', student, log)
  if teacher.class_token == 'none':
    student.pooling = 'mean'
  images = config.data
  if not images.size:
    images.size = images.smaller_side = _PATCHES * teacher.patch
  mean, std = scale or preprocess.SYMMETRIC
  images.mean, images.std = images.mean or mean, images.std or std


def _stored(
  config: types.Config,
) -> tuple[dict[str, Any], tuple[Any, Any] | None]:
  """(settings of the teacher's network, scale of its images if known)."""
  folder = config.teacher.checkpoint
  if pretrained.is_published(folder):
    reader, _ = models.published_reader(config)
    settings, scale = reader.describe(folder)
  else:
    if not (paths.as_path(folder) / workdir.CONFIG).exists():
      if folder.endswith('.py'):
        raise errors.ConfigError(
          f'the teacher {folder!r} lacks the function that makes it; write '
          f'teacher={folder}:function.'
        )
      raise errors.DataError(
        f'the teacher {folder!r} is neither published weights (a .npz file, or a '
        'folder with config.json and model.safetensors) nor the folder of a run; '
        '`td_jax teacher` lists ways to one.'
      )
    run = saved.config_of(paths.as_path(folder))
    settings, scale = run.model.to_dict(), (run.data.mean, run.data.std)
  return {
    key: value for key, value in settings.items() if key not in _RUNNING
  }, scale


def _fit_split(name: str, network: types.Config, log: types.Log) -> None:
  """Splits `network` in the middle and at the end, where its own split is none."""
  low, high = network.split
  if 1 <= low < high <= network.depth:
    return
  network.split = (max(network.depth // 2, 1), network.depth)
  if (low, high) != (0, 0):  # Which the config says where nobody has chosen.
    log(
      f'{name}.split is ({low}, {high}), which {network.depth} blocks do not have, '
      f'and becomes {tuple(network.split)}'
    )
