"""Package td_jax: its metadata and its requirements."""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent
# Read as text: importing the package would need what it requires.
_VERSION = re.search(
  r"^__version__ = '(.+)'$",
  (_ROOT / 'td_jax' / '__init__.py').read_text(encoding='utf-8'),
  re.MULTILINE,
)[1]
# Datasets of TFDS and streams of images. TensorFlow has no CPU-only wheel for ARM.
_TFDS = [
  'array_record>=0.5',
  'importlib_resources',  # TFDS imports it but does not require it.
  'tensorflow-datasets>=4.9.10',
  'tensorflow-cpu>=2.18; platform_machine == "x86_64" and sys_platform == "linux"',
  'tensorflow>=2.18; platform_machine != "x86_64" or sys_platform != "linux"',
]
_PLOT = ['matplotlib>=3.8']
_DOCS = [
  'mkdocs>=1.6,<2',  # The theme and our hooks are for version 1.
  'mkdocs-material>=9.7',
  'mkdocstrings[python]>=1.0',
]

setuptools.setup(
  name='td_jax',
  version=_VERSION,
  description='Talking-model Distillation (arXiv 2310.03188) in JAX and Flax',
  long_description=(_ROOT / 'README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  author='The td_jax authors',
  license_expression='Apache-2.0',
  license_files=['LICENSE'],
  keywords=[
    'jax',
    'flax',
    'knowledge distillation',
    'foundation models',
    'vision transformer',
    'recommender systems',
  ],
  classifiers=[
    'Development Status :: 4 - Beta',
    'Environment :: Console',
    'Intended Audience :: Science/Research',
    'Operating System :: POSIX :: Linux',
    'Programming Language :: Python :: 3',
    'Programming Language :: Python :: 3 :: Only',
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
    'Typing :: Typed',
  ],
  project_urls={'Paper': 'https://arxiv.org/abs/2310.03188'},
  packages=setuptools.find_packages(include=['td_jax', 'td_jax.*']),
  package_data={'td_jax': ['py.typed']},
  # The wheel holds what is listed above, not all that MANIFEST.in adds.
  include_package_data=False,
  entry_points={'console_scripts': ['td_jax = td_jax.__main__:run']},
  python_requires='>=3.11',
  install_requires=[
    'absl-py>=2.1',
    'chex>=0.1.92',
    'clu>=0.0.12',
    'etils[epath]>=1.7',
    'filelock>=3.13',  # JAX limits its cache of programs with it.
    'flax>=0.12.7',
    'jax>=0.10.0',
    'jaxtyping>=0.3',
    'ml-collections>=1.1.0',
    'numpy>=2.0',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.0',
    'pillow>=10',  # Decodes the images that a student is asked about.
    'pyarrow>=16',  # Reads CSV and Parquet files.
    'safetensors>=0.4.3',  # Weights of Hugging Face models.
    'tensorboardX>=2.6',  # Writes events without importing TensorFlow.
    'scipy>=1.13',  # Student's t distribution, for the tables.
    'tqdm>=4.66',
  ],
  extras_require={
    'tfds': _TFDS,
    'cuda12': ['jax[cuda12]>=0.10.0'],
    'tpu': ['jax[tpu]>=0.10.0'],
    # Compiles for TPUs on a machine that has none.
    'tpu_compile': ['libtpu'],
    'plot': _PLOT,
    'wandb': ['wandb'],
    'docs': _DOCS,
    'dev': [
      'beartype>=0.18',
      'hypothesis>=6.100',
      'pyright>=1.1.400',
      'pytest>=8.3',
      'pytest-timeout>=2.3',
      'pytest-xdist>=3.6',
      'ruff>=0.12',
      'scikit-learn>=1.4',  # Data of examples/.
      # tests/test_package.py builds the wheel without an isolated environment.
      'setuptools>=77',
      'wheel>=0.43',
      *_PLOT,
      *_TFDS,
    ],
  },
)
