"""Files that are read again when they change: certificates, hashed tokens, keys of an issuer.

A change is detected by the files' identities as well as their times, because Kubernetes swaps a
symlink. It is loaded once two checks in a row have seen the same files, so that a certificate and
its key, which are written one after the other, are read together.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

_CHECK_SECONDS = 1.0
_MAX_BYTES = 16 << 20

_Signature: TypeAlias = tuple[object, ...]
Contents: TypeAlias = Mapping[str, bytes]

_log = logging.getLogger("ruvd.daemon")


class FilesInvalid(Exception):
    """Files cannot be read or used; the message names the settings and the cause."""


class WatchedFiles:
    """Files that are loaded at once, and again when one of them has changed.

    `files` are the paths by the names of their settings. `load` gets the contents by the same names
    and raises ValueError if it cannot use them, with a message that begins with the setting's name.
    At the start that is FilesInvalid. Later it is logged, and what was loaded last stays in use.
    """

    def __init__(self, files: Mapping[str, Path], load: Callable[[Contents], None]) -> None:
        self._files = files
        self._load = load
        self._tried = self._seen = self._signature()
        try:
            load(self._read())
        except ValueError as error:
            raise FilesInvalid(str(error)) from None

    def check(self) -> None:
        """Loads the files again if they have changed. It reads files, so it belongs in a thread."""
        signature = self._signature()
        is_stable = signature == self._seen
        self._seen = signature
        if signature == self._tried or not is_stable:
            return
        try:
            contents = self._read()
            if self._signature() != signature:
                return  # they change right now
            self._tried = signature
            self._load(contents)
        except ValueError as error:
            self._tried = signature
            _log.error(  # the cause is in the message
                "changed files are invalid; the last good ones stay in use",
                extra={"reason": str(error)},
            )
        else:
            _log.info("changed files are in use", extra={"settings": ", ".join(self._files)})

    def _signature(self) -> _Signature:
        return tuple(_identity(path) for path in self._files.values())

    def _read(self) -> Contents:
        contents = {}
        for setting, path in self._files.items():
            try:
                with path.open("rb") as file:
                    contents[setting] = file.read(_MAX_BYTES)
            except OSError as error:
                raise ValueError(f"{setting}: cannot read {path}: {error.strerror}") from None
        return contents


def _identity(path: Path) -> object:
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


async def watch(watched: Sequence[WatchedFiles]) -> None:
    """Checks the files every second, until it is cancelled."""
    while True:
        await asyncio.sleep(_CHECK_SECONDS)
        for files in watched:
            await asyncio.to_thread(files.check)
