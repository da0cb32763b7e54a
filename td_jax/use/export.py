"""td_jax export RUN --format=hf: the student of a run for other programs.

Every format is a folder with a model card, README.md, and what the card says:

  safetensors  model.safetensors and config.json, for td_jax or code of one's own
  hf           the same two files as transformers' ViT or Dinov2 classes load them
  stablehlo    model.stablehlo, a program of any batch size, for `jax.export`
  savedmodel   a TensorFlow SavedModel of that program
  onnx         model.onnx, of any batch size

The programs take what a host can easily make: for images grey levels `image`
float32 [b, size, size, 3]; for tables the numbers of `user`, `movie` and
`category_0`, ... int32 [b], which numbers.json lists, and `numbers` float32 [b, f].
They return logits [b, classes], or ratings [b] and other numbers.
"""

import argparse
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import importlib
import json
import pathlib
import tempfile
from typing import Any
import warnings

from flax import traverse_util
import jax
import numpy as np
from safetensors import numpy as safetensors

from td_jax import errors
from td_jax import types
from td_jax.models import layers
from td_jax.models import published_export
from td_jax.models import vit
from td_jax.run import command_line
from td_jax.run import results as results_lib
from td_jax.storage import files
from td_jax.use import card
from td_jax.use import student as student_lib

_Contents = dict[str, str | bytes]  # {path in the folder: content}
_PLATFORMS = ('cpu', 'cuda', 'tpu')  # For which a StableHLO program is made.


def export(student: student_lib.Student, form: str, out: pathlib.Path) -> None:
  """Writes `student` into the folder `out`, in a format of `FORMATS`.

  Raises:
    errors.ConfigError: There is no such format, it cannot hold this network, or
      `out` is the folder of a run, whose files it would replace.
    errors.IOFailedError: The folder cannot be written.
  """
  errors.choose('--format', form, FORMATS)
  if (out / results_lib.FILE).exists():
    raise errors.ConfigError(
      f'--out is {out}, the folder of a run, whose config.json would be replaced; '
      f'choose another folder, such as {out / f"export-{form}"}.'
    )
  contents = {**FORMATS[form](student), 'README.md': card.text(student, form)}
  known = getattr(student.preprocess, 'known', None)
  if known:
    contents['numbers.json'] = _json(known)
  for name, content in contents.items():
    with files.io_errors(out):
      (out / name).parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(out / name, content)


def program(
  student: student_lib.Student,
) -> Callable[[Mapping[str, Any]], jax.Array]:
  """What all programs compute: `preprocess.arrays` -> the network's output."""

  def run(arrays: Mapping[str, Any]) -> jax.Array:
    x = student.preprocess.inside(arrays)
    return layers.apply(student.model, student.variables, x)[-1]

  return run


def _flat(variables: types.PyTree) -> dict[str, Any]:
  """{'blocks_0/attention/query/kernel': value} of all parameters."""
  params = jax.device_get(variables['params'])
  return dict(traverse_util.flatten_dict(params, sep='/'))


def _safetensors(student: student_lib.Student) -> _Contents:
  named = {
    name.replace('/', '.'): np.ascontiguousarray(value)
    for name, value in _flat(student.variables).items()
  }
  data = student.config.data
  settings = {
    'library': 'td_jax',
    'model': student.config.model.to_dict(),
    'preprocess': {
      key: data[key]
      for key in ('size', 'mean', 'std', 'smaller_side')
      if key in data
    },
    'class_names': student.class_names,
  }
  return {'model.safetensors': _tensors(named), 'config.json': _json(settings)}


def _hf(student: student_lib.Student) -> _Contents:
  config = student.config
  if config.model.name != 'vit':
    raise errors.ConfigError(
      f'--format=hf exports ViTs, and the network of this run is a '
      f'{config.model.name!r}; choose safetensors, stablehlo or onnx.'
    )
  variables = student.variables
  if vit.is_stacked(variables):
    variables = vit.unstack(variables)
  settings, tensors = published_export.stored(
    config.model.to_dict(),
    _flat(variables),
    image_size=config.data.size,
    class_names=student.class_names,
  )
  square = {'height': config.data.size, 'width': config.data.size}
  shape: dict[str, Any] = {
    'image_processor_type': 'ViTImageProcessor',
    'size': square,
  }
  if config.data.smaller_side:
    shape = {
      'image_processor_type': 'BitImageProcessor',
      'size': {'shortest_edge': config.data.smaller_side},
      'do_center_crop': True,
      'crop_size': square,
    }
  processor = {
    **shape,
    'do_resize': True,
    'resample': 2,  # Bilinear.
    'do_rescale': True,
    'rescale_factor': 1 / 255,
    'do_normalize': True,
    'image_mean': [level / 255 for level in config.data.mean],
    'image_std': [level / 255 for level in config.data.std],
  }
  return {
    'model.safetensors': _tensors(tensors),
    'config.json': _json(settings),
    'preprocessor_config.json': _json(processor),
  }


