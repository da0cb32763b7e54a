"""Where compiled programs are kept."""

import pathlib
import subprocess
import sys

import jax
import pytest

from td_jax.devices import compile_cache

PROGRAM = """
import jax
from td_jax.devices import compile_cache
compile_cache._MIN_SECONDS = 0
compile_cache.enable()
print(jax.jit(lambda x: x + 1)(1.0))
"""


@pytest.fixture
def settings(monkeypatch):
  """JAX's settings as a user would find them; they are restored afterwards."""
  names = (
    'jax_compilation_cache_dir',
    'jax_compilation_cache_max_size',
    'jax_persistent_cache_min_compile_time_secs',
  )
  before = {name: getattr(jax.config, name) for name in names}
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  yield
  for name, value in before.items():
    jax.config.update(name, value)


def test_a_second_process_finds_the_program(tmp_path, monkeypatch):
  monkeypatch.delenv('JAX_COMPILATION_CACHE_DIR')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  monkeypatch.setenv('PYTHONPATH', str(pathlib.Path(__file__).parents[1]))

  def run():
    done = subprocess.run(
      [sys.executable, '-c', PROGRAM],
      capture_output=True,
      text=True,
      check=True,
    )
    assert (done.stdout.strip(), done.stderr) == ('2.0', '')
    return sorted(
      path.name for path in tmp_path.rglob('*-cache') if path.is_file()
    )

  first = run()
  assert first
  assert run() == first


def test_the_users_folder_has_precedence(monkeypatch, tmp_path):
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'mine')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  before = jax.config.jax_compilation_cache_dir
  compile_cache.enable()
  assert jax.config.jax_compilation_cache_dir == before
  assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_no_error(
  settings, monkeypatch, tmp_path
):
  del settings
  (tmp_path / 'file').write_text('')
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
  before = jax.config.jax_compilation_cache_dir
  compile_cache.enable()
  assert jax.config.jax_compilation_cache_dir == before


def test_each_kind_of_machine_has_its_own(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  here = compile_cache.default_folder()
  assert here.parent == tmp_path / 'td_jax'
  monkeypatch.setattr(compile_cache, '_CPU_INFO', str(tmp_path / 'none'))
  assert compile_cache.default_folder() != here
