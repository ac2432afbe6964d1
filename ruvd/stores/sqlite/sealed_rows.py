"""The encryption of rows: a `RowSealing` with the data keys of branches.

The context of a sealed value says where its row is, so that a value opens only there: a message at
its branch, exchange, position and role; the system prompt with all other columns of its session
that a checksum covers; a receipt with its columns. The checksums of rows cover what is stored.
"""

import hashlib
import hmac
import logging
import secrets
import sqlite3
from collections.abc import Iterable
from typing import Any

from ruvd.core.ports.store import StoreSealed
from ruvd.sealing.aead import KEY_BYTES, AeadKey, SealBroken
from ruvd.sealing.keys import OperatorKeys
from ruvd.stores.sqlite.data_keys import OPENING, SEALED, SEALING, DataKeys
from ruvd.stores.sqlite.sealing import Place, Row
from ruvd.stores.sqlite.sealing_work import SealingWork

_log = logging.getLogger("ruvd.store")

_LENGTH_BYTES = 4
# Two labels of a store have the same hash with a probability of 2^-64 for 2^32 labels.
_HASH_BYTES = 16


class SealedRows:
    """The `RowSealing` of one store, used by both of its threads."""

    def __init__(self, keys: OperatorKeys) -> None:
        self.keys = DataKeys(keys)
        self._label_key = b""
        self._work: SealingWork | None = None
        self.state = ""
        # Reads that began before the last row was sealed still find plain labels.
        self._had_plain = False

    @property
    def accepts_plain(self) -> bool:
        """Whether rows may be plain: the store is not sealed completely yet."""
        return self.state != SEALED

    def check(self, db: sqlite3.Connection, *, may_write: bool) -> None:
        """See `RowSealing.check`."""
        if self._work is not None and not may_write:
            return  # the writer knows better
        found = self.keys.store_key(db)
        if found is None and not may_write:
            return
        db.execute("BEGIN IMMEDIATE" if may_write else "BEGIN")
        try:
            if found is None:
                self.keys.create_store_key(db)
                found = self.keys.store_key(db)
                assert found is not None  # noqa: S101 - it was just made
            self.state, self._label_key = found
            self._had_plain |= self.accepts_plain
            if may_write and self.state == OPENING:
                self.store_state(db, SEALING)
                self.state = SEALING
        finally:
            db.execute("COMMIT")
        if may_write:
            self._work = SealingWork(self)

    def store_state(self, db: sqlite3.Connection, state: str) -> None:
        """Stores another state. The caller commits, and sets `state` then."""
        self.keys.store_state(db, self._label_key, state)

    def sealer(self, db: sqlite3.Connection, branch: int | None) -> "BranchSealer":
        """See `RowSealing.sealer`."""
        if branch is None:
            secret = secrets.token_bytes(KEY_BYTES)
            return BranchSealer(self.keys, db, AeadKey(secret), secret)
        key = self.keys.of_branch(db, branch)
        return BranchSealer(self.keys, db, key or self.keys.create(db, branch))

    def opener(self, db: sqlite3.Connection) -> "RowOpener":
        """See `RowSealing.opener`."""
        return RowOpener(self.keys, db, accepts_plain=self.accepts_plain)

    def label_rows(self, key: str, value: str) -> Iterable[tuple[Any, Any]]:
        """See `RowSealing.label_rows`."""
        yield self._hash(key.encode()), self._hash(key.encode() + b"\0" + value.encode())
        if self._had_plain:
            yield key, value

    def forget(self, db: sqlite3.Connection, branch: int) -> None:
        """See `RowSealing.forget`."""
        self.keys.forget(db, branch)

    def work(self, db: sqlite3.Connection) -> bool:
        """See `RowSealing.work`."""
        return self._work is not None and self._work.step(db)

    def open_step(self, db: sqlite3.Connection) -> bool:
        """Does a step of opening all rows; returns False once the store is plain."""
        return self._work is not None and self._work.open_step(db)

    def _hash(self, text: bytes) -> bytes:
        return hmac.digest(self._label_key, text, hashlib.sha256)[:_HASH_BYTES]


