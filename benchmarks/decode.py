"""Measures how fast a host decodes images, and a device augments them.

  python benchmarks/decode.py --out=results/decode.json

It makes JPEGs of ImageNet's usual size (500 x 375 pixels, about 110 kB), stores
them as a folder, as array_record and as tfrecord, and streams them as training
and evaluation do, on one core and on all cores: with TensorFlow, and the folder
also with Pillow, and with Grain if it is installed (pip install grain). `bare`
decodes the same images in one thread without a pipeline. `images_per_cpu_s` is the
rate of one core. Where `cores_busy` is below `cores`, other work used the rest of the
machine, and an idle machine would reach more `images_per_s`.

Then it times `preprocess.augment` on batches in memory, from 32 x 32 to 56 x 56
pixels, on JAX's default device.
"""

from collections.abc import Callable
import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import app
from absl import flags
import numpy as np

_OUT = flags.DEFINE_string('out', '', 'JSON file of the figures.')
_SECONDS = flags.DEFINE_float('seconds', 5.0, 'Length of each measurement.')
# The script starts itself with these, once for each measurement.
_PART = flags.DEFINE_string('part', '', 'Internal: what to measure.')
_CORES = flags.DEFINE_integer('cores', 0, 'Internal: the number of cores.')
_FOLDER = flags.DEFINE_string('folder', '', 'Internal: where the images are.')

_BATCH = 64
_SHARDS = 8
_WARMUP_CALLS = 6  # More batches than a pipeline holds ready.
# Evaluation ends with the images, so they must outlast its warm-up.
_IMAGES = flags.DEFINE_integer(
  'images',
  1024,
  'Number of JPEGs to make.',
  lower_bound=(_WARMUP_CALLS + 1) * _BATCH,
)


def _make(folder: pathlib.Path) -> float:
  """Writes the images in all layouts; returns their mean size in bytes."""
  import tensorflow as tf
  import tensorflow_datasets as tfds

  rng, files = np.random.default_rng(0), []
  for number in range(_IMAGES.value):
    small = rng.uniform(0, 255, (1, 12, 16, 3))
    smooth = tf.image.resize(small, (375, 500), 'bicubic')[0].numpy()
    # Noise in the place of texture makes the files as large as photographs.
    noisy = np.clip(smooth + rng.normal(0, 22, smooth.shape), 0, 255)
    files.append(tf.io.encode_jpeg(noisy.astype(np.uint8), quality=90).numpy())
    path = folder / 'folder' / 'train' / str(number % 10) / f'{number}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(files[-1])
  for layout in ('array_record', 'tfrecord'):
    tfds.dataset_builders.store_as_tfds_dataset(
      name='jpegs',
      version='1.0.0',
      features=tfds.features.FeaturesDict(
        {
          'image': tfds.features.Image(shape=(None, None, 3)),
          'label': tfds.features.ClassLabel(num_classes=10),
        }
      ),
      split_datasets={
        'train': [
          (number, {'image': io.BytesIO(file), 'label': number % 10})
          for number, file in enumerate(files)
        ]
      },
      data_dir=str(folder / layout),
      file_format=layout,
      download_config=tfds.download.DownloadConfig(num_shards=_SHARDS),
    )
  return float(np.mean([len(file) for file in files]))


def _rate(
  run: Callable[[int], Any], images: int, steps: int | None = None
) -> dict[str, float]:
  """The speed of `run(step)`, which handles `images` images in each call.

  `steps` is the number of calls that are possible, if that is limited.
  """
  # A pipeline decodes ahead: its first batches would look too fast.
  for step in range(_WARMUP_CALLS):
    run(step)
  start, busy = time.perf_counter(), time.process_time()
  step = _WARMUP_CALLS
  while time.perf_counter() < start + _SECONDS.value and step != steps:
    run(step)
    step += 1
  done = (step - _WARMUP_CALLS) * images
  wall, busy = time.perf_counter() - start, time.process_time() - busy
  # Process time leaves out the seconds that other processes took.
  return {
    'images_per_s': done / wall,
    'images_per_cpu_s': done / busy,
    'cores_busy': busy / wall,
  }


def _streams(folder: pathlib.Path, cores: int) -> list[dict[str, Any]]:
  """Decoding on `cores` cores: a row for each layout and size."""
  from td_jax.data import host_pipeline
  from td_jax.data import pillow_decoding
  from td_jax.data import records

  sources = {
    layout: records.load(name, str(folder / layout)).records('train')
    for layout, name in (
      ('folder', 'image_folder'),
      ('array_record', 'jpegs'),
      ('tfrecord', 'jpegs'),
    )
  }
  rows: list[dict[str, Any]] = []
  # Both decode on as many threads as this process has cores.
  options: dict[str, Any] = {'batch_size': _BATCH}
  decoders = {
    'TensorFlow': host_pipeline.decoder,
    'Pillow': lambda view, any_kind: pillow_decoding.Decoder(view),
  }

  def add(
    layout: str, decoder: str, what: str, speed: dict[str, float]
  ) -> None:
    row = {'layout': layout, 'decoder': decoder, 'what': what, 'cores': cores}
    rows.append(row | speed)
    print(rows[-1], file=sys.stderr)

  for layout, size, decoder in (
    ('folder', 224, 'TensorFlow'),
    ('folder', 224, 'Pillow'),
    ('folder', 384, 'TensorFlow'),
    ('folder', 384, 'Pillow'),
    ('array_record', 384, 'TensorFlow'),
    ('tfrecord', 384, 'TensorFlow'),
  ):
    host_pipeline.decoder = decoders[decoder]
    pipeline = host_pipeline.training(
      sources[layout], seed=0, size=size, **options
    )
    what = f'training, {size} px'
    add(layout, decoder, what, _rate(pipeline.batch, _BATCH))
    pipeline.close()
    if layout == 'folder' and cores == 1:
      bare = _bare(pipeline, sources[layout])
      add('memory', decoder, f'{what}, bare', _rate(bare, 1))
    if decoder == 'Pillow' and importlib.util.find_spec('grain'):
      speed = _rate(_grain(pipeline), _BATCH)
      add(layout, 'Pillow in Grain', what, speed)
  for decoder, make in decoders.items():
    host_pipeline.decoder = make
    pipeline = host_pipeline.evaluation(sources['folder'], size=384, **options)
    batches = len(sources['folder']) // _BATCH
    speed = _rate(pipeline.batch, _BATCH, batches)
    add('folder', decoder, 'evaluation, 384 px', speed)
  return rows


