"""The packages install and work outside of the repository, and have what belongs into them.

They are built without the network. The wheels are installed into an environment of their own, which
takes only the dependencies from that of the tests: a full installation would take a minute.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import site
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from running import clean_environment

ROOT = Path(__file__).parents[2]
IN_GIT = (ROOT / ".git").exists()
SECONDS = 120.0


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Runs a command and returns its output; fails with it if the command fails."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**clean_environment(), "PYTHONPATH": "", **variables},
        text=True,
        timeout=SECONDS,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def build(dist: Path, cwd: Path) -> None:
    """Builds each package's source distribution, and its wheel from that."""
    for folder in (ROOT, ROOT / "clients/python", ROOT / "clients/frameworks"):
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, folder, cwd=cwd)


def install(wheels: list[Path], environment: Path, cwd: Path) -> Path:
    """Installs the wheels into a new environment; returns its folder of programs."""
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=cwd)
    python = environment / "bin/python"
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index",
        "--disable-pip-version-check", *wheels, cwd=cwd,
    )  # fmt: skip
    # The links of editable installations in that folder are not followed from here.
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return environment / "bin"


@pytest.fixture
def contents(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = ROOT / ".ci" / "package_contents.py"
    specification = importlib.util.spec_from_file_location("package_contents", path)
    assert specification
    assert specification.loader
    module = importlib.util.module_from_spec(specification)
    monkeypatch.setitem(sys.modules, "package_contents", module)
    specification.loader.exec_module(module)
    return module


def test_the_packages_are_complete_and_install_and_hold_a_conversation(
    contents: ModuleType, tmp_path: Path
) -> None:
    """One test, as each step needs the one before, and tests may run in several processes."""
    dist = tmp_path / "dist"
    build(dist, tmp_path)
    if IN_GIT:
        assert contents.problems(dist) == []

    programs = install(sorted(dist.glob("*.whl")), tmp_path / "environment", tmp_path)
    ruvd = programs / "ruvd"
    where = run(
        programs / "python",
        "-c",
        "import ruvd_client, ruvd; print(ruvd.__file__, ruvd_client.__file__)",
        cwd=tmp_path,
    )
    assert str(ROOT) not in where
    assert run(ruvd, "--version", cwd=tmp_path).strip() in [
        each.name.split("-")[1] for each in dist.glob("ruvd-*.whl")
    ]
    daemon = (ruvd, "run", "--engine", "echo", "--store", "memory", "--")
    info = run(*daemon, ruvd, "info", cwd=tmp_path)
    assert "echo, ready" in info
    chat = run(*daemon, "sh", "-c", f"echo 'Hello there' | {ruvd} chat", cwd=tmp_path)
    assert "Hello there" in chat
    page = programs.parent / "share/man/man1/ruvd.1"
    assert page.is_file()
    if shutil.which("man"):
        found = run("man", "-w", "ruvd", cwd=tmp_path, PATH=f"{programs}:{os.environ['PATH']}")
        assert found.strip() == str(page), "man finds it beside the programs in PATH"
