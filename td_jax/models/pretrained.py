"""Published weights -> settings and parameters of `vit.ViT`.

- google-research/vision_transformer: .npz with the names from before or since
  Linen, with or without pre-logits, head and the prefix of a training state.
- big_vision: .npz with a class token, mean or attention pooling.
- Hugging Face's kinds in `published_kinds`, and timm's: folders with
  config.json and model.safetensors, which may be in several files.

Every stored leaf must be accounted for under its own name: no leaf may be
missing, left over, of another shape or used twice.
"""

from collections.abc import Iterator
from collections.abc import Mapping
import contextlib
import fnmatch
import re
from typing import Any
from typing import NamedTuple

import jax
import numpy as np

from td_jax import errors
from td_jax import types
from td_jax.models import archive
from td_jax.models import posemb
from td_jax.models import published
from td_jax.models import published_config
from td_jax.models import published_google
from td_jax.models import published_huggingface
from td_jax.models import published_kinds
from td_jax.models import published_timm
from td_jax.models import vit
from td_jax.storage import paths

# The fields of `vit.ViT` that say how to run a network. A checkpoint has none
# of them, and they do not change its parameters' names and shapes here.
RUNNING: dict[str, Any] = {
  'split': (1, 2),
  'dropout': 0.0,
  'dtype': 'float32',
  'remat': False,
  'scan': False,
}


_WEIGHTS = 'model.safetensors'
_PYTORCH = 'pytorch_model*.bin'  # Pickled weights, which are never loaded.
# Turns them into `_WEIGHTS`, in the same folder.
_CONVERT = (
  'python -c "import glob, torch, safetensors.torch as s; s.save_file({{k: '
  "v.clone().contiguous() for f in glob.glob('{folder}/pytorch_model*.bin') for k, "
  "v in torch.load(f, map_location='cpu', weights_only=True).items()}}, "
  "'{folder}/model.safetensors')\""
)


class Teacher(NamedTuple):
  settings: dict[str, Any]  # All fields of `vit.ViT` except `RUNNING`.
  variables: types.PyTree  # float32 NumPy arrays, as with scan=False.
  class_names: tuple[str, ...] = ()  # Of a stored head, in its order, if known.


class _Place(NamedTuple):
  """Where weights lie in Hugging Face's form."""

  folder: str
  file: str  # The name of the file in it.


def is_published(path: str) -> bool:
  """Whether `path` is published weights: one file of them, or a folder.

  Those of PyTorch count too: `load` says how to convert them.
  """
  if path.endswith('.npz') or _file(path):
    return True
  folder = paths.as_path(path)
  if any((folder / name).exists() for name in (_WEIGHTS, archive.INDEX)):
    return True
  return bool(_pickled(path))


def _file(path: str) -> str:
  """The last part of `path` if it is called as a file of weights; else ''."""
  name = path.rpartition('/')[2]
  weights = name.endswith('.safetensors') or name == archive.INDEX
  return name if weights or fnmatch.fnmatch(name, _PYTORCH) else ''


def _pickled(folder: str) -> list[str]:
  """The names of PyTorch's own files of weights in a folder."""
  return sorted(file.name for file in paths.as_path(folder).glob(_PYTORCH))


def _place(path: str) -> _Place:
  """The file of weights that `path`, a folder or the file itself, stands for.

  Raises:
    errors.DataError: They are PyTorch's own.
  """
  name = _file(path)
  folder = (path.rpartition('/')[0] or '.') if name else path
  if not name:
    sharded = (paths.as_path(folder) / archive.INDEX).exists()
    name = archive.INDEX if sharded else _WEIGHTS
    if not (paths.as_path(folder) / name).exists() and _pickled(folder):
      name = _pickled(folder)[0]
  if fnmatch.fnmatch(name, _PYTORCH):
    raise errors.DataError(
      f'{folder}/{name} holds pickled weights, which are never loaded; convert '
      f'them: {_CONVERT.format(folder=folder)}'
    )
  return _Place(folder, name)


def load(
  path: str,
  *,
  image_size: int,
  classes: int | None = None,
  expected: Mapping[str, Any] | None = None,
) -> Teacher:
  """Reads a teacher.

  Args:
    path: A .npz, or a folder with config.json and model.safetensors, or such a
      file beside its config.json; local or gs://; see `is_published`.
    image_size: Side in pixels of the images that the teacher will see. A
      learned position table is resized by the rule of its origin.
    classes: Number of classes of the task. A stored head with as many classes
      is loaded; any other head, or none, is replaced by a head of zeros. If
      None, the head stays as it is stored, and `settings['classes']` is 0 if
      there is none.
    expected: Fields of `vit.ViT`, as a config declares them. The checkpoint
      must agree with them, except for `classes` and the fields that say how to
      run a network, such as `split`. Two fields tell more than a .npz can:
      `depth`, without which a missing last block goes unnoticed, and
      `position='sincos2d'`, since fixed positions are not stored.
      `pre_logits_width=0` drops stored pre-logits, and the head with them.

  Raises:
    errors.DataError: no weights of a known kind are at `path`, they are
      damaged, or a leaf (by its stored name) or setting is not as expected.
    errors.ConfigError: the patch size does not divide `image_size`; dropping
      pre-logits leaves no head; or `vit.ViT` has no field of that name.
  """
  expected = dict(expected or {})
  with _opened(path, expected.get('position')) as (stored, layout):
    return _load(stored, layout, image_size, classes, expected)


