"""The pages are complete and up to date: links, paths, settings, errors, metrics."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from core import collect
from fakes import done
from watched import Watched

from ruvd.core.errors import RuvdError
from ruvd.core.ports.engine import EngineText
from ruvd.core.ports.events import BackgroundTaskFailed, StoreBatch
from ruvd.rpc.status import CODES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    page.relative_to(ROOT)
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "bench/**/*.md", "clients/*.md")
    for page in ROOT.glob(pattern)
) + sorted(
    page.relative_to(ROOT)
    for pattern in ("clients/*/README.md", "clients/*/PROVIDER.md")
    for page in ROOT.glob(pattern)
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOLDERS = "|".join(("ruvd", "docs", "deploy", "bench", "clients", "tests", "proto"))
PATH = re.compile(rf"`((?:{FOLDERS})/[\w./-]+)`")


def prose(page: Path) -> str:
    """Returns the page's text without its code blocks."""
    return re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives the page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


def rows(page: Path) -> list[list[str]]:
    """Returns the cells of every table row that begins with a name in backticks."""
    lines = re.findall(r"^\| `.*\|$", page.read_text(), re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    assert broken_links(page) == []


def test_a_link_to_a_missing_file_or_heading_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A `b` c\n[1](page.md#a-b-c) [2](#none) [3](none.md) [4](https://x.y)\n")
    assert broken_links(page) == ["#none", "none.md"]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_path_of_the_repository_that_a_page_names_exists(page: Path) -> None:
    if page.name == "CHANGELOG.md":  # it names what was
        return
    missing = [path for path in PATH.findall(prose(page)) if not (ROOT / path).exists()]
    assert missing == []


def test_every_page_of_docs_is_in_the_index() -> None:
    index = LINK.findall((DOCS / "README.md").read_text())
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert pages - {"README.md"} <= set(index), "add a row to docs/README.md"


def test_the_readme_is_short_and_names_both_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert {"make demo", "make test"} <= {line.partition("#")[0].strip() for line in lines}


@pytest.mark.parametrize("name", ["settings", "api"])
def test_a_generated_page_is_up_to_date(name: str) -> None:
    done = subprocess.run(
        [sys.executable, DOCS / f"{name}_page.py"], capture_output=True, text=True, check=True
    )
    assert (DOCS / f"{name}.md").read_text() == done.stdout, "run `make docs`"


def test_the_page_of_errors_has_every_reason_with_its_code_and_whether_to_retry() -> None:
    expected = {
        error.reason(): (CODES[error].name, "no" if error.retry_after_seconds is None else "yes")
        for error in RuvdError.__subclasses__()
    }
    expected["INTERNAL"] = ("INTERNAL", "no")
    found = {
        cells[0].strip("`"): (cells[1].strip("`"), cells[2]) for cells in rows(DOCS / "errors.md")
    }
    assert found == expected
    assert all(all(cells) for cells in rows(DOCS / "errors.md"))


async def test_the_page_of_metrics_has_every_metric_and_no_other() -> None:
    watched = Watched()
    watched.engine.scripts = [
        [EngineText("a"), EngineText("b"), done(prompt=20, cached=15, completion=2)]
    ]
    with watched.rpcs.call("/ruvd.v1.SessionService/Complete", (), ""):
        await collect(watched.start())
    watched.observer(StoreBatch(3))
    watched.observer(BackgroundTaskFailed("sweep"))
    named = re.findall(
        r"`((?:ruvd|gen_ai|rpc)\.[a-z_.]+)`",
        "".join(cells[0] for cells in rows(DOCS / "metrics.md")),
    )
    assert sorted(named) == sorted(watched.metrics())


def test_every_promise_names_a_test_that_exists() -> None:
    lines = re.findall(r"^\| .*\| `.*`.*\|$", (DOCS / "promises.md").read_text(), re.MULTILINE)
    proofs = [line.split("|")[-2] for line in lines]
    assert len(proofs) > 15
    for proof in proofs:
        path, *tests = re.findall(r"`([^`]+)`", proof)
        source = (ROOT / "tests" / path).read_text()
        assert tests
        for test in tests:
            assert f"def {test}(" in source, proof
