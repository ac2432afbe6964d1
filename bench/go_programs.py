"""Builds the programs in `bench/go`: a server of ruvd's API, and a client, both with grpc-go.

They are built into the user's cache directory, again only if their sources have changed. Go fetches
the modules that `go.sum` pins from its module proxy.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sys
from pathlib import Path

from bench.environments import DEFAULT, NotInstalled
from bench.relay_servers import ROOT

_SOURCES = (ROOT / "bench" / "go", ROOT / "clients" / "go" / "ruvdv1")


async def build() -> Path:
    """Returns the folder with the programs `server` and `client`.

    Raises NotInstalled if there is no Go, or if it has said why they cannot be built.
    """
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise NotInstalled("there is no Go compiler")
    folder = DEFAULT / f"go-{_digest()}"
    if (folder / "client").is_file() and (folder / "server").is_file():
        return folder
    print(f"... building bench/go into {folder}", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        go, "build", "-o", f"{folder}/", "./...", cwd=_SOURCES[0], stdout=sys.stderr
    )
    if await process.wait():
        raise NotInstalled("bench/go could not be built")
    return folder


def _digest() -> str:
    digest = hashlib.sha256()
    for source in _SOURCES:
        for path in sorted(each for each in source.rglob("*") if each.is_file()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
