"""Hooks of mkdocs: pages from outside docs/, with links that still work.

README.md, WORKSPACE.md and results/ stay where a reader of the repository looks
for them. On the site README.md is the home page, the pages of docs/ are beside
it, and the others keep their paths.
"""

import pathlib
import posixpath
import re

from mkdocs.config import defaults
from mkdocs.structure import files as files_lib
from mkdocs.structure import pages

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_HOME = 'README.md'
_OUTSIDE = (
  'CHANGELOG.md',
  'CITATION.cff',
  'CONTRIBUTING.md',
  'LICENSE',
  'WORKSPACE.md',
  'results/*',
)
_LINK = re.compile(
  r'(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s#]+)(#[^)\s]*)?\)'
)


def on_files(
  files: files_lib.Files, *, config: defaults.MkDocsConfig
) -> files_lib.Files:
  """Adds README.md as the home page, and the other pages."""
  outside = [path for glob in _OUTSIDE for path in sorted(_ROOT.glob(glob))]
  for path in (_ROOT / _HOME, *outside):
    if path.is_file():
      files.append(
        files_lib.File.generated(
          config,
          _on_site(path.relative_to(_ROOT).as_posix()),
          abs_src_path=str(path),
          # Results are reached by links; the menu does not list them.
          inclusion=files_lib.InclusionLevel.NOT_IN_NAV
          if path.parent.name == 'results'
          else files_lib.InclusionLevel.INCLUDED,
        )
      )
  return files


def on_page_markdown(
  markdown: str,
  *,
  page: pages.Page,
  config: defaults.MkDocsConfig,
  files: files_lib.Files,
) -> str:
  """Turns links between files of the repository into links of the site."""
  del config  # The hook must take it; links do not depend on it.
  here = page.file.src_uri
  in_repository = {_on_site(_HOME): _HOME}.get(here)
  if in_repository is None:
    outside = (_ROOT / here).is_file() and not (_ROOT / 'docs' / here).is_file()
    in_repository = here if outside else f'docs/{here}'

  def link(match: re.Match[str]) -> str:
    image, text, target, anchor = match.groups()
    if re.match(r'[a-z]+:', target):
      return match[0]
    folder = posixpath.dirname(in_repository)
    path = posixpath.normpath(posixpath.join(folder, target))
    on_site = _on_site(path)
    if files.get_file_from_path(on_site) is None and (_ROOT / path).exists():
      return text  # Source code has no page of its own.
    relative = posixpath.relpath(on_site, posixpath.dirname(here) or '.')
    return f'{image}[{text}]({relative}{anchor or ""})'

  return _LINK.sub(link, markdown)


def _on_site(path: str) -> str:
  """Where a file of the repository appears on the site."""
  return 'index.md' if path == _HOME else path.removeprefix('docs/')
