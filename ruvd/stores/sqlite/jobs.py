"""The operations that are queued for the store's worker, and the transaction that runs them.

If an operation raises an error of its caller's after a change, the transaction is rolled back and
the others run again, each in a savepoint, so that only what fails is undone. Savepoints cost two
statements each, and each statement releases the interpreter's lock, so they are not used at first.
A refusal before any change undoes nothing, so that a flood of them costs other callers nothing.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ruvd.core.errors import DataCorrupted, RuvdError

# Errors that an operation raises because of its arguments. They say nothing about the database.
_CALLER_ERRORS = (
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


@dataclass(slots=True)
class Job:
    """An operation, and what became of it. One that only `deletes` may run on a full disk."""

    operation: Callable[[sqlite3.Connection], Any]
    cached: Callable[[], Any]
    deletes: bool
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None
    wrote: bool = False

    def run(self, db: sqlite3.Connection) -> None:
        """Runs the operation, and records its result and whether it changed anything."""
        changes = db.total_changes
        self.result = self.operation(db)
        self.wrote = db.total_changes != changes


def run_jobs(
    db: sqlite3.Connection,
    jobs: Sequence[Job],
    begin: str,
    end: str,
    rolled_back: Callable[[], None],
) -> None:
    """Runs jobs in one transaction, from `begin` to `end`; calls `rolled_back` if it was undone.

    An error of a job's caller is set as the job's `error`. Raises the errors of the database.
    """
    jobs = [job for job in jobs if not job.future.cancelled()]
    try:
        for job in jobs:
            _run_job(db, job, begin)
    except _CALLER_ERRORS as error:
        # It does not run again: a transaction in which SQLite found damage cannot commit.
        job.error = error
        db.execute("ROLLBACK")
        rolled_back()
        db.execute(begin)
        for other in jobs:
            if other is not job:
                _run_in_savepoint(db, other)
    if db.in_transaction:
        db.execute(end)


def _run_job(db: sqlite3.Connection, job: Job, begin: str) -> None:
    job.result = job.cached()
    if job.result is None:
        if not db.in_transaction:
            db.execute(begin)
        changes = db.total_changes
        try:
            job.run(db)
        except DataCorrupted:  # a transaction in which SQLite found damage cannot commit
            raise
        except RuvdError as error:
            if db.total_changes != changes:
                raise
            job.error = error


def _run_in_savepoint(db: sqlite3.Connection, job: Job) -> None:
    db.execute("SAVEPOINT job")
    job.error = None
    try:
        job.run(db)
    except _CALLER_ERRORS as error:
        job.result, job.wrote, job.error = None, False, error
        db.execute("ROLLBACK TO job")
    db.execute("RELEASE job")
