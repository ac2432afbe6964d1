"""Sealed rows: the content of rows is encrypted if the operator has given keys.

SQLite sees only sealed content then, so neither the database nor its log, its index, its temporary
files or a copy has anything else. A connection carries what seals and opens its rows (see
`sealed_rows`), or None for plain rows. This module knows nothing of cryptography, so that a store
without keys does not load it.

The columns with content become BLOBs: of a message `content`, which includes `extra`; of a session
`labels`, `compaction` and `system_prompt`; of a receipt `figures`, which includes `digest`. A row
of `labels` has keyed hashes. Everything else stays as it is: ids, times, counts, sizes, roles and
names of models.
"""

import sqlite3
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeAlias

from ruvd.core.ports.store import StoreSealed

Row: TypeAlias = tuple[Any, ...]
Place: TypeAlias = tuple[int, int, int]


class Sealer(Protocol):
    """Seals the rows of one branch."""

    def message(self, place: Place, role: str, content: str, extra: str | None) -> bytes:
        """Returns the column `content` of a row of `messages`; its `extra` is NULL then."""

    def labels(self, session_id: str, labels: str) -> bytes:
        """Returns the column `labels` of a row of `sessions`."""

    def compaction(self, session_id: str, compaction: str) -> bytes:
        """Returns the column `compaction` of a row of `sessions`."""

    def system_prompt(self, head: bytes, system_prompt: str) -> bytes:
        """Returns the column `system_prompt` of a row of `sessions` with other columns `head`."""

    def record(self, columns: Row, digest: bytes, figures: str | None) -> bytes:
        """Returns the column `figures` of a row of `receipts`; its `digest` is empty then."""

    def store(self, branch: int) -> None:
        """Stores the data key of a new branch."""


class Opener(Protocol):
    """Opens the rows that one read finds. What cannot be opened is a ValueError or LookupError.

    Plain content is returned as it is while the store is being sealed, and refused afterwards.
    """

    def message(self, place: Place, role: str, content: Any, extra: Any) -> tuple[Any, Any]:
        """Returns the plain columns `content` and `extra` of a row of `messages`."""

    def labels(self, branch: int, session_id: str, labels: Any) -> Any:
        """Returns the plain column `labels` of a row of `sessions`."""

    def compaction(self, branch: int, session_id: str, compaction: Any) -> Any:
        """Returns the plain column `compaction` of a row of `sessions`."""

    def system_prompt(self, branch: int, head: bytes, system_prompt: Any) -> Any:
        """Returns the plain column `system_prompt` of a row of `sessions`."""

    def record(self, columns: Row) -> tuple[Any, Any]:
        """Returns the plain columns `digest` and `figures` of a row of `receipts` after `pk`."""


class RowSealing(Protocol):
    """Seals and opens the rows of a store. Its methods are called on the store's threads."""

    def check(self, db: sqlite3.Connection, *, may_write: bool) -> None:
        """Checks that all data of an opened store can be read, and begins to seal a plain one.

        Raises StoreSealed if a key is missing or wrong.
        """

    def sealer(self, db: sqlite3.Connection, branch: int | None) -> Sealer:
        """Returns what seals rows of a branch, None for a new one that has no number yet."""

    def opener(self, db: sqlite3.Connection) -> Opener:
        """Returns what opens the rows of one read."""

    def label_rows(self, key: str, value: str) -> Iterable[tuple[Any, Any]]:
        """Returns the key and value that a row of `labels` may have, the right one first."""

    def forget(self, db: sqlite3.Connection, branch: int) -> None:
        """Destroys the data key of a branch unless a fork needs it."""

    def work(self, db: sqlite3.Connection) -> bool:
        """Does a step of milliseconds in the background; returns False if there is none left."""


class SealableConnection(sqlite3.Connection):
    """A connection that carries what seals and opens the rows, None for plain ones."""

    sealing: RowSealing | None = None


def attach(db: sqlite3.Connection, sealing: RowSealing | None, *, may_write: bool) -> None:
    """Gives an opened connection what seals and opens its rows. Raises StoreSealed."""
    if sealing is None:
        if needed := ", ".join(key_ids(db)):
            raise StoreSealed(
                f"the store is encrypted with the keys {needed}: set encryption_key_file"
            )
        return
    assert isinstance(db, SealableConnection)  # noqa: S101 - `database` makes no others
    sealing.check(db, may_write=may_write)
    db.sealing = sealing


def key_ids(db: sqlite3.Connection) -> list[str]:
    """Returns the ids of the operator's keys that a store is encrypted with."""
    rows = db.execute("SELECT key_id FROM sealing UNION SELECT key_id FROM data_keys ORDER BY 1")
    return [key_id for (key_id,) in rows]


def sealing_of(db: sqlite3.Connection) -> RowSealing | None:
    """Returns what seals and opens the rows of a connection, or None if they are plain."""
    return db.sealing if isinstance(db, SealableConnection) else None


def opener_of(db: sqlite3.Connection) -> Opener | None:
    """Returns what opens the rows of one read, or None if they are plain."""
    sealing = sealing_of(db)
    return sealing.opener(db) if sealing else None


def sealer_of(db: sqlite3.Connection, branch: int | None) -> Sealer | None:
    """Returns what seals rows of a branch (None: of a new one), or None if they are plain."""
    sealing = sealing_of(db)
    return sealing.sealer(db, branch) if sealing else None


def forget_key(db: sqlite3.Connection, branch: int) -> None:
    """Destroys the data key of a branch, if it has one, unless a fork needs it."""
    if sealing := sealing_of(db):
        sealing.forget(db, branch)


def label_rows(db: sqlite3.Connection, labels: Mapping[str, str]) -> list[tuple[Any, Any]]:
    """Returns the key and value of the rows of `labels` for a session's labels."""
    sealing = sealing_of(db)
    if sealing is None:
        return list(labels.items())
    return [next(iter(sealing.label_rows(*label))) for label in labels.items()]


def possible_label_rows(db: sqlite3.Connection, key: str, value: str) -> list[tuple[Any, Any]]:
    """Returns the key and value that a label's rows may have while a store is being sealed."""
    sealing = sealing_of(db)
    return [(key, value)] if sealing is None else list(sealing.label_rows(key, value))
