"""8 CPU devices, strict ranks, checked shapes, and a small MovieLens."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import signal
import subprocess
import sys
import tempfile

# Most of a test's time is compiling, and tiny programs need not be fast: of XLA's
# two code generators for CPUs, the older one compiles in half the time. A version of
# XLA that does not know the flag would end the process.
FAST_COMPILE = ''
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  FAST_COMPILE = '--xla_cpu_use_fusion_emitters=false'
os.environ['XLA_FLAGS'] = ' '.join(
  (
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    FAST_COMPILE,
  )
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Each program is compiled once a session. Processes that tests start inherit
# this: others would differ in the last bits.
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
  _compiled = tempfile.mkdtemp(prefix='td_jax-compiled-')
  atexit.register(shutil.rmtree, _compiled, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _compiled
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'

from jaxtyping import install_import_hook

# Before anything of td_jax is imported: annotated shapes are then checked.
install_import_hook('td_jax', 'beartype.beartype')

import jax
from jax import numpy as jnp
import numpy as np
import pytest
import tiny_vision

from td_jax import main
from td_jax import methods
from td_jax import types
from td_jax.configs import movielens as movielens_config
from td_jax.data import ratings as ratings_lib
from td_jax.data import sources
from td_jax.models import split as split_lib
from td_jax.run import command as command_lib
from td_jax.run import preemption
from td_jax.storage import array_cache

jax.config.update('jax_numpy_rank_promotion', 'raise')
# The programs of all tests stay in memory, and to look for garbage among them takes
# long. What has been imported is never garbage.
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 50)


def small_ratings(
  users=40, movies=30, rows=1500, seed=0
) -> ratings_lib.Ratings:
  """Ratings that look like MovieLens, small and made up."""
  rng = np.random.default_rng(seed)
  user = rng.integers(1, users + 1, rows).astype(np.int32)
  movie = rng.integers(1, movies + 1, rows).astype(np.int32)
  taste = rng.normal(size=users + 1), rng.normal(size=movies + 1)
  rating = np.clip(np.round(3.5 + taste[0][user] + taste[1][movie]), 1, 5)
  genres = rng.random((movies + 1, 3)) < 0.5
  genres[1:, 0] |= ~genres[1:].any(axis=1)
  return ratings_lib.Ratings(
    user_id=user,
    movie_id=movie,
    rating=rating.astype(np.float32),
    timestamp=np.sort(rng.integers(0, 10**6, rows)),
    titles=('', *(f'The Film No {m} (1995)' for m in range(1, movies + 1))),
    genres=genres,
    genre_names=('Drama', 'War', 'Comedy'),
    fingerprint='0' * 64,
  )


SMALL_DATA = '--config.data.dataset=movielens/latest-small-ratings'


def small_data(root):
  """Writes `small_ratings` where the flag `SMALL_DATA` finds them; returns `root`.

  They are another dataset than MovieLens-100K, whose ratings are known.
  """
  name = SMALL_DATA.partition('=')[2]
  folder = root / name / '0.1.1'
  folder.mkdir(parents=True)
  (folder / 'dataset_info.json').write_text('{}')
  small = small_ratings()
  ratings = small._replace(fingerprint=ratings_lib.fingerprint(small))
  cache = root / 'td_jax' / f'{name.replace("/", "-")}-0.1.1.npz'
  array_cache.save(cache, ratings._asdict(), log=print)
  return root


@pytest.fixture(scope='module')
def small_movielens():
  """movielens.load reads `small_ratings` in place of the real data."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      sources, 'movielens_100k', lambda *args, **kwargs: small_ratings()
    )
    yield


@pytest.fixture(scope='session')
def vision_data(tmp_path_factory):
  """A folder of tiny images."""
  return tiny_vision.folder(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='session')
def vision_teacher(tmp_path_factory):
  """A tiny published teacher, with a head for those images."""
  return tiny_vision.teacher(tmp_path_factory.mktemp('teacher'))


class Watch(preemption.Watch):
  """Asks for a stop once `when` returns True; never hears a signal."""

  def __init__(self, when=lambda: False):
    super().__init__(signals=())
    self._when = when

  @property
  def requested(self):
    if self._when():
      self._signal = signal.SIGTERM
    return super().requested


@pytest.fixture
def disk(tmp_path):
  """A folder on a disk of its own, of 4 MiB."""
  path = tmp_path / 'disk'
  path.mkdir()
  mounted = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(path)],
    capture_output=True,
    text=True,
    check=False,
  )
  if mounted.returncode:
    pytest.skip(f'no disk of its own: {mounted.stderr.strip()}')
  yield path
  subprocess.run(['umount', '--lazy', str(path)], check=True)


@pytest.fixture(autouse=True)
def _signal_handlers():
  """Puts back the handlers that a command in this process has replaced."""
  signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
  handlers = {number: signal.getsignal(number) for number in signals}
  yield
  for number, handler in handlers.items():
    signal.signal(number, handler)


@pytest.fixture
def command(capfd):
  """(args) -> (exit code, stdout, stderr), as `python -m td_jax.main`."""
  own = main.flags.FLAGS.flags_by_module_dict()['td_jax.main']

  def run(*args):
    main.flags.FLAGS.unparse_flags()
    argv = ['main.py', *args]
    code = 0
    try:
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', argv)
        command_lib.parse_flags(argv)
        command_lib.exit_on_error(lambda: main.main(preemption.Watch()))
    except SystemExit as e:
      code = e.code
    finally:
      for name in list(main.flags.FLAGS):
        if name.startswith('config.'):  # Made anew by each --config.
          delattr(main.flags.FLAGS, name)
      for flag in own:
        flag.unparse()
    return code, *capfd.readouterr()

  return run


def small_config(arg='', **overrides):
  """configs/movielens.py, shrunk to steps of milliseconds."""
  config = movielens_config.get_config(arg)
  config.seeds, config.refit_on_validation = 2, False
  for run in (config, config.teacher):
    run.update(
      {'steps': 12, 'steps_per_dispatch': 2, 'log_every': 2, 'eval_every': 4}
    )
    run.update({'batch_size': 16})
    run.optim.warmup = 2
  config.model.hidden, config.teacher.model.hidden = (12, 8), (20, 16)
  config.parallel.devices = 1  # Programs for 8 take longer to compile.
  config.distill.hidden, config.distill.message = 14, 10
  config.update_from_flattened_dict(overrides)
  return config


def lesson(student, teacher, labels):
  """A lesson on these outputs [b, ...], for a term that reads no states."""

  def side(output):
    return split_lib.Side(
      types.States(None, None), output, *[lambda state, key: state] * 2
    )

  return methods.Lesson(
    student=side(student),
    teachers={types.TEACHER: side(teacher)},
    batch=types.Batch(x=None, y=labels, mask=jnp.ones(len(labels))),
    step=jnp.int32(0),
    rng=jax.random.key(0),
  )


def real(split):
  """A split in memory without its padding."""
  return jax.tree.map(lambda leaf: leaf[: np.count_nonzero(split.mask)], split)
