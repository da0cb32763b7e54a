"""The rooms of the package: who imports whom, read from the source."""

import ast
import functools
import graphlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'td_jax'
FILES = sorted(PACKAGE.rglob('*.py'))
# Rooms from the lowest to the highest. A room is a folder of td_jax or a file
# of its root; it imports only itself and rooms that stand before it.
ORDER = (
  'errors',
  'types',
  'configs',
  'storage',
  'devices',
  'models',
  'methods',
  'data',
  'training',
  'run',
  'tpu_cost',
  'use',
  'paper',
  'study',
  'main',
  '__main__',
)
ROOT_FILES = {
  '__init__.py',
  '__main__.py',
  'errors.py',
  'main.py',
  'py.typed',
  'types.py',
}
LONGEST = 450  # Lines.


def _name(file):
  """td_jax/run/plan.py -> td_jax.run.plan; td_jax/run/__init__.py -> td_jax.run"""
  parts = file.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {_name(file): file for file in FILES}


def _is_for_types_only(node):
  """`if TYPE_CHECKING:` never runs, so it cannot make a circle."""
  return isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test)


def _statements(node):
  """All nodes below `node` that run, functions included."""
  for child in ast.iter_child_nodes(node):
    if not _is_for_types_only(child):
      yield child
      yield from _statements(child)


@functools.cache
def _imports(file):
  """The modules of td_jax that a file imports, wherever in it."""
  imported = set()
  for node in _statements(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      imported |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{file}: write imports in full'
      for alias in node.names:
        module = f'{node.module}.{alias.name}'
        # `from td_jax.methods.base import Need` takes a name, not a module.
        imported.add(module if module in MODULES else node.module)
  return frozenset(imported & MODULES.keys())


def _room(module):
  return module.split('.')[1]


def test_the_order_names_every_room():
  rooms = {_room(module) for module in MODULES if module != 'td_jax'}
  assert rooms == set(ORDER)


def test_every_room_is_in_the_api_reference():
  pages = {
    page.stem: page.read_text() for page in (ROOT / 'docs/api').glob('*.md')
  }
  for room in ORDER:
    if (PACKAGE / room).is_dir():
      assert f'\n::: td_jax.{room}\n' in pages[room]
  menu = (ROOT / 'mkdocs.yml').read_text()
  assert all(f' api/{page}.md\n' in menu for page in pages)


def test_the_root_is_small():
  assert len(ROOT_FILES) <= 6
  assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == (
    ROOT_FILES
  )


@pytest.mark.parametrize('name', sorted(MODULES.keys() - {'td_jax'}))
def test_imports_point_down(name):
  upward = {
    imported
    for imported in _imports(MODULES[name])
    # The package itself holds only the version and lazy names.
    if imported != 'td_jax'
    and ORDER.index(_room(imported)) > ORDER.index(_room(name))
  }
  assert not upward, f'{name} imports {sorted(upward)} from a higher room'


def test_the_package_imports_nothing_of_its_own():
  """So that `import td_jax` is quick, and every module may import it."""
  assert not _imports(PACKAGE / '__init__.py')


def test_no_circles():
  graph = {name: _imports(file) - {name} for name, file in MODULES.items()}
  graphlib.TopologicalSorter(graph).prepare()  # Raises a CycleError.


def test_imports_are_read():
  """The tests above would pass if no import were recognised."""
  assert 'td_jax.methods.talk' in _imports(PACKAGE / 'methods' / 'talking.py')
  # Inside a function, too.
  assert 'td_jax.run.pipeline' in _imports(PACKAGE / 'main.py')


@pytest.mark.parametrize(
  'file',
  [*FILES, *sorted((ROOT / 'benchmarks').rglob('*.py'))],
  ids=lambda file: str(file.relative_to(ROOT)),
)
def test_no_file_edits_the_path(file):
  edits = [
    node.lineno
    for node in ast.walk(ast.parse(file.read_text()))
    if isinstance(node, ast.Attribute) and ast.unparse(node) == 'sys.path'
  ]
  assert not edits, f'sys.path in lines {edits}'


@pytest.mark.parametrize('name', sorted(MODULES))
def test_no_file_is_too_long(name):
  lines = len(MODULES[name].read_text().splitlines())
  assert lines <= LONGEST
