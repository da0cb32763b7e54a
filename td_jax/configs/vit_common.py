"""The shared part of the ViT configs: the paper's set-up and two smaller ones."""

from typing import Any

from td_jax import types
from td_jax.configs import common

# The networks of the arguments `laptop` and `runlocal`. docs/images.md says
# where to get a teacher of this shape.
_LAPTOP = {
  'width': 384,
  'heads': 6,
  'mlp_width': 1536,
  'patch': 14,
  'layer_scale': 1.0,
  'gelu': 'exact',
  'dtype': 'float32',
  'remat': False,
}
# Weights for the laptop, chosen on the validation split of CIFAR-10 with the recipe
# of version 0.2.0 (results/search_images.jsonl).
_LAPTOP_WEIGHTS = {
  'ld': {'logit': 3.0},
  'fd': {'feature': 0.1},
  'fitnet': {'hint': 1.0},
  'hybrid': {'logit': 3.0, 'feature': 0.1},
  'td': {'interact': 0.01, 'message': 0.01, 'state': 0.01},
  'td_ld': {'logit': 3.0, 'interact': 0.1, 'message': 0.1, 'state': 0.01},
}
_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_STD = (58.395, 57.12, 57.375)


def config(
  arg: str,
  *,
  name: str,
  dataset: str,
  splits: tuple[str, str, str],
  classes: int,
  learning_rate: float,
  memory: str,
) -> types.Config:
  """The config of one dataset.

  Args:
    arg: The text after the colon of --config.
    name: Name of the config.
    dataset: Name of the dataset in TFDS.
    splits: Training, validation and test split, in the notation of TFDS.
    classes: Number of classes.
    learning_rate: Peak learning rate of SGD with batches of 512.
    memory: Where the images are held: 'device' or 'stream'.
  """
  args: Any = common.parse(
    arg,
    method='td',
    teacher='gs://vit_models/imagenet21k/ViT-B_32.npz',
    size=384,
    laptop=False,
    runlocal=False,
  )
  if args.laptop or args.runlocal:
    cfg = small(args.method, teacher=args.teacher)
  else:
    cfg = _paper(args.method, args.teacher, learning_rate)
  cfg.name = name
  cfg.data = common.images(
    dataset, splits, classes=classes, size=args.size, memory=memory
  )
  if args.laptop or args.runlocal:
    cfg.data.size = 56
    _limit(cfg.data, 20_000)
    if memory == 'device':
      # Without crops the teacher's states can be cached. Crops of down to 5% of
      # an image suit runs that are a hundred times longer.
      cfg.data.augment, cfg.teacher.cache = 'none', True
    cfg.data.mean, cfg.data.std = _IMAGENET_MEAN, _IMAGENET_STD
  if args.runlocal:
    shorten(cfg)
    _limit(cfg.data, 200)
    for part in ('validation', 'test'):
      # From the end: validation may be cut from the split that starts with the
      # training images.
      cfg.data[part] = f'{str(cfg.data[part]).split("[")[0]}[-100:]'
  return cfg


def _paper(method: str, teacher: str, learning_rate: float) -> Any:
  """The paper's networks and recipe, without data."""
  cfg: Any = _run(
    method,
    teacher,
    student=common.vit(depth=4, split=(2, 4)),
    teacher_model=common.vit(depth=12, split=(6, 12)),
    steps=20_000,
    batch_size=512,
    optimizer='sgd',
    learning_rate=learning_rate,
  )
  cfg.k = 2
  cfg.distill.hidden = cfg.distill.message = 512
  cfg.optim.warmup = 500
  cfg.steps_per_dispatch, cfg.log_every, cfg.eval_every = 1, 100, 1000
  return cfg


def small(method: str, *, teacher: str) -> Any:
  """A ViT-S/14, its first 4 blocks and a recipe for a CPU, without data."""
  cfg: Any = _run(
    method,
    teacher,
    # After so few blocks the class token knows less than the mean of the patches.
    student=common.vit(
      depth=4, split=(2, 4), **_LAPTOP | {'pooling': 'token_and_mean'}
    ),
    teacher_model=common.vit(depth=12, split=(6, 12), **_LAPTOP),
    steps=320,
    batch_size=64,
    # AdamW moves every weight of the copied blocks alike, so that its rate must be
    # far below that of a random start. `python -m td_jax.study.curves` compares.
    optimizer='adamw',
    learning_rate=3e-5,
  )
  cfg.student_head = 'probe'
  cfg.distill.hidden = cfg.distill.message = 256
  cfg.distill.weights.update(_LAPTOP_WEIGHTS.get(method, {}))
  # Encoders and decoders start at random: at the rate of the copied blocks they
  # would hardly learn.
  cfg.optim.method_learning_rate = 1e-3
  cfg.optim.warmup = 50
  cfg.steps_per_dispatch, cfg.log_every, cfg.eval_every = 20, 20, 40
  return cfg


def _run(
  method: str,
  teacher: str,
  *,
  student: types.Config,
  teacher_model: types.Config,
  steps: int,
  batch_size: int,
  optimizer: str,
  learning_rate: float,
) -> Any:
  """What all configs of images share."""
  cfg: Any = common.run()
  cfg.domain = 'images'
  cfg.method = method
  cfg.student_init = 'first_n'  # The teacher's first blocks (section 6.2).
  cfg.distill.logit_distance = 'kl'
  cfg.eval_batch = 128
  cfg.update(
    common.learner(
      student,
      steps=steps,
      batch_size=batch_size,
      optimizer_name=optimizer,
      learning_rate=learning_rate,
      weight_decay=0.0,
      clip=1.0,
    )
  )
  cfg.teacher = common.published(teacher, teacher_model)
  return cfg


def shorten(cfg: types.Config) -> None:
  """Leaves a few steps of a run, in place."""
  cfg.batch_size, cfg.steps, cfg.optim.warmup = 16, 6, 2
  cfg.steps_per_dispatch, cfg.log_every, cfg.eval_every = 2, 2, 6


def _limit(data: types.Config, examples: int) -> None:
  """Limits the number of training images, in place."""
  # A stream cannot balance classes without reading everything first, so it
  # takes the first images of the split.
  if data.memory == 'device':
    data.limit = examples
  else:
    data.train = f'{data.train.split("[")[0]}[:{examples}]'
