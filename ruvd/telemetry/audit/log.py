"""The audit log: a bounded queue of records, and the task that writes them.

Adding a record never waits. Records are written by a thread a tenth of a second later, many at a
time. While they cannot be written (a full disk, a collector that is down) they wait; when the queue
is full further ones are lost. Their number is counted, and recorded as soon as writing works again.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

from ruvd.telemetry.audit.chain import Fields
from ruvd.telemetry.audit.chain_writer import ChainWriter
from ruvd.telemetry.audit.refusals import RefusalLimit

_log = logging.getLogger("ruvd.audit")
MAX_QUEUED = 10_000
_BATCH = 256
_GATHER_SECONDS = 0.1
_RETRY_SECONDS = 1.0
_CLOSE_SECONDS = 2.0  # the time that a stop has for telemetry


class AuditLog:
    """Records events in the order in which they are added. `on_lost` is called for each lost one.

    `add` and `add_refusal` are called on the event loop.
    """

    def __init__(self, writer: ChainWriter, on_lost: Callable[[], None]) -> None:
        self._writer = writer
        self._on_lost = on_lost
        self._queue: deque[Fields] = deque()
        self._batch: list[Fields] = []  # taken from the queue, and not written yet
        self._lock = threading.Lock()
        self._work = asyncio.Event()
        self._lost = 0
        self._failing = False
        self._refusals = RefusalLimit(self.add)

    def open(self) -> None:
        """Opens the output. Blocks. Raises OSError."""
        self._writer.open()
        self._report("audit log opened")

    def add(self, fields: Fields) -> None:
        """Adds a record of an event, with the time."""
        if len(self._queue) >= MAX_QUEUED:
            self._lost += 1
            self._on_lost()
            return
        if self._lost:
            self._add_lost()
        self._queue.append({"time": _now(), **fields})
        self._work.set()

    def add_refusal(self, fields: Fields) -> None:
        """Adds a record of a call that was refused at once, or only counts it."""
        self._refusals.add(fields)

    async def run(self) -> None:
        """Writes records until it is cancelled."""
        while True:
            await self._work.wait()
            await asyncio.sleep(_GATHER_SECONDS)
            self._work.clear()
            await self._write()
            if self._failing:
                await asyncio.sleep(_RETRY_SECONDS)
                self._work.set()

    async def close(self) -> None:
        """Writes what is left within two seconds, and closes the output."""
        self._refusals.end_window()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._write()
                if self._queue and not self._failing:  # the number of lost records
                    await self._write()
        except TimeoutError:
            self._failing = True
        left = len(self._queue) + len(self._batch) + self._lost
        if left:
            _log.error("records of the audit log are lost", extra={"records": left})
        self._report("audit log closed")
        try:
            await asyncio.to_thread(self._writer.close)
        except OSError as error:
            _log.error("the audit log cannot be closed", extra={"reason": str(error)})

    async def _write(self) -> None:
        try:
            await asyncio.to_thread(self._write_queue)
        except OSError as error:
            if not self._failing:
                _log.error(
                    "the audit log cannot be written; records wait", extra={"reason": str(error)}
                )
            self._failing = True
            return
        if self._failing:
            _log.info("the audit log is written again", extra={"lost": self._lost})
        self._failing = False
        if self._lost:
            self._add_lost()

    def _write_queue(self) -> None:
        """Writes all records that wait, in a thread. It survives the cancelling of its caller."""
        with self._lock:
            while True:
                while self._queue and len(self._batch) < _BATCH:
                    self._batch.append(self._queue.popleft())
                if not self._batch:
                    return
                written = self._writer.write(self._batch)
                del self._batch[:written]

    def _add_lost(self) -> None:
        self._queue.append({"time": _now(), "event": "records_lost", "count": self._lost})
        self._lost = 0
        self._work.set()

    def _report(self, what: str) -> None:
        """Logs the last hash: kept with the log lines, it shows later that nothing was cut off."""
        position = self._writer.position
        _log.info(what, extra={"records": position.sequence, "last_hash": position.last_hash})


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="microseconds")
