"""td_jax --config=movielens --workdir=DIR, and td_jax predict RUN FILE ..."""

if __name__ == '__main__':
  from td_jax.run import process

  process.watch()  # Hears signals before the imports that take time.

import functools
import importlib
import sys

from absl import flags
from ml_collections import config_flags

import td_jax
from td_jax import errors
from td_jax.devices import distributed
from td_jax.run import command
from td_jax.run import preemption
from td_jax.run import process
from td_jax.run import terminal

# {name of a command: its module}, for what is done before and after a run.
_COMMANDS = {
  'predict': 'td_jax.use.predict',
  'export': 'td_jax.use.export',
  'inspect': 'td_jax.use.inspect',
  'teacher': 'td_jax.use.teacher',
  'compare': 'td_jax.study.compare',
}
_MODES = ('train', 'eval', 'compile', 'cka', 'config')
_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'The experiment: NAME or FILE.py, optionally followed by :ARGS.',
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  '',
  'Folder of the run; by default a new one under runs/. The same command with '
  'the same folder resumes.',
)
_MODE = flags.DEFINE_string(
  'mode',
  'train',
  'train; eval: score the best checkpoint; compile: the cost of a training '
  'step on --topology; cka: compare the representations of student and '
  'teacher; config: print every key of the config with its comment. eval and cka '
  'need no --config.',
)
_TOPOLOGY = flags.DEFINE_string(
  'topology',
  '',
  'TPUs for --mode=compile, such as v4:2x2x1 or v5e:16x16.',
)
_MFU = flags.DEFINE_float(
  'mfu', 0.3, 'Share of the peak FLOP/s that --mode=compile assumes.'
)
_DISTRIBUTED = flags.DEFINE_string(
  'distributed', 'auto', 'Join several processes into one run: auto, on, off.'
)
_PROFILE = flags.DEFINE_string(
  'profile', '', 'Trace these steps into WORKDIR/profile, such as 10:20.'
)
flags.DEFINE_bool('debug', False, 'Show the traceback of an error.')
# Read by `_start`, before --config is required; declared here for --help.
flags.DEFINE_bool('version', False, 'Print the version of td_jax and exit.')


def main(watch: preemption.Watch) -> None:
  """Does what the flags ask for."""
  errors.choose('--mode', _MODE.value, _MODES)
  distributed.initialize(_DISTRIBUTED.value)
  # These take seconds to import, and --help does not need them.
  from td_jax import types
  from td_jax.devices import compile_cache
  from td_jax.run import config_text
  from td_jax.run import pipeline
  from td_jax.run import profile
  from td_jax.run import saved
  from td_jax.run import summary
  from td_jax.run import workdir
  from td_jax.storage import paths

  compile_cache.enable()
  config = _CONFIG.value
  if _MODE.value == 'config':
    terminal.show(config_text.text(config, log=terminal.say))
    return
  if _MODE.value == 'compile':
    from td_jax.tpu_cost import estimate

    terminal.show(
      estimate.table(config, _TOPOLOGY.value, _WORKDIR.value, mfu=_MFU.value)
    )
    return
  if _MODE.value != 'train' and not (
    _WORKDIR.value or (config and config.checkpoint)
  ):
    raise errors.ConfigError(
      f'--workdir is missing; --mode={_MODE.value} takes the folder of a run.'
    )
  path = paths.as_path(_WORKDIR.value or workdir.default(config.name))
  watch.workdir = str(path)
  if config is None:  # Of a run that there is.
    config = saved.config_of(path)
  if _MODE.value == 'cka':
    from td_jax.paper import figure3

    figure3.compare(config, path, log=terminal.say)
    return
  log = terminal.say if distributed.is_main() else types.no_log
  if _MODE.value == 'train':
    log(f'workdir {path}')
    steps = profile.parse(_PROFILE.value)
    results = pipeline.run(config, path, watch=watch, log=log, profile=steps)
  else:
    results = pipeline.evaluate(config, path, watch=watch, log=log)
  watch.finish()  # The results are written: a signal changes nothing any more.
  if distributed.is_main():
    terminal.show(summary.table(results))


def run() -> None:
  """Does what the words of the process ask for."""
  with process.watch() as watch:
    command.exit_on_error(functools.partial(_start, watch))


def _start(watch: preemption.Watch) -> None:
  """Finds what the first word names: the version, a command or an experiment."""
  if '--version' in sys.argv[1:]:  # No import may slow this down.
    terminal.show(f'td_jax {td_jax.__version__}')
    return
  if sys.argv[1:2] and sys.argv[1] in _COMMANDS:
    module = importlib.import_module(_COMMANDS[sys.argv[1]])
    module.main(sys.argv[2:])
    return
  command.parse_flags(sys.argv)
  command.run(functools.partial(main, watch))


if __name__ == '__main__':
  run()
