"""Files that are read again when they change: certificates, hashed tokens, keys of an issuer.

A change is detected by the files' identities as well as their times, because Kubernetes swaps a
symlink. It is loaded once two checks in a row have seen the same files, so that a certificate and
its key, which are written one after the other, are read together.
"""

import asyncio
import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from ruvd.core.ports.secrets import ReloadedSecret, SecretOutcome

_CHECK_SECONDS = 1.0
_MAX_BYTES = 16 << 20
_MAX_READS = 10
_MAX_RELOADS = 16  # in the second between two checks

_Signature: TypeAlias = tuple[object, ...]
Contents: TypeAlias = Mapping[str, bytes]

_log = logging.getLogger("ruvd.daemon")


class FilesInvalid(Exception):
    """Files cannot be read or used; the message names the settings and the cause."""


class Reload(NamedTuple):
    """The outcome of loading changed files: the names of their settings, and the error if any."""

    settings: str
    error: str = ""


class WatchedFiles:
    """Files that are loaded at once, and again when one of them has changed.

    `files` are the paths by the names of their settings. `load` gets the contents by the same names
    and raises ValueError if it cannot use them, with a message that begins with the setting's name.
    At the start that is FilesInvalid. Later it is logged, and what was loaded last stays in use.
    """

    def __init__(self, files: Mapping[str, Path], load: Callable[[Contents], None]) -> None:
        self._files = files
        self._load = load
        self._lock = threading.Lock()  # of the files' state, as checks and reloads run in threads
        self._reloads: deque[Reload] = deque(maxlen=_MAX_RELOADS)
        self._tried = self._seen = self._signature()
        try:
            contents = self._read()
            load(contents)
        except ValueError as error:
            raise FilesInvalid(str(error)) from None
        self._digest = _digest(contents)  # of what is in use

    def check(self) -> list[Reload]:
        """Loads the files again if they have changed. It reads files, so it belongs in a thread.

        Returns what has been loaded, also by `reload`, since the last check.
        """
        with self._lock:
            signature = self._signature()
            is_stable = signature == self._seen
            self._seen = signature
            if signature != self._tried and is_stable:
                self._try(signature)
            reloads = list(self._reloads)
            self._reloads.clear()
            return reloads

    def _try(self, signature: _Signature) -> None:
        try:
            self._take(signature)
        except _FilesChanging:
            return
        except ValueError as error:
            _report_invalid(error)
        else:
            _log.info("changed files are in use", extra={"settings": ", ".join(self._files)})

    async def reload(self) -> Sequence[ReloadedSecret]:
        """See `SecretSource.reload`."""
        return await asyncio.to_thread(self._reload)

    def _reload(self) -> Sequence[ReloadedSecret]:
        with self._lock:
            for _ in range(_MAX_READS):
                signature = self._signature()
                before = self._digest
                try:
                    self._take(signature)
                except _FilesChanging:
                    continue
                except ValueError as error:
                    _report_invalid(error)
                    return self._results(SecretOutcome.REFUSED, str(error))
                is_new = self._digest != before
                return self._results(SecretOutcome.TAKEN if is_new else SecretOutcome.UNCHANGED)
        return self._results(SecretOutcome.REFUSED, "the files are being written: try again")

    def _take(self, signature: _Signature) -> None:
        """Loads the files, of which this is the signature. Raises ValueError if they are invalid.

        Raises _FilesChanging, and loads nothing, if they have changed meanwhile.
        """
        try:
            contents = self._read()
            if self._signature() != signature:
                raise _FilesChanging
            self._load(contents)
        except ValueError as error:
            self._tried = self._seen = signature
            self._reloads.append(Reload(", ".join(self._files), str(error)))
            raise
        self._tried = self._seen = signature
        digest = _digest(contents)
        if digest != self._digest:
            self._reloads.append(Reload(", ".join(self._files)))
        self._digest = digest

    def _results(self, outcome: SecretOutcome, error: str = "") -> Sequence[ReloadedSecret]:
        return [
            ReloadedSecret(setting, str(path), outcome, error)
            for setting, path in self._files.items()
        ]

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


class _FilesChanging(Exception):
    """The files are being changed at this moment."""


def _report_invalid(error: ValueError) -> None:
    _log.error(  # the cause is in the message
        "changed files are invalid; the last good ones stay in use",
        extra={"reason": str(error)},
    )


def _digest(contents: Contents) -> bytes:
    """Returns a digest of the contents, so that the secrets themselves need not be kept."""
    digest = hashlib.sha256()
    for content in contents.values():
        digest.update(hashlib.sha256(content).digest())
    return digest.digest()


def _identity(path: Path) -> object:
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)


async def watch(
    watched: Sequence[WatchedFiles], on_reload: Callable[[Reload], None] | None = None
) -> None:
    """Checks the files every second, until it is cancelled."""
    while True:
        await asyncio.sleep(_CHECK_SECONDS)
        for files in watched:
            for reload in await asyncio.to_thread(files.check):
                if on_reload:
                    on_reload(reload)