def _stablehlo(student: student_lib.Student) -> _Contents:
  (batch,) = jax.export.symbolic_shape('batch')
  exported = jax.export.export(jax.jit(program(student)), platforms=_PLATFORMS)(
    _abstract(student, batch)
  )
  return {'model.stablehlo': bytes(exported.serialize())}


def _savedmodel(student: student_lib.Student) -> _Contents:
  try:
    from jax.experimental import jax2tf
    import tensorflow as tf
  except ImportError as e:
    raise errors.ConfigError(
      '--format=savedmodel needs TensorFlow: pip install tensorflow.'
    ) from e
  shapes = _abstract(student, None)
  converted = jax2tf.convert(
    program(student), polymorphic_shapes=['batch, ...'], with_gradient=False
  )
  module: Any = tf.Module()
  # Autograph would rewrite the code of jax2tf, which takes most of a minute.
  module.serve = tf.function(
    lambda **arrays: {'output': converted(arrays)}, autograph=False
  )
  signature = module.serve.get_concrete_function(
    **{
      name: tf.TensorSpec(shape.shape, shape.dtype, name=name)
      for name, shape in shapes.items()
    }
  )
  with tempfile.TemporaryDirectory() as folder:
    tf.saved_model.save(
      module, folder, signatures={'serving_default': signature}
    )
    path = pathlib.Path(folder)
    return {
      str(file.relative_to(path)): file.read_bytes()
      for file in path.rglob('*')
      if file.is_file()
    }


def _onnx(student: student_lib.Student) -> _Contents:
  try:
    jax2onnx = importlib.import_module('jax2onnx')
  except ImportError as e:
    # It works with our version of orbax, but its requirements name an older one.
    raise errors.ConfigError(
      '--format=onnx needs jax2onnx: pip install onnx onnx-ir onnxruntime equinox '
      '&& pip install --no-deps jax2onnx.'
    ) from e
  shapes = _abstract(student, 'B')
  run = program(student)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # It asks for float64 where JAX has none.
    model = jax2onnx.to_onnx(
      lambda *arrays: run(dict(zip(shapes, arrays, strict=True))),
      inputs=list(shapes.values()),
      input_names=list(shapes),
      output_names=['output'],
    )
  return {'model.onnx': model.SerializeToString()}


FORMATS: Mapping[str, Callable[[student_lib.Student], _Contents]] = {
  'safetensors': _safetensors,
  'hf': _hf,
  'stablehlo': _stablehlo,
  'savedmodel': _savedmodel,
  'onnx': _onnx,
}


def _abstract(student: student_lib.Student, batch: Any) -> dict[str, Any]:
  """The shapes of a program's arguments, with `batch` as their first axis."""
  encoder = student.preprocess
  return {
    name: jax.ShapeDtypeStruct((batch, *array.shape[1:]), array.dtype)
    for name, array in encoder.arrays([encoder.blank]).items()
  }


def _tensors(tensors: Mapping[str, np.ndarray]) -> bytes:
  # transformers refuses a file whose metadata do not name a framework.
  return safetensors.save(dict(tensors), metadata={'format': 'pt'})


def _json(value: Any) -> str:
  return json.dumps(value, indent=2) + '\n'


def _command(args: argparse.Namespace, log: types.Log) -> None:
  out = pathlib.Path(args.out or f'{args.run}/export-{args.format}')
  export(student_lib.load(args.run, seed=args.seed), args.format, out)
  log(f'{out} holds the student as {args.format}')


def main(argv: Sequence[str]) -> None:
  """Runs `td_jax export` with the words after it."""
  parser = command_line.Parser(
    prog='td_jax export',
    description='Write the student of a run for other use.',
  )
  parser.add_argument('run', help='folder of a finished run')
  parser.add_argument(
    '--format', default='safetensors', help=', '.join(FORMATS)
  )
  parser.add_argument(
    '--out', default='', help="folder to write; by default in the run's folder"
  )
  parser.add_argument(
    '--seed', type=int, help='which student; by default the best by validation'
  )
  command_line.run(parser, _command, argv)
