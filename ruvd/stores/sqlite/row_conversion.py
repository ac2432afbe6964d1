"""The conversion of stored rows between plain and sealed, in the order of their numbers.

A damaged plain row gets a wrong checksum again, so that the damage is still found.
"""

import json
import sqlite3
from typing import TYPE_CHECKING, Any

from ruvd.stores.sqlite import checksums
from ruvd.stores.sqlite.checksums import Row
from ruvd.stores.sqlite.removals import remove_labels
from ruvd.stores.sqlite.sealing import label_rows

if TYPE_CHECKING:
    from ruvd.stores.sqlite.sealed_rows import SealedRows

# The tables with content, in the order in which they are converted.
PARTS = ("sessions", "receipts", "messages")

_STEP_ROWS = 100
_STEP_BYTES = 1 << 20
_LABELS, _SYSTEM_PROMPT = 21, 22
_DIGEST, _FIGURES = 3, 7
_DAMAGE = (ValueError, TypeError, LookupError, AttributeError)


def convert_rows(
    db: sqlite3.Connection, rows: "SealedRows", part: str, after: int, *, seal: bool
) -> int | None:
    """Seals or opens some rows of a table, from the number `after` on, in the open transaction.

    Returns the number of the last one, or None if there are no more.
    """
    found: list[Row] = []
    size = 0
    cursor = db.execute(
        f"SELECT * FROM {part} WHERE pk > ? ORDER BY pk LIMIT {_STEP_ROWS}",  # noqa: S608
        (after,),
    )
    for row in cursor:
        found.append(row)
        size += sum(len(each) for each in row if isinstance(each, (str, bytes)))
        if size >= _STEP_BYTES:
            break
    cursor.close()
    convert = {"sessions": _session, "receipts": _receipt, "messages": _message}[part]
    for row in found:
        convert(db, rows, row, seal)
    if not found and part == "sessions" and seal:
        # What damaged sessions have left.
        db.execute("DELETE FROM labels WHERE typeof(key) = 'text'")
    return found[-1][0] if found else None


def _message(db: sqlite3.Connection, rows: "SealedRows", row: Row, seal: bool) -> None:  # noqa: FBT001
    pk, branch, exchange, position, _, role, content, extra, checksum = row
    if isinstance(content, bytes) is seal:
        return
    place = branch, exchange, position

    def of(content: Any, extra: Any) -> int:
        return checksums.of_message(place, role, content, extra)

    is_right = _is_right(checksum, lambda: of(content, extra))
    if seal:
        content, extra = (
            rows.sealer(db, branch).message(place, role, _text(content), extra and _text(extra)),
            None,
        )
    else:
        try:
            content, extra = rows.opener(db).message(place, role, content, extra)
        except _DAMAGE:
            return
    db.execute(
        "UPDATE messages SET content = ?, extra = ?, checksum = ? WHERE pk = ?",
        (content, extra, _checksum(checksum, of(content, extra), is_right=is_right), pk),
    )


def _receipt(db: sqlite3.Connection, rows: "SealedRows", row: Row, seal: bool) -> None:  # noqa: FBT001
    pk, *columns, checksum = row
    if isinstance(columns[_FIGURES], bytes) is seal:
        return
    is_right = _is_right(checksum, lambda: checksums.of_record(tuple(columns)))
    if seal:
        sealer = rows.sealer(db, columns[0])
        digest, figures = columns[_DIGEST], columns[_FIGURES]
        figures = figures and _text(figures)
        columns[_FIGURES] = sealer.record(tuple(columns), bytes(digest), figures)
        columns[_DIGEST] = b""
    else:
        try:
            columns[_DIGEST], columns[_FIGURES] = rows.opener(db).record(tuple(columns))
        except _DAMAGE:
            return
    made = checksums.of_record(tuple(columns))
    db.execute(
        "UPDATE receipts SET digest = ?, figures = ?, checksum = ? WHERE pk = ?",
        (
            columns[_DIGEST],
            columns[_FIGURES],
            _checksum(checksum, made, is_right=is_right),
            pk,
        ),
    )


def _session(db: sqlite3.Connection, rows: "SealedRows", row: Row, seal: bool) -> None:  # noqa: FBT001
    pk, *columns, checksum, _tenant, _stored_bytes, compaction = row
    if isinstance(columns[_SYSTEM_PROMPT], bytes) is seal:
        return
    session_id, labels, was_compaction = columns[0], columns[_LABELS], compaction
    is_right = _is_right(checksum, lambda: checksums.of_session(tuple(columns), was_compaction))
    if seal:
        sealer = rows.sealer(db, pk)
        plain_labels = labels
        if compaction is not None:
            compaction = sealer.compaction(session_id, _text(compaction))
        if labels != "{}":
            columns[_LABELS] = sealer.labels(session_id, _text(labels))
        head = _head(columns, compaction)
        columns[_SYSTEM_PROMPT] = sealer.system_prompt(head, _text(columns[_SYSTEM_PROMPT]))
    else:
        try:
            opener = rows.opener(db)
            plain_labels = opener.labels(pk, session_id, labels)
            if compaction is not None:
                compaction = opener.compaction(pk, session_id, compaction)
            head = _head(columns, was_compaction)
            columns[_SYSTEM_PROMPT] = opener.system_prompt(pk, head, columns[_SYSTEM_PROMPT])
        except _DAMAGE:
            return
        columns[_LABELS] = plain_labels
    _convert_labels(db, pk, plain_labels, seal=seal)
    made = 0
    if is_right:
        made = checksums.of_session(tuple(columns), compaction)
    db.execute(
        "UPDATE sessions SET labels = ?, system_prompt = ?, checksum = ?, compaction = ?"
        " WHERE pk = ?",
        (
            columns[_LABELS],
            columns[_SYSTEM_PROMPT],
            _checksum(checksum, made, is_right=is_right),
            compaction,
            pk,
        ),
    )


def _convert_labels(db: sqlite3.Connection, branch: int, text: Any, *, seal: bool) -> None:
    try:
        labels = dict(json.loads(text))
    except _DAMAGE:
        return
    remove_labels(db, branch, labels)
    new = label_rows(db, labels) if seal else list(labels.items())
    db.executemany(
        "INSERT OR IGNORE INTO labels VALUES (?, ?, ?)", [(*label, branch) for label in new]
    )


def _head(columns: list[Any], compaction: Any) -> bytes:
    try:
        return checksums.session_head(tuple(columns), compaction)
    except _DAMAGE:
        return b"damaged"


def _is_right(stored: Any, compute: Any) -> bool:
    try:
        return checksums.is_right(stored, compute())
    except _DAMAGE:
        return False


def _checksum(stored: Any, computed: int, *, is_right: bool) -> int | None:
    """Returns the checksum of a converted row: right or wrong as before, or none as before."""
    if not is_right:
        return computed ^ 1
    return None if stored is None else computed


def _text(value: Any) -> str:
    """Returns a value of a plain row as text that can be sealed, also if it is damaged."""
    return str(value).encode(errors="replace").decode()
