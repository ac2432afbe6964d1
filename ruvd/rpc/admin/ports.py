"""The contracts of the parts of the process that administration reaches."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from enum import Enum
from typing import Protocol

from ruvd.core.ports.secrets import ReloadedSecret
from ruvd.core.values import value
from ruvd.rpc.component_state import ComponentState


class Process(Protocol):
    """The process as administrators see it."""

    version: str

    @property
    def ready(self) -> bool:
        """Whether calls should come here."""

    @property
    def draining(self) -> bool:
        """Whether readiness is off until `undrain`."""

    @property
    def stopping(self) -> bool:
        """Whether new turns are refused."""

    @property
    def engine(self) -> ComponentState:
        """The state of the engine."""

    @property
    def store(self) -> ComponentState:
        """The state of the store: whether it can be read and written."""

    @property
    def memory(self) -> "MemoryUse":
        """The memory of the process."""

    def drain(self) -> None:
        """Turns readiness off."""

    def undrain(self) -> None:
        """Lets readiness depend on the store and the engine again. Raises ShuttingDown."""

    async def reload_secrets(self) -> Sequence[ReloadedSecret]:
        """Reads all files with secrets again."""

    async def reload_settings(self) -> "ReloadedSettings":
        """Reads the settings again, and takes those of named engines. Raises ShuttingDown."""


@value(frozen=True, slots=True)
class MemoryUse:
    """The resident memory of the process, and its limit."""

    resident_bytes: int
    limit_bytes: int


class LogLevel(Protocol):
    """The lowest level that is logged, by its name as in the setting log_level."""

    @property
    def current(self) -> str:
        """The level now."""

    @property
    def expires(self) -> datetime | None:
        """The time at which it returns to the setting; None if it stays."""

    def set(self, level: str | None, seconds: float | None = None) -> None:
        """Changes the level, for so many seconds or until the end. None: that of the setting."""


class EngineChange(Enum):
    """The result of reading the settings again for one named engine."""

    UNCHANGED = "unchanged"
    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


@value(frozen=True, slots=True)
class ReloadedSettings:
    """The result of reading the settings again.

    With `errors`, each of which names a wrong setting, nothing was changed. `engines` are the named
    engines. `restart_needed` are other settings that have changed, which need a restart.
    """

    errors: Sequence[str] = ()
    engines: Mapping[str, EngineChange] = field(default_factory=dict)
    restart_needed: Sequence[str] = ()


@value(frozen=True, slots=True)
class CopiedPages:
    """The progress of a backup."""

    copied: int
    total: int


@value(frozen=True, slots=True)
class BackupFile:
    """A finished backup."""

    path: str
    size_bytes: int


class Backups(Protocol):
    """Makes backups of the store."""

    def make(self, name: str) -> AsyncGenerator[CopiedPages | BackupFile, None]:
        """Copies the store to a new file of this name, or of one with the time if it is empty.

        Yields the progress, then the file. Closing the generator ends the copying. Raises
        BackupExists, BackupFailed, Overloaded while another backup runs, and StoreUnavailable.
        """