class BranchSealer:
    """The `Sealer` of one branch."""

    def __init__(
        self, keys: DataKeys, db: sqlite3.Connection, key: AeadKey, secret: bytes = b""
    ) -> None:
        self._keys = keys
        self._db = db
        self._key = key
        self._secret = secret

    def message(self, place: Place, role: str, content: str, extra: str | None) -> bytes:
        """See `Sealer.message`."""
        return self._key.seal(_joined(content.encode(), extra), _of_message(place, role))

    def labels(self, session_id: str, labels: str) -> bytes:
        """See `Sealer.labels`."""
        return self._key.seal(labels.encode(), _of_labels(session_id))

    def compaction(self, session_id: str, compaction: str) -> bytes:
        """See `Sealer.compaction`."""
        return self._key.seal(compaction.encode(), _of_compaction(session_id))

    def system_prompt(self, head: bytes, system_prompt: str) -> bytes:
        """See `Sealer.system_prompt`."""
        return self._key.seal(system_prompt.encode(), _of_session(head))

    def record(self, columns: Row, digest: bytes, figures: str | None) -> bytes:
        """See `Sealer.record`."""
        return self._key.seal(_joined(digest, figures), _of_record(columns))

    def store(self, branch: int) -> None:
        """See `Sealer.store`."""
        self._keys.add(self._db, branch, self._secret)


class RowOpener:
    """The `Opener` of one read, which knows the key of the branch that it read last."""

    def __init__(self, keys: DataKeys, db: sqlite3.Connection, *, accepts_plain: bool) -> None:
        self._keys = keys
        self._db = db
        self._accepts_plain = accepts_plain
        self._branch: int | None = None
        self._key: AeadKey | None = None

    def message(self, place: Place, role: str, content: Any, extra: Any) -> tuple[Any, Any]:
        """See `Opener.message`."""
        if not isinstance(content, bytes):
            self._check_plain()
            return content, extra
        opened = self._of_branch(place[0]).open(content, _of_message(place, role))
        text, extra_text = _split(opened)
        return text.decode(), extra_text

    def labels(self, branch: int, session_id: str, labels: Any) -> Any:
        """See `Opener.labels`."""
        if not isinstance(labels, bytes):
            # A session without labels has nothing to seal.
            if labels != "{}":
                self._check_plain()
            return labels
        return self._of_branch(branch).open(labels, _of_labels(session_id)).decode()

    def compaction(self, branch: int, session_id: str, compaction: Any) -> Any:
        """See `Opener.compaction`."""
        if not isinstance(compaction, bytes):
            self._check_plain()
            return compaction
        return self._of_branch(branch).open(compaction, _of_compaction(session_id)).decode()

    def system_prompt(self, branch: int, head: bytes, system_prompt: Any) -> Any:
        """See `Opener.system_prompt`."""
        if not isinstance(system_prompt, bytes):
            self._check_plain()
            return system_prompt
        return self._of_branch(branch).open(system_prompt, _of_session(head)).decode()

    def record(self, columns: Row) -> tuple[Any, Any]:
        """See `Opener.record`."""
        figures = columns[7]
        if not isinstance(figures, bytes):
            self._check_plain()
            return columns[3], figures
        return _split(self._of_branch(columns[0]).open(figures, _of_record(columns)))

    def _check_plain(self) -> None:
        """Raises SealBroken unless the store had plain rows when the read began.

        That may have been before the last row was sealed.
        """
        if not self._accepts_plain:
            try:
                found = self._keys.store_key(self._db)
            except StoreSealed:  # the state was changed by somebody else
                found = None
            if found is None or found[0] == SEALED:
                raise SealBroken("plain content in a sealed store")
            self._accepts_plain = True

    def _of_branch(self, branch: int) -> AeadKey:
        if branch != self._branch or self._key is None:
            key = self._keys.of_branch(self._db, branch)
            if key is None:
                raise SealBroken("the data key is missing")
            self._branch, self._key = branch, key
        return self._key


def _joined(first: bytes, second: str | None) -> bytes:
    return len(first).to_bytes(_LENGTH_BYTES) + first + (second.encode() if second else b"")


def _split(joined: bytes) -> tuple[bytes, str | None]:
    end = _LENGTH_BYTES + int.from_bytes(joined[:_LENGTH_BYTES])
    return joined[_LENGTH_BYTES:end], joined[end:].decode() or None


def _of_message(place: Place, role: str) -> bytes:
    return f"message {place} {role}".encode()


def _of_labels(session_id: str) -> bytes:
    return f"labels {session_id}".encode()


def _of_compaction(session_id: str) -> bytes:
    return f"compaction {session_id}".encode()


def _of_session(head: bytes) -> bytes:
    return b"session " + head


def _of_record(columns: Row) -> bytes:
    """The place of a receipt are its columns, without those with content."""
    return f"record {columns[:3]} {columns[4:7]}".encode()
