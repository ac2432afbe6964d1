"""The reading of the clock in the database, from which the clock goes on when it is opened."""

import sqlite3

from ruvd.core.ports.clock import ClockReading, StoredClock


def resume_clock(db: sqlite3.Connection, clock: StoredClock) -> None:
    """Makes the clock go on from the stored reading, and stores its new one.

    Later times, which a daemon without stored readings may have left, become the clock's time, so
    that no session has a negative idle time.
    """
    db.execute("BEGIN IMMEDIATE")
    read_clock(db, clock)
    reading = clock.reading()
    db.execute(
        "UPDATE sessions SET last_used_time = ?1, expire_time = ?1 + idle_timeout_seconds"
        " WHERE last_used_time > ?1",
        (reading.now,),
    )
    store_reading(db, reading)
    db.execute("COMMIT")


def read_clock(db: sqlite3.Connection, clock: StoredClock) -> None:
    """Makes the clock go on from the stored reading, and stores nothing."""
    row = db.execute("SELECT boot_id, offset_seconds, now, wall_shift FROM clock").fetchone()
    (newest_time,) = db.execute("SELECT MAX(last_used_time) FROM sessions").fetchone()
    clock.resume(ClockReading(*row) if row else None, newest_time or 0.0)


def store_reading(db: sqlite3.Connection, reading: ClockReading) -> None:
    """Stores the reading in place of the one before."""
    db.execute(
        "REPLACE INTO clock VALUES (1, ?, ?, ?, ?)",
        (reading.boot_id, reading.offset_seconds, reading.now, reading.wall_shift),
    )


def store_step(db: sqlite3.Connection, reading: ClockReading) -> None:
    """Stores the reading if the wall clock was set since the stored one. Writes nothing if not."""
    db.execute(
        "UPDATE clock SET now = ?1, wall_shift = ?2 WHERE wall_shift <> ?2",
        (reading.now, reading.wall_shift),
    )
