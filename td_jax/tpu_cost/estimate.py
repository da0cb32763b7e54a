"""What a config's training step would cost on TPUs that are not here."""

from td_jax import data
from td_jax import errors
from td_jax import types
from td_jax.devices import parallel as parallel_lib
from td_jax.run import config as config_lib
from td_jax.run import experiment
from td_jax.tpu_cost import report as compile_lib
from td_jax.tpu_cost import topology as topology_lib


def cost(
  config: types.Config, topology_name: str, *, mfu: float
) -> compile_lib.Report:
  """Compiles the step of `config` for a topology, such as 'v4:2x2x1'.

  Raises:
    errors.ConfigError: there is no such topology, or the step does not fit.
  """
  config_lib.validate(config)
  if config.method == config_lib.TEACHER:
    config = config_lib.as_teacher(config)
  if not topology_name:
    raise errors.ConfigError(
      '--mode=compile needs --topology, such as v4:2x2x1 or v5e:16x16.'
    )
  topology = topology_lib.describe(topology_name)
  parallel = parallel_lib.Parallel(
    'mesh',
    0,
    fsdp=config.parallel.fsdp,
    batch_size=config.batch_size,
    found=topology.devices,
  )
  task = data.DOMAINS[config.domain].shapes(config)
  step, arguments = experiment.abstract(config, parallel, task)
  state, (teacher, _), _ = arguments
  return compile_lib.report(
    step,
    arguments,
    topology=topology,
    parameters=(state.params, teacher),
    steps=config.steps,
    mfu=mfu,
  )
