"""The data keys of branches in the database, each sealed with a key of the operator's.

A branch (a session's own rows) has its own data key, as forks share their parent's rows. The key is
deleted when neither its session nor a fork needs the rows. They cannot be read from then on, also
where a copy of them is left behind. The row of `sealing` says how far the sealing of the store has
come, and holds the key of label hashes.
"""

import secrets
import sqlite3
from functools import lru_cache

from ruvd.core.ports.store import StoreSealed
from ruvd.sealing.aead import KEY_BYTES, AeadKey, SealBroken
from ruvd.sealing.keys import OperatorKeys, WrappedKey
from ruvd.stores.sqlite.sealing import key_ids

# Opened data keys that stay in memory, of some hundred bytes each.
_MAX_OPENED = 4096

# The states of a store's sealing: plain rows are left, there are none, or sealed rows are opened.
SEALING, SEALED, OPENING = "sealing", "sealed", "opening"


class DataKeys:
    """The data keys of a store. Its methods are called on the store's threads."""

    def __init__(self, keys: OperatorKeys) -> None:
        self.operator = keys
        # A key is found by its sealed form, which is never another key's. A number of a branch may
        # be, after the transaction that made the branch was rolled back.
        self._opened = lru_cache(_MAX_OPENED)(self._open)

    def of_branch(self, db: sqlite3.Connection, branch: int) -> AeadKey | None:
        """Returns the data key of a branch, or None if it has none. Raises KeyMissing or
        SealBroken."""
        row = db.execute(
            "SELECT key_id, sealed FROM data_keys WHERE branch = ?", (branch,)
        ).fetchone()
        return self._opened(row[0], row[1], branch) if row else None

    def add(self, db: sqlite3.Connection, branch: int, secret: bytes) -> None:
        """Stores the data key of a branch."""
        wrapped = self.operator.ring.wrap(secret, _context(branch))
        db.execute(
            "INSERT INTO data_keys VALUES (?, ?, ?)", (branch, wrapped.key_id, wrapped.sealed)
        )

    def create(self, db: sqlite3.Connection, branch: int) -> AeadKey:
        """Makes and stores the data key of a branch that has none."""
        secret = secrets.token_bytes(KEY_BYTES)
        self.add(db, branch, secret)
        return AeadKey(secret)

    def forget(self, db: sqlite3.Connection, branch: int) -> None:
        """Deletes the data key of a branch unless a fork needs it."""
        db.execute(
            "DELETE FROM data_keys WHERE branch = ?1"
            " AND NOT EXISTS (SELECT 1 FROM forks WHERE parent = ?1)",
            (branch,),
        )

    def create_store_key(self, db: sqlite3.Connection) -> None:
        """Makes the key of label hashes of a store that was plain, and begins to seal it."""
        has_rows = any(
            db.execute(f"SELECT 1 FROM {part} LIMIT 1").fetchone()  # noqa: S608
            for part in ("sessions", "receipts", "messages")
        )
        state = SEALING if has_rows else SEALED
        wrapped = self._wrap_store_key(secrets.token_bytes(KEY_BYTES), state)
        db.execute(
            "INSERT INTO sealing VALUES (1, ?, ?, ?, 'sessions', 0)",
            (state, wrapped.key_id, wrapped.sealed),
        )

    def store_key(self, db: sqlite3.Connection) -> tuple[str, bytes] | None:
        """Returns the state of a store and the key of label hashes, or None for a plain store.

        Raises StoreSealed if a key is missing or wrong.
        """
        row = db.execute("SELECT state, key_id, sealed FROM sealing").fetchone()
        if row is None:
            return None
        self._check_keys(db)
        try:
            wrapped = WrappedKey(row[1], row[2])
            return row[0], self.operator.ring.unwrap(wrapped, _store_context(row[0]))
        except SealBroken:
            raise wrong_key([row[1]]) from None

    def store_state(self, db: sqlite3.Connection, secret: bytes, state: str) -> None:
        """Stores another state, from the first row of the store on."""
        wrapped = self._wrap_store_key(secret, state)
        db.execute(
            "UPDATE sealing SET state = ?, key_id = ?, sealed = ?, part = 'sessions', position = 0",
            (state, wrapped.key_id, wrapped.sealed),
        )

    def delete_all(self, db: sqlite3.Connection) -> None:
        """Deletes all keys of a store that is plain by now."""
        db.execute("DELETE FROM data_keys")
        db.execute("DELETE FROM sealing")

    def rewrap(self, db: sqlite3.Connection, limit: int) -> int:
        """Seals up to `limit` data keys with the current key; returns how many."""
        ring = self.operator.ring
        rows = db.execute(
            "SELECT branch, key_id, sealed FROM data_keys"
            " WHERE key_id < ?1 OR key_id > ?1 LIMIT ?2",
            (ring.current_id, limit),
        ).fetchall()
        for branch, key_id, sealed in rows:
            secret = ring.unwrap(WrappedKey(key_id, sealed), _context(branch))
            wrapped = ring.wrap(secret, _context(branch))
            db.execute(
                "UPDATE data_keys SET key_id = ?, sealed = ? WHERE branch = ?",
                (wrapped.key_id, wrapped.sealed, branch),
            )
        state, key_id, sealed = db.execute("SELECT state, key_id, sealed FROM sealing").fetchone()
        if key_id == ring.current_id:
            return len(rows)
        secret = ring.unwrap(WrappedKey(key_id, sealed), _store_context(state))
        wrapped = ring.wrap(secret, _store_context(state))
        db.execute("UPDATE sealing SET key_id = ?, sealed = ?", (wrapped.key_id, wrapped.sealed))
        return len(rows) + 1

    def _check_keys(self, db: sqlite3.Connection) -> None:
        """Raises StoreSealed unless one data key of each operator's key can be opened."""
        needed = set(key_ids(db))
        missing = needed.difference(self.operator.ring.ids)
        if missing:
            raise missing_keys(sorted(missing))
        for each in sorted(needed):
            row = db.execute(
                "SELECT branch, sealed FROM data_keys WHERE key_id = ? LIMIT 1", (each,)
            ).fetchone()
            try:
                if row:
                    self._opened(each, row[1], row[0])
            except SealBroken:
                raise wrong_key([each]) from None

    def _wrap_store_key(self, secret: bytes, state: str) -> WrappedKey:
        return self.operator.ring.wrap(secret, _store_context(state))

    def _open(self, key_id: str, sealed: bytes, branch: int) -> AeadKey:
        secret = self.operator.ring.unwrap(WrappedKey(key_id, sealed), _context(branch))
        return AeadKey(secret)


def _context(branch: int) -> bytes:
    return f"branch {branch}".encode()


def _store_context(state: str) -> bytes:
    """The state is part of it, so that a sealed store cannot be made to accept plain rows."""
    return f"store {state}".encode()


def missing_keys(ids: list[str]) -> StoreSealed:
    """Returns the error for keys that are not in the key file."""
    return StoreSealed(
        f"the store is encrypted, and encryption_key_file lacks the keys {', '.join(ids)}"
    )


def wrong_key(ids: list[str]) -> StoreSealed:
    """Returns the error for keys that are others than those that sealed the store."""
    return StoreSealed(
        f"the store is encrypted, and the keys {', '.join(ids)} in encryption_key_file are not"
        " those that it was encrypted with, or the store was changed: correct the file"
    )