def _grain(pipeline: Any) -> Callable[[int], Any]:
  """Batches of `pipeline`, decoded by the threads of Grain in place of ours."""
  grain: Any = importlib.import_module('grain')
  # Threads that miss at the same time read a file twice, which costs little.
  read = functools.lru_cache(maxsize=8)(pipeline._read)

  def one(position: int) -> dict[str, Any]:
    step, row = divmod(position, _BATCH)
    files = read(step)
    return {
      'image': pipeline._decoder.pixels(files.images[row], files.draws[row]),
      'label': files.labels[row],
      'mask': files.mask[row],
    }

  cores = len(os.sched_getaffinity(0))
  options = grain.ReadOptions(
    num_threads=cores, prefetch_buffer_size=3 * _BATCH
  )
  examples = grain.MapDataset.range(sys.maxsize).map(one)
  batches = iter(examples.to_iter_dataset(options).batch(_BATCH))
  return lambda step: next(batches)


def _bare(pipeline: Any, source: Any) -> Callable[[int], None]:
  """Decodes one image at each call, as `pipeline` does, in this thread."""
  examples = source.read(np.arange(len(source)))
  draws = np.random.default_rng(0).random((len(source), 5), np.float32)

  def decode(step: int) -> None:
    i = step % len(examples)
    pipeline._decoder.pixels(examples[i].image, draws[i])

  return decode


def _augment() -> list[dict[str, Any]]:
  """Milliseconds of a jitted augmentation, for batches of several sizes."""
  import jax

  from td_jax.data import preprocess

  augment = jax.jit(functools.partial(preprocess.augment, size=56))
  rows = []
  for batch in (32, 128, 512):
    images = np.random.default_rng(0).integers(0, 256, (batch, 32, 32, 3))
    arguments = (
      jax.device_put(images.astype(np.uint8)),
      jax.random.split(jax.random.key(0), batch),
    )

    def run(step: int, arguments: tuple[Any, Any] = arguments) -> None:
      del step  # The arguments are always the same.
      augment(*arguments).block_until_ready()

    rows.append(
      {
        'what': 'augment, 32 px to 56 px',
        'device': jax.devices()[0].device_kind,
        'batch': batch,
        'ms': 1e3 / _rate(run, 1)['images_per_s'],
      }
    )
    print(rows[-1], file=sys.stderr)
  return rows


def _cpu() -> str:
  """The name of the processor, from Linux if possible."""
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  names = [
    line.split(':')[1] for line in lines if line.startswith('model name')
  ]
  return names[0].strip() if names else platform.processor()


def _measure(part: str, folder: str, cores: int) -> list[dict[str, Any]]:
  """The rows of `part`, measured in a fresh process on `cores` cores."""
  # Thread pools of earlier measurements would compete for the cores.
  output = subprocess.run(
    [
      *(sys.executable, __file__, f'--part={part}', f'--folder={folder}'),
      *(f'--cores={cores}', f'--seconds={_SECONDS.value}'),
    ],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  ).stdout
  return json.loads(output.splitlines()[-1])


def main() -> None:
  """Measures everything, or the one part that a flag names."""
  available = sorted(os.sched_getaffinity(0))
  if _PART.value:
    cores = _CORES.value
    os.sched_setaffinity(0, available[:cores])  # Before any thread starts.
    folder = pathlib.Path(_FOLDER.value)
    streams = _PART.value == 'streams'
    print(json.dumps(_streams(folder, cores) if streams else _augment()))
    return
  with tempfile.TemporaryDirectory() as folder:
    size = _make(pathlib.Path(folder))
    streams = [
      row
      for cores in sorted({1, len(available)})
      for row in _measure('streams', folder, cores)
    ]
    augment = _measure('augment', folder, len(available))

  from td_jax.run import environment

  figures: dict[str, Any] = {
    'streams': streams,
    'augment': augment,
    'mean_jpeg_bytes': size,
    'batch_size': _BATCH,
    'cpu': _cpu(),
    'cores': len(available),
    **environment.environment(),
  }
  for name in (
    *('tensorflow-cpu', 'tensorflow-datasets', 'array_record'),
    *('pillow', 'grain'),
  ):
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      figures['versions'][name] = importlib.metadata.version(name)
  print(json.dumps(figures, indent=1))
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
  app.run(lambda argv: main())
