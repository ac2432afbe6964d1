"""The key that the daemon shows to a server: given, or in a file that may change.

The file is looked at at most once a second, in a thread, by its identity as well as its time,
because Kubernetes swaps a symlink. The last key that could be read stays in use while the file
cannot be. No text that leaves here has the key in it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from ruvd.core.errors import EngineUnavailable

_LOOK_SECONDS = 1.0
_MAX_KEY_BYTES = 65_536
_LEAST_SECRET = 6  # a server without keys is often given `EMPTY`
_HIDDEN = "(hidden)"

_log = logging.getLogger("ruvd.engine")


class ApiKey:
    """A bearer token. `path` goes before `value`; without either there is none.

    `secrets` are others that no text may have in it.
    """

    def __init__(
        self, value: str = "", path: Path | None = None, *, secrets: Iterable[str] = ()
    ) -> None:
        self._value = value.strip()
        self._path = path
        self._known = {self._value, *secrets}
        self._identity: tuple[int, ...] | None = None
        self._looked = float("-inf")
        self._looking = asyncio.Lock()
        self._readable = True

    def __repr__(self) -> str:
        return f"ApiKey({_HIDDEN})"

    async def current(self) -> str:
        """The key, empty if there is none. Raises EngineUnavailable if there never was a file."""
        # While one call looks, others use the last key; they wait for the first that there is.
        if self._path is not None and not (self._value and self._looking.locked()):
            async with self._looking:
                await self._look(self._path)
        if not (self._value.isascii() and self._value.isprintable()):
            raise EngineUnavailable("the daemon's API key has characters that no header may have")
        return self._value

    def forget(self) -> None:
        """Look at the file again at the next use: the server has refused the key."""
        self._looked = float("-inf")

    def redact(self, text: str) -> str:
        """The text without any key that was in use. What is shorter than a word is no secret."""
        for key in self._known:
            if len(key) >= _LEAST_SECRET:
                text = text.replace(key, _HIDDEN)
        return text

    async def _look(self, path: Path) -> None:
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        try:
            self._identity, content = await asyncio.to_thread(_read, path, self._identity)
        except OSError as error:
            self._identity = None
            if not self._value:
                text = f"cannot read api_key_file {path}: {error.strerror}"
                raise EngineUnavailable(text) from None
            if self._readable:
                _log.warning("cannot read api_key_file %s: %s", path, error.strerror)
            self._readable = False
            return
        finally:
            if self._value or self._identity:  # also of a look that is given up
                self._looked = time.monotonic()
        self._readable = True
        if content is not None:
            self._value = content.decode(errors="replace").strip()
            self._known.add(self._value)


def _read(path: Path, known: tuple[int, ...] | None) -> tuple[tuple[int, ...], bytes | None]:
    """The file's identity, and its content unless the identity is the known one."""
    found = path.stat()
    identity = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
    if identity == known:
        return identity, None
    with path.open("rb") as file:
        return identity, file.read(_MAX_KEY_BYTES)
