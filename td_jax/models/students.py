"""How a student ViT starts: from some of the teacher's layers (section 6.2).

Pure functions of parameters, so they work under jit, and under vmap over the
seeds of students.
"""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

from td_jax import errors
from td_jax.models import vit

# What must be the same for a block to mean the same in another network.
_SAME = (
  'width',
  'heads',
  'mlp_width',
  'patch',
  'class_token',
  'position',
  'gelu',
  'eps',
)


def _first_n(*, blocks: int, of: int) -> list[int]:
  del of  # The first are the same in a teacher of any depth.
  return list(range(blocks))


def _uniform(*, blocks: int, of: int) -> list[int]:
  """The first, the last and others as evenly between as whole numbers allow.

  4 of 12: 0, 4, 7, 11.
  """
  return [round(i * (of - 1) / max(blocks - 1, 1)) for i in range(blocks)]


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
  """A student's variables, with layers of the teacher in place of its own.

  Args:
    kind: Of `INITS`. `first_n` and `uniform` take the teacher's embeddings,
      as many of its blocks as the student has, and its final LayerNorm;
      `random` takes nothing.
    variables: As `student.init` makes them; what is not taken stays: the
      head, pre-logits and a pool that attends.
    student: Its `scan` may differ from the teacher's.
    teacher: The network of `teacher_variables`.
    teacher_variables: The teacher's, for images of the student's size.

  Returns:
    Variables of the student.

  Raises:
    errors.ConfigError: there is no such kind, or the teacher's layers do not
      fit into the student.
  """
  choose = INITS[errors.choose('student_init', kind, INITS)]
  if choose is None:
    return variables
  _check(kind, student, teacher)
  theirs, own = teacher_variables, variables
  theirs = vit.unstack(theirs) if vit.is_stacked(theirs) else theirs
  own = vit.unstack(own) if vit.is_stacked(own) else own
  taken = {name: theirs['params'][name] for name in ('embed', 'norm')}
  for i, layer in enumerate(choose(blocks=student.depth, of=teacher.depth)):
    taken[f'blocks_{i}'] = theirs['params'][f'blocks_{layer}']
  if student.position == 'learned':
    sizes = [
      tree['params']['embed']['position'].shape for tree in (own, theirs)
    ]
    if sizes[0] != sizes[1]:
      raise errors.ConfigError(
        f"student_init is {kind!r}, but the student's positions are "
        f"{sizes[0]} and the teacher's {sizes[1]}; show both images of one "
        "size, or take 'random'."
      )
  made = {'params': {**own['params'], **taken}}
  return vit.stack(made) if student.scan else made


def _check(kind, student, teacher):
  pairs = {
    field: (getattr(student, field), getattr(teacher, field)) for field in _SAME
  }
  # Whether there is one matters; its first value does not.
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
      f"and the teacher {teacher.depth}; take at most as many, or 'random'."
    )
