#!/usr/bin/env python3
"""Runs a command as N processes of one JAX program, on this machine's CPU.

  launch/local.py 2 --devices_per_process=4 -- \\
    python -m td_jax.main --distributed=on --config=... --workdir=...

Each process gets JAX_COORDINATOR_ADDRESS (with a free port), JAX_NUM_PROCESSES
and JAX_PROCESS_ID. Its output is printed with its number in front.

When a process fails, the others have --grace seconds to notice it themselves.
Then they get SIGTERM, and after another --grace seconds SIGKILL. SIGTERM and
SIGINT are passed on to all processes; once the first of them ends, the others
have a minute. The exit code is 0, or that of the first process to fail (128 + n
for signal n).
"""

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO
from typing import Any

# After a signal every process may be writing a checkpoint.
_SECONDS_TO_SAVE = 60
_PRINTING = threading.Lock()


def main(argv: list[str] | None = None) -> int:
  """Runs the command in `argv`; returns the exit code."""
  args = _parse(argv)
  address = f'localhost:{_free_port()}'
  signals: list[int] = []
  # Installed before the first process starts, so that no signal is lost.
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: signals.append(number))
  processes = [
    subprocess.Popen(
      args.command,
      env=_environment(args, process=i, address=address),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      errors='replace',
    )
    for i in range(args.processes)
  ]
  printers = []
  for i, process in enumerate(processes):
    _say(i, f'pid {process.pid}', to=sys.stderr)
    for source, to in (
      (process.stdout, sys.stdout),
      (process.stderr, sys.stderr),
    ):
      printers.append(
        threading.Thread(target=_copy, args=(i, source, to), daemon=True)
      )
      printers[-1].start()
  code = _watch(processes, signals, grace=args.grace)
  for printer in printers:
    # A grandchild that outlives its parent may hold the output open forever.
    printer.join(timeout=2)
  return code


def _watch(
  processes: list[subprocess.Popen[str]], signals: list[int], *, grace: float
) -> int:
  """Waits for all processes and passes signals on.

  Returns:
    The exit code of the first process to fail, or 0.
  """
  code, failed_at, ended = 0, None, set()
  escalation = [signal.SIGTERM, signal.SIGKILL]
  while len(ended) < len(processes):
    while signals:
      _send(processes, signals.pop(0))
      # They are saving now. That one has ended does not mean the others hang.
      escalation, grace = [signal.SIGKILL], max(grace, _SECONDS_TO_SAVE)
    for i, process in enumerate(processes):
      if i in ended or process.poll() is None:
        continue
      ended.add(i)
      status = process.returncode
      status = status if status >= 0 else 128 - status
      _say(i, f'ended with {status}', to=sys.stderr)
      if status and failed_at is None:
        code, failed_at = status, time.monotonic()
    if failed_at and escalation and time.monotonic() - failed_at > grace:
      _send(processes, escalation.pop(0))
      failed_at = time.monotonic()
    time.sleep(0.05)
  return code


def _send(processes: list[subprocess.Popen[str]], number: int) -> None:
  for process in processes:
    if process.poll() is None:
      process.send_signal(number)


def _environment(
  args: argparse.Namespace, *, process: int, address: str
) -> dict[str, str]:
  """The environment variables of one process."""
  env = os.environ | {
    'JAX_COORDINATOR_ADDRESS': address,
    'JAX_NUM_PROCESSES': str(args.processes),
    'JAX_PROCESS_ID': str(process),
    'JAX_PLATFORMS': 'cpu',
    # Otherwise lines would appear only when a buffer is full.
    'PYTHONUNBUFFERED': '1',
  }
  if args.devices_per_process:
    count = '--xla_force_host_platform_device_count'
    other_flags = re.sub(rf'{count}=\S*', '', env.get('XLA_FLAGS', ''))
    env['XLA_FLAGS'] = (
      f'{other_flags} {count}={args.devices_per_process}'.strip()
    )
  return env


def _free_port() -> int:
  # Another program could take the port before JAX does; then JAX fails.
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def _copy(process: int, source: IO[str], to: Any) -> None:
  with source:
    for line in source:
      _say(process, line.rstrip('\n'), to=to)


def _say(process: int, line: str, *, to: Any) -> None:
  with _PRINTING:
    print(f'[{process}] {line}', file=to, flush=True)


def _parse(argv: list[str] | None) -> argparse.Namespace:
  argv = sys.argv[1:] if argv is None else argv
  split = argv.index('--') if '--' in argv else len(argv)
  parser = argparse.ArgumentParser(
    usage='local.py N [--devices_per_process=D] [--grace=SECONDS] -- COMMAND',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    'processes', type=_positive, metavar='N', help='number of processes'
  )
  parser.add_argument(
    '--devices_per_process',
    type=_positive,
    metavar='D',
    help='number of CPU devices that each process has',
  )
  parser.add_argument(
    '--grace',
    type=float,
    default=5.0,
    metavar='SECONDS',
    help='time for the others to end after a failure (default: 5)',
  )
  args = parser.parse_args(argv[:split])
  args.command = argv[split + 1 :]
  if not args.command:
    parser.error('the command is missing; write it after --')
  if shutil.which(args.command[0]) is None:
    parser.error(f'there is no program {args.command[0]!r}')
  return args


def _positive(text: str) -> int:
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f'{text} is not positive')
  return number


if __name__ == '__main__':
  sys.exit(main())
