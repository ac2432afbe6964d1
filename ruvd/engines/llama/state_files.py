"""The KV states of conversations in files, from which slots are restored, also after a restart.

A restore takes milliseconds (22 for 2,441 tokens) where evaluation takes seconds. The total size is
bounded; the least recently used file is evicted first. The kernel's page cache serves a state that
was just saved, and never writes a file to the disk that is replaced soon. A wrong file costs time
and an event, but gives no wrong answer: the server compares tokens, and the file of an earlier
daemon is read only if its seal, a file with its checksum, matches. The contents are conversations,
so only the owner may read the files. With a `Scratch` they are encrypted.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ruvd.core.errors import EngineUnavailable
from ruvd.engines.llama.prompt import MIN_REUSED_CHARACTERS, Prompt
from ruvd.engines.llama.state import State, files_of
from ruvd.engines.llama.state_directory import (
    STATE,
    ScratchUnavailable,
    StateDirectory,
    open_directory,
)
from ruvd.engines.llama.state_seals import sealed_states, write_seal

if TYPE_CHECKING:
    from ruvd.engines.llama.scratch import Scratch

_log = logging.getLogger("ruvd.engine")


class StateFiles:
    """The state files in a directory, up to `max_bytes`. One daemon at a time uses a directory.

    `fingerprint` names everything that a state depends on; `persist` says whether the next daemon
    finds the files. With a `scratch` they are encrypted, and the server uses that directory.
    Asynchronous methods read and write files in a thread.
    """

    def __init__(
        self,
        directory: Path,
        max_bytes: int,
        fingerprint: str,
        *,
        persist: bool = True,
        scratch: "Scratch | None" = None,
    ) -> None:
        self.directory = directory
        self._scratch = scratch
        self.persist = persist
        self._max_bytes = max_bytes
        self.fingerprint = fingerprint
        # States that were saved in plain are not used once they are encrypted, nor the other way.
        self._format = f"{fingerprint} sealed" if scratch else fingerprint
        self._states: dict[str, State] = {}  # by the file's name, least recently used first
        self._opened: StateDirectory | None = None
        self.rejected: list[str] = []  # why files of an earlier daemon cannot be used

    @property
    def size_bytes(self) -> int:
        """The size of all files."""
        return sum(state.size_bytes for state in list(self._states.values()))

    @property
    def server_directory(self) -> Path:
        """The directory in which the server saves states and finds them."""
        path = self._scratch.path if self._scratch else None
        return path or self.directory

    def open(self, *, is_default: bool = False) -> None:
        """Locks the directory and finds the states that an earlier daemon has sealed. Blocks.

        Raises DirectoryRefused, ScratchUnavailable, or EngineUnavailable if the directory cannot be
        used for another reason; see `open_directory`.
        """
        try:
            self._opened = open_directory(self.directory, is_default=is_default)
            self._load(self._opened)
            if self._scratch:
                self._scratch.open()
        except ScratchUnavailable:
            self.close()
            raise
        except OSError as error:
            self.close()
            is_locked = isinstance(error, BlockingIOError)
            reason = "another daemon has it" if is_locked else error.strerror
            text = f"states cannot be kept in {self.directory}: {reason}"
            raise EngineUnavailable(text) from error

    def close(self) -> None:
        """Deletes all states that are not sealed for the next daemon, and unlocks the directory.
        The server must have stopped. Blocks. Idempotent."""
        opened, self._opened = self._opened, None
        if opened is not None:
            try:
                _clear(opened, [state for state in self._states.values() if state.sealed])
            except OSError as error:  # for example, the directory was deleted
                _log.warning("states in %s could not be deleted: %s", self.directory, error)
            finally:
                opened.close()
                if self._scratch:
                    self._scratch.close()

    @asynccontextmanager
    async def transfer(self) -> AsyncGenerator[None, None]:
        """Waits until a state may be saved or restored: one at a time if they are encrypted."""
        if self._scratch is None:
            yield
            return
        async with self._scratch.turn():
            yield

    async def create(self) -> str:
        """Creates an empty file for the server to save a state to, and returns its name.

        Raises OSError.
        """
        name = f"{secrets.token_hex(12)}{STATE}"
        await asyncio.to_thread((self._scratch or self._directory).create, name)
        return name

    async def saved(self, name: str, size_bytes: int) -> int:
        """Keeps what the server has saved, and returns the size of the file. Raises OSError."""
        if self._scratch is None:
            return size_bytes
        return await asyncio.to_thread(self._scratch.seal, name, self._directory)

    async def prepare_restore(self, state: State) -> bool:
        """Makes a state ready for the server to restore. Raises OSError.

        Removes a state that is damaged, and returns False.
        """
        if self._scratch is None:
            return True
        if await asyncio.to_thread(self._scratch.unseal, state.name, self._directory):
            return True
        await self.remove(state)
        return False

    async def discard(self, *names: str) -> None:
        """Deletes files of states, with their seals; a failure is logged."""
        await asyncio.to_thread(self._unlink, names)

    async def add(self, state: State) -> None:
        """Adds a saved state in place of the session's earlier one, and evicts others if needed:
        the new one itself if it exceeds the limit alone."""
        removals = [other for other in self._states.values() if _replaces(state, other)]
        if state.size_bytes > self._max_bytes:
            await self.remove(state, *removals)
            return
        self._states[state.name] = state
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
            self._states.pop(state.name, None)
        await self.discard(*(state.name for state in states))

    def sessions(self) -> Collection[str]:
        """Returns the sessions that have a state."""
        return {state.session_key for state in self._states.values() if state.session_key}

    def of_session(self, session_key: str) -> list[State]:
        """Returns the states of a session: one, or more after a daemon was killed in `add`."""
        states = self._states.values()
        return [state for state in states if session_key and state.session_key == session_key]

    def with_content_of(self, session_key: str) -> list[State]:
        """Returns the states that have to go when the session ends."""
        states = self._states.values()
        return [
            state
            for state in states
            if session_key and session_key in (state.session_key, state.source)
        ]

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
            self._states[state.name] = self._states.pop(state.name)

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
            is_intact = await asyncio.to_thread(self._directory.sha256, state.name) == state.sha256
        except OSError:
            is_intact = False
        if is_intact:
            state.sha256 = ""
        else:
            await self.remove(state)
        return is_intact

    @property
    def _directory(self) -> StateDirectory:
        """The open directory. Raises OSError if it is closed."""
        if self._opened is None:
            raise OSError("the directory of states is closed")
        return self._opened

    def _seal(self, state: State) -> None:
        write_seal(self._directory, state, self._format)
        if state.removed:
            self._unlink([state.name])

    def _load(self, directory: StateDirectory) -> None:
        for found in sealed_states(directory, self._format):
            if isinstance(found, State):
                self._states[found.name] = found
            else:
                self.rejected.append(found)
        total = self.size_bytes
        for name in list(self._states):
            if total > self._max_bytes:
                total -= self._states.pop(name).size_bytes
        _clear(directory, self._states.values())

    def _unlink(self, names: Iterable[str]) -> None:
        for name in names:
            for file in files_of(name):
                try:
                    self._directory.remove(file)
                except OSError as error:
                    _log.error("the state of a session could not be deleted: %s", error)


def _clear(directory: StateDirectory, kept: Iterable[State]) -> None:
    """Deletes all files of ruvd in the directory except those of some states."""
    known = {name for state in kept for name in files_of(state.name)}
    for name in directory.names():
        if name not in known:
            directory.remove(name)


def _replaces(new: State, old: State) -> bool:
    return bool(new.session_key) and new.session_key == old.session_key and new is not old
