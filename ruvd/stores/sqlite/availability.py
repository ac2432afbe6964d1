"""The state of the SQLite store: whether it is up, and why not."""

import asyncio
from collections.abc import Callable
from pathlib import Path

from ruvd.core.ports.events import Observer, StoreStateChanged


class Availability:
    """The faults of the parts of the store. The observer receives each StoreStateChanged.

    `is_open` says whether the writer has opened the file: before that, it may be missing or have an
    old schema.
    """

    def __init__(self, path: Path, observer: Observer) -> None:
        self.is_open = False
        self._path = path
        self._observer = observer
        self._faults: dict[str, str] = {}
        self._up: bool | None = None

    @property
    def full_disk(self) -> str | None:
        """The fault of a full disk, or None."""
        return self._faults.get("disk")

    def report(self, part: str, fault: str | None) -> None:
        """Records the fault of a part, or with None that it works."""
        if fault is not None:
            self._faults[part] = fault
            # On a full disk the store can be read.
            self.is_open = self.is_open and part == "disk"
        else:
            self._faults.pop(part, None)
            if part == "writer":
                self.is_open = True
        up = not self._faults
        if up is not self._up:
            self._up = up
            self._observer(StoreStateChanged(up, fault or f"{self._path} is open"))

    def reporter(self, loop: asyncio.AbstractEventLoop, part: str) -> Callable[[str | None], None]:
        """Returns what does the same as `report`, from another thread than the loop's."""

        def report(fault: str | None) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self.report, part, fault)

        return report
