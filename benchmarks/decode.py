"""Images a second that a host decodes, and milliseconds of augmentation.

  python benchmarks/decode.py --out=results/decode.json

Makes JPEGs of ImageNet's usual size (500 x 375 pixels, about 110 kB), lays
them out as a folder, as array_record and as tfrecord, and streams them as
training and evaluation do, on one core and on all. `bare` is the same decoding
in one thread with nothing around it. `images_per_cpu_s` is what one core does;
`cores_busy` below `cores` says that other work had the rest of the machine, and
`images_per_s` is then less than an idle machine's. Then `preprocess.augment` of batches in
memory, 32 x 32 pixels to 56 x 56, on JAX's default device.
"""

import functools
import importlib.metadata
import io
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags
import numpy as np

_OUT = flags.DEFINE_string('out', '', 'JSON of the figures; "" prints only.')
_IMAGES = flags.DEFINE_integer('images', 1024, 'JPEGs to make.')
_SECONDS = flags.DEFINE_float('seconds', 5.0, 'Length of a measurement.')
_PART = flags.DEFINE_string('part', '', 'For its own use: what to measure.')
_CORES = flags.DEFINE_integer('cores', 0, 'For its own use: how many to use.')
_FOLDER = flags.DEFINE_string('folder', '', 'For its own use: the images.')

_BATCH = 64
_SHARDS = 8


def _make(folder):
  """Writes the images in all layouts; returns their mean size in bytes."""
  import tensorflow as tf
  import tensorflow_datasets as tfds

  rng, files = np.random.default_rng(0), []
  for number in range(_IMAGES.value):
    small = rng.uniform(0, 255, (1, 12, 16, 3))
    smooth = tf.image.resize(small, (375, 500), 'bicubic')[0].numpy()
    # Noise stands for texture: it fills a JPEG as photographs do.
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


def _rate(run, images, steps=None):
  """Speed of `run(step)`, which has `images` of them, of at most so many."""
  warm = 6
  for step in range(warm):  # Until nothing more is waiting, decoded.
    run(step)
  start, busy, step = time.perf_counter(), time.process_time(), warm
  while time.perf_counter() < start + _SECONDS.value and step != steps:
    run(step)
    step += 1
  done = (step - warm) * images
  wall, busy = time.perf_counter() - start, time.process_time() - busy
  # What a core does is told by its seconds, not by those that others took.
  return {
    'images_per_s': done / wall,
    'images_per_cpu_s': done / busy,
    'cores_busy': busy / wall,
  }


def _streams(folder, cores):
  """What is decoded on so many cores: a row for each layout and size."""
  from td_jax.data import host_pipeline
  from td_jax.data import records

  sources = {
    layout: records.load(name, str(folder / layout)).records('train')
    for layout, name in (
      ('folder', 'image_folder'),
      ('array_record', 'jpegs'),
      ('tfrecord', 'jpegs'),
    )
  }
  # tf.data decodes on as many threads as this process has cores.
  rows, options = [], {'batch_size': _BATCH}

  def add(layout, what, speed):
    rows.append({'layout': layout, 'what': what, 'cores': cores, **speed})
    print(rows[-1], file=sys.stderr)

  for layout, size in (
    ('folder', 224),
    ('folder', 384),
    ('array_record', 384),
    ('tfrecord', 384),
  ):
    run = host_pipeline.training(sources[layout], seed=0, size=size, **options)
    what = f'training, {size} px, uint8'
    add(layout, what, _rate(run.batch, _BATCH))
    run.close()
    if layout == 'folder' and cores == 1:
      add('memory', f'{what}, bare', _rate(_bare(run, sources[layout]), 1))
  run = host_pipeline.evaluation(sources['folder'], size=384, **options)
  whole = len(sources['folder']) // _BATCH
  add('folder', 'evaluation, 384 px, uint8', _rate(run.batch, _BATCH, whole))
  return rows


def _bare(run, source):
  """Decodes one image as `run` does, with nothing around it."""
  examples = source.read(np.arange(len(source)))
  draws = np.random.default_rng(0).random((len(source), 5), np.float32)

  def decode(step):
    place = step % len(examples)
    run._decode(examples[place].image, draws[place])

  return decode


def _augment():
  """Milliseconds of augmenting a batch from memory, in a jitted function."""
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

    def run(step, arguments=arguments):
      del step  # Always the same.
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


def _cpu():
  """The processor's name, as Linux has it."""
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  names = [
    line.split(':')[1] for line in lines if line.startswith('model name')
  ]
  return names[0].strip() if names else platform.processor()


def _measure(part, folder, cores):
  """What `part` says in a process of its own, of which nothing else is left."""
  said = subprocess.run(
    [
      *(sys.executable, __file__, f'--part={part}', f'--folder={folder}'),
      *(f'--cores={cores}', f'--seconds={_SECONDS.value}'),
    ],
    check=True,
    stdout=subprocess.PIPE,
    text=True,
  ).stdout
  return json.loads(said.splitlines()[-1])


def main(argv):
  del argv  # Flags say it all.
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

  from td_jax.run import report

  found = {
    'streams': streams,
    'augment': augment,
    'mean_jpeg_bytes': size,
    'batch_size': _BATCH,
    'cpu': _cpu(),
    'cores': len(available),
    **report.environment(),
  }
  for name in ('tensorflow-cpu', 'tensorflow-datasets', 'array_record'):
    found['versions'][name] = importlib.metadata.version(name)
  print(json.dumps(found, indent=1))
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(found, indent=1) + '\n')


if __name__ == '__main__':
  app.run(main)
