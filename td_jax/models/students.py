"""Initialises a student ViT from some of its teacher's layers (section 6.2).

All functions are pure in the parameters. They work under jit, and under vmap
over the seeds of students.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from td_jax import errors
from td_jax.models import vit

# A block computes the same in another network only if these settings agree.
_MUST_AGREE = (
  'width',
  'heads',
  'mlp_width',
  'patch',
  'class_token',
  'registers',
  'position',
  'pre_norm',
  'mlp',
  'gelu',
  'eps',
)


def _first_n(*, depth: int, teacher_depth: int) -> list[int]:
  """The teacher's first `depth` blocks."""
  del teacher_depth  # The first blocks do not depend on it.
  return list(range(depth))


def _uniform(*, depth: int, teacher_depth: int) -> list[int]:
  """The first block, the last, and the rest evenly spaced between them.

  For 4 of 12 blocks: 0, 4, 7, 11.
  """
  last = teacher_depth - 1
  return [round(i * last / max(depth - 1, 1)) for i in range(depth)]


# (depth=, teacher_depth=) -> the teacher's blocks that the student copies;
# None if it copies nothing.
INITS: dict[str, Callable[..., list[int]] | None] = {
  'first_n': _first_n,
  'uniform': _uniform,
  'random': None,
}


def initialise(
  kind: str,
  variables: Mapping[str, Any],
  *,
  student: vit.ViT,
  teacher: vit.ViT,
  teacher_variables: Mapping[str, Any],
) -> Mapping[str, Any]:
  """Replaces layers in a student's variables by layers of the teacher.

  Args:
    kind: A key of `INITS`. `first_n` and `uniform` copy the teacher's
      embeddings, as many of its blocks as the student has, and its final
      LayerNorm. `random` copies nothing.
    variables: The result of `student.init`. The head, pre-logits and an
      attention pool stay as they are.
    student: The network of `variables`; its `scan` may differ from the
      teacher's.
    teacher: The network of `teacher_variables`.
    teacher_variables: The teacher's variables, for images of the student's
      size.

  Returns:
    The student's new variables.

  Raises:
    errors.ConfigError: `kind` does not exist, or the teacher's layers do not
      fit into the student.
  """
  choose = INITS[errors.choose('student_init', kind, INITS)]
  if choose is None:
    return variables
  check(kind, student, teacher)
  student_params = _unstacked(variables)
  teacher_params = _unstacked(teacher_variables)
  _check_positions(kind, student, student_params, teacher_params)
  copied = {name: teacher_params[name] for name in ('embed', 'norm')}
  blocks = choose(depth=student.depth, teacher_depth=teacher.depth)
  for i, block in enumerate(blocks):
    copied[f'blocks_{i}'] = teacher_params[f'blocks_{block}']
  result = {'params': {**student_params, **copied}}
  return vit.stack(result) if student.scan else result


def _unstacked(variables: Mapping[str, Any]) -> Mapping[str, Any]:
  """The parameters as with `scan=False`: one entry for each block."""
  if vit.is_stacked(variables):
    variables = vit.unstack(variables)
  return variables['params']


def check(kind: str, student: Any, teacher: Any) -> None:
  """Raises a ConfigError if the teacher's layers do not fit into the student.

  Args:
    kind: A key of `INITS`, other than `random`.
    student: A `ViT`, or a block of a config with the same fields.
    teacher: Likewise.
  """
  pairs = {
    field: (getattr(student, field), getattr(teacher, field))
    for field in _MUST_AGREE
  }
  # Only its presence must agree: the initial value is replaced by a copy.
  pairs['layer_scale'] = bool(student.layer_scale), bool(teacher.layer_scale)
  for field, (ours, theirs) in pairs.items():
    if ours != theirs:
      raise errors.ConfigError(
        f"student_init is {kind!r}, but the student's {field} is {ours!r} and "
        f"the teacher's {theirs!r}; make them the same, or take 'random'."
      )
  if student.depth > teacher.depth:
    raise errors.ConfigError(
      f'student_init is {kind!r}, but the student has {student.depth} blocks '
      f'and the teacher {teacher.depth}; give the student at most '
      f"{teacher.depth}, or take 'random'."
    )


def _check_positions(
  kind: str,
  student: vit.ViT,
  student_params: Mapping[str, Any],
  teacher_params: Mapping[str, Any],
) -> None:
  if student.position != 'learned':
    return
  ours, theirs = (
    params['embed']['position'].shape
    for params in (student_params, teacher_params)
  )
  if ours != theirs:
    raise errors.ConfigError(
      f"student_init is {kind!r}, but the student's position table has shape "
      f"{ours} and the teacher's {theirs}; give both networks images of one "
      "size, or take 'random'."
    )
