"""The KV states of conversations in files, from which slots are restored, also after a restart.

A restore takes milliseconds (22 for 2,441 tokens) where evaluation takes seconds. The total size is
bounded; the least recently used file is evicted first. The kernel's page cache serves a state that
was just saved, and never writes a file to the disk that is replaced soon. A wrong file costs time
and an event, but gives no wrong answer: the server compares tokens, and the file of an earlier
daemon is read only if its seal, a file with its checksum, matches. The contents are conversations,
so only the owner may read the files.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from ruvd.core.errors import EngineUnavailable
from ruvd.engines.llama.prompt import MIN_REUSED_CHARACTERS, Prompt

_SUFFIX = ".kv"
_SEAL_SUFFIX = ".seal"
_PART_SUFFIX = ".part"
_OURS = re.compile(r"[0-9a-f]{24}\.(kv|seal|part)")

_log = logging.getLogger("ruvd.engine")


class _Seal(msgspec.Struct):
    """The description of a state file for a later daemon. `model` is `StateFiles.fingerprint`."""

    model: str
    session: str
    size_bytes: int
    sha256: str


@dataclass(eq=False, slots=True)
class State:
    """One state file.

    Of a file of an earlier daemon `content` is unknown, and `sha256` has to be verified.
    `session_key` is empty if it belongs to no session. `failures` counts connections that broke
    while the server was to read it.
    """

    path: Path
    content: Prompt | None
    session_key: str
    size_bytes: int
    sealed: bool = False
    sha256: str = ""
    failures: int = 0
    removed: bool = False


class StateFiles:
    """The state files in a directory, up to `max_bytes`. One daemon at a time uses a directory.

    `fingerprint` names everything that a state depends on; `persist` says whether the next daemon
    finds the files. Asynchronous methods read and write files in a thread.
    """

    def __init__(
        self, directory: Path, max_bytes: int, fingerprint: str, *, persist: bool = True
    ) -> None:
        self.directory = directory
        self.persist = persist
        self._max_bytes = max_bytes
        self.fingerprint = fingerprint
        self._states: dict[str, State] = {}  # by the file's name, least recently used first
        self._lock: int | None = None
        self.rejected: list[str] = []  # why files of an earlier daemon cannot be used

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(state.size_bytes for state in list(self._states.values()))

    def open(self) -> None:
        """Locks the directory and finds the states that an earlier daemon has sealed. Blocks.

        Raises EngineUnavailable if the directory cannot be used.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.directory.chmod(0o700)
            self._lock = os.open(self.directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load()
        except OSError as error:
            self.close()
            is_locked = isinstance(error, BlockingIOError)
            reason = "another daemon has it" if is_locked else error.strerror
            text = f"states cannot be kept in {self.directory}: {reason}"
            raise EngineUnavailable(text) from error

    def close(self) -> None:
        """Deletes all states that are not sealed for the next daemon, and unlocks the directory.
        The server must have stopped. Blocks. Idempotent."""
        if self._lock is not None:
            try:
                self._clear([state for state in self._states.values() if state.sealed])
            except OSError as error:  # for example, the directory was deleted
                _log.warning("states in %s could not be deleted: %s", self.directory, error)
            finally:
                os.close(self._lock)
                self._lock = None

    def new_path(self) -> Path:
        """Returns an unused path for a state."""
        return self.directory / f"{secrets.token_hex(12)}{_SUFFIX}"

    async def add(self, state: State) -> None:
        """Adds a saved state in place of the session's earlier one, and evicts others if needed:
        the new one itself if it exceeds the limit alone."""
        removals = [other for other in self._states.values() if _replaces(state, other)]
        if state.size_bytes > self._max_bytes:
            await self.remove(state, *removals)
            return
        self._states[state.path.name] = state
        total = self.size_bytes - sum(other.size_bytes for other in removals)
        for other in list(self._states.values()):
            if total <= self._max_bytes:
                break
            if other not in removals:
                removals.append(other)
                total -= other.size_bytes
        await self.remove(*removals)

    async def remove(self, *states: State) -> None:
        """Deletes states with their files."""
        for state in states:
            state.removed = True
            self._states.pop(state.path.name, None)
        await asyncio.to_thread(unlink, [state.path for state in states])

    def sessions(self) -> Collection[str]:
        """Returns the sessions that have a state."""
        return {state.session_key for state in self._states.values() if state.session_key}

    def of_session(self, session_key: str) -> list[State]:
        """Returns the states of a session: one, or more after a daemon was killed in `add`."""
        states = self._states.values()
        return [state for state in states if session_key and state.session_key == session_key]

    def best(self, prompt: Prompt, session_key: str, common: int) -> State | None:
        """Returns the state that has most in common with the prompt, or None unless that is much
        more than `common` characters.

        A state of the session itself that an earlier daemon saved is preferred, though its
        content is unknown.
        """
        unknown = [state for state in self.of_session(session_key) if state.content is None]
        if unknown:
            return unknown[-1]
        best, best_common = None, common + MIN_REUSED_CHARACTERS - 1
        for state in self._states.values():
            state_common = 0 if state.content is None else state.content.common(prompt)
            if state_common > best_common:
                best, best_common = state, state_common
        return best

    def mark_used(self, state: State) -> None:
        """Records a use of the state, which is then evicted later than others."""
        if not state.removed:
            self._states[state.path.name] = self._states.pop(state.path.name)

    async def seal(self, before_each: Callable[[], Awaitable[None]] | None = None) -> None:
        """Seals the states of sessions for the next daemon. Awaits `before_each` for each one."""
        for state in list(self._states.values()):
            if state.session_key and not state.sealed:
                if before_each is not None:
                    await before_each()
                if state.removed:
                    continue
                with contextlib.suppress(OSError):  # the disk is full, or the file was deleted
                    await asyncio.to_thread(self._seal, state)

    async def verify_checksum(self, state: State) -> bool:
        """Returns whether the file is as it was written; a file that is not is removed."""
        if not state.sha256:
            return True
        try:
            is_intact = await asyncio.to_thread(_sha256, state.path) == state.sha256
        except OSError:
            is_intact = False
        if is_intact:
            state.sha256 = ""
        else:
            await self.remove(state)
        return is_intact

    def _seal(self, state: State) -> None:
        seal = _Seal(self.fingerprint, state.session_key, state.size_bytes, _sha256(state.path))
        # Written under another name first: a daemon that is killed leaves no half of a seal.
        part = state.path.with_suffix(_PART_SUFFIX)
        part.touch(0o600)
        part.write_bytes(msgspec.json.encode(seal))
        part.replace(state.path.with_suffix(_SEAL_SUFFIX))
        state.sealed = True
        if state.removed:
            unlink([state.path])

    def _load(self) -> None:
        for path in sorted(self.directory.glob(f"*{_SEAL_SUFFIX}"), key=_age):
            file = path.with_suffix(_SUFFIX)
            try:
                seal = msgspec.json.decode(path.read_bytes(), type=_Seal)
                size = file.stat().st_size
            except (OSError, msgspec.MsgspecError):
                self.rejected.append("corrupt")
                continue
            if seal.model != self.fingerprint:
                self.rejected.append("foreign")
            elif seal.size_bytes != size:
                self.rejected.append("corrupt")
            else:
                state = State(file, None, seal.session, size, sealed=True, sha256=seal.sha256)
                self._states[file.name] = state
        total = self.size_bytes
        for name in list(self._states):
            if total > self._max_bytes:
                total -= self._states.pop(name).size_bytes
        self._clear(self._states.values())

    def _clear(self, kept: Iterable[State]) -> None:
        """Deletes all files of ruvd in the directory except those of some states."""
        known = {path for state in kept for path in _files(state.path)}
        for path in self.directory.iterdir():
            if _OURS.fullmatch(path.name) and path not in known:
                path.unlink(missing_ok=True)


def _replaces(new: State, old: State) -> bool:
    return bool(new.session_key) and new.session_key == old.session_key and new is not old


def _files(path: Path) -> tuple[Path, ...]:
    return path, path.with_suffix(_SEAL_SUFFIX), path.with_suffix(_PART_SUFFIX)


def _age(path: Path) -> float:
    return path.stat().st_mtime


def unlink(paths: list[Path]) -> None:
    """Deletes state files with their seals; a failure is logged. Blocks."""
    for path in paths:
        for file in _files(path):
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                _log.error("the state of a session could not be deleted: %s", error)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
