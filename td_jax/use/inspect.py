"""td_jax inspect RUN|TEACHER: what a network costs, beside its teacher.

td_jax inspect runs/flowers
td_jax inspect dinov2-small --size=224
"""

import argparse
from collections.abc import Mapping
from collections.abc import Sequence

import jax
from jax import numpy as jnp

from td_jax import errors
from td_jax import models
from td_jax import types
from td_jax.models import pretrained
from td_jax.run import command_line
from td_jax.run import summary
from td_jax.run import teachers
from td_jax.run import terminal
from td_jax.use import cost
from td_jax.use import student as student_lib


def of_run(student: student_lib.Student) -> dict[str, cost.Cost]:
  """The costs of a student, and of its teacher if it has one."""
  x = student.preprocess([student.preprocess.blank])
  costs = {'student': cost.measure(student.model, student.variables, x)}
  if student.results['teachers']:
    costs |= _of_teacher(student, x)
  return costs


def _of_teacher(
  student: student_lib.Student, x: types.PyTree
) -> dict[str, cost.Cost]:
  build = student.config.teacher.build
  if student.config.teacher.states:
    return {}
  if build:
    try:
      model, variables = teachers.built(build)
    except errors.ConfigError:
      return {}  # The user's function may be gone, and the student does without.
    return {types.TEACHER: cost.measure(model, variables, x)}
  # A cost does not depend on the weights, which may lie elsewhere.
  model = models.build(student.config.teacher.model, student.model_args)
  init = jax.jit(lambda x: model.init(jax.random.key(0), x, train=False))
  return {types.TEACHER: cost.measure(model, init(x), x)}


def of_published(folder: str, *, size: int) -> dict[str, cost.Cost]:
  """The cost of published weights on images of `size` pixels."""
  settings, variables, _ = pretrained.load(folder, image_size=size)
  model = models.NETWORKS['vit'].module(**settings, **pretrained.RUNNING)
  x = jnp.zeros((1, size, size, 3))
  return {folder: cost.measure(model, variables, x)}


def text(title: str, costs: Mapping[str, cost.Cost]) -> str:
  """The costs as a table for a terminal."""
  return '\n'.join([title, *summary.aligned(cost.table(costs))])


def _command(args: argparse.Namespace, log: types.Log) -> None:
  del log  # There is nothing to wait for.
  device = f'on {jax.devices()[0].device_kind}'
  if pretrained.is_published(args.folder):
    title = f'{args.folder}, {args.size} pixels, {device}'
    terminal.show(text(title, of_published(args.folder, size=args.size)))
    return
  student = student_lib.load(args.folder)
  results = student.results
  title = f'{results["task"]}, {results["label"]}, {device}'
  terminal.show(text(title, of_run(student)))


def main(argv: Sequence[str]) -> None:
  """Runs `td_jax inspect` with the words after it."""
  parser = command_line.Parser(
    prog='td_jax inspect', description='Show what a network costs.'
  )
  parser.add_argument(
    'folder',
    help='a finished run, or published weights: a folder or a .npz file',
  )
  parser.add_argument(
    '--size',
    default=224,
    type=command_line.positive,
    help='pixels, for published weights',
  )
  command_line.run(parser, _command, argv)
