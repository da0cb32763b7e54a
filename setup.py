"""Package td_jax: what it needs, and where."""

import pathlib

import setuptools

setuptools.setup(
  name='td_jax',
  version='0.1.0',
  description='Talking-model Distillation (arXiv 2310.03188) in JAX and Flax',
  long_description=(pathlib.Path(__file__).parent / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  packages=setuptools.find_packages(include=['td_jax', 'td_jax.*']),
  package_data={'td_jax': ['py.typed']},
  python_requires='>=3.11',
  install_requires=[
    'absl-py>=2.1',
    'array_record>=0.5',
    'chex>=0.1.92',
    'clu>=0.0.12',
    'etils[epath]>=1.7',
    'flax>=0.12.7',
    'jax>=0.10.0',
    'jaxtyping>=0.3',
    'ml-collections>=1.1.0',
    'numpy>=2.0',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.0',
    'safetensors>=0.4.3',  # Teachers of Hugging Face.
    'tensorboardX>=2.6',  # Events without importing TensorFlow.
    'scipy>=1.13',  # Student's t, for the tables.
    'tensorflow-datasets>=4.9.10',
    'tensorflow-cpu>=2.18',  # What TFDS prepares and reads with.
    'importlib_resources',  # TFDS needs it and does not say so.
    'tqdm>=4.66',
  ],
  extras_require={
    'tpu': ['jax[tpu]>=0.10.0'],
    'tpu_compile': ['libtpu'],  # Compiles for TPUs on a machine without.
    'plot': ['matplotlib>=3.8'],
    'dev': [
      'beartype>=0.18',
      'hypothesis>=6.100',
      'matplotlib>=3.8',
      'pyright>=1.1.400',
      'pytest>=8.3',
      'pytest-timeout>=2.3',
      'pytest-xdist>=3.6',
      'ruff>=0.12',
    ],
  },
)
