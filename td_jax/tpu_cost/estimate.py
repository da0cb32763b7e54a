"""The cost of a config's training step on TPUs, without any TPU."""

from td_jax import data
from td_jax import errors
from td_jax import types
from td_jax.devices import parallel as parallel_lib
from td_jax.run import completion
from td_jax.run import config as config_lib
from td_jax.run import experiment
from td_jax.storage import files
from td_jax.storage import paths
from td_jax.tpu_cost import cost_table
from td_jax.tpu_cost import step_cost
from td_jax.tpu_cost import topology as topology_lib

FILE = 'compile.json'


def cost(
  config: types.Config, topology_name: str, *, mfu: float
) -> step_cost.Report:
  """Compiles the step of `config` for a topology such as 'v4:2x2x1'.

  Raises:
    errors.ConfigError: There is no such topology, or the step does not fit.
  """
  config = completion.complete(config, log=types.no_log)
  config_lib.validate(config)
  if config.method == types.TEACHER:
    config = config_lib.as_teacher(config)
  if not topology_name:
    raise errors.ConfigError(
      '--mode=compile needs --topology, such as v4:2x2x1 or v5e:16x16.'
    )
  topology = topology_lib.describe(topology_name)
  # config.parallel.kind and .devices are about the machine at hand. On the
  # topology the step runs on a mesh of all chips.
  parallel = parallel_lib.Parallel(
    'mesh',
    0,
    fsdp=config.parallel.fsdp,
    devices_available=topology.devices,
  )
  parallel.check_batch_size(config.batch_size)
  task = data.DOMAINS[config.domain].shapes(config)
  step, arguments = experiment.abstract(config, parallel, task)
  state, (teachers, _), _ = arguments
  return step_cost.report(
    step,
    arguments,
    topology=topology,
    parameters=(state.params, teachers),
    steps=config.steps,
    mfu=mfu,
  )


def table(
  config: types.Config, topology_name: str, workdir: str, *, mfu: float
) -> str:
  """The cost as a table; with a `workdir`, it is stored there as JSON too."""
  report = cost(config, topology_name, mfu=mfu)
  if workdir:
    path = paths.as_path(workdir)
    path.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path / FILE, cost_table.as_json(report))
  return cost_table.table(report)
