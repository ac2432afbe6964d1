"""The man pages are those of the commands, and troff's tools find nothing wrong with them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ruvd.cli.commands import app

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "man").iterdir())
NEEDS_MANDOC = pytest.mark.skipif(not shutil.which("mandoc"), reason="mandoc is not installed")
NEEDS_MAN = pytest.mark.skipif(
    not shutil.which("man") or not shutil.which("groff"), reason="man is not installed"
)


def test_the_man_pages_are_up_to_date(tmp_path: Path) -> None:
    (tmp_path / "ruvd-gone.1").write_text("a page of a command that is gone")
    subprocess.run([sys.executable, ROOT / "docs" / "man_pages.py", tmp_path], check=True)
    made = {page.name: page.read_text() for page in tmp_path.iterdir()}
    assert {page.name: page.read_text() for page in PAGES} == made, "run `make docs`"


def test_every_command_has_a_page_with_its_flags() -> None:
    names = [name for name in app if not name.startswith("-")]
    assert {page.stem for page in PAGES} == {"ruvd", *(f"ruvd-{each}" for each in names)}
    serve = (ROOT / "man/ruvd-serve.1").read_text()
    assert "\\fB\\-\\-drain\\-seconds\\fR \\fIFLOAT\\fR\n" in serve
    assert "[RUVD_DRAIN_SECONDS]" in serve
    sessions = (ROOT / "man/ruvd-sessions.1").read_text()
    assert re.findall(r"^\.SH RUVD SESSIONS (\w+)$", sessions, re.MULTILINE) == [
        name.upper() for name in app["sessions"] if not name.startswith("-")
    ]


@NEEDS_MANDOC
def test_mandoc_finds_nothing_wrong() -> None:
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *PAGES], capture_output=True, text=True
    )
    # The pages have no date, because they would differ from one day to the next.
    problems = [line for line in done.stdout.splitlines() if "missing date" not in line]
    assert problems == []
    assert len(done.stdout.splitlines()) == len(PAGES), done.stderr


@NEEDS_MAN
def test_man_shows_every_page_without_a_warning() -> None:
    for page in PAGES:
        done = subprocess.run(
            ["man", "--warnings", "--local-file", page],
            env={**os.environ, "LC_ALL": "C.UTF-8", "MANPAGER": "cat", "MANWIDTH": "80"},
            capture_output=True,
            text=True,
        )
        assert done.stderr == ""
        assert done.returncode == 0
        assert re.search(rf"{page.stem} +- ", done.stdout)
