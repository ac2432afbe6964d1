"""Checks whether this commit can be released; `make release-check` runs it.

    python .ci/release_check.py [--quick]

All checks run, also after one that failed, and each says what to do. --quick leaves out those that
build and install. Nothing is published or tagged; only generated pages that are out of date are
written. Exit codes: 0 it can be released; 1 it cannot.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import package_contents
import versions

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "dist"
LANGUAGES = ("typescript", "go", "java", "rust")
_LINES_SHOWN = 15


class Failed(Exception):
    """A check has failed: what was found, and what to do."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found)
        self.remedy = remedy


def run(*command: str, remedy: str, cwd: Path | None = None) -> str:
    """Runs a command and returns its output. Raises Failed with the output's end."""
    done = subprocess.run(  # noqa: S603  # our own tools
        command,
        cwd=cwd or ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        end = "\n".join(done.stdout.strip().splitlines()[-_LINES_SHOWN:])
        raise Failed(f"{' '.join(command)} ended with {done.returncode}:\n{end}", remedy)
    return done.stdout


def check_versions() -> str:
    """Checks that all files name the same version."""
    wrong = versions.disagreements()
    if wrong:
        raise Failed("\n".join(wrong), "write the version of pyproject.toml in these places")
    return versions.version()


def check_changelog() -> str:
    """Checks that the changelog begins with this version, a day, and something to read."""
    version = versions.version()
    text = (ROOT / "CHANGELOG.md").read_text()
    top = re.search(r"^## \[([^\]]+)\](.*)\n((?:(?!^## ).*\n)*)", text, re.MULTILINE)
    if top is None or top[1] != version:
        found = top[1] if top else "nothing"
        raise Failed(
            f"CHANGELOG.md begins with [{found}], not with [{version}]",
            f"name its first section `## [{version}] - YYYY-MM-DD`, or raise the version first",
        )
    if not re.fullmatch(r" - \d{4}-\d\d-\d\d", top[2]):
        raise Failed(
            f"the section [{version}] of CHANGELOG.md has no day",
            f"write `## [{version}] - YYYY-MM-DD`",
        )
    if "\n- " not in f"\n{top[3]}":
        raise Failed(f"the section [{version}] of CHANGELOG.md is empty", "say what has changed")
    return f"[{version}]{top[2]}"


def check_tag() -> str:
    """Checks that the version has no tag yet."""
    version = versions.version()
    wanted = (f"v{version}", f"clients/go/v{version}")
    taken = set(run("git", "tag", "--list", remedy="run it in a clone").split()) & set(wanted)
    if taken:
        raise Failed(
            f"there is a tag {' and '.join(sorted(taken))} already",
            "raise the version in all places that `python .ci/versions.py` names",
        )
    return f"to be made after this: {' and '.join(wanted)}"


def check_clean() -> str:
    """Checks that the packages would be made of what is committed."""
    changed = run("git", "status", "--porcelain", remedy="run it in a clone").strip()
    if changed:
        raise Failed(f"not committed:\n{changed}", "commit it, or take it away")
    return run("git", "rev-parse", "--short", "HEAD", remedy="run it in a clone").strip()


def check_pages() -> str:
    """Checks that `make docs` changes nothing. What it changes stays, to be committed."""
    before = _changes()
    run("make", "--no-print-directory", "docs", remedy="mend `make docs`")
    changed = _changes() - before
    if changed:
        raise Failed(
            f"generated pages were out of date: {', '.join(sorted(name for name, _ in changed))}",
            "commit them, `make docs` has made them anew",
        )
    return "as `make docs` makes them"


def _changes() -> set[tuple[str, bytes]]:
    """Returns the files that are not as committed, with their contents."""
    command = ("git", "ls-files", "--modified", "--others", "--exclude-standard")
    names = run(*command, remedy="run it in a clone").splitlines()
    return {(name, _contents(ROOT / name)) for name in names}


def _contents(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def check_stubs() -> str:
    """Checks that all generated code is that of proto/."""
    run("make", "--no-print-directory", "check-proto", remedy="run `make proto` and commit")
    for each in LANGUAGES:
        run(
            "make", "--no-print-directory", "-C", f"clients/{each}", "check-generated",
            remedy=f"run `make proto` and commit; it needs the tools of clients/{each}",
        )  # fmt: skip
    return f"ruvd, python, {', '.join(LANGUAGES)}"


def check_packages() -> str:
    """Builds the packages and checks what is in them, as the index would."""
    run("make", "--no-print-directory", "packages", remedy="mend the build: `make packages`")
    wrong = package_contents.problems(DIST)
    if wrong:
        raise Failed("\n".join(wrong), "correct the build's tables in the pyproject.toml of each")
    files = sorted(str(each) for each in DIST.iterdir())
    twine = os.environ.get("TWINE", "twine")
    run(twine, "check", "--strict", *files, remedy="see what it says about the metadata")
    return ", ".join(f"{Path(each).name} ({Path(each).stat().st_size:,} bytes)" for each in files)


def check_installation() -> str:
    """Installs the wheels into an empty environment with plain pip, and holds a conversation."""
    with tempfile.TemporaryDirectory() as folder:
        python, ruvd = Path(folder, "bin/python"), Path(folder, "bin/ruvd")
        run(sys.executable, "-m", "venv", folder, remedy="install venv")
        run(
            str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--find-links", str(DIST), "--only-binary", ":all:", "ruvd[model]",
            remedy="see why pip cannot install it; dependencies come from the index",
        )  # fmt: skip
        talk = ("run", "--store", "memory", "--", "sh", "-c", 'echo Hello | "$0" chat', str(ruvd))
        printed = run(str(ruvd), "--version", remedy="see the wheel").strip()
        if printed != versions.version():
            raise Failed(f"ruvd --version prints {printed}", "see the wheel's metadata")
        for flags in (("--engine", "echo"), ("--llama-threads", "2")):
            run(str(ruvd), talk[0], *flags, *talk[1:], remedy="see the log above", cwd=Path(folder))
        if not (Path(folder) / "share/man/man1/ruvd.1").is_file():
            raise Failed("the man pages are not installed", "see shared-data in pyproject.toml")
    return "echo engine and embedded model answered"


QUICK: Sequence[tuple[str, Callable[[], str]]] = (
    ("versions", check_versions),
    ("changelog", check_changelog),
    ("tag", check_tag),
    ("clean tree", check_clean),
    ("generated pages", check_pages),
)
SLOW: Sequence[tuple[str, Callable[[], str]]] = (
    ("generated code", check_stubs),
    ("packages", check_packages),
    ("installation", check_installation),
)


def main(arguments: Sequence[str]) -> int:
    """Runs the checks and prints their outcomes; returns the exit code."""
    failed = 0
    for name, check in (*QUICK, *(() if "--quick" in arguments else SLOW)):
        try:
            print(f"ok      {name}: {check()}", flush=True)
        except Failed as problem:
            failed += 1
            text = str(problem).replace("\n", "\n        ")
            print(f"FAILED  {name}: {text}\n        TO DO: {problem.remedy}", flush=True)
    print(f"{failed} checks failed" if failed else "this commit can be released")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
