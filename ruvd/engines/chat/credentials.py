"""The API key for a server: a fixed value, or the content of a file that may change.

The file is checked at most once a second, in a thread. A change is detected by the file's identity
as well as its time, because Kubernetes swaps a symlink. While the file cannot be read, the last key
stays in use. No text from this module contains the key.
"""

import asyncio
import logging
import time
from collections.abc import Iterable
from pathlib import Path

from ruvd.core.errors import EngineUnavailable

_CHECK_SECONDS = 1.0
_MAX_KEY_BYTES = 65_536
_MIN_SECRET_LENGTH = 6  # servers without keys are often configured with `EMPTY`
_HIDDEN = "(hidden)"

_log = logging.getLogger("ruvd.engine")


class ApiKey:
    """A bearer token, from the file at `path` if it is given, otherwise `value`; it may be empty.

    `secrets` are other texts that `redact` removes.
    """

    def __init__(
        self, value: str = "", path: Path | None = None, *, secrets: Iterable[str] = ()
    ) -> None:
        self._value = value.strip()
        self._path = path
        self._known = {self._value, *secrets}
        self._identity: tuple[int, ...] | None = None
        self._checked_at = float("-inf")
        self._check_lock = asyncio.Lock()
        self._is_readable = True

    def __repr__(self) -> str:
        return f"ApiKey({_HIDDEN})"

    async def current(self) -> str:
        """Returns the key, empty if there is none. Raises EngineUnavailable if the file has never
        been readable, or if the key cannot be sent in a header."""
        # While one call reads the file, others use the last key. All wait for the first key.
        if self._path is not None and not (self._value and self._check_lock.locked()):
            async with self._check_lock:
                await self._check_file(self._path)
        if not (self._value.isascii() and self._value.isprintable()):
            raise EngineUnavailable("the daemon's API key has characters that no header may have")
        return self._value

    def forget(self) -> None:
        """Makes the next use check the file, because the server has refused the key."""
        self._checked_at = float("-inf")

    def redact(self, text: str) -> str:
        """Returns the text without any key that was in use. Very short keys are no secrets."""
        for key in self._known:
            if len(key) >= _MIN_SECRET_LENGTH:
                text = text.replace(key, _HIDDEN)
        return text

    async def _check_file(self, path: Path) -> None:
        if time.monotonic() - self._checked_at < _CHECK_SECONDS:
            return
        try:
            self._identity, content = await asyncio.to_thread(_read, path, self._identity)
        except OSError as error:
            self._identity = None
            if not self._value:
                text = f"cannot read api_key_file {path}: {error.strerror}"
                raise EngineUnavailable(text) from None
            if self._is_readable:
                _log.warning("cannot read api_key_file %s: %s", path, error.strerror)
            self._is_readable = False
            return
        finally:
            if self._value or self._identity:  # also if the check was cancelled
                self._checked_at = time.monotonic()
        self._is_readable = True
        if content is not None:
            self._value = content.decode(errors="replace").strip()
            self._known.add(self._value)


def _read(path: Path, known: tuple[int, ...] | None) -> tuple[tuple[int, ...], bytes | None]:
    """Returns the file's identity, and its content unless the identity is `known`."""
    found = path.stat()
    identity = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
    if identity == known:
        return identity, None
    with path.open("rb") as file:
        return identity, file.read(_MAX_KEY_BYTES)
