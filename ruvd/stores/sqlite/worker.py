"""A thread with a database connection of its own, and a queue of operations for it.

It takes everything that is queued, up to a bound, runs it in one transaction and answers all
callers after one commit: under load, many writes cost one. If an operation is refused, all are
undone and run again, each in a savepoint, so that the refused one is undone alone: savepoints are
two statements each, and each statement gives the interpreter's lock away. A fault of the database
undoes the batch and drops the connection, and the next operation connects anew, which is how a
store recovers. What there is to do beside is done when idle.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ruvd.core.errors import RuvdError, StoreUnavailable
from ruvd.core.ports.store import StoreLocked
from ruvd.stores.sqlite.database import DatabaseFile

_T = TypeVar("_T")

# What there is to do beside waits so long, as each look at it takes as much as a turn's commit.
_REST_SECONDS = 0.05
# Bounds how long the first caller of a batch waits for the last.
_BATCH = 128

# What an operation may raise that says nothing about the database: it is its caller's alone.
_REFUSALS = (
    RuvdError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    MemoryError,
    RuntimeError,
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)
_FAULTS = (StoreLocked, StoreUnavailable, sqlite3.Error, OSError)


@dataclass(slots=True)
class _Job:
    operation: Callable[[sqlite3.Connection], Any]
    known: Callable[[], Any]
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None
    wrote: bool = False

    def run(self, db: sqlite3.Connection) -> None:
        changes = db.total_changes
        self.result = self.operation(db)
        self.wrote = db.total_changes != changes


class SqliteWorker:
    """Runs operations one after the other on a thread. Its methods are for the event loop.

    `report` is called on the loop after every batch, with the fault that undid it or None;
    `committed` with the number of operations whose changes one transaction committed.
    Operations may run twice, and change nothing but the database and what `undone` resets.
    `idle` does a bounded piece of work and returns whether there is more; `undone` and `at_end`
    are called on the thread when a transaction was undone, and when it is done.
    """

    def __init__(
        self,
        name: str,
        file: DatabaseFile,
        connect: Callable[[], sqlite3.Connection],
        report: Callable[[str | None], None],
        *,
        committed: Callable[[int], None] = lambda _: None,
        begin: str,
        idle: Callable[[sqlite3.Connection], bool] = lambda _: False,
        undone: Callable[[], None] = lambda: None,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._file = file
        self._connect = connect
        self._report = report
        self._committed = committed
        self._begin = begin
        self._idle = idle
        self._undone = undone
        self._at_end = at_end
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._unanswered = 0
        self._closing = False
        self._closed = asyncio.Event()
        # The rest belongs to the thread.
        self._db: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._jobs: list[_Job] = []
        self._last = False
        # A daemon thread: a loop that died without closing must not keep the process.
        self._thread = threading.Thread(target=self._main, name=f"ruvd-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def run(
        self,
        operation: Callable[[sqlite3.Connection], _T],
        known: Callable[[], _T | None] = lambda: None,
    ) -> _T:
        """The operation's result, once its transaction is committed; or what is `known` of it
        without the database, in its turn: on the thread, or here while that has nothing to do.

        Raises what the operation raised, StoreUnavailable for a fault, and StoreLocked. A
        cancelled caller's operation is skipped or done, never half done.
        """
        if self._closing:
            raise StoreUnavailable("the store is closed")
        if not self._unanswered and (result := known()) is not None:
            return result
        future: asyncio.Future[_T] = self._loop.create_future()
        self._unanswered += 1
        self._queue.put(_Job(operation, known, future))
        return await future

    async def close(self) -> None:
        """Finish what is queued, disconnect and end the thread. Idempotent."""
        if not self._closing:
            self._closing = True
            self._queue.put(None)
        await self._closed.wait()

    def _main(self) -> None:
        idle_due: float | None = None
        try:
            while not self._last:
                self._take(idle_due)
                if self._jobs:
                    if not self._run_batch():
                        idle_due = None
                    elif idle_due is None:
                        idle_due = time.monotonic() + _REST_SECONDS
                elif not self._last:
                    idle_due = time.monotonic() if self._run_idle() else None
        finally:
            self._disconnect()
            self._at_end()
            self._post(self._finish, self._jobs, not self._last)

    def _take(self, until: float | None) -> None:
        """Have what is queued, or wait for it."""
        self._jobs = []
        seconds = None if until is None else max(0.0, until - time.monotonic())
        try:
            job = self._queue.get(timeout=seconds)
            while job is not None:
                self._jobs.append(job)
                if len(self._jobs) == _BATCH:
                    return
                job = self._queue.get_nowait()
            self._last = True
        except queue.Empty:
            return

    def _run_batch(self) -> bool:
        fault: Exception | None = None
        try:
            db = self._connected()
            try:
                for job in self._jobs:
                    if not job.future.cancelled():
                        self._do(db, job)
            except _REFUSALS:
                db.execute("ROLLBACK")
                self._undone()
                db.execute(self._begin)
                for job in self._jobs:
                    if not job.future.cancelled():
                        _run_apart(db, job)
            if db.in_transaction:
                db.execute("COMMIT")
        except _FAULTS as error:
            fault = self._drop(error)
            for job in self._jobs:
                job.error = type(fault)(str(fault))
                job.error.__cause__ = error
        jobs, self._jobs = self._jobs, []
        self._post(self._answer, jobs, str(fault) if fault else None)
        return fault is None

    def _do(self, db: sqlite3.Connection, job: _Job) -> None:
        job.result = job.known()
        if job.result is None:
            if not db.in_transaction:
                db.execute(self._begin)
            job.run(db)

    def _run_idle(self) -> bool:
        try:
            return self._db is not None and self._idle(self._db)
        except _FAULTS as error:
            self._post(self._answer, [], str(self._drop(error)))
            return False

    def _connected(self) -> sqlite3.Connection:
        # SQLite goes on with a file that was moved away or replaced, and loses what it writes.
        if self._db is not None and self._file.identity() != self._identity:
            self._disconnect()
        if self._db is None:
            self._db = self._connect()
            self._identity = self._file.identity()
        return self._db

    def _drop(self, error: Exception) -> Exception:
        self._disconnect()
        if isinstance(error, (sqlite3.Error, OSError)):
            return StoreUnavailable(self._file.explain(error))
        return error

    def _disconnect(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None
            self._undone()

    def _post(self, callback: Callable[..., None], *args: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback, *args)

    def _answer(self, jobs: list[_Job], fault: str | None) -> None:
        self._unanswered -= len(jobs)
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

    def _finish(self, jobs: list[_Job], failed: bool) -> None:  # noqa: FBT001 - called by the loop
        detail = "the store is closed"
        if failed:
            # Only a bug ends the thread; its traceback is in the log.
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


def _run_apart(db: sqlite3.Connection, job: _Job) -> None:
    db.execute("SAVEPOINT job")
    try:
        job.run(db)
    except _REFUSALS as refusal:
        job.result, job.wrote, job.error = None, False, refusal
        db.execute("ROLLBACK TO job")
    db.execute("RELEASE job")
