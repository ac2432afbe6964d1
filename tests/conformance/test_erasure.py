"""Content that was deleted from the SQLite store is in no page of its file and not in its log."""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from conversations import finished

from ruvd.core.model import IdempotencyRecord, Message, Role, Session
from ruvd.core.ports.store import DEFAULT_TOMBSTONES, Commit
from ruvd.stores.sqlite import history, reads, removals, writes
from ruvd.stores.sqlite.database import DatabaseFile
from ruvd.stores.sqlite.housekeeping import Housekeeping
from ruvd.stores.sqlite.purge import purge_step
from ruvd.stores.sqlite.reserve import Reserve
from ruvd.stores.sqlite.session_cache import SessionCache
from ruvd.stores.sqlite.tombstones import Tombstones

FOREVER = 1e9
TOMBSTONES = Tombstones(DEFAULT_TOMBSTONES)
MARK = re.compile(rb"<(s\d+)>")


class Writer:
    """A writer of the store without its thread, so that a test decides when it erases."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.file = DatabaseFile(path, "normal")
        self.db = self.file.open_writer()
        self.housekeeping = Housekeeping(self.file, Reserve(path), now=lambda: self.seconds)
        self.seconds = 0.0
        self.cache = SessionCache(1 << 20, 1 << 18)
        self.random = random.Random(seed)
        self.sessions: dict[str, Session] = {}
        self.made = 0

    def close(self) -> None:
        self.file.close_writer(self.db)
        self.file.close_descriptors()
        self.file.release()

    def text(self, session_id: str) -> str:
        """A text of any size that names its session every few bytes."""
        small, large = self.random.randint(20, 300), self.random.randint(3_000, 30_000)
        size = small if self.random.random() < 0.8 else large
        return f"<{session_id}>" * (size // 6)

    def create(self) -> None:
        self.made += 1
        name = f"s{self.made}"
        session = Session(
            name, self.seconds, self.seconds, FOREVER, self.text(name), labels={name: f"<{name}>"}
        )
        self._write(
            lambda: writes.commit(self.db, self.cache, TOMBSTONES, Commit(session, create=True))
        )
        self.sessions[name] = session

    def turn(self, name: str) -> None:
        session = self.sessions[name]
        number = session.exchange_count
        messages = [
            (number, Message(Role.USER, self.text(name))),
            (number, Message(Role.ASSISTANT, self.text(name), reasoning=self.text(name))),
        ]
        session = replace(
            session,
            message_count=session.message_count + 2,
            exchange_count=number + 1,
            size_bytes=session.size_bytes + sum(message.size_bytes for _, message in messages),
            last_used_time=self.seconds,
            context_bytes=session.context_bytes + 999,
        )
        record = IdempotencyRecord(
            str(number), b"", f"{name}-{number}", 3, finished(messages[-1][1])
        )
        self._write(
            lambda: writes.commit(
                self.db, self.cache, TOMBSTONES, Commit(session, messages, record)
            )
        )
        self.sessions[name] = session

    def end(self, name: str) -> None:
        self._write(lambda: removals.end(self.db, self.cache, TOMBSTONES, name, None, 0.0))
        del self.sessions[name]

    def some_turns(self) -> None:
        for _ in range(40):
            if len(self.sessions) < 25:
                self.create()
            self.turn(self.random.choice(list(self.sessions)))

    def end_some(self) -> None:
        for name in self.random.sample(list(self.sessions), self.random.randint(1, 15)):
            self.end(name)

    def erase(self) -> None:
        """Lets the housekeeping do all that it has to do now or later."""
        while (seconds := self.housekeeping.step(self.db)) is not None:
            self.seconds += seconds

    def ended_in_files(self) -> set[str]:
        """The ended sessions of which there are bytes in the files."""
        data = self.path.read_bytes() + self.file.log.read_bytes()
        return {mark.decode() for mark in set(MARK.findall(data))} - self.sessions.keys()

    def _write(self, operation: object) -> None:
        assert callable(operation)
        self.db.execute("BEGIN IMMEDIATE")
        operation()
        self.db.execute("COMMIT")


@pytest.fixture
def writer(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Writer]:
    with closing(Writer(tmp_path / "s.db", getattr(request, "param", 0))) as writer:
        yield writer


@pytest.mark.parametrize("writer", range(3), indirect=True)
def test_nothing_of_an_ended_session_is_in_any_page_after_any_number_of_others(
    writer: Writer,
) -> None:
    """SQLite moves rows between pages as sessions come and go, and leaves copies of them."""
    for _ in range(30):
        writer.some_turns()
        # Nor has a page come back that was in SQLite's cache while its file was cleaned.
        assert writer.ended_in_files() == set()
        writer.end_some()
        writer.erase()
        assert writer.ended_in_files() == set()
    assert writer.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    for name, session in writer.sessions.items():
        assert reads.get(writer.db, name) == session
        texts = [m.content for exchange in history.exchanges(writer.db, name, 0) for m in exchange]
        assert len(texts) == session.message_count
        assert not "".join(texts).replace(f"<{name}>", "")


def test_what_an_earlier_daemon_left_is_erased_after_a_start(writer: Writer) -> None:
    while not writer.ended_in_files():  # which takes a dozen rounds
        writer.some_turns()
        writer.end_some()
        while purge_step(writer.db):
            pass
        writer.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    writer.housekeeping.opened(writer.db)
    writer.erase()
    assert writer.ended_in_files() == set()


def test_a_reader_delays_the_erasure_and_not_the_writes(writer: Writer, tmp_path: Path) -> None:
    writer.create()
    writer.create()
    with closing(sqlite3.connect(tmp_path / "s.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM sessions").fetchone()
        writer.end("s1")
        for _ in range(20):
            writer.seconds += writer.housekeeping.step(writer.db) or 0.0
            writer.turn("s2")
        assert writer.ended_in_files() == {"s1"}
        assert reader.execute("SELECT COUNT(*) FROM sessions").fetchone() == (2,)
        reader.execute("COMMIT")
        writer.erase()
    assert writer.ended_in_files() == set()
