"""Hooks of mkdocs, which let the pages be plain Markdown that a code host shows as well.

- Pages elsewhere in the repository (`OUTSIDE`) are pages of the site under their own paths.
- Links lead to pages of the site, and to the repository on the code host if the site does not have
  the file. A link to a file that does not exist fails a strict build.
- Text between `<!-- tabs -->` and `<!-- /tabs -->` becomes tabs, one for each line in bold.
- Headings have the anchors that code hosts give them.
"""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[1]
OUTSIDE = (
    "CHANGELOG.md",
    "SECURITY.md",
    "bench/README.md",
    "bench/results/*",
    "clients/*.md",
    "clients/*/*.md",
    "deploy/*.md",
    "deploy/helm/*/*.md",
    "deploy/systemd/*.md",
)
_TYPES = {".md", ".svg", ".png"}
# Fenced blocks are matched first, so that nothing in them is taken for a link.
_FENCE_OR_LINK = re.compile(r"^```.*?^```$|\]\(([^)\s]+)\)", re.DOTALL | re.MULTILINE)
_TABS = re.compile(r"^<!-- tabs -->\n(.*?)^<!-- /tabs -->$", re.DOTALL | re.MULTILINE)
_TAB = re.compile(r"^\*\*(.+)\*\*$", re.MULTILINE)

_log = logging.getLogger("mkdocs.hooks.links")


def outside_pages() -> dict[str, Path]:
    """Returns the files outside docs/ that the site has, by their paths in the repository."""
    return {
        str(path.relative_to(ROOT)): path
        for pattern in OUTSIDE
        for path in sorted(ROOT.glob(pattern))
        if path.suffix in _TYPES
    }


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Gives headings the anchors of code hosts."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages outside docs/."""
    for name, path in outside_pages().items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns the page's text with links and tabs as the site needs them."""
    here = page.file.src_uri
    source = here if here in outside_pages() else f"docs/{here}"

    def with_link(match: re.Match[str]) -> str:
        link = match[1]
        if link is None or link.startswith("#") or re.match(r"[a-z]+:", link):
            return match[0]
        return f"]({_site_link(link, here, source, config, files)})"

    return _TABS.sub(_tabs, _FENCE_OR_LINK.sub(with_link, markdown))


def _site_link(link: str, here: str, source: str, config: MkDocsConfig, files: Files) -> str:
    """Returns a link from the page `here`, whose file is `source`, as the site needs it."""
    path, _, anchor = link.partition("#")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    uri = target.removeprefix("docs/")
    if (target.startswith("docs/") or target in outside_pages()) and files.get_file_from_path(uri):
        relative = posixpath.relpath(uri, posixpath.dirname(here) or ".")
        return f"{relative}#{anchor}" if anchor else relative
    if not (ROOT / target).exists():
        _log.warning("'%s' contains the link '%s', but there is no such file", source, link)
    kind = "tree" if (ROOT / target).is_dir() else "blob"
    return f"{config.extra['repository']}/{kind}/main/{target}"


def _tabs(match: re.Match[str]) -> str:
    """Returns the text between two comments as tabs."""
    _, *parts = _TAB.split(match[1])
    tabs = []
    for title, text in zip(parts[::2], parts[1::2], strict=True):
        indented = re.sub(r"^(?=.)", "    ", text.strip("\n"), flags=re.MULTILINE)
        tabs.append(f'=== "{title}"\n\n{indented}\n')
    return "\n".join(tabs)
