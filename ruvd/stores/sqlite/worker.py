"""A thread that has a database connection and runs queued operations on it.

The thread runs all queued operations, up to a limit, in one transaction (see `jobs`), and answers
all callers after its commit: under load, one commit serves many writes. A database error undoes the
batch and closes the connection. The next operation connects again, which is how a store recovers.
On a full disk the connection stays open, and the operations that only delete run again.
"""

import asyncio
import logging
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ruvd.core.errors import StoreUnavailable
from ruvd.core.ports.store import StoreLocked
from ruvd.stores.sqlite.access import ReaderAccess, WriterAccess
from ruvd.stores.sqlite.file_watch import FilesLost
from ruvd.stores.sqlite.jobs import Job, run_jobs

_T = TypeVar("_T")
_log = logging.getLogger("ruvd.store")

# Idle work begins this long after a batch, because a step takes as much as the commit of a turn.
_IDLE_DELAY_SECONDS = 0.05
# Under load there is always a next batch. Idle work that is late by this is done before it.
_MAX_IDLE_LATENESS_SECONDS = 0.25
# Limits how long the first caller of a batch waits for the last operation.
_MAX_BATCH = 128

_DATABASE_ERRORS = (FilesLost, StoreLocked, StoreUnavailable, sqlite3.Error, OSError)


