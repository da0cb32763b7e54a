"""python -m td_jax.main --config=configs/movielens.py --workdir=DIR"""

import re
import sys
import traceback

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from td_jax import errors
from td_jax.devices import distributed
from td_jax.run import preemption

_MODES = ('train', 'eval', 'compile', 'cka')
_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'File of the experiment, as FILE.py or FILE.py:ARGS.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Folder of the run; by default a new one under runs/.'
)
_MODE = flags.DEFINE_string(
  'mode',
  'train',
  'train; eval: score the best checkpoint; compile: say what a step costs on '
  '--topology; cka: compare what student and teacher represent.',
)
_TOPOLOGY = flags.DEFINE_string(
  'topology', '', 'Of --mode=compile: TPUs, such as v4:2x2x1 or v5e:16x16.'
)
_MFU = flags.DEFINE_float(
  'mfu', 0.3, 'Of --mode=compile: the share of the peak that is assumed.'
)
_DISTRIBUTED = flags.DEFINE_string(
  'distributed', 'auto', 'Several processes as one run: auto, on or off.'
)
flags.DEFINE_bool('debug', False, 'Show the traceback of an error.')


def main(argv: list[str]) -> None:
  """Trains or evaluates what the flags name."""
  del argv  # Flags say it all.
  watch = preemption.Watch()
  try:
    errors.choose('--mode', _MODE.value, _MODES)
    distributed.initialize(_DISTRIBUTED.value)
    # These take seconds to import, and --help does not need them.
    from td_jax.run import report
    from td_jax.run import train
    from td_jax.run import workdir
    from td_jax.storage import paths

    config = _CONFIG.value
    if _MODE.value == 'compile':
      print(_compile(config), flush=True)
      return
    path = paths.as_path(_WORKDIR.value or workdir.default(config.name))
    if _MODE.value == 'cka':
      from td_jax.paper import figure3

      figure3.compare(config, path, log=_say)
      return
    _, parallel = train.check(config)
    log = _say if parallel.is_main else lambda line: None
    if _MODE.value == 'train':
      log(f'workdir {path}')
      results = train.run(config, path, watch=watch, log=log)
    else:
      results = train.evaluate_run(config, path, watch=watch, log=log)
    if parallel.is_main:
      print(report.table(results), flush=True)
  except errors.TdError as e:
    _stop(e, str(e), e.exit_code)


def _compile(config):
  """The cost of a step, in a table; --workdir keeps it as JSON."""
  from td_jax.storage import paths
  from td_jax.tpu_cost import estimate
  from td_jax.tpu_cost import report as compile_lib

  found = estimate.cost(config, _TOPOLOGY.value, mfu=_MFU.value)
  if _WORKDIR.value:
    path = paths.as_path(_WORKDIR.value)
    path.mkdir(parents=True, exist_ok=True)
    (path / 'compile.json').write_text(compile_lib.as_json(found))
  return compile_lib.table(found)


def _parse(argv: list[str]) -> list[str]:
  """Reads flags, config and overrides; whatever is wrong there is exit 2."""
  if any(word.lstrip('-') in ('help', 'helpfull', 'h') for word in argv[1:]):
    try:
      return app.parse_flags_with_usage(argv)
    except SystemExit:
      sys.exit(0)  # absl's own is 1, but nothing went wrong.
  try:
    rest = flags.FLAGS(argv)
    if _CONFIG.value is None:
      raise errors.ConfigError(
        '--config is missing; choose a file, such as '
        '--config=configs/movielens.py.'
      )
    _CONFIG.value.to_dict()  # Whether the file exists shows only here.
    return rest
  except Exception as e:  # A config file may raise anything.
    said = str(e)
    wrong_key = re.match(r'\W*(\w+)\W*(?:n?Did you mean "(\w+)".*)?$', said)
    if isinstance(e, (AttributeError, KeyError)) and wrong_key:
      key, near = wrong_key.groups()
      said = f'the config has no key {key!r}.'
      said += f' Did you mean {near!r}?' if near else ''
    elif 'Traceback' in said or isinstance(e, OSError):
      # ml_collections puts a whole traceback into the message; its last line
      # is what the config file said.
      said = said.splitlines()[-1]
    _stop(e, said, errors.ConfigError.exit_code)
    raise


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


def _stop(error: Exception, said: str, code: int) -> None:
  if _debug():
    traceback.print_exception(error)
  _say(f'error: {" ".join(said.split())}')
  sys.exit(code)


def _debug() -> bool:
  """Whether --debug is given; flags that are wrong have not been parsed."""
  return any(re.fullmatch(r'--?debug(=(true|t|1))?', word) for word in sys.argv)


if __name__ == '__main__':
  logging.set_verbosity(logging.WARNING)
  if not _debug():
    # orbax shows the tracebacks of what `_stop` says in one line.
    logging.get_absl_logger().disabled = True
    sys.unraisablehook = lambda unraisable: None
  app.run(main, flags_parser=_parse)
