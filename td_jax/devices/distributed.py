"""Several processes as one run: on TPU pods, or as environment variables say.

JAX_COORDINATOR_ADDRESS=host:port JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0
"""

import os

from td_jax import errors

MODES = ('auto', 'on', 'off')
# A process that says nothing for so long is dead; JAX's own default is 100.
_HEARTBEAT_SECONDS = 10
_VARIABLES = (
  'JAX_COORDINATOR_ADDRESS',
  'JAX_NUM_PROCESSES',
  'JAX_PROCESS_ID',
)


def initialize(mode: str) -> None:
  """Joins the other processes of the run, before JAX is used.

  Args:
    mode: 'on'; 'off'; or 'auto', which is on where a TPU slice has several
      hosts. Without the three variables above, JAX finds the others by what the
      cluster tells (TPU VMs, GKE, Slurm).

  Raises:
    errors.ConfigError: the variables say nothing that makes sense.
    errors.IOFailedError: the other processes cannot be reached.
  """
  errors.choose('--distributed', mode, MODES)
  hosts = os.environ.get('TPU_WORKER_HOSTNAMES', '').split(',')
  if mode == 'off' or (mode == 'auto' and len(hosts) < 2):
    return
  said = [os.environ.get(name, '') for name in _VARIABLES]
  address, count, number = said
  given = {}
  if any(said):
    if not (all(said) and count.isdigit() and number.isdigit()):
      raise errors.ConfigError(
        f'--distributed={mode} found {dict(zip(_VARIABLES, said, strict=True))}'
        '; set all three (host:port and two numbers), or none of them.'
      )
    given = {
      'coordinator_address': address,
      'num_processes': int(count),
      'process_id': int(number),
    }
  import jax  # --help need not wait for it.

  # Else it takes SIGTERM from `preemption.Watch`.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      **given, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
    )
  except Exception as e:  # Whatever the cluster, or its absence, raises.
    raise errors.IOFailedError(
      f'the other processes cannot be joined: {e}. Check that all of them run '
      'and that the coordinator can be reached, or set --distributed=off.'
    ) from e
