"""Small generated image datasets, in every layout that td_jax reads."""

import io

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

NAMES = ('cat', 'dog', 'newt')
SIZES = {'train': 23, 'test': 10}
CORRUPT = b'\xff\xd8\xff\xe0 this begins like a JPEG'


def pixels(seed, height=24, width=32):
  """Returns a smooth picture, unique to its seed: uint8 [height, width, 3]."""
  rng = np.random.default_rng(seed)
  small = rng.integers(0, 256, (1, 4, 4, 3)).astype(np.float32)
  return tf.cast(tf.image.resize(small, (height, width))[0], tf.uint8).numpy()


def jpeg(seed, height=24, width=32):
  return tf.io.encode_jpeg(pixels(seed, height, width), quality=95).numpy()


def png(seed, height=24, width=32):
  return tf.io.encode_png(pixels(seed, height, width)).numpy()


def folder(root, sizes=None, encode=jpeg):
  """Writes root/split/label/*; every example has its own seed."""
  seed = 0
  for split, count in (sizes or SIZES).items():
    for number in range(count):
      label = NAMES[number % len(NAMES)]
      path = root / split / label / f'{number:03}.{encode.__name__}'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(encode(seed))
      seed += 1
  return root


def prepare(root, *, name='tiny', file_format, examples, shards=3):
  """Prepares a TFDS dataset; returns the folder of its files.

  Args:
    root: TFDS's data folder.
    name: Name of the dataset.
    file_format: array_record or tfrecord.
    examples: {split: [(image file, label)]}.
    shards: Number of files of each split.
  """

  tfds.dataset_builders.store_as_tfds_dataset(
    name=name,
    version='1.2.3',
    features=tfds.features.FeaturesDict(
      {
        'label': tfds.features.ClassLabel(names=NAMES),
        'image': tfds.features.Image(shape=(None, None, 3)),
        'other': tfds.features.Text(),
      }
    ),
    split_datasets={
      split: [
        (key, {'image': io.BytesIO(image), 'label': label, 'other': 'unread'})
        for key, (image, label) in enumerate(rows)
      ]
      for split, rows in examples.items()
    },
    data_dir=str(root),
    file_format=file_format,
    download_config=tfds.download.DownloadConfig(
      num_shards=shards, try_download_gcs=False
    ),
  )
  return root / name / '1.2.3'


def examples(encode=jpeg, sizes=None):
  """Returns {split: [(image file, label)]}; every example has its own seed."""
  seeds = iter(range(1000))
  return {
    split: [(encode(next(seeds)), row % len(NAMES)) for row in range(count)]
    for split, count in (sizes or SIZES).items()
  }