class SqliteWorker:
    """Runs operations one after the other on a thread. Its methods are called on the event loop.

    Operations may run twice. They may change only the database and what `rolled_back` resets.
    After each batch, two callbacks run on the event loop: `report` with the database error that
    undid it or None, and `committed` with the number of operations that changed something. The
    others run on the thread: `idle` does a step of idle work and returns the seconds until the next
    one, or None if that depends on the next batch; `is_urgent` says whether a step is due before
    the next batch; `finish` does what is left before a close; `make_room` gets a database error
    and, if the disk is full, makes room for operations that only delete and returns a message;
    `rolled_back` is called when a transaction was undone, `on_exit` when the thread ends.
    """

    def __init__(
        self,
        name: str,
        access: WriterAccess | ReaderAccess,
        report: Callable[[str | None], None],
        *,
        committed: Callable[[int], None] = lambda _: None,
        begin: str,
        end: str = "COMMIT",
        idle: Callable[[sqlite3.Connection], float | None] = lambda _: None,
        is_urgent: Callable[[], bool] = lambda: False,
        finish: Callable[[sqlite3.Connection], None] = lambda _: None,
        make_room: Callable[[sqlite3.Connection, Exception], str | None] = lambda *_: None,
        rolled_back: Callable[[], None] = lambda: None,
        on_exit: Callable[[], None] = lambda: None,
    ) -> None:
        self._access = access
        self._report = report
        self._committed = committed
        self._begin = begin
        self._end = end
        self._idle = idle
        self._is_urgent = is_urgent
        self._finish_idle = finish
        self._make_room = make_room
        self._rolled_back = rolled_back
        self._on_exit = on_exit
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._pending = 0
        self._closing = False
        self._closed = asyncio.Event()
        # Only the thread uses the attributes below.
        self._db: sqlite3.Connection | None = None
        self._jobs: list[Job] = []
        self._is_last_batch = False
        # As a daemon thread it does not keep a process alive whose event loop has failed.
        self._thread = threading.Thread(target=self._main, name=f"ruvd-{name}", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    async def run(
        self,
        operation: Callable[[sqlite3.Connection], _T],
        cached: Callable[[], _T | None] = lambda: None,
        *,
        deletes: bool = False,
    ) -> _T:
        """Returns the operation's result once its transaction is committed.

        An operation that only `deletes` also works on a full disk. If `cached` returns a result,
        that is returned instead. It is called after the operations queued before: on the thread, or
        at once if there are none. Raises what the operation raised, StoreUnavailable for a database
        error, and StoreLocked.
        """
        if self._closing:
            raise StoreUnavailable("the store is closed")
        if not self._pending and (result := cached()) is not None:
            return result
        future: asyncio.Future[_T] = self._loop.create_future()
        self._pending += 1
        self._queue.put(Job(operation, cached, deletes, future))
        return await future

    async def close(self) -> None:
        """Runs what is queued, disconnects and ends the thread. Idempotent."""
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        await self._closed.wait()

    def _main(self) -> None:
        idle_due: float | None = None
        try:
            while not self._is_last_batch:
                self._take_jobs(idle_due)
                if self._jobs:
                    if not self._run_batch():
                        idle_due = None
                        continue
                    now = time.monotonic()
                    idle_due = min(idle_due or math.inf, now + _IDLE_DELAY_SECONDS)
                    if now < idle_due + _MAX_IDLE_LATENESS_SECONDS and not self._is_urgent():
                        continue
                elif idle_due is None or time.monotonic() < idle_due:
                    self._run_idle()
                    continue
                if not self._is_last_batch:
                    seconds = self._run_idle(self._idle)
                    idle_due = None if seconds is None else time.monotonic() + seconds
            self._run_idle(self._finish_idle)
        finally:
            self._disconnect()
            self._on_exit()
            self._call_on_loop(self._finish, self._jobs, not self._is_last_batch)

    def _take_jobs(self, until: float | None) -> None:
        self._jobs = []
        seconds = self._access.interval_seconds
        if until is not None:
            left = max(0.0, until - time.monotonic())
            seconds = left if seconds is None else min(left, seconds)
        try:
            job = self._queue.get(timeout=seconds)
            while job is not None:
                self._jobs.append(job)
                if len(self._jobs) == _MAX_BATCH:
                    return
                job = self._queue.get_nowait()
            self._is_last_batch = True
        except queue.Empty:
            return

    def _run_batch(self) -> bool:
        fault: Exception | None = None
        try:
            db = self._connected()
            try:
                run_jobs(db, self._jobs, self._begin, self._end, self._rolled_back)
            except sqlite3.Error as error:
                full = self._make_room(db, error)
                if full is None:
                    raise
                self._rolled_back()
                self._run_deletions(db, StoreUnavailable(full))
            self._access.committed()
            if not self._access.keeps_open:
                self._disconnect()
        except _DATABASE_ERRORS as error:
            fault = self._disconnect_after(error)
            for job in self._jobs:
                job.error = type(fault)(str(fault))
                job.error.__cause__ = error
        jobs, self._jobs = self._jobs, []
        self._call_on_loop(self._answer, jobs, str(fault) if fault else None)
        return fault is None

    def _run_deletions(self, db: sqlite3.Connection, error: StoreUnavailable) -> None:
        """Runs the jobs that only delete. The others fail with the error."""
        for job in self._jobs:
            job.result, job.wrote, job.error = None, False, None if job.deletes else error
        deletions = [job for job in self._jobs if job.deletes]
        run_jobs(db, deletions, self._begin, self._end, self._rolled_back)

    def _run_idle(self, work: Callable[[sqlite3.Connection], _T] | None = None) -> _T | None:
        """Checks the files, and then does the work unless they are lost."""
        try:
            self._access.check()
            if self._db is None or work is None:
                return None
            result = self._access.work(self._db, work, is_step=not self._is_last_batch)
        except FilesLost as lost:
            self._call_on_loop(self._answer, [], str(lost))
            self._access.rescue(self._db)
        except _DATABASE_ERRORS as error:
            self._call_on_loop(self._answer, [], str(self._disconnect_after(error)))
        except Exception:  # noqa: BLE001  # a bug in idle work must not end the thread
            _log.exception("the store's idle work failed; it goes on after the next commit")
            self._disconnect()
        else:
            return result
        return None

    def _connected(self) -> sqlite3.Connection:
        self._access.check()
        if self._db is None:
            self._db = self._access.connect()
        return self._db

    def _disconnect_after(self, error: Exception) -> Exception:
        if isinstance(error, FilesLost):
            # The connection has what the files at their paths have not.
            self._rolled_back()
            return StoreUnavailable(str(error))
        self._disconnect()
        if isinstance(error, (sqlite3.Error, OSError)):
            return StoreUnavailable(self._access.explain(error))
        return error

    def _disconnect(self) -> None:
        if self._db is not None:
            self._access.close(self._db)
            self._db = None
            self._rolled_back()

    def _call_on_loop(self, callback: Callable[..., None], *args: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)

    def _answer(self, jobs: list[Job], fault: str | None) -> None:
        self._pending -= len(jobs)
        self._report(fault)
        if fault is None and (writes := sum(job.wrote for job in jobs)):
            self._committed(writes)
        for job in jobs:
            if job.future.done():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)

    def _finish(self, jobs: list[Job], failed: bool) -> None:  # noqa: FBT001 - called by the loop
        detail = "the store is closed"
        if failed:
            # Only a bug ends the thread early. Its traceback is in the log.
            detail = "the store's thread has failed: restart ruvd"
            self._report(detail)
        self._closing = True
        while not self._queue.empty():
            job = self._queue.get_nowait()
            if job is not None:
                jobs.append(job)
        for job in jobs:
            if not job.future.done():
                job.future.set_exception(StoreUnavailable(detail))
        self._closed.set()
