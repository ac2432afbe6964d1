"""The idempotency records of the store in memory, by completion and by creation."""

from collections.abc import Sequence
from dataclasses import replace

from ruvd.core.model import IdempotencyRecord, Message, Role
from ruvd.core.ports.turns import StoredTurn
from ruvd.stores.memory.sessions import Entry

_NO_MESSAGE = Message(Role.ASSISTANT)


class Records:
    """All records. Those of a session are forgotten with it."""

    def __init__(self) -> None:
        self._completions: dict[str, tuple[str, IdempotencyRecord]] = {}
        self._creations: dict[str, tuple[str, IdempotencyRecord]] = {}

    def completion(self, completion_id: str) -> tuple[str, IdempotencyRecord] | None:
        """See `Store.completion`."""
        return self._completions.get(completion_id)

    def created_by(self, request_id: str) -> tuple[str, IdempotencyRecord] | None:
        """See `Store.created_by`."""
        return self._creations.get(request_id)

    def turns(self, entry: Entry, first: int, end: int) -> Sequence[StoredTurn]:
        """See `Store.turns`."""
        found = []
        for completion_id, position in entry.answers.items():
            finished = self._completions[completion_id][1].finished
            if finished and first <= position < end:
                figures = replace(finished, message=_NO_MESSAGE)
                found.append(StoredTurn(position, completion_id, figures))
        return found

    def put(self, entry: Entry, record: IdempotencyRecord, *, create: bool) -> None:
        """Adds the record of a commit, whose last message is the session's last one."""
        session_id = entry.session.id
        if record.request_id:
            replaced = entry.records.get(record.request_id)
            if replaced is not None and replaced.completion_id:
                self._completions.pop(replaced.completion_id, None)
                entry.answers.pop(replaced.completion_id, None)
            entry.records[record.request_id] = record
        if record.completion_id:
            self._completions[record.completion_id] = (session_id, record)
            entry.answers[record.completion_id] = len(entry.messages) - 1
        elif create and record.request_id:
            self._creations[record.request_id] = (session_id, record)
            entry.created_by = record.request_id

    def forget(self, entry: Entry) -> None:
        """Removes the records of a session that has ended."""
        for completion_id in entry.answers:
            self._completions.pop(completion_id, None)
        if entry.created_by:
            created = self._creations.get(entry.created_by)
            if created is not None and created[0] == entry.session.id:
                del self._creations[entry.created_by]
