"""Only one connection ever writes to a SQLite store or checkpoints it.

SQLite 3.7.0 to 3.51.2 can corrupt a database if two connections write or checkpoint at the same
time (https://sqlite.org/wal.html#walresetbug). With a single such connection it cannot happen.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from conversations import create, talk, texts
from fakes import FrozenClock

from ruvd.core.ports.store import StoreLocked
from ruvd.stores.sqlite import database
from ruvd.stores.sqlite.backup import back_up
from ruvd.stores.sqlite.database import DatabaseFile, connect_read_only
from ruvd.stores.sqlite.store import SqliteStore

_CHECKPOINTS = ("PASSIVE", "FULL", "RESTART", "TRUNCATE")


def writable_and_readable(path: Path) -> tuple[int, int]:
    """Counts this process's descriptors of the file: those that may write, and that only read."""
    modes = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            if descriptor.resolve() != path:
                continue
            lines = Path(f"/proc/self/fdinfo/{descriptor.name}").read_text().splitlines()
        except OSError:  # closed meanwhile
            continue
        flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
        modes.append(flags & os.O_ACCMODE)
    return len([mode for mode in modes if mode != os.O_RDONLY]), modes.count(os.O_RDONLY)


async def test_one_connection_can_write_and_all_others_only_read(tmp_path: Path) -> None:
    path = tmp_path / "ruvd.db"
    store = SqliteStore(path, clock=FrozenClock(), observer=lambda event: None)
    await store.open()
    try:
        made = await create(store, "s", *["m" * 1_000_000] * 5)
        assert len(await texts(store, "s")) == 5
        seen: list[tuple[int, int]] = []

        def progress(done: int, total: int) -> None:
            seen.append(writable_and_readable(path))

        await asyncio.gather(
            asyncio.to_thread(back_up, path, tmp_path / "copy.db", progress=progress),
            talk(store, made, *map(str, range(50))),
        )
        # The writer's connection, and what it overwrites deleted content by under its lock.
        assert {writable for writable, _ in seen} == {2}
        assert all(readable >= 2 for _, readable in seen)
    finally:
        await store.close()


@pytest.mark.parametrize("is_copied", [False, True], ids=["new log", "log copied"])
@pytest.mark.parametrize(
    "connect",
    [lambda path: DatabaseFile(path, "normal").open_reader(), lambda p: connect_read_only(p, 1.0)],
    ids=["reader", "backup"],
)
def test_a_connection_that_reads_can_neither_checkpoint_nor_remove_the_log(
    tmp_path: Path,
    connect: Callable[[Path], sqlite3.Connection],
    is_copied: bool,  # noqa: FBT001
) -> None:
    path, log = tmp_path / "ruvd.db", tmp_path / "ruvd.db-wal"
    file = DatabaseFile(path, "normal")
    writer = file.open_writer()
    writer.execute("UPDATE totals SET sessions = 1")
    if is_copied:
        assert writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 0
    before = path.read_bytes(), log.read_bytes()
    reader = connect(path)
    assert reader.execute("SELECT sessions FROM totals").fetchone() == (1,)
    assert reader.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("UPDATE totals SET sessions = 2")
    # Nothing in ruvd asks a reader for a checkpoint; without anything to copy, RESTART would work.
    for mode in _CHECKPOINTS if not is_copied else ("PASSIVE",):
        try:
            reader.execute(f"PRAGMA wal_checkpoint({mode})").fetchall()
        except sqlite3.OperationalError:
            continue
        assert is_copied, "there was something to copy"
    # The readers of a daemon close first; but where it is killed, a backup may close last.
    writer.close()
    reader.close()
    file.close_writer(writer)
    file.close_descriptors()
    file.release()
    assert (path.read_bytes(), log.read_bytes()) == before
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT sessions FROM totals").fetchone() == (1,)


async def test_an_sqlite_below_the_floor_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "MIN_SQLITE", (99, 1, 2))
    store = SqliteStore(tmp_path / "s.db", clock=FrozenClock(), observer=lambda event: None)
    with pytest.raises(StoreLocked, match=r"needs SQLite 99\.1\.2 or newer"):
        await store.open()
    assert not (tmp_path / "s.db").exists()
