"""Checks what is in the built packages.

    python .ci/package_contents.py [DIST]

A wheel has the files of its package, its man pages, and nothing else. A source distribution has
what git tracks, and no results of builds. Exit codes: 0 all is as it should be; 1 it is not, and
each line says what is wrong.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The folders of the packages, and the package in each.
PACKAGES = {
    "ruvd": (".", "ruvd"),
    "ruvd_client": ("clients/python", "ruvd_client"),
    "ruvd_frameworks": ("clients/frameworks", "ruvd_frameworks"),
}
_PYTHON_MINORS = range(11, 15)
_NEEDED_URLS = {"Homepage", "Documentation", "Repository", "Issues", "Changelog"}


def tracked(folder: str) -> set[str]:
    """Returns the files below a folder that git tracks or would add, relative to it."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(  # noqa: S603  # git, with fixed arguments
        command, cwd=ROOT / folder, capture_output=True, text=True, check=True
    )
    return {name for name in done.stdout.split("\0") if name and (ROOT / folder / name).is_file()}


def wheel_problems(wheel: Path) -> list[str]:
    """Returns what is wrong with a wheel."""
    name, version = wheel.name.split("-")[:2]
    folder, package = PACKAGES[name]
    with zipfile.ZipFile(wheel) as archive:
        found = {each for each in archive.namelist() if not each.endswith("/")}
        metadata = archive.read(f"{name}-{version}.dist-info/METADATA").decode()
    expected = {each for each in tracked(folder) if each.startswith(f"{package}/")}
    pages = {
        f"{name}-{version}.data/data/share/man/man1/{Path(each).name}"
        for each in tracked(folder)
        if each.startswith("man/")
    }
    info = {each for each in found if each.startswith(f"{name}-{version}.dist-info/")}
    always = {f"{package}/py.typed", f"{name}-{version}.dist-info/licenses/LICENSE"}
    return [
        *(
            f"{wheel.name}: {each} is missing"
            for each in sorted((expected | pages | always) - found)
        ),
        *(
            f"{wheel.name}: {each} does not belong there"
            for each in sorted(found - expected - pages - info)
        ),
        *(f"{wheel.name}: {each}" for each in metadata_problems(metadata)),
    ]


def metadata_problems(text: str) -> list[str]:
    """Returns what an index would miss in a package's metadata."""
    message: Message = HeaderParser().parsestr(text)
    urls = {each.split(",")[0] for each in message.get_all("Project-URL", [])}
    classifiers = message.get_all("Classifier", [])
    readme = str(message.get_payload())
    problems = [f"there is no URL {each}" for each in sorted(_NEEDED_URLS - urls)]
    problems += [
        f"{field} is missing"
        for field in ("Summary", "Keywords", "License-Expression", "Requires-Python", "Author")
        if not message[field]
    ]
    problems += [
        f"there is no classifier of {each}"
        for each in (f"Programming Language :: Python :: 3.{minor}" for minor in _PYTHON_MINORS)
        if each not in classifiers
    ]
    if message["Description-Content-Type"] != "text/markdown" or not readme:
        problems.append("the readme is missing, or not Markdown")
    relative = [part.split(")")[0] for part in readme.split("](")[1:]]
    problems += [
        f"the readme's link {each} leads nowhere on an index"
        for each in relative
        if not each.startswith(("https://", "#"))
    ]
    return problems


def sdist_problems(sdist: Path) -> list[str]:
    """Returns what is wrong with a source distribution."""
    base = sdist.name.removesuffix(".tar.gz")
    folder, _ = PACKAGES[base.rsplit("-", 1)[0]]
    with tarfile.open(sdist) as archive:
        found = {each.name.removeprefix(f"{base}/") for each in archive if each.isfile()}
    expected = tracked(folder) | {"PKG-INFO"}
    # hatchling adds the .gitignore that it found above, as a builder of the result needs it.
    strange = sorted(found - expected - {".gitignore"})
    missing = sorted(expected - found)
    return [f"{sdist.name}: {each} does not belong there" for each in strange] + [
        f"{sdist.name}: {each} is missing" for each in missing
    ]


def problems(dist: Path) -> list[str]:
    """Returns what is wrong with the packages in a folder."""
    found = []
    for name in PACKAGES:
        wheels = sorted(dist.glob(f"{name}-*.whl"))
        sdists = sorted(dist.glob(f"{name}-*.tar.gz"))
        if len(wheels) != 1 or len(sdists) != 1:
            found.append(f"{dist} has not one wheel and one source distribution of {name}")
        found += [line for each in wheels for line in wheel_problems(each)]
        found += [line for each in sdists for line in sdist_problems(each)]
    return found


def main(arguments: list[str]) -> int:
    """Prints what is wrong; returns the exit code."""
    wrong = problems(Path(arguments[0]) if arguments else ROOT / "dist")
    print("\n".join(wrong) if wrong else "the packages have all that belongs there, and no more")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
