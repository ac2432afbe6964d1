"""The documentation site is built without a warning, and as its readers need it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from browser import chromium
from markdown_it import MarkdownIt
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).parents[2]
MKDOCS = ROOT / "build/docs/bin/mkdocs"
# What a browser loads by itself, unlike a link that a reader has to click.
LOADED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(https?:)?//")
LINKED = re.compile(r"<link\b[^>]*\brel=[\"']?(?:stylesheet|preconnect|icon|preload)[^>]*>")
LOADED_URLS = "return performance.getEntriesByType('resource').map(each => each.name)"
SECONDS = 60
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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built strictly."""
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


@needs_mkdocs
def test_the_site_is_built_strictly_and_loads_nothing_from_other_hosts(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text()
        foreign = [
            tag for tag in LINKED.findall(text) if re.search(r"href=[\"']?(https?:)?//", tag)
        ]
        assert (LOADED.search(text), foreign) == (None, []), page
        assert 'data-md-component="source"' not in text, "it would ask a code host"
    markdown = MarkdownIt("gfm-like", {"linkify": False})
    for source in sorted((ROOT / "docs").rglob("*.md")):
        name = source.relative_to(ROOT / "docs")
        folder = name.parent if name.name == "README.md" else name.with_suffix("")
        shown = elements(article(site / folder / "index.html"))
        assert shown == elements(markdown.render(source.read_text())), name
    # The search has the text of all pages, also of those outside docs/.
    found = {entry["location"].partition("#")[0] for entry in search_index(site)}
    assert {"concepts/", "clients/python/", "deploy/systemd/"} <= found


@needs_mkdocs
@pytest.mark.skipif(
    shutil.which("chromedriver") is None, reason="needs Debian's chromium and chromium-driver"
)
def test_a_reader_finds_a_page_by_a_word_and_chooses_a_language(site: Path, tmp_path: Path) -> None:
    handler = partial(QuietHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, chromium(tmp_path) as browser:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        browser.get(f"{url}/start/")
        labels = browser.find_elements(By.CSS_SELECTOR, ".tabbed-labels label")
        assert tuple(label.text for label in labels) == LANGUAGES
        labels[2].click()
        shown = [each.text for each in browser.find_elements(By.CSS_SELECTOR, ".tabbed-block pre")]
        assert "".join(shown).startswith("client, err := ruvd.New()")
        browser.get(f"{url}/?q=lease")
        results = WebDriverWait(browser, SECONDS, 0.1).until(
            lambda _: browser.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
        )
        assert any("/replicas/" in str(each.get_attribute("href")) for each in results)
        loaded = browser.execute_script(LOADED_URLS)
        assert [each for each in loaded if not each.startswith((url, "data:", "blob:"))] == []
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves the site, and logs nothing."""

    def log_message(self, *_: object) -> None: ...


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
