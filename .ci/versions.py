"""Checks that all files of the repository name the same version.

    python .ci/versions.py [ROOT]

The version in pyproject.toml counts. Packages, clients, images, charts, man pages, install lines
of the documentation and the newest release in the changelog have to name it. Exit codes: 0 they
agree; 1 they do not, and each line says where and what to write. The Go client has no version in a
file: it is the tag that `make release-check` names.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# In each of these files the first match is the version.
_DECLARATIONS = {
    "pyproject.toml": r'^version = "([^"]+)"$',
    "clients/python/pyproject.toml": r'^version = "([^"]+)"$',
    "clients/frameworks/pyproject.toml": r'^version = "([^"]+)"$',
    "clients/typescript/package.json": r'^  "version": "([^"]+)",$',
    "clients/rust/Cargo.toml": r'^version = "([^"]+)"$',
    "clients/java/pom.xml": r"^  <version>([^<]+)</version>$",
    "deploy/Dockerfile": r"^ARG VERSION=(\S+)$",
    "man/ruvd.1": r'^\.TH .*"ruvd ([^"]+)"',
    "CHANGELOG.md": r"^## \[(\d[^\]]*)\]",
}

# Every match in these files has to be the version.
_MENTIONS_IN = ("*.md", "docs/**/*.md", "clients/*/*.md", "deploy/**/*")
_MENTIONS = (
    r"(?<![\w.-])ruvd:v?(\d+\.\d+\.\d+[\w.+-]*)",  # an image
    r"^(?:appVersion|version): [\"']?(\d[^\"'\s]*)",  # a chart, whose schema has the settings
    r"\bname: ruvd(?:-sidecar)?\n\s+version: [\"']?(\d[^\"'\s]*)",  # a chart that another one needs
    r"^\s*newTag: [\"']?(\d[^\"'\s]*)",  # an image in a kustomization
    r"\bruvd(?:-client|-frameworks)?(?:\[[^\]]*\])?==(\d[\w.+-]*)",  # pip
    r"\bruvd(?:_client|_frameworks)?-(\d+\.\d+\.\d+[\w.]*?)(?:-py3|\.tar)",  # their files
    r"\bruvd(?:-sidecar)?-(\d+\.\d+\.\d+[\w.]*?)\.tgz",  # packages of charts
    r"@ruvd/client@v?(\d[\w.+-]*)",  # npm
    r"clients/go@v(\d[\w.+-]*)",  # go get
    r"\bruvd-client = \"=?(\d[^\"]*)\"",  # Cargo
    r"<artifactId>ruvd-client</artifactId>\s*<version>([^<]+)</version>",  # Maven
    r"\bdev\.ruvd:ruvd-client:(\d[\w.+-]*)",  # Gradle
)
_NEED_THE_CLIENT = ("pyproject.toml", "clients/frameworks/pyproject.toml")
_NOT_MENTIONS = ("CHANGELOG.md",)


@dataclass(frozen=True, slots=True)
class Named:
    """A place that names a version."""

    path: str
    line: int
    version: str


def version(root: Path = ROOT) -> str:
    """Returns the version of pyproject.toml."""
    path = "pyproject.toml"
    return next(_matches(root / path, _DECLARATIONS[path], path)).version


def named(root: Path = ROOT) -> Iterator[Named]:
    """Yields all places that name a version. A declaration that is missing has an empty one."""
    for path, pattern in _DECLARATIONS.items():
        yield next(_matches(root / path, pattern, path), Named(path, 0, ""))
    files = {path for pattern in _MENTIONS_IN for path in root.glob(pattern) if path.is_file()}
    for file in sorted(files):
        path = file.relative_to(root).as_posix()
        if path not in _NOT_MENTIONS and "node_modules" not in path:
            for pattern in _MENTIONS:
                yield from _matches(file, pattern, path)


def _matches(file: Path, pattern: str, path: str) -> Iterator[Named]:
    text = file.read_text(errors="replace") if file.is_file() else ""
    for match in re.finditer(pattern, text, re.MULTILINE):
        yield Named(path, text.count("\n", 0, match.start(1)) + 1, match[1])


def disagreements(root: Path = ROOT) -> list[str]:
    """Returns a line for each place that names another version, and says what to do."""
    wanted = version(root)
    lines = [
        f"{each.path}:{each.line}: {each.version}, not {wanted}: write {wanted} there"
        if each.line
        else f"{each.path}: no version is found: write {wanted} there, or correct .ci/versions.py"
        for each in named(root)
        if each.version != wanted
    ]
    series = ".".join(wanted.split(".")[:2])
    lines += [
        f'{path}: it needs the client of its release: write "ruvd-client>={series}"'
        for path in _NEED_THE_CLIENT
        if f'"ruvd-client>={series}"' not in (root / path).read_text()
    ]
    return lines


def main(arguments: list[str]) -> int:
    """Prints what disagrees, or how many places agree; returns the exit code."""
    root = Path(arguments[0]) if arguments else ROOT
    wrong = disagreements(root)
    if wrong:
        print("\n".join(wrong))
        return 1
    places = list(named(root))
    files = len({each.path for each in places})
    print(f"{version(root)} in all {len(places)} places of {files} files that name a version")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
