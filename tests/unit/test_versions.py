"""All files that name the version of ruvd name the same one."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
Check: TypeAlias = Callable[[Path], list[str]]
FILES = (
    "pyproject.toml",
    "clients/python/pyproject.toml",
    "clients/frameworks/pyproject.toml",
    "clients/typescript/package.json",
    "clients/rust/Cargo.toml",
    "clients/java/pom.xml",
    "clients/java/README.md",
    "deploy/Dockerfile",
    "deploy/kubernetes/shared/kustomization.yaml",
    "deploy/kubernetes/sidecar/pod.yaml",
    "docs/kubernetes.md",
    "man/ruvd.1",
    "CHANGELOG.md",
)


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Check:
    """Returns a function that returns what disagrees below a folder."""
    path = ROOT / ".ci" / "versions.py"
    specification = importlib.util.spec_from_file_location("versions", path)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "versions", module)
    specification.loader.exec_module(module)
    disagreements: Check = module.disagreements
    return disagreements


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the files that name the version."""
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_all_files_name_the_same_version(check: Check) -> None:
    assert check(ROOT) == []


@pytest.mark.parametrize("name", FILES[1:])
def test_a_file_with_another_version_is_named(check: Check, copy: Path, name: str) -> None:
    path = copy / name
    text = path.read_text()
    assert check(copy) == []
    path.write_text(text.replace(VERSION, "9.8.7"))
    assert path.read_text() != text
    wrong = check(copy)
    assert {line.split(":")[0] for line in wrong} == {name}
    assert all(f": 9.8.7, not {VERSION}: write {VERSION} there" in line for line in wrong)


def test_a_file_without_a_version_is_named(check: Check, copy: Path) -> None:
    (copy / "clients/rust/Cargo.toml").write_text("[package]\n")
    (line,) = check(copy)
    assert line.startswith("clients/rust/Cargo.toml: no version is found")


def test_a_chart_names_the_same_version(check: Check, copy: Path) -> None:
    chart = copy / "deploy/helm/ruvd/Chart.yaml"
    chart.parent.mkdir(parents=True)
    chart.write_text(f'name: ruvd\nversion: {VERSION}\nappVersion: "{VERSION}"\n')
    assert check(copy) == []
    chart.write_text(f'name: ruvd\nversion: {VERSION}\nappVersion: "9.8.7"\n')
    (line,) = check(copy)
    assert line.startswith("deploy/helm/ruvd/Chart.yaml:3: 9.8.7, not ")
    chart.write_text(f'name: ruvd\nversion: 9.8.7\nappVersion: "{VERSION}"\n')
    (line,) = check(copy)
    assert line.startswith("deploy/helm/ruvd/Chart.yaml:2: 9.8.7, not ")


def test_a_chart_that_needs_another_version_of_ours_is_named(check: Check, copy: Path) -> None:
    chart = copy / "deploy/helm/app/Chart.yaml"
    chart.parent.mkdir(parents=True)
    chart.write_text("name: app\ndependencies:\n  - name: ruvd-sidecar\n    version: 9.8.7\n")
    (line,) = check(copy)
    assert line.startswith("deploy/helm/app/Chart.yaml:4: 9.8.7, not ")


@pytest.mark.parametrize(
    "line",
    [
        "pip install 'ruvd[model]==9.8.7'",
        "pip install ruvd-client==9.8.7",
        "pip install dist/ruvd-9.8.7-py3-none-any.whl",
        "npm install @ruvd/client@9.8.7",
        "go get github.com/ruvd/ruvd/clients/go@v9.8.7",
        'ruvd-client = "9.8.7"',
        "implementation 'dev.ruvd:ruvd-client:9.8.7'",
        "docker run registry.example/ruvd:9.8.7",
        "helm push ruvd-sidecar-9.8.7.tgz oci://registry.example/charts",
    ],
)
def test_a_line_of_the_documentation_with_another_version_is_named(
    check: Check, copy: Path, line: str
) -> None:
    page = copy / "docs" / "page.md"
    page.write_text(f"# Page\n\n{line}\n")
    (wrong,) = check(copy)
    assert wrong.startswith("docs/page.md:3: 9.8.7, not ")


@pytest.mark.parametrize("name", ["pyproject.toml", "clients/frameworks/pyproject.toml"])
def test_what_needs_the_client_needs_that_of_its_release(
    check: Check, copy: Path, name: str
) -> None:
    path = copy / name
    path.write_text(path.read_text().replace('"ruvd-client>=', '"ruvd-client>=0.0.'))
    (line,) = check(copy)
    assert line.startswith(f"{name}: it needs the client of its release")
