#!/usr/bin/env python3
"""Runs one command as N processes of one JAX program, on this machine's CPU.

  launch/local.py 2 --devices_per_process=4 -- \\
    python -m td_jax.main --distributed=on --config=... --workdir=...

Each process gets JAX_COORDINATOR_ADDRESS (a free port), JAX_NUM_PROCESSES and
JAX_PROCESS_ID. Its lines are printed with its number in front. When one fails,
the others have --grace seconds to notice by themselves, as many again after
SIGTERM, and are killed then. SIGTERM and SIGINT are passed on to all, which
then have a minute from the first that ends to the last. The exit code is that
of the first to fail (128 + n for signal n), or 0.
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

_PRINTING = threading.Lock()


def main(argv: list[str] | None = None) -> int:
  """Runs what the arguments say; returns the exit code."""
  args = _parse(argv)
  address = f'localhost:{_free_port()}'
  told = []
  # Before the first process: a signal that comes in between must not be lost.
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: told.append(number))
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
  code = _watch(processes, told, grace=args.grace)
  for printer in printers:
    # Something that a process left behind may keep its output open for ever.
    printer.join(timeout=2)
  return code


def _watch(processes, told, *, grace):
  """Waits for all `processes`, passing signals on; the first failure's code."""
  code, failed_at, ended = 0, None, set()
  to_tell = [signal.SIGTERM, signal.SIGKILL]
  while len(ended) < len(processes):
    while told:
      _tell(processes, told.pop(0))
      # They are saving; the first to end is no sign that others hang.
      to_tell, grace = [signal.SIGKILL], max(grace, 60)
    for i, process in enumerate(processes):
      if i in ended or process.poll() is None:
        continue
      ended.add(i)
      status = process.returncode
      status = status if status >= 0 else 128 - status
      _say(i, f'ended with {status}', to=sys.stderr)
      if status and failed_at is None:
        code, failed_at = status, time.monotonic()
    if failed_at and to_tell and time.monotonic() - failed_at > grace:
      _tell(processes, to_tell.pop(0))
      failed_at = time.monotonic()
    time.sleep(0.05)
  return code


def _tell(processes, number):
  for process in processes:
    if process.poll() is None:
      process.send_signal(number)


def _environment(args, *, process, address):
  """The environment of one process."""
  env = os.environ | {
    'JAX_COORDINATOR_ADDRESS': address,
    'JAX_NUM_PROCESSES': str(args.processes),
    'JAX_PROCESS_ID': str(process),
    'JAX_PLATFORMS': 'cpu',
    # Lines appear when they are written, not when a buffer is full.
    'PYTHONUNBUFFERED': '1',
  }
  if args.devices_per_process:
    count = '--xla_force_host_platform_device_count'
    others = re.sub(rf'{count}=\S*', '', env.get('XLA_FLAGS', ''))
    env['XLA_FLAGS'] = f'{others} {count}={args.devices_per_process}'.strip()
  return env


def _free_port():
  with socket.socket() as s:
    s.bind(('localhost', 0))
    return s.getsockname()[1]


def _copy(process, source, to):
  with source:
    for line in source:
      _say(process, line.rstrip('\n'), to=to)


def _say(process, line, *, to):
  with _PRINTING:
    print(f'[{process}] {line}', file=to, flush=True)


def _parse(argv):
  argv = sys.argv[1:] if argv is None else argv
  at = argv.index('--') if '--' in argv else len(argv)
  parser = argparse.ArgumentParser(
    usage='local.py N [--devices_per_process=D] [--grace=SECONDS] -- COMMAND',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument('processes', type=_positive, metavar='N')
  parser.add_argument('--devices_per_process', type=_positive, metavar='D')
  parser.add_argument(
    '--grace', type=float, default=5.0, metavar='SECONDS', help='default: 5'
  )
  args = parser.parse_args(argv[:at])
  args.command = argv[at + 1 :]
  if not args.command:
    parser.error('the command is missing: N -- COMMAND ...')
  if shutil.which(args.command[0]) is None:
    parser.error(f'there is no program {args.command[0]!r}')
  return args


def _positive(text):
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f'{text} is not positive')
  return number


if __name__ == '__main__':
  sys.exit(main())
