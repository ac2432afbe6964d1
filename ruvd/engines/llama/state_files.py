"""The KV states of conversations, in files: out of a slot, into a slot, over a restart.

A restore takes milliseconds where evaluating takes seconds. Files are bounded in bytes, the least
recently used go first. The directory is on a disk, and the kernel's page cache is what makes a
state that was just saved come from memory; what has been replaced meanwhile is never written.
Whatever is wrong with a file costs time and an event, and never an answer: the server compares
tokens, and a file of another daemon is read only if its seal fits. The contents are conversations,
so that nobody but the owner may read them.
"""

from __future__ import annotations

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
from ruvd.engines.llama.prompt import WORTH_CHARACTERS, Prompt

_SUFFIX = ".kv"
_SEAL_SUFFIX = ".seal"
_PART_SUFFIX = ".part"
_OURS = re.compile(r"[0-9a-f]{24}\.(kv|seal|part)")

_log = logging.getLogger("ruvd.engine")


class _Seal(msgspec.Struct):
    """What another daemon has to know of a file. `model` says what wrote it."""

    model: str
    session: str
    size_bytes: int
    sha256: str


@dataclass(eq=False, slots=True)
class State:
    """What one file holds. Of an earlier daemon's, `holds` is None and `sha256` is to be checked.

    `session_key` is empty for what belongs to no session. `failures` is how often a server went
    away that was to read it. `gone` says that the file is no more.
    """

    path: Path
    holds: Prompt | None
    session_key: str
    size_bytes: int
    sealed: bool = False
    sha256: str = ""
    failures: int = 0
    gone: bool = False


class StateFiles:
    """The states in a directory, up to `most_bytes`. One daemon at a time has it.

    `model` names everything that a state depends on. Methods that read or write files work in a
    thread.
    """

    def __init__(self, directory: Path, *, most_bytes: int, model: str) -> None:
        self.directory = directory
        self._most_bytes = most_bytes
        self.model = model
        self._states: dict[str, State] = {}  # by the file's name, least recently used first
        self._lock: int | None = None
        self.refused: list[str] = []  # why files of an earlier daemon are of no use

    @property
    def size_bytes(self) -> int:
        """What the files take."""
        return sum(state.size_bytes for state in list(self._states.values()))

    def open(self) -> None:
        """Take the directory, and what an earlier daemon has sealed in it. Blocks.

        Raises EngineUnavailable if it cannot be had.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.directory.chmod(0o700)
            self._lock = os.open(self.directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load()
        except OSError as error:
            self.close()
            why = "another daemon has it" if isinstance(error, BlockingIOError) else error.strerror
            text = f"states cannot be kept in {self.directory}: {why}"
            raise EngineUnavailable(text) from error

    def close(self) -> None:
        """Let the directory go, with what the next daemon may use in it and nothing else. The
        server is gone. Blocks. Idempotent."""
        if self._lock is not None:
            self._clear([state for state in self._states.values() if state.sealed])
            os.close(self._lock)
            self._lock = None

    def new_path(self) -> Path:
        """Where a state may be saved."""
        return self.directory / f"{secrets.token_hex(12)}{_SUFFIX}"

    async def add(self, state: State) -> None:
        """Keep what was saved, instead of what the session had, and bound the whole.

        What is larger than the bound by itself is `gone` at once.
        """
        gone = [each for each in self._states.values() if _replaces(state, each)]
        if state.size_bytes > self._most_bytes:
            await self.remove(state, *gone)
            return
        self._states[state.path.name] = state
        total = self.size_bytes - sum(each.size_bytes for each in gone)
        for each in list(self._states.values()):
            if total <= self._most_bytes:
                break
            if each not in gone:
                gone.append(each)
                total -= each.size_bytes
        await self.remove(*gone)

    async def remove(self, *states: State) -> None:
        """Delete the files."""
        for state in states:
            state.gone = True
            self._states.pop(state.path.name, None)
        await asyncio.to_thread(unlink, [state.path for state in states])

    def sessions(self) -> Collection[str]:
        """Those that have a state."""
        return {state.session_key for state in self._states.values() if state.session_key}

    def of_session(self, session_key: str) -> list[State]:
        """The session's own, one unless a daemon was killed when it replaced another."""
        states = self._states.values()
        return [each for each in states if session_key and each.session_key == session_key]

    def best(self, prompt: Prompt, session_key: str, than: int) -> State | None:
        """What begins as the prompt does, for much longer than the first `than` characters.

        The session's own that an earlier daemon has left is taken for that unseen.
        """
        unseen = [own for own in self.of_session(session_key) if own.holds is None]
        if unseen:
            return unseen[-1]
        best, most = None, than + WORTH_CHARACTERS - 1
        for state in self._states.values():
            common = 0 if state.holds is None else state.holds.common(prompt)
            if common > most:
                best, most = state, common
        return best

    def used(self, state: State) -> None:
        """It goes later than others."""
        if not state.gone:
            self._states[state.path.name] = self._states.pop(state.path.name)

    async def seal(self, quiet: Callable[[], Awaitable[None]] | None = None) -> None:
        """Let the next daemon use what belongs to sessions; each once it is `quiet`."""
        for state in list(self._states.values()):
            if state.session_key and not state.sealed:
                if quiet is not None:
                    await quiet()
                if state.gone:
                    continue
                with contextlib.suppress(OSError):  # the disk is full, or the file has gone
                    await asyncio.to_thread(self._seal, state)

    async def verify_checksum(self, state: State) -> bool:
        """Whether the file is as it was written; removed if not."""
        if not state.sha256:
            return True
        try:
            is_sound = await asyncio.to_thread(_sha256, state.path) == state.sha256
        except OSError:
            is_sound = False
        if is_sound:
            state.sha256 = ""
        else:
            await self.remove(state)
        return is_sound

    def _seal(self, state: State) -> None:
        seal = _Seal(self.model, state.session_key, state.size_bytes, _sha256(state.path))
        # Whoever is killed meanwhile leaves no half of a seal.
        part = state.path.with_suffix(_PART_SUFFIX)
        part.touch(0o600)
        part.write_bytes(msgspec.json.encode(seal))
        part.replace(state.path.with_suffix(_SEAL_SUFFIX))
        state.sealed = True
        if state.gone:
            unlink([state.path])

    def _load(self) -> None:
        for path in sorted(self.directory.glob(f"*{_SEAL_SUFFIX}"), key=_age):
            file = path.with_suffix(_SUFFIX)
            try:
                seal = msgspec.json.decode(path.read_bytes(), type=_Seal)
                size = file.stat().st_size
            except (OSError, msgspec.MsgspecError):
                self.refused.append("corrupt")
                continue
            if seal.model != self.model:
                self.refused.append("foreign")
            elif seal.size_bytes != size:
                self.refused.append("corrupt")
            else:
                state = State(file, None, seal.session, size, sealed=True, sha256=seal.sha256)
                self._states[file.name] = state
        total = self.size_bytes
        for name in list(self._states):
            if total > self._most_bytes:
                total -= self._states.pop(name).size_bytes
        self._clear(self._states.values())

    def _clear(self, but: Iterable[State]) -> None:
        """Delete what is of ours in the directory but some states."""
        known = {path for state in but for path in _files(state.path)}
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
    """Delete states with their seals; what cannot be is logged. Blocks."""
    for path in paths:
        for each in _files(path):
            try:
                each.unlink(missing_ok=True)
            except OSError as error:
                _log.error("the state of a session could not be deleted: %s", error)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
