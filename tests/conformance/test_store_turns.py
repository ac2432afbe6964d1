"""The figures of a session's turns, as every store keeps them for people who look at a session."""

from __future__ import annotations

from dataclasses import replace

from ruvd.core.model import (
    Finished,
    FinishReason,
    IdempotencyRecord,
    Message,
    Role,
    SentContext,
    Session,
    Timings,
    Usage,
)
from ruvd.core.ports.store import Commit, Store
from ruvd.core.ports.turns import StoredTurn

EMPTY = Message(Role.ASSISTANT)


def figures(number: int, **fields: object) -> Finished:
    """The figures of a turn, with an answer of its own."""
    return replace(
        Finished(
            FinishReason.STOP,
            Message(Role.ASSISTANT, f"answer {number}"),
            Usage(100 * number, 10 * number, number),
            Timings(0.5, 1.0, 2.0, 0.25),
            number,
            sent=SentContext(2 * number + 1, trimmed=number == 2),
            time=1000.5 + number,
        ),
        **fields,  # type: ignore[arg-type]
    )


class Conversation:
    """Commits turns to one session of a store."""

    def __init__(self, store: Store, session_id: str = "s") -> None:
        self.store = store
        self.session = Session(session_id, 1.0, 1.0, 1e9)

    async def turn(self, number: int, request_id: str = "") -> StoredTurn:
        finished = figures(number)
        first = self.session.message_count == 0
        appended = [
            (number - 1, Message(Role.USER, f"question {number}")),
            (number - 1, finished.message),
        ]
        self.session = replace(
            self.session,
            message_count=self.session.message_count + 2,
            exchange_count=number,
            size_bytes=self.session.size_bytes + sum(each.size_bytes for _, each in appended),
        )
        record = IdempotencyRecord(request_id, b"d", f"c{number}", 5, finished)
        stored = await self.store.get(self.session.id)
        version = stored.version if stored else 0
        await self.store.commit(
            Commit(replace(self.session, version=version), appended, record, create=first)
        )
        position = self.session.message_count - 1
        return StoredTurn(position, f"c{number}", replace(finished, message=EMPTY))


async def test_the_turns_of_a_part_of_a_session_are_read_in_order_without_their_texts(
    store: Store,
) -> None:
    conversation = Conversation(store)
    made = [await conversation.turn(number) for number in (1, 2, 3)]
    assert list(await store.turns("s", 0, 6)) == made
    assert list(await store.turns("s", 2, 4)) == made[1:2]
    assert list(await store.turns("s", 0, 1)) == []
    assert list(await store.turns("s", 6, 100)) == []
    assert list(await store.turns("unknown", 0, 100)) == []


async def test_only_turns_count_and_a_repeated_request_id_counts_once(store: Store) -> None:
    conversation = Conversation(store)
    await conversation.turn(1, "r")
    second = await conversation.turn(2, "r")
    stored = await store.get("s")
    assert stored is not None
    added = replace(stored, message_count=5, exchange_count=3)
    record = IdempotencyRecord("appended", b"d")
    await store.commit(Commit(added, [(2, Message(Role.USER, "more"))], record))
    assert list(await store.turns("s", 0, 100)) == [second]


async def test_a_fork_has_its_own_turns_and_an_ended_session_has_none(store: Store) -> None:
    conversation = Conversation(store)
    await conversation.turn(1)
    parent = await store.get("s")
    assert parent is not None
    child = replace(conversation.session, id="f", parent_id="s", version=parent.version)
    await store.fork(Commit(child, create=True), "s")
    forked = Conversation(store, "f")
    forked.session = child
    own = await forked.turn(2)
    assert list(await store.turns("f", 0, 100)) == [own]
    assert [each.completion_id for each in await store.turns("s", 0, 100)] == ["c1"]
    await store.end("s")
    assert list(await store.turns("s", 0, 100)) == []


async def test_figures_of_a_version_that_stored_fewer_are_read_as_unknown(store: Store) -> None:
    conversation = Conversation(store)
    finished = figures(1, sent=None, time=None)
    session = replace(conversation.session, message_count=1, exchange_count=1, size_bytes=8)
    record = IdempotencyRecord("", b"d", "old", 5, finished)
    await store.commit(Commit(session, [(0, finished.message)], record, create=True))
    (found,) = await store.turns("s", 0, 1)
    assert (found.finished.sent, found.finished.time) == (None, None)
    assert found.finished.usage == finished.usage
