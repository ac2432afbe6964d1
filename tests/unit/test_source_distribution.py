"""The source distribution leaves out what git ignores."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_source_distribution_leaves_out_what_the_clients_ignore() -> None:
    """hatchling reads only the .gitignore of the root, and the clients have their own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    excluded = project["tool"]["hatch"]["build"]["targets"]["sdist"]["exclude"]
    of_the_root = (ROOT / ".gitignore").read_text().split()
    ignored = {
        f"/{path.parent.relative_to(ROOT).as_posix()}/**/{pattern}"
        for path in ROOT.glob("clients/*/.gitignore")
        for pattern in path.read_text().split()
        if pattern not in of_the_root
    }
    assert ignored <= set(excluded)
