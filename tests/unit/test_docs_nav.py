"""The site's navigation has every page, two clicks from the first one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)")


def entries(nav: list[Any], depth: int = 0) -> Iterator[tuple[str, int]]:
    """Yields the pages of the navigation, each with the number of sections around it."""
    for entry in nav:
        if isinstance(entry, dict):
            for value in entry.values():
                if isinstance(value, list):
                    yield from entries(value, depth + 1)
                else:
                    yield value, depth
        else:
            yield entry, depth


def linked(page: Path) -> set[Path]:
    """Returns the pages of docs/ that a page links to."""
    targets = ((page.parent / link).resolve() for link in LINK.findall(page.read_text()))
    return {target for target in targets if target.suffix == ".md" and target.is_file()}


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page() -> None:
    nav = [page for page, _ in entries(CONFIG["nav"])]
    listed = set(nav)
    assert len(nav) == len(listed), "a page is in the navigation twice"
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    missing = sorted(pages - listed)
    assert not missing, (
        f"not in the site's navigation: {missing}. Add each to a section under `nav` in mkdocs.yml,"
        " and a row to the index, docs/README.md"
    )
    absent = {
        page
        for page in listed
        if not (ROOT / "docs" / page).is_file() and not (ROOT / page).is_file()
    }
    assert not absent, f"in `nav` of mkdocs.yml, but there is no such page: {sorted(absent)}"


def test_every_page_of_the_site_is_two_clicks_away() -> None:
    """A click on the section, and one on the page."""
    assert {depth for _, depth in entries(CONFIG["nav"])} == {1}


def test_every_page_is_two_clicks_from_the_index_on_a_code_host() -> None:
    index = ROOT / "docs" / "README.md"
    near = linked(index)
    reached = near.union(*(linked(page) for page in near))
    far = set((ROOT / "docs").rglob("*.md")) - reached - {index}
    assert not far, "no link in docs/README.md, nor in a page that it links to"


def test_the_site_loads_nothing_from_other_hosts() -> None:
    """Its fonts are the reader's, it counts no readers, and it asks no code host for stars."""
    assert CONFIG["theme"]["font"] is False
    assert "analytics" not in CONFIG["extra"]
    assert "repo_url" not in CONFIG


def test_links_anchors_and_forgotten_pages_fail_the_build() -> None:
    assert set(CONFIG["validation"]["links"].values()) == {"warn"}
    assert set(CONFIG["validation"]["nav"].values()) == {"warn"}
