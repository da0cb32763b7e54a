"""What `movielens`, `ratings` and `table` share: their networks and recipes."""

from typing import Any

from td_jax.configs import common


def config(method: str, *, runlocal: bool) -> Any:
  """A config without its `name` and `data`.

  Args:
    method: A method, or `teacher`.
    runlocal: Whether the run is shortened to a few steps.
  """
  cfg: Any = common.run()
  cfg.domain = 'table'
  cfg.method = method
  cfg.seeds = 3
  learners(cfg, steps=1000)
  cfg.teacher.checkpoint = ''  # Folder of a teacher's run; '': train one.
  cfg.teacher.update(common.own_teacher())
  # all: the teacher learns from all labels; kept: those that `data.labels` hides
  # from the students are hidden from it too.
  cfg.teacher.labels = 'kept'
  # Whether the teacher's states are computed once, before training: faster, but 3 KB
  # for each row.
  cfg.teacher.cache = False
  if runlocal:
    shorten(cfg)
  return cfg


def check_task(method: str, **argument: str) -> None:
  """Raises a ValueError if a teacher, who learns all rows, is given a task."""
  ((name, value),) = argument.items()
  if method == 'teacher' and value:
    raise ValueError(
      f"config argument '{name}={value}': a teacher learns the rows of every {name}; "
      'leave it out, or choose another method.'
    )


def learners(cfg: Any, *, steps: int) -> None:
  """Adds a small student, which trains for `steps`, and a large teacher."""
  cfg.update(
    common.learner(
      common.mlp(hidden=(128, 64), dropout=0.1, unknown_rate=0.2),
      steps=steps,
      batch_size=256,
      optimizer_name='adamw',
      learning_rate=1e-3,
      weight_decay=0.3,
      clip=0.0,
    )
  )
  cfg.teacher = common.learner(
    common.mlp(hidden=(512, 256), dropout=0.5, unknown_rate=0.1),
    steps=1000,
    batch_size=512,
    optimizer_name='adamw',
    learning_rate=1e-3,
    weight_decay=1.0,
    clip=0.0,
  )


def shorten(cfg: Any) -> None:
  """Makes a run one of seconds, to see it work."""
  cfg.seeds = 2
  runs: list[Any] = [cfg, cfg.teacher]
  for run in runs:
    run.steps, run.steps_per_dispatch = 60, 20
    run.log_every, run.eval_every = 20, 20
    run.optim.warmup = 10
