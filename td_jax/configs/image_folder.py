"""Images of your own: a published ViT teaches its first 4 blocks.

  python -m td_jax.main --config=configs/image_folder.py:data=PHOTOS,teacher=DIR
  td_jax --config=image_folder:data=PHOTOS,unlabelled=MORE,teacher=DIR,method=ld

PHOTOS has a folder for each class, such as PHOTOS/cat/1.jpg, or such folders for
each split, as in PHOTOS/train/cat/1.jpg. The classes are those folders. Without a
split for validation every fifth image is held out; a test split is optional. The
images of PHOTOS/unlabelled are seen without a label.

Hardware: any; larger images, such as size=224, take a GPU or a TPU.

Arguments after the colon:
  data: the folder of images.
  teacher: a .npz file or a folder from Hugging Face; `td_jax teacher` gets one. Or
    FILE.py:function or package.module:function, which makes one of your own.
  states: in place of a teacher, a file of its answers; docs/teachers.md.
  method: scratch, ld, dkd, fd, fitnet, hybrid, td, td_ld or another of docs/methods.md.
  unlabelled: a further folder of images, which need no classes.
  size: side of the images in pixels, a multiple of the teacher's patch; by
    default 8 patches.
  stream: reads images while training, for more than fit into memory.
  runlocal: shortens the run to a few steps, to see it work.
"""

from typing import Any

from td_jax.configs import common
from td_jax.configs import vit_common

_OWN_SIZE = 64  # The default without published weights.


def get_config(arg: str = '') -> Any:
  """A published teacher and a student of 4 of its blocks."""
  args: Any = common.parse(
    arg,
    data='',
    teacher='',
    states='',
    method='td_ld',
    unlabelled='',
    size=0,
    stream=False,
    runlocal=False,
  )
  cfg = vit_common.small(args.method, teacher=args.teacher)
  cfg.name = 'image_folder'
  own = ':' in args.teacher and '://' not in args.teacher
  if own or args.states:
    _own_teacher(cfg, build=args.teacher, states=args.states)
  else:
    # 0 and '' stand for what the data and the teacher's weights have.
    cfg.teacher.as_stored = True
    cfg.teacher.model.split = (0, 0)
    cfg.model.width = cfg.model.heads = cfg.model.mlp_width = 0
  size = args.size if cfg.teacher.as_stored else args.size or _OWN_SIZE
  cfg.data = common.images(
    'image_folder',
    ('', '', ''),
    classes=0,
    size=size,
    memory='stream' if args.stream else 'device',
  )
  cfg.data.dir = args.data
  cfg.data.smaller_side = size
  if cfg.teacher.as_stored:
    cfg.data.mean = cfg.data.std = ()
  if args.stream:
    cfg.data.area = (0.3, 1.0)
  else:
    # Every image always looks the same, so that the teacher sees it once.
    cfg.data.augment, cfg.teacher.cache = 'none', True
  if args.unlabelled:
    cfg.data.unlabelled.source = 'dataset'
    cfg.data.unlabelled.dataset = 'image_folder'
    cfg.data.unlabelled.dir, cfg.data.unlabelled.split = args.unlabelled, 'all'
  if args.runlocal:
    vit_common.shorten(cfg)
  return cfg


def _own_teacher(cfg: Any, *, build: str, states: str) -> None:
  """A teacher that td_jax has no class for, and a student that starts at random."""
  cfg.teacher.checkpoint = ''
  cfg.teacher.build, cfg.teacher.states = build, states
  cfg.teacher.head = 'stored'
  cfg.student_init, cfg.student_head = 'random', 'zeros'
  # Without a class token it has the tokens of a CNN's grid.
  cfg.model.update(
    {'class_token': 'none', 'pooling': 'mean', 'layer_scale': 0.0}
  )
  cfg.model.update({'width': 192, 'heads': 3, 'mlp_width': 768, 'patch': 8})
  cfg.optim.learning_rate = 1e-3
