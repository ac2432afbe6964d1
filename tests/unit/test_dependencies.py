"""A package declares what it imports, so that it works in an environment with nothing else."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def imported(folder: Path) -> set[str]:
    """Returns the names of the packages that the modules of a folder import."""
    names = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    return names - set(sys.stdlib_module_names)


def declared(project: Path) -> set[str]:
    """Returns the packages that a project needs, those of its extras included."""
    table = tomllib.loads(project.read_text())["project"]
    extras = table.get("optional-dependencies", {})
    lines = [*table["dependencies"], *(line for extra in extras.values() for line in extra)]
    names = (re.match(r"[\w.-]+", line) for line in lines)
    return {canonical(name[0]) for name in names if name}


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.mark.parametrize(
    ("project", "package", "optional"),
    [
        ("pyproject.toml", "ruvd", set()),
        # The client passes a trace on, if the process has one.
        ("clients/python/pyproject.toml", "ruvd_client", {"opentelemetry"}),
    ],
)
def test_a_package_declares_all_that_it_imports(
    project: str, package: str, optional: set[str]
) -> None:
    folder = (ROOT / project).parent / package
    distributions = packages_distributions()
    needs = declared(ROOT / project)
    missing = [
        name
        for name in sorted(imported(folder) - {package} - optional)
        if not needs & {canonical(each) for each in distributions.get(name, [name])}
    ]
    assert missing == []
