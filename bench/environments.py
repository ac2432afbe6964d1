"""Virtual environments for the programs that ruvd is compared with, one for each program.

They are in the user's cache directory (`ruvd-bench/NAME`), unless the caller names another place;
the project's own environment is never changed. `bench/NAME.txt` pins every package by hash, wheels
only, so pip resolves no dependencies. A copy of that list is stored in the environment when the
installation is complete. If the list has changed, the packages are installed again.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

import platformdirs

_PINS = Path(__file__).parent
DEFAULT = platformdirs.user_cache_path("ruvd-bench")


class NotInstalled(Exception):
    """An environment is missing and could not be made; the message says why."""


def pins(name: str) -> Path:
    """Returns the path of the list of an environment's packages."""
    return _PINS / f"{name}.txt"


def version(name: str, package: str) -> str:
    """Returns the version of a package that an environment's list pins."""
    for line in pins(name).read_text().splitlines():
        if line.startswith(f"{package}=="):
            return line.removeprefix(f"{package}==").split()[0]
    raise NotInstalled(f"{pins(name).name} pins no {package}")


def is_installed(name: str, environment: Path) -> bool:
    """Returns whether the environment has all packages of the list as it is now."""
    copy = environment / "installed.txt"
    return copy.is_file() and copy.read_bytes() == pins(name).read_bytes()


async def install(name: str, environment: Path) -> None:
    """Makes an environment, unless it is installed. Raises NotInstalled after pip has said why."""
    if is_installed(name, environment):
        return
    print(f"... installing {name} into {environment}", file=sys.stderr, flush=True)
    python = environment / "bin" / "python"
    for command in (
        (sys.executable, "-m", "venv", str(environment)),
        (
            str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
            "--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", str(pins(name)),
        ),
    ):  # fmt: skip
        # Standard output is for the figures, so pip's output goes to standard error.
        process = await asyncio.create_subprocess_exec(*command, stdout=sys.stderr)
        try:
            if await process.wait():
                raise NotInstalled(f"{name} could not be installed")
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()
    (environment / "installed.txt").write_bytes(pins(name).read_bytes())
