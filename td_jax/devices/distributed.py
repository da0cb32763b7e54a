"""Joins several processes into one run.

TPU pods are recognised by themselves. Elsewhere, set

  JAX_COORDINATOR_ADDRESS=host:port JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0
"""

import os
from typing import Any

from td_jax import errors

MODES = ('auto', 'on', 'off')
# A process without a sign of life for so long counts as dead. JAX's default of
# 100 s would keep the surviving hosts of a pod waiting.
_HEARTBEAT_SECONDS = 10
_VARIABLES = (
  'JAX_COORDINATOR_ADDRESS',
  'JAX_NUM_PROCESSES',
  'JAX_PROCESS_ID',
)


def initialize(mode: str) -> None:
  """Joins the other processes of the run. JAX must not have been used yet.

  Args:
    mode: 'on', 'off' or 'auto', which is on if a TPU slice has several hosts.
      Unless the three variables above are set, JAX finds the other processes
      from what the cluster provides (TPU VMs, GKE, Slurm).

  Raises:
    errors.ConfigError: The variables are incomplete or malformed.
    errors.IOFailedError: The other processes cannot be reached.
  """
  errors.choose('--distributed', mode, MODES)
  hosts = os.environ.get('TPU_WORKER_HOSTNAMES', '').split(',')
  if mode == 'off' or (mode == 'auto' and len(hosts) < 2):
    return
  values = [os.environ.get(name, '') for name in _VARIABLES]
  address, count, number = values
  arguments: dict[str, Any] = {}
  if any(values):
    if not (all(values) and count.isdigit() and number.isdigit()):
      raise errors.ConfigError(
        f'--distributed={mode} found '
        f'{dict(zip(_VARIABLES, values, strict=True))}; set all three '
        '(host:port and two numbers), or none of them.'
      )
    arguments = {
      'coordinator_address': address,
      'num_processes': int(count),
      'process_id': int(number),
    }
  import jax  # Imported here, because --help should not wait for it.

  # JAX's own preemption service would take SIGTERM from `preemption.Watch`.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      **arguments, heartbeat_timeout_seconds=_HEARTBEAT_SECONDS
    )
  except Exception as e:  # Each kind of cluster raises errors of its own.
    raise errors.IOFailedError(
      f'the other processes cannot be joined: {errors.sentence(e)} Check that '
      'all of them run and that the coordinator can be reached, or set --distributed=off.'
    ) from e


def is_main() -> bool:
  """Whether this process writes files and prints; call `initialize` first."""
  import jax

  return jax.process_index() == 0
