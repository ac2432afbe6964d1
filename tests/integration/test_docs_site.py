"""The documentation site is built without a warning, and as its readers need it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
MKDOCS = ROOT / "build/docs/bin/mkdocs"
# What a browser loads by itself, unlike a link that a reader has to click.
LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(https?:)?//")
LINKED = re.compile(r"<link\b[^>]*\brel=[\"']?(?:stylesheet|preconnect|icon|preload)[^>]*>")
LANGUAGES = ("Python", "TypeScript", "Go", "Java", "Rust")

needs_mkdocs = pytest.mark.skipif(
    not MKDOCS.exists(), reason="mkdocs is not installed: make docs-site"
)


def build(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [MKDOCS, "build", "--strict", "--site-dir", site],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )


@needs_mkdocs
def test_the_site_is_built_strictly_and_loads_nothing_from_other_hosts(tmp_path: Path) -> None:
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr
    pages = sorted(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text()
        foreign = [
            tag for tag in LINKED.findall(text) if re.search(r"href=[\"']?(https?:)?//", tag)
        ]
        assert (LOADED.search(text), foreign) == (None, []), page
    markdown = MarkdownIt("gfm-like", {"linkify": False})
    for source in sorted((ROOT / "docs").rglob("*.md")):
        name = source.relative_to(ROOT / "docs")
        folder = name.parent if name.name == "README.md" else name.with_suffix("")
        shown = elements(article(tmp_path / folder / "index.html"))
        assert shown == elements(markdown.render(source.read_text())), name
    # The search has the text of all pages, also of those outside docs/.
    found = {entry["location"].partition("#")[0] for entry in search_index(tmp_path)}
    assert {"concepts/", "clients/python/", "deploy/systemd/"} <= found


# Some of what a code host shows, and the site only if it is written as python-markdown wants it:
# a list after an empty line, and what belongs to an item indented by four spaces.
ELEMENTS = ("h2", "h3", "img", "li", "ol", "pre", "table", "tr")


def elements(html: str) -> dict[str, int]:
    """Returns the numbers of elements in a part of a page."""
    return {name: len(re.findall(rf"<{name}[ >]", html)) for name in ELEMENTS}


def article(page: Path) -> str:
    """Returns the part of a page that is made of its Markdown."""
    return page.read_text().partition("<article")[2].partition("</article>")[0]


def search_index(site: Path) -> list[dict[str, str]]:
    """Returns the entries of the site's search."""
    docs: list[dict[str, str]] = json.loads((site / "search/search_index.json").read_text())["docs"]
    return docs


@needs_mkdocs
def test_a_broken_link_or_anchor_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs/site_hooks.py", tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    config = (ROOT / "mkdocs.yml").read_text()
    (tmp_path / "mkdocs.yml").write_text(config.partition("\nnav:")[0] + "\n")
    (tmp_path / "docs/README.md").write_text("# A\n[1](b.md#none) [2](none.md) [3](../none.txt)\n")
    (tmp_path / "docs/b.md").write_text("# B\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    for link in ("b.md#none", "none.md", "none.txt"):
        assert link in done.stderr