def check(path: str, expected: Mapping[str, Any]) -> None:
  """Compares the config.json beside weights with what a config declares.

  It is for weights that `load` reads later, and reads none of them. A .npz has no
  config.json, and a remote file would be fetched twice: `load` compares these.

  Args:
    path: As for `load`.
    expected: As for `load`.

  Raises:
    errors.ConfigError: They are of another network.
    errors.DataError: As for `load`.
  """
  if path.endswith('.npz') or '://' in path:
    return
  with _opened(path, expected.get('position')) as (_, layout):
    wrong = _contradictions(layout.settings, expected)
  if not wrong:
    return
  declared, stored = (
    ', '.join(f'{field}={settings[field]!r}' for field in wrong)
    for settings in (expected, layout.settings)
  )
  mend = ' '.join(
    f'--config.teacher.model.{field}={layout.settings[field]}'
    for field in wrong
  )
  raise errors.ConfigError(
    f'config.teacher.model has {declared}, but {layout.source} has {stored}; name '
    f'other weights in config.teacher.checkpoint, or set {mend}.'
  )


class Description(NamedTuple):
  """What published weights say of themselves."""

  # The fields of `vit.ViT`, without `classes` and `RUNNING`.
  settings: dict[str, Any]
  # Mean and standard deviation of the grey levels (0 to 255) of red, green and
  # blue that the network was trained with; None if no file says so.
  scale: published_kinds.Scale | None


def describe(path: str) -> Description:
  """Reads the architecture of published weights, and none of the weights.

  Args:
    path: As for `load`. Of a .npz without a position table it is not known
      whether its positions are fixed ('sincos2d').

  Raises:
    errors.DataError: As for `load`.
  """
  with _opened(path, None) as (_, layout):
    settings = dict(layout.settings)
  del settings['classes']
  if path.endswith('.npz'):
    return Description(settings, None)
  folder, _ = _place(path)
  config = _config(folder)
  if published_timm.is_timm(config):
    return Description(settings, published_timm.scale(config))
  return Description(settings, published_huggingface.scale(folder, config))


@contextlib.contextmanager
def _opened(
  path: str, position: str | None
) -> Iterator[tuple[archive.Archive, published.StoredLayout]]:
  """The arrays of published weights, and how they are stored; see `load`."""
  if path.endswith('.npz'):
    with archive.local(path) as file, archive.npz(file, path) as stored:
      yield stored, published_google.layout(stored, position=position)
    return
  place = _place(path)
  config = _config(place.folder)
  layout = published_huggingface.layout
  if published_timm.is_timm(config):
    layout = published_timm.layout
  with _safetensors(place) as stored:
    yield layout(stored, config)


def _config(folder: str) -> published_config.Config:
  with archive.local(f'{folder}/config.json') as file:
    return published_config.read(file, f'{folder}/config.json')


@contextlib.contextmanager
def _safetensors(place: _Place) -> Iterator[archive.Archive]:
  """The arrays in one file, or in the several that it lists."""
  if place.file == archive.INDEX:
    with archive.sharded(place.folder) as stored:
      yield stored
    return
  name = f'{place.folder}/{place.file}'
  with archive.local(name) as file, archive.safetensor(file, name) as stored:
    yield stored


def _load(
  stored: archive.Archive,
  layout: published.StoredLayout,
  image_size: int,
  classes: int | None,
  expected: Mapping[str, Any],
) -> Teacher:
  leaves = _check(stored, layout, image_size, expected)
  settings, dropped = _choose_head(
    stored.path, layout.settings, classes, expected
  )
  flat = {}
  for leaf, (name, shape) in leaves.items():
    if leaf.split('/')[0] not in dropped:
      flat[leaf] = layout.convert(stored.read(name)).reshape(shape)
  if 'embed/position' in flat:
    flat['embed/position'] = posemb.resize(
      flat['embed/position'],
      image_size // settings['patch'],
      rule=layout.resize,
      class_row=settings['class_token'] == 'before',
    )
  for leaf, shape in _parameters(settings, image_size).items():
    if leaf not in flat:  # Only a new head is not read from the file.
      flat[leaf] = np.zeros(shape, np.float32)
  names = layout.class_names
  if 'head' in dropped or len(names) != settings['classes']:
    names = ()
  return Teacher(settings, {'params': _nest(flat)}, names)


