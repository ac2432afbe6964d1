"""The migration of sessions from a snapshot of a SQLite store to a PostgreSQL store.

Sessions that the target has already are compared before anything is written, and skipped if they
are equal. So a migration that was interrupted goes on. In the end all sessions are compared.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from ruvd.core.errors import DataCorrupted
from ruvd.core.ports.migration import SharedPart, StoredSession
from ruvd.core.tenants import own, tenant_of
from ruvd.stores.sqlite.snapshot import Snapshot

if TYPE_CHECKING:  # psycopg is optional
    from ruvd.stores.postgres.imports import ImportTarget

# A transaction adds this many sessions, or fewer whose histories reach this many bytes.
_BATCH_SESSIONS = 50
_BATCH_BYTES = 4 << 20
_PAGE_IDS = 500
_MAX_NAMED = 10


class MigrationRefused(Exception):
    """The target has sessions that are not as in the source, or not all that were copied."""


@dataclass(slots=True)
class Outcome:
    """The result of a migration, or of a dry run."""

    copied: int = 0
    messages: int = 0
    skipped: int = 0
    tombstones: int = 0
    others: int = 0
    damaged: list[str] = field(default_factory=list)


class Migration:
    """One run, which blocks. The target has been opened with the `runner`.

    `progress` is called with the name of a step and its sessions: done, and all.
    """

    def __init__(
        self,
        source: Snapshot,
        target: "ImportTarget",
        runner: asyncio.Runner,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self._source = source
        self._target = target
        self._wait = runner.run
        self._progress = progress
        self._ids = list(source.ids())
        self._damaged: dict[str, str] = {}
        self._present: set[str] = set()

    def run(self, *, dry_run: bool) -> Outcome:
        """Copies what the target lacks, and compares everything.

        With `dry_run` it reads the source, compares what the target has already, and writes
        nothing. Raises MigrationRefused or StoreUnavailable.
        """
        self._check(read_all=dry_run)
        if not dry_run:
            self._copy()
            self._wait(self._target.add_tombstones(self._source.tombstones()))
            self._compare()
        copied = len(self._ids) - len(self._present) - len(self._damaged)
        outcome = Outcome(copied, skipped=len(self._present), damaged=[*self._damaged.values()])
        outcome.tombstones = len(self._source.tombstones())
        outcome.messages = self._source.counts().messages
        if not dry_run:
            moved = copied + len(self._present)
            outcome.others = (self._wait(self._target.counts())).sessions - moved
        return outcome

    def _check(self, *, read_all: bool) -> None:
        """Compares the sessions that the target has already."""
        differing: list[str] = []
        for done, page in self._pages():
            present = self._wait(self._target.present(page))
            for session_id in page:
                if not read_all and session_id not in present:
                    continue
                stored = self._read(session_id)
                if session_id not in present or stored is None:
                    continue
                self._present.add(session_id)
                if not self._is_equal(stored):
                    differing.append(session_id)
            self._progress("checking", done, len(self._ids))
        if differing:
            raise MigrationRefused(
                f"the target has {_named(differing)} with another content, so nothing was written:"
                " use an empty schema, or end them in the target"
            )

    def _copy(self) -> None:
        batch: list[tuple[StoredSession, SharedPart | None]] = []
        size = 0
        for done, session_id in enumerate(self._ids, start=1):
            if session_id in self._present:
                continue
            stored = self._read(session_id)
            if stored is not None:
                batch.append((stored, self._source.shared_part(session_id)))
                size += stored.session.size_bytes
            if len(batch) == _BATCH_SESSIONS or size >= _BATCH_BYTES:
                self._wait(self._target.add(batch))
                batch, size = [], 0
                self._progress("copying", done, len(self._ids))
        if batch:
            self._wait(self._target.add(batch))
        self._progress("copying", len(self._ids), len(self._ids))

    def _compare(self) -> None:
        differing: list[str] = []
        for done, page in self._pages():
            for session_id in page:
                stored = self._read(session_id)
                if stored is not None and not self._is_equal(stored):
                    differing.append(session_id)
            self._progress("comparing", done, len(self._ids))
        if differing:
            raise MigrationRefused(
                f"after the copy the target has not, or not equally, {_named(differing)}: was"
                " something else writing to it? Empty the schema and migrate again"
            )

    def _read(self, session_id: str) -> StoredSession | None:
        """Returns the source's session, or None if it is damaged."""
        if session_id in self._damaged:
            return None
        try:
            return self._source.session(session_id)
        except DataCorrupted as error:
            self._damaged[session_id] = str(error)
            return None

    def _is_equal(self, stored: StoredSession) -> bool:
        try:
            return self._wait(self._target.session(stored.session.id)) == stored
        except DataCorrupted:
            return False

    def _pages(self) -> Iterator[tuple[int, Sequence[str]]]:
        """Yields the ids in pages, each with the number of ids up to its end."""
        ids = iter(self._ids)
        done = 0
        while page := list(islice(ids, _PAGE_IDS)):
            done += len(page)
            yield done, page


def _named(session_ids: Sequence[str]) -> str:
    names = [
        f"{own(each)!r} of the tenant {tenant_of(each)!r}" for each in session_ids[:_MAX_NAMED]
    ]
    more = len(session_ids) - len(names)
    text = ", ".join(names) + (f" and {more} more" if more else "")
    return f"the session{'s' if len(session_ids) > 1 else ''} {text}"
