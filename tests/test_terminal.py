"""The outputs of a command that are full or closed."""

import subprocess
import sys
import textwrap

import pytest

# `file` may hold nothing but what is written to it.
_PROGRAM = """
  import contextlib, os
  from td_jax.run import command
  from td_jax.run import process
  from td_jax.run import terminal

  def main():
    for i in range(3):
      terminal.say(f'step {i}')
    with open('file', 'w') as opened:
      with contextlib.suppress(OSError):
        os.write(2, b'a library')
      opened.write('content')
    terminal.show('result')

  with process.watch():
    command.run(main)
"""
_FULL = 'No space left on device'


def _run(folder, program, outputs):
  file = folder / 'program.py'
  file.write_text(textwrap.dedent(program))
  return subprocess.run(
    ['bash', '-o', 'pipefail', '-c', f'"$0" "$1" {outputs}']
    + [sys.executable, file.name],
    cwd=folder,
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )


@pytest.mark.parametrize(
  ('outputs', 'code', 'out', 'message'),
  [
    ('', 0, 'result\n', 'step 2\na library'),
    ('2>/dev/full', 0, 'result\n', ''),
    ('2>&-', 0, 'result\n', ''),
    ('>&-', 0, '', 'a library'),
    ('<&- >&- 2>&-', 0, '', ''),
    ('>/dev/full', 74, '', f'error: stdout cannot be written ({_FULL})'),
    ('>/dev/full 2>/dev/full', 74, '', ''),
    ('| true', 0, '', ''),
  ],
)
def test_outputs_that_cannot_be_written(tmp_path, outputs, code, out, message):
  done = _run(tmp_path, _PROGRAM, outputs)
  assert done.returncode == code, done.stderr
  assert done.stdout == out
  assert message in done.stderr
  assert 'Traceback' not in done.stderr
  assert (tmp_path / 'file').read_text() == 'content'


def test_help_on_a_full_disk(tmp_path):
  program = """
    from td_jax.run import command_line
    command_line.run(command_line.Parser(), print, ['--help'])
  """
  done = _run(tmp_path, program, '>/dev/full')
  assert done.returncode == 74
  assert done.stderr.startswith('error: stdout cannot be written')
  assert done.stderr.count('\n') == 1
