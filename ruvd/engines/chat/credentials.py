"""The API key for a server: a fixed value, or the content of a file that may change.

The file is checked at most once a second, in a thread. A change is detected by the file's identity
as well as its time, because Kubernetes swaps a symlink. While the file cannot be read, the last key
stays in use. No text from this module contains the key.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ruvd.core.errors import EngineUnavailable
from ruvd.core.ports.secrets import ReloadedSecret, SecretOutcome

_CHECK_SECONDS = 1.0
_MAX_KEY_BYTES = 65_536
_MIN_SECRET_LENGTH = 6  # servers without keys are often configured with `EMPTY`
_HIDDEN = "(hidden)"
_WRONG_CHARACTERS = "the daemon's API key has characters that no header may have"

_log = logging.getLogger("ruvd.engine")


class ApiKey:
    """A bearer token, from the file at `path` if it is given, otherwise `value`; it may be empty.

    `secrets` are other texts that `redact` removes. `setting` names the path in messages.
    """

    def __init__(
        self,
        value: str = "",
        path: Path | None = None,
        *,
        secrets: Iterable[str] = (),
        setting: str = "api_key_file",
    ) -> None:
        self._setting = setting
        self._value = value.strip()
        self._path = path
        self._known = {self._value, *secrets}
        self._identity: tuple[int, ...] | None = None
        self._checked_at = float("-inf")
        self._check_lock = asyncio.Lock()
        self._fault = ""

    def __repr__(self) -> str:
        return f"ApiKey({_HIDDEN})"

    async def current(self) -> str:
        """Returns the key, empty if there is none. Raises EngineUnavailable if the file has never
        been readable, or if the key cannot be sent in a header."""
        # While one call reads the file, others use the last key. All wait for the first key.
        if self._path is not None and not (self._value and self._check_lock.locked()):
            async with self._check_lock:
                await self._check_file(self._path)
        if not _can_be_sent(self._value):
            raise EngineUnavailable(_WRONG_CHARACTERS)
        return self._value

    async def reload(self) -> Sequence[ReloadedSecret]:
        """See `SecretSource.reload`. A key that is no file has no result."""
        path = self._path
        if path is None:
            return ()
        async with self._check_lock:
            before, self._identity, self._checked_at = self._value, None, float("-inf")
            try:
                await self._check_file(path)
                error = self._fault or ("" if _can_be_sent(self._value) else _WRONG_CHARACTERS)
            except EngineUnavailable as unavailable:
                error = str(unavailable)
            outcome = SecretOutcome.UNCHANGED if self._value == before else SecretOutcome.TAKEN
            outcome = SecretOutcome.REFUSED if error else outcome
            return [ReloadedSecret(self._setting, str(path), outcome, error)]

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
            fault = f"cannot read {self._setting} {path}: {error.strerror}"
            if not self._value:
                raise EngineUnavailable(fault) from None
            self._keep_last(fault)
            return
        finally:
            if self._value or self._identity:  # also if the check was cancelled
                self._checked_at = time.monotonic()
        if content is None:
            return
        key = content.decode(errors="replace").strip()
        if _can_be_sent(self._value) and self._value and not _can_be_sent(key):
            self._keep_last(_WRONG_CHARACTERS)
            return
        self._fault = ""
        self._value = key
        self._known.add(key)

    def _keep_last(self, fault: str) -> None:
        """Logs once why the last key stays in use."""
        if fault != self._fault:
            _log.warning("%s; the last key stays in use", fault)
        self._fault = fault


def _can_be_sent(key: str) -> bool:
    return key.isascii() and key.isprintable()


def _read(path: Path, known: tuple[int, ...] | None) -> tuple[tuple[int, ...], bytes | None]:
    """Returns the file's identity, and its content unless the identity is `known`."""
    found = path.stat()
    identity = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
    if identity == known:
        return identity, None
    with path.open("rb") as file:
        return identity, file.read(_MAX_KEY_BYTES)