def _check(
  stored: archive.Archive,
  layout: published.StoredLayout,
  image_size: int,
  expected: Mapping[str, Any],
) -> dict[str, tuple[str, published.Shape]]:
  """Compares a file with what is expected of it, before any array is read.

  Returns:
    As `_match_leaves`.
  """
  settings = layout.settings
  for field in expected:
    errors.choose(
      'the setting expected of the teacher', field, {**settings, **RUNNING}
    )
  try:
    vit.check('teacher', vit.ViT(**settings, **RUNNING), {})
  except errors.ConfigError as e:
    # Here the settings come from the file, so it is to blame.
    raise errors.DataError(f'{layout.source}: {e}') from e
  if image_size % settings['patch']:
    raise errors.ConfigError(
      f'{layout.source}: patches of {settings["patch"]} pixels do not '
      f'divide images of {image_size}; make config.data.size a multiple of '
      f'{settings["patch"]}.'
    )
  # Leaves are compared with the expected settings, not with the file's own:
  # the message then names the first leaf that contradicts them.
  wrong = _contradictions(settings, expected)
  leaves = _match_leaves(stored, layout, settings | wrong, image_size)
  # Settings such as `gelu` and `eps` change no leaf.
  for field, value in wrong.items():
    raise errors.DataError(
      f'{layout.source}: {field} is {settings[field]!r}, and {value!r} is '
      'expected; correct the config, or take other weights.'
    )
  return leaves


def _contradictions(
  settings: Mapping[str, Any], expected: Mapping[str, Any]
) -> dict[str, Any]:
  """Those of the expected settings that differ from the stored ones."""
  return {
    field: value
    for field, value in expected.items()
    if field in settings
    and field != 'classes'
    and (field, value) != ('pre_logits_width', 0)
    and value != settings[field]
  }


def _match_leaves(
  stored: archive.Archive,
  layout: published.StoredLayout,
  settings: Mapping[str, Any],
  image_size: int,
) -> dict[str, tuple[str, published.Shape]]:
  """Pairs the parameters of a network with the leaves of a file.

  Returns:
    {name of a parameter: (its stored name, its shape)}

  Raises:
    errors.DataError: names the first leaf that does not match.
  """
  # A hostile number of blocks would take forever below.
  if settings['depth'] > len(stored.shapes):
    raise errors.DataError(
      f'{layout.source}: {settings["depth"]} blocks cannot be stored in the '
      f'{len(stored.shapes)} leaves of {stored.path}; the file is damaged.'
    )
  size = layout.grid * settings['patch'] if layout.grid else image_size
  leaves, expected = {}, {}
  for leaf, shape in _parameters(settings, size).items():
    name = published.stored_name(leaf, layout.names)
    leaves[leaf] = name, shape
    expected[name] = layout.stored_shape(leaf, shape, settings)
  # Expected leaves come first, in the network's order, so that the error is
  # about the first layer that differs; unexpected leaves follow by name.
  for name in [*expected, *sorted(stored.shapes.keys() - expected.keys())]:
    is_ignored = layout.ignored and re.match(layout.ignored, name)
    if name not in expected and is_ignored:
      continue
    if stored.shapes.get(name) != expected.get(name):
      raise published.mismatch(
        stored, name, expected.get(name), source=layout.source
      )
  return leaves


def _choose_head(
  path: str,
  stored: Mapping[str, Any],
  classes: int | None,
  expected: Mapping[str, Any],
) -> tuple[dict[str, Any], set[str]]:
  """Decides which of the stored layers after the blocks are used.

  Returns:
    The settings of the teacher, and the layers that are not read.
  """
  dropped = set()
  settings = dict(stored)
  if stored['pre_logits_width'] and expected.get('pre_logits_width') == 0:
    settings['pre_logits_width'] = 0
    # The stored head reads pre-logits, so it means nothing without them.
    dropped |= {'pre_logits', 'head'}
    if classes is None and stored['classes']:
      raise errors.ConfigError(
        f'{path}: the stored head cannot be used without its pre-logits; take '
        "config.teacher.head='probe', or keep config.teacher.model."
        f'pre_logits_width={stored["pre_logits_width"]}.'
      )
  if classes is not None:
    settings['classes'] = classes
    if classes != stored['classes']:
      dropped.add('head')
  return settings, dropped


def _parameters(
  settings: Mapping[str, Any], image_size: int
) -> dict[str, published.Shape]:
  """{name: shape} of a ViT's parameters, such as 'embed/position'."""
  model = vit.ViT(**settings, **RUNNING)
  x = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.float32)
  variables = jax.eval_shape(
    lambda key, x: model.init(key, x, train=False), jax.random.key(0), x
  )
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables['params'])
  }


def _nest(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """{'embed/position': array} -> {'embed': {'position': array}}."""
  tree = {}
  for leaf, value in flat.items():
    *parents, name = leaf.split('/')
    branch = tree
    for parent in parents:
      branch = branch.setdefault(parent, {})
    branch[name] = value
  return tree
