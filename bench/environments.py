"""Environments for what is measured beside ruvd, one each, never the project's own.

They are in the user's cache directory (`ruvd-bench/NAME`), or wherever the caller says. What goes
into one is pinned by hash in `bench/NAME.txt`, wheels only and complete, so pip resolves nothing. A
copy of that list in the environment says that it is whole; another list makes it anew.
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
    """An environment is not there and could not be made; the message says why."""


def pins(name: str) -> Path:
    """The list of what an environment holds."""
    return _PINS / f"{name}.txt"


def version(name: str) -> str:
    """The version that a list pins of the package that it is named after."""
    for line in pins(name).read_text().splitlines():
        if line.startswith(f"{name}=="):
            return line.removeprefix(f"{name}==").split()[0]
    raise NotInstalled(f"{pins(name).name} pins no {name}")


def is_whole(name: str, environment: Path) -> bool:
    """Whether everything of the list as it is now is in the environment."""
    copy = environment / "installed.txt"
    return copy.is_file() and copy.read_bytes() == pins(name).read_bytes()


async def install(name: str, environment: Path) -> None:
    """Make an environment, unless it is whole. Raises NotInstalled; pip has said why by then."""
    if is_whole(name, environment):
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
        # What it says is progress: standard output is for figures.
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
