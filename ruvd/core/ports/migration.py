"""The values that pass from one store to another when sessions are migrated."""

from collections.abc import Sequence

from ruvd.core.model import Exchange, IdempotencyRecord, Session
from ruvd.core.ports.store import Gone
from ruvd.core.values import value


@value(frozen=True, slots=True)
class StoredRecord:
    """An idempotency record as a store has it.

    `creates` if it is that of a creation. `position` is that of its answer in the history, or None
    if the record holds the answer itself or has none.
    """

    record: IdempotencyRecord
    creates: bool
    position: int | None


@value(frozen=True, slots=True)
class StoredSession:
    """All that a store has of a session."""

    session: Session
    exchanges: Sequence[Exchange]
    records: Sequence[StoredRecord]


@value(frozen=True, slots=True)
class SharedPart:
    """The first `messages` of a history, which are those of the session `owner_id`.

    `last_exchange` is the number of the exchange that the last of them belongs to.
    """

    owner_id: str
    messages: int
    last_exchange: int


@value(frozen=True, slots=True)
class Tombstone:
    """The remains of a session that has gone."""

    session_id: str
    reason: Gone
    time: float
