"""The promises of the port `Store`, tested on every store."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import pytest
from conversations import (
    again,
    completed,
    create,
    evicted,
    expired,
    finished,
    fork,
    forked,
    full_session,
    ids,
    session,
    talk,
    texts,
    turn,
)
from fakes import FrozenClock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres import Server
from tool_conversation import CALLS, ODD_TEXTS, RESULTS, TOOL_EXCHANGE, said

from ruvd.core.errors import RuvdError, SessionExists, SessionNotFound
from ruvd.core.model import (
    Compaction,
    ContextWindow,
    IdempotencyRecord,
    Message,
    Role,
    Session,
    ToolCall,
)
from ruvd.core.ports.events import Event
from ruvd.core.ports.store import (
    Commit,
    Gone,
    RemovedSession,
    Store,
    StoreCounts,
    StoreUsage,
    TenantCounts,
    TurnSnapshot,
)
from ruvd.core.summaries import PinnedExchange, Summary
from ruvd.stores.memory import MemoryStore
from ruvd.stores.postgres.store import PostgresStore
from ruvd.stores.sqlite.store import SqliteStore


def _ignore(event: Event) -> None:
    """Ignores the event."""


def _takes_sessions(store: Store) -> bool:
    return isinstance(store, PostgresStore)


async def test_every_field_of_a_session_comes_back(store: Store) -> None:
    made = full_session()
    await store.commit(Commit(made, create=True))
    assert await store.get("full") == made
    assert await store.get("other") is None


async def test_a_summary_comes_back_counts_as_stored_and_is_inherited_by_a_fork(
    store: Store,
) -> None:
    made = await create(store, "s", "one", "two")
    before = (await store.usage("default")).own_bytes
    window = ContextWindow(2, 5, compaction=Compaction.SUMMARY, keep_first=1, compact_at=0.5)
    compacted = replace(
        made,
        context_window=window,
        compactions=3,
        summary=Summary("all \N{SNOWMAN} of \0 it", 1),
        compaction_instruction="Keep \N{SNOWMAN}.",
        pinned=(PinnedExchange(0, 0, 2),),
        window_start=1,
    )
    await store.commit(Commit(compacted))
    assert await store.get("s") == compacted
    assert (await store.usage("default")).own_bytes == before + len("all ☃ of . it".encode())
    (listed,), _ = await store.list(after=0, limit=9, labels={}, now=0)
    assert listed.summary is None
    assert listed.compactions == 3
    begun = await store.begin_turn("s", "", 0.0)
    assert begun.session == compacted
    await store.touch("s", 0.0)
    stored = await store.get("s")
    assert stored == compacted
    child = await fork(store, stored, "c", 2)
    assert await store.get("c") == child
    assert child.summary == compacted.summary
    plain = replace(stored, summary=None, pinned=(), compaction_instruction="")
    await store.commit(Commit(plain))
    assert await store.get("s") == plain


async def test_a_pinned_message_comes_back_pinned(store: Store) -> None:
    commit = said(await create(store, "s"), Message(Role.USER, "remember", pinned=True))
    await store.commit(commit)
    assert list(await store.exchanges("s", 0)) == [(Message(Role.USER, "remember", pinned=True),)]


async def test_a_commit_replaces_the_whole_row(store: Store) -> None:
    made = await create(store, "full", labels={"tenant": "b", "old": "x"})
    full = replace(full_session(), create_time=0, message_count=0, version=made.version)
    await store.commit(Commit(full))
    assert await store.get("full") == full
    by_label, _ = await store.list(after=0, limit=9, labels={"old": "x"}, now=0)
    assert not by_label
    by_label, _ = await store.list(after=0, limit=9, labels={"tenant": "a"}, now=0)
    assert list(by_label) == [replace(full, system_prompt="")]


async def test_messages_come_back_in_order_grouped_by_exchange(store: Store) -> None:
    made = await create(store, "s", "one", "two")
    exchanges = await store.exchanges("s", 0)
    assert list(exchanges) == [
        (Message(Role.USER, "one"), Message(Role.ASSISTANT, "re: one")),
        (Message(Role.USER, "two"), Message(Role.ASSISTANT, "re: two")),
    ]
    # A later commit may add a message to the last exchange.
    more = Message(Role.TOOL, "\N{SNOWMAN}")
    await store.commit(Commit(replace(made, message_count=5), [(1, more)]))
    assert list(await store.exchanges("s", 1)) == [(*exchanges[1], more)]
    assert not await store.exchanges("s", 2)
    assert not await store.exchanges("unknown", 0)


async def test_tool_calls_their_results_and_reasoning_come_back_byte_for_byte(
    store: Store,
) -> None:
    made = await create(store, "s", "before")
    first = said(made, *TOOL_EXCHANGE[:2])
    await store.commit(first)
    assert list(await store.exchanges("s", 1)) == [TOOL_EXCHANGE[:2]]
    # The results arrive in the next turn and belong to the same exchange.
    second = said(await again(store, first.session), *TOOL_EXCHANGE[2:])
    await store.commit(second)
    assert list(await store.exchanges("s", 1)) == [TOOL_EXCHANGE]
    assert await store.get("s") == second.session
    texts = [text.encode() for call in CALLS for text in astuple(call)]
    texts += [f"{each.content}{each.tool_call_id}".encode() for each in RESULTS]
    others = (*TOOL_EXCHANGE[:2], TOOL_EXCHANGE[-1])
    texts += [f"{m.content}{m.reasoning}{m.engine_data}".encode() for m in others]
    added = sum(map(len, texts))
    assert await store.size_at("s", 2) == (2 + len(TOOL_EXCHANGE), made.size_bytes + added)
    await talk(store, second.session, "after")
    assert (await store.exchanges("s", 1))[0] == TOOL_EXCHANGE


async def test_a_fork_shares_tool_calls_and_may_answer_them_otherwise(store: Store) -> None:
    asked = said(await create(store, "p"), *TOOL_EXCHANGE[:2])
    await store.commit(asked)
    parent = await again(store, asked.session)
    child = await fork(store, parent, "c", 1)
    await store.commit(said(parent, *TOOL_EXCHANGE[2:]))
    other = Message(Role.TOOL, "otherwise", tool_call_id=CALLS[0].id)
    await store.commit(said(child, other))
    assert list(await store.exchanges("p", 0)) == [TOOL_EXCHANGE]
    assert list(await store.exchanges("c", 0)) == [(*TOOL_EXCHANGE[:2], other)]
    await store.end("p")
    assert list(await store.exchanges("c", 0)) == [(*TOOL_EXCHANGE[:2], other)]


async def part(store: Store, session_id: str, *limits: int) -> list[str]:
    """The texts of Store.messages (first, max_messages, max_bytes)."""
    found = await store.messages(session_id, *limits)
    assert found is not None
    assert found.session == await store.get(session_id)
    return [message.content for message in found.messages]


async def test_a_part_of_a_history_is_read_by_position_within_its_limits(store: Store) -> None:
    made = await create(store, "s", "one", "two", "three")
    everything = ["one", "re: one", "two", "re: two", "three", "re: three"]
    assert await part(store, "s", 0, 9, 99) == everything
    for first in range(7):
        assert await part(store, "s", first, 9, 99) == everything[first:]
        assert await part(store, "s", first, 2, 99) == everything[first : first + 2]
    assert await part(store, "s", 7, 9, 99) == []
    assert await part(store, "s", 1, 9, 17) == ["re: one", "two", "re: two"]
    assert await part(store, "s", 1, 9, 16) == ["re: one", "two"]
    assert await part(store, "s", 1, 9, 1) == ["re: one"]  # one at least
    await store.commit(Commit(replace(made, message_count=7), [(2, Message(Role.TOOL, "end"))]))
    assert await part(store, "s", 5, 9, 99) == ["re: three", "end"]
    assert await store.messages("unknown", 0, 9, 99) is None


async def test_a_part_of_a_forks_history_begins_in_any_branch(store: Store) -> None:
    parent = await create(store, "p", "one", "two", "three")
    child = await talk(store, await fork(store, parent, "c", 2), "other")
    await talk(store, parent, "four")
    grandchild = await talk(store, await fork(store, child, "g", 3), "last")
    shared = await fork(store, grandchild, "f", 1)  # of the first branch only
    expected = ["one", "re: one", "two", "re: two", "other", "re: other", "last", "re: last"]
    for session_id, texts_ in {
        "p": [*expected[:4], "three", "re: three", "four", "re: four"],
        "c": expected[:6],
        "g": expected,
        "f": expected[:2],
    }.items():
        for first in range(9):
            assert await part(store, session_id, first, 9, 99) == texts_[first:]
            assert await part(store, session_id, first, 3, 99) == texts_[first : first + 3]
            assert await part(store, session_id, first, 3, 12) == within(texts_[first:][:3], 12)
    assert shared.message_count == 2


def within(texts_: list[str], max_bytes: int) -> list[str]:
    """The first texts that have at most so many bytes together, and at least one."""
    count = sum(1 for end in range(1, len(texts_) + 1) if len("".join(texts_[:end])) <= max_bytes)
    return texts_[: max(count, 1)]


async def test_a_part_of_a_long_history_is_found_by_its_position(
    store: Store,
) -> None:
    made = await create(store, "s")
    count = 20_000
    appended = [(number // 2, Message(Role.USER, str(number))) for number in range(count)]
    size = sum(message.size_bytes for _, message in appended)
    await store.commit(
        Commit(
            replace(made, message_count=count, exchange_count=count // 2, size_bytes=size),
            appended,
        )
    )
    for first in (0, 1, 9_999, 10_000, 19_997, 19_999):
        expected = [str(number) for number in range(first, min(first + 3, count))]
        assert await part(store, "s", first, 3, 99) == expected


async def test_a_commit_to_an_unknown_session_is_refused(store: Store) -> None:
    with pytest.raises(SessionNotFound):
        await store.commit(turn(session("s"), "lost"))
    assert await store.get("s") is None


async def test_a_live_session_is_not_created_again(store: Store) -> None:
    made = await create(store, "s", "kept", idle=100)
    with pytest.raises(SessionExists):
        await create(store, "s", now=99.9)
    assert await store.get("s") == made
    assert await texts(store, "s") == ["kept"]


async def test_a_session_that_has_expired_is_replaced_with_nothing_left_of_it(
    store: Store,
) -> None:
    made = await create(store, "s", idle=100, labels={"a": "1"})
    await store.commit(completed(turn(made, "old"), "r", "c"))
    replacement = Commit(session("s", now=100), create=True, now=100)
    assert list(await store.commit(replacement)) == expired("s")
    await talk(store, replacement.session, "new")
    assert await texts(store, "s") == ["new"]
    assert await store.idempotency_record("s", "r") is None
    assert await store.completion("c") is None
    assert not (await store.list(after=0, limit=9, labels={"a": "1"}, now=0))[0]


async def test_at_capacity_a_new_sessions_commit_evicts_the_least_recently_used(
    store: Store,
) -> None:
    for number in range(3):
        await create(store, f"s{number}", now=number)
    await store.touch("s0", 5)
    creation = Commit(session("s3", now=3), create=True, max_sessions=3, now=3)
    assert list(await store.commit(creation)) == evicted("s1")
    assert await ids(store) == ["s0", "s2", "s3"]


async def test_expired_sessions_are_evicted_before_older_ones(store: Store) -> None:
    await create(store, "old", now=0, idle=1_000)
    await create(store, "expired", now=5, idle=1)
    creation = Commit(session("new", now=10), create=True, max_sessions=2, now=10)
    assert list(await store.commit(creation)) == expired("expired")
    await create(store, "expired", now=5, idle=1)
    creation = Commit(session("newer", now=10), create=True, max_sessions=1, now=10)
    removed = list(await store.commit(creation))
    assert removed == [*expired("expired"), *evicted("old", "new")]


async def test_neither_a_protected_nor_the_new_session_is_evicted(store: Store) -> None:
    await create(store, "a", now=5)
    await create(store, "b", now=6)
    creation = Commit(
        session("c", now=1), create=True, max_sessions=1, protected={"a", "b"}, now=200
    )
    assert not await store.commit(creation)
    assert await ids(store, now=0) == ["a", "b", "c"]
    creation = Commit(session("d", now=0), create=True, max_sessions=3, protected={"a"}, now=9)
    assert list(await store.commit(creation)) == evicted("c")


async def test_a_creation_that_is_refused_evicts_nothing(store: Store) -> None:
    await create(store, "a")
    await create(store, "b")
    with pytest.raises(SessionExists):
        await create(store, "a", max_sessions=1)
    assert await ids(store) == ["a", "b"]


async def test_touching_an_unknown_session_does_nothing(store: Store) -> None:
    assert not await store.touch("s", 1)
    assert await store.get("s") is None


async def test_beginning_a_turn_returns_the_session_and_its_window_and_touches_it(
    store: Store,
) -> None:
    made = await talk(store, await create(store), "a", "b", "c")
    await store.commit(Commit(replace(made, window_start=1)))
    begun = await store.begin_turn("s", "r", 75)
    assert begun.session == replace(made, window_start=1, last_used_time=75)
    assert begun.session == await store.get("s")
    assert begun.idempotency_record is None
    assert begun.exchanges is not None
    assert [*begun.exchanges] == [*await store.exchanges("s", 1)]
    assert [each[0].content for each in begun.exchanges] == ["b", "c"]


@pytest.mark.parametrize("request_id", ["", "r"])
async def test_a_turn_that_begins_soon_after_the_last_one_leaves_the_touch_to_its_end(
    store: Store, request_id: str
) -> None:
    made = await talk(store, await create(store, idle=10), "a")
    begun = await store.begin_turn("s", request_id, 0.9)
    assert begun.session == replace(made, last_used_time=0.9)
    # PostgreSQL writes at each begin anyway, to take the session.
    assert await store.get("s") == (begun.session if _takes_sessions(store) else made)
    begun = await store.begin_turn("s", request_id, 1)
    assert begun.session == replace(made, last_used_time=1) == await store.get("s")


async def test_no_turn_begins_in_an_unknown_or_an_expired_session(store: Store) -> None:
    assert await store.begin_turn("s", "", 1) == TurnSnapshot(usage=StoreUsage())
    await create(store, idle=10)
    stale = TurnSnapshot(has_expired=True, gone=Gone.EXPIRED, usage=StoreUsage(1, 1, 0))
    assert await store.begin_turn("s", "", 10) == stale
    assert await store.begin_turn("s", "r", 10) == stale
    kept = await store.get("s")
    assert kept is not None
    assert kept.last_used_time == 0
    assert (await store.begin_turn("s", "", 9.99)).session is not None


async def test_a_repeated_turn_begins_with_its_record_and_changes_nothing(
    store: Store,
) -> None:
    commit = completed(turn(await create(store), "a"), "r1", "c1")
    await store.commit(commit)
    begun = await store.begin_turn("s", "r1", 5)
    assert (begun.idempotency_record, begun.session) == (
        commit.idempotency_record,
        await store.get("s"),
    )
    assert begun.session is not None
    assert begun.session.last_used_time == 0
    assert (await store.begin_turn("s", "r2", 6)).idempotency_record is None
    assert (await store.begin_turn("s", "", 7)).idempotency_record is None


async def test_sqlite_does_not_read_a_long_window_when_a_turn_begins(store: Store) -> None:
    made = await talk(store, await create(store), *(f"{n}" * 2000 for n in range(150)))
    begun = await store.begin_turn("s", "", 1)
    assert begun.exchanges is None or isinstance(store, MemoryStore) or _takes_sessions(store)
    assert begun.session == replace(made, last_used_time=1)


async def test_a_session_expires_at_its_expire_time_and_not_before(store: Store) -> None:
    await create(store, "short", idle=10)
    await create(store, "long", idle=20)
    await create(store, "used", idle=30)
    assert not await store.expire(9.999, ())
    assert not await store.expire(10, {"short"})
    assert list(await store.expire(10, ())) == ["short"]
    assert await store.get("short") is None
    await store.touch("long", 15)
    assert list(await store.expire(34, ())) == ["used"]
    touched = await store.get("long")
    assert touched is not None
    assert touched.expire_time == 35


async def test_a_read_does_not_look_at_expiry(store: Store) -> None:
    await create(store, "s", "said", idle=0)
    assert await store.get("s") is not None
    assert await texts(store, "s") == ["said"]


async def test_pages_stay_consistent_while_sessions_are_created_and_deleted(store: Store) -> None:
    for number in range(6):
        await create(store, f"s{number}")
    first, cursor = await store.list(after=0, limit=2, labels={}, now=0)
    await store.end("s1")
    await store.end("s3")
    await create(store, "late")
    second, cursor = await store.list(after=cursor, limit=2, labels={}, now=0)
    third, cursor = await store.list(after=cursor, limit=2, labels={}, now=0)
    pages = [[found.id for found in page] for page in (first, second, third)]
    assert pages == [["s0", "s1"], ["s2", "s4"], ["s5", "late"]]
    assert cursor == 0


async def test_a_page_of_large_sessions_ends_before_they_fill_the_memory(store: Store) -> None:
    large = {f"{number:03}": "x" * 100_000 for number in range(10)}
    for number in range(7):
        await create(store, f"s{number}", labels=large)
    pages: list[list[str]] = []
    after = 0
    while not pages or after:
        page, after = await store.list(after=after, limit=1000, labels={}, now=0)
        pages.append([found.id for found in page])
    assert pages == [["s0", "s1", "s2", "s3"], ["s4", "s5", "s6"]]


async def test_a_list_has_only_live_sessions_with_all_the_labels(store: Store) -> None:
    await create(store, "a", labels={"x": "1", "y": "1"})
    await create(store, "b", labels={"x": "1", "y": "2"})
    await create(store, "c", labels={"x": "1", "y": "1"}, idle=5)
    await create(store, "d", labels={"x": "1", "y": "1"})
    found, cursor = await store.list(after=0, limit=1, labels={"x": "1", "y": "1"}, now=5)
    assert [each.id for each in found] == ["a"]
    found, cursor = await store.list(after=cursor, limit=1, labels={"x": "1", "y": "1"}, now=5)
    assert [each.id for each in found] == ["d"]
    assert cursor == 0
    assert await ids(store, now=5) == ["a", "b", "d"]


@pytest.mark.parametrize("labels", [{}, {"x": "1"}])
async def test_an_expired_session_in_a_turn_is_listed_and_counted_as_active(
    store: Store, labels: dict[str, str]
) -> None:
    await create(store, "a", labels={"x": "1"}, idle=5)
    await create(store, "b", labels={"x": "1"}, idle=5)
    found, _ = await store.list(
        after=0, limit=9, labels=labels, now=5, active_or_in_turn={"b", "none"}
    )
    assert [each.id for each in found] == ["b"]
    assert await store.counts(5, {"b", "none"}) == StoreCounts(2, 1, 0)


async def test_a_fork_has_the_first_exchanges_and_then_its_own(store: Store) -> None:
    parent = await create(store, "p", "0", "1", "2")
    for count in range(4):
        child = await fork(store, parent, f"f{count}", count)
        assert await store.get(f"f{count}") == child
        child = await talk(store, child, "own", "more")
        expected = [*"012"[:count], "own", "more"]
        for first in range(count + 2):
            assert await texts(store, child.id, first) == expected[first:]
    await talk(store, parent, "3")
    assert await texts(store, "p") == ["0", "1", "2", "3"]
    assert await texts(store, "f3") == ["0", "1", "2", "own", "more"]


async def test_a_fork_of_a_fork_may_begin_anywhere_in_its_ancestors(store: Store) -> None:
    history = ["0", "1"]
    last = await create(store, "d0", *history)
    for depth in range(1, 4):
        last = await fork(store, last, f"d{depth}", len(history))
        last = await talk(store, last, str(depth * 2), str(depth * 2 + 1))
        history += [str(depth * 2), str(depth * 2 + 1)]
    for count in range(len(history) + 1):
        child = await fork(store, last, f"c{count}", count)
        await talk(store, child, "own")
        assert await texts(store, child.id) == [*history[:count], "own"]
        assert await texts(store, child.id, count) == ["own"]


async def test_forks_outlive_their_parents(store: Store) -> None:
    parent = await create(store, "p", "0", "1", "2")
    child = await fork(store, parent, "c", 2)
    child = await talk(store, child, "c2")
    grandchild = await fork(store, child, "g", 3)
    await store.end("p")
    await talk(store, child, "c3")
    await store.end("c")
    again = await fork(store, grandchild, "a", 1)
    assert await texts(store, "g") == ["0", "1", "c2"]
    assert await texts(store, "a") == ["0"]
    await store.end("g")
    await talk(store, again, "a1")
    assert await texts(store, "a") == ["0", "a1"]
    assert await store.end("a")
    assert await store.counts(0) == StoreCounts(0, 0, 0)


async def test_a_fork_may_continue_the_last_exchange(store: Store) -> None:
    parent = await create(store, "p", "0", "1")
    child = await fork(store, parent, "c", 2)
    more = Message(Role.ASSISTANT, "and")
    await store.commit(Commit(replace(child, message_count=5), [(1, more)]))
    assert [len(exchange) for exchange in await store.exchanges("c", 1)] == [3]
    assert [len(exchange) for exchange in await store.exchanges("p", 1)] == [2]
    assert await store.size_at("c", 2) == (5, 15)


async def test_a_fork_needs_its_parent_and_a_free_id(store: Store) -> None:
    with pytest.raises(SessionNotFound):
        await store.fork(Commit(session("c"), create=True), "unknown")
    parent = await create(store, "p", "0")
    with pytest.raises(SessionExists):
        await store.fork(Commit(replace(parent, id="p"), create=True), "p")
    assert await texts(store, "p") == ["0"]


async def test_a_fork_into_an_expired_id_replaces_that_session(store: Store) -> None:
    parent = await create(store, "p", "0", now=5)
    await create(store, "c", "old", idle=5)
    child = replace(parent, id="c")
    removed = await store.fork(Commit(child, create=True, max_sessions=2, now=5), "p")
    assert list(removed) == expired("c")
    assert await texts(store, "c") == ["0"]


async def test_a_fork_may_evict_its_parent(store: Store) -> None:
    parent = await create(store, "p", "0", now=0)
    child = replace(parent, id="c", last_used_time=1.0)
    gone = await store.fork(Commit(child, create=True, max_sessions=1, now=1), "p")
    assert list(gone) == evicted("p")
    assert await texts(store, "c") == ["0"]


async def test_size_at_counts_the_first_exchanges(store: Store) -> None:
    made = await create(store, "s", "\N{SNOWMAN}", "22")
    sizes = [await store.size_at("s", count) for count in range(4)]
    assert sizes == [(0, 0), (2, 10), (4, 18), (4, 18)]
    await fork(store, made, "f", 1)
    assert await store.size_at("f", 5) == (2, 10)
    assert await store.size_at("unknown", 1) == (0, 0)


async def test_a_record_returns_the_finished_event(store: Store) -> None:
    commit = completed(turn(await create(store), "hi"), "r1", "c1")
    await store.commit(commit)
    assert await store.idempotency_record("s", "r1") == commit.idempotency_record
    assert await store.completion("c1") == ("s", commit.idempotency_record)
    assert await store.idempotency_record("s", "r2") is None
    assert await store.idempotency_record("t", "r1") is None
    assert await store.completion("") is None


async def test_an_answer_that_is_not_in_the_history_is_stored_with_the_record(store: Store) -> None:
    made = await create(store)
    answer = finished(Message(Role.ASSISTANT, "elsewhere"))
    idempotency_record = IdempotencyRecord("r", b"d", "c", 3, answer)
    await store.commit(Commit(made, idempotency_record=idempotency_record))
    assert await store.completion("c") == ("s", idempotency_record)


@pytest.mark.parametrize("in_history", [True, False])
async def test_a_record_returns_tool_calls_and_reasoning(
    store: Store,
    in_history: bool,  # noqa: FBT001  # a parameter of the test
) -> None:
    commit = said(await create(store), *TOOL_EXCHANGE[:2])
    idempotency_record = IdempotencyRecord("r", b"d", "c", 3, finished(TOOL_EXCHANGE[1]))
    await store.commit(
        replace(
            commit,
            session=replace(commit.session, message_count=1 + in_history),
            idempotency_record=idempotency_record,
            appended=commit.appended[: 1 + in_history],
        )
    )
    assert await store.idempotency_record("s", "r") == idempotency_record
    assert await store.completion("c") == ("s", idempotency_record)


async def test_answers_that_differ_only_in_their_calls_are_not_confused(store: Store) -> None:
    one, other = (Message(Role.ASSISTANT, "", (ToolCall(each, "f", "{}"),)) for each in "ab")
    commit = said(await create(store), one)
    idempotency_record = IdempotencyRecord("r", b"d", "c", 3, finished(other))
    await store.commit(replace(commit, idempotency_record=idempotency_record))
    assert await store.idempotency_record("s", "r") == idempotency_record
    assert list(await store.exchanges("s", 0)) == [(one,)]


async def test_completions_without_a_request_id_are_all_kept(store: Store) -> None:
    made = await create(store)
    first = completed(turn(made, "1"), "", "c1")
    await store.commit(first)
    second = completed(turn(await again(store, first.session), "2"), "", "c2")
    await store.commit(second)
    assert await store.completion("c1") == ("s", first.idempotency_record)
    assert await store.completion("c2") == ("s", second.idempotency_record)
    assert await store.idempotency_record("s", "") is None


async def test_created_by_finds_only_records_of_creations(store: Store) -> None:
    idempotency_record = IdempotencyRecord("new", b"d")
    await store.commit(Commit(session("s"), create=True, idempotency_record=idempotency_record))
    made = await again(store, session("s"))
    await store.commit(Commit(made, idempotency_record=IdempotencyRecord("append", b"e")))
    first_turn = completed(turn(session("t"), "hi"), "turn", "c")
    await store.commit(replace(first_turn, create=True))
    child = IdempotencyRecord("fork", b"f")
    made = replace(await again(store, made), id="f")
    await store.fork(Commit(made, create=True, idempotency_record=child), "s")
    assert await store.created_by("new") == ("s", idempotency_record)
    assert await store.created_by("fork") == ("f", child)
    assert await store.created_by("append") is None
    assert await store.created_by("turn") is None
    assert await store.created_by("") is None


async def test_records_are_deleted_with_their_session(store: Store) -> None:
    idempotency_record = IdempotencyRecord("new", b"d")
    await store.commit(Commit(session("s"), create=True, idempotency_record=idempotency_record))
    made = await again(store, session("s"))
    commit = completed(turn(made, "hi"), "r", "c")
    await store.commit(commit)
    await fork(store, await again(store, commit.session), "child", 0)
    assert await store.end("s")
    assert not await store.end("s")
    assert await store.idempotency_record("s", "r") is None
    assert await store.completion("c") is None
    assert await store.created_by("new") is None
    # The ids can be used again.
    await store.commit(Commit(session("s"), create=True, idempotency_record=idempotency_record))
    assert await store.created_by("new") == ("s", idempotency_record)
    assert await store.idempotency_record("s", "r") is None


async def test_counts_of_sessions_active_sessions_and_messages(store: Store) -> None:
    await create(store, "a", "1", "2", idle=10)
    made = await create(store, "b", "1")
    await fork(store, made, "c", 1)
    assert await store.counts(9) == StoreCounts(3, 3, 8)
    assert await store.counts(10) == StoreCounts(3, 2, 8)
    await store.end("a")
    assert await store.counts(10) == StoreCounts(2, 2, 4)


async def test_concurrent_commits_all_arrive(store: Store) -> None:
    made = await asyncio.gather(*(create(store, f"s{number}") for number in range(50)))
    await asyncio.gather(*(talk(store, each, "1", "2", "3") for each in made))
    for each in made:
        assert await texts(store, each.id) == ["1", "2", "3"]
    assert await store.counts(0) == StoreCounts(50, 50, 300)


async def test_a_refused_commit_does_not_affect_concurrent_ones(store: Store) -> None:
    await create(store, "taken")
    outcomes = await asyncio.gather(
        *(create(store, each, "hi") for each in ("a", "taken", "b")), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes][1] is SessionExists
    assert await texts(store, "a") == await texts(store, "b") == ["hi"]


async def test_a_cancelled_caller_does_not_affect_concurrent_ones(store: Store) -> None:
    tasks = [asyncio.ensure_future(create(store, f"s{number}")) for number in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert {f"s{number}" for number in range(1, 20, 2)} <= set(await ids(store))


# --- both stores, the same random steps ----------------------------------------------------------

_IDS = st.sampled_from(["a", "b", "c", "d"])
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), _IDS, st.integers(1, 9), st.integers(1, 4)),
        st.tuples(st.just("turn"), _IDS, st.booleans(), st.just(0)),
        st.tuples(st.just("tools"), _IDS, st.booleans(), st.integers(0, len(ODD_TEXTS) - 1)),
        st.tuples(st.just("fork"), _IDS, _IDS, st.integers(0, 5)),
        st.tuples(st.just("touch"), _IDS, st.integers(0, 3), st.just(0)),
        st.tuples(st.just("end"), _IDS, st.just(0), st.just(0)),
        st.tuples(st.just("expire"), _IDS, st.just(0), st.just(0)),
    ),
    max_size=30,
)


@dataclass(slots=True)
class _Recorder:
    """Runs steps on a store, and records everything that its reads return after each of them."""

    store: Store
    now: float = 0.0
    seen: list[object] = field(default_factory=list)
    known: set[str] = field(default_factory=set)

    async def run(self, steps: list[tuple[str, str, int | str, int]]) -> list[object]:
        for number, (verb, session_id, one, two) in enumerate(steps):
            self.now += 1
            try:
                self.seen.append(await self._step(number, verb, session_id, one, two))
            except RuvdError as refusal:
                self.seen.append((type(refusal), str(refusal)))
            await self._look()
        return self.seen

    async def _step(
        self, number: int, verb: str, session_id: str, one: int | str, two: int
    ) -> object:
        store, found = self.store, await self.store.get(session_id)
        if verb == "create":
            made = session(session_id, now=self.now, idle=int(one), labels={"n": str(two)})
            idempotency_record = IdempotencyRecord(f"create-{number}", b"x")
            change = Commit(made, (), idempotency_record, True, two, ("b",), self.now)  # noqa: FBT003
            return self._created(session_id, await store.commit(change))
        if verb == "turn":
            change = turn(found or session(session_id), f"said {number}", now=self.now)
            if one:
                change = completed(change, f"r{number}", f"c{number}")
            return list(await store.commit(change))
        if verb == "tools":
            # Tool results, calls and reasoning belong to the last exchange, if there is one.
            calls = (replace(CALLS[two], name=f"f{number}"), *CALLS[:two])
            answer = Message(Role.ASSISTANT, "", calls, reasoning=ODD_TEXTS[two])
            change = said(found or session(session_id), *RESULTS[:two], answer)
            if one:
                change = completed(change, f"r{number}", f"c{number}")
            return list(await store.commit(change))
        if verb == "fork":
            count = min(two, found.exchange_count if found else 0)
            parent = found or session(session_id)
            change = await forked(store, parent, str(one), count, now=self.now)
            return self._created(str(one), await store.fork(change, session_id))
        if verb == "touch":
            await store.touch(session_id, self.now + int(one))
            return None
        if verb == "end":
            self.known.discard(session_id)
            return await store.end(session_id)
        gone = list(await store.expire(self.now, (session_id,)))
        self._forget(gone)
        return gone

    def _created(self, session_id: str, removed: Sequence[RemovedSession]) -> object:
        self._forget([each.session_id for each in removed])
        self.known.add(session_id)
        return list(removed)

    def _forget(self, session_ids: list[str]) -> None:
        """Notes that the store deleted these sessions, each of which it must have had."""
        assert len(set(session_ids) & self.known) == len(session_ids)
        self.known.difference_update(session_ids)

    async def _look(self) -> None:
        store = self.store
        for session_id in "abcd":
            found = await store.get(session_id)
            assert (found is not None) == (session_id in self.known)
            self.seen.append(found)
            for first in range((found.exchange_count if found else 0) + 2):
                self.seen.append(list(await store.exchanges(session_id, first)))
                self.seen.append(await store.size_at(session_id, first))
        for number in range(0, 30, 3):
            self.seen.append(await store.completion(f"c{number}"))
            self.seen.append(await store.created_by(f"create-{number}"))
            self.seen.append(await store.idempotency_record("a", f"r{number}"))
        page, cursor = await store.list(after=0, limit=2, labels={}, now=self.now)
        rest, end = await store.list(after=cursor, limit=9, labels={"n": "2"}, now=self.now)
        self.seen.append((list(page), list(rest), bool(cursor), end))
        self.seen.append(await store.counts(self.now))


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(_STEPS)
def test_all_stores_behave_alike_in_any_sequence_of_steps(
    postgres: Server, steps: list[tuple[str, str, int | str, int]]
) -> None:
    async def compare(path: Path) -> None:
        expected = await _Recorder(MemoryStore()).run(steps)
        for store in (
            SqliteStore(path, clock=FrozenClock(), observer=_ignore),
            PostgresStore(postgres.new_schema(), clock=FrozenClock(), observer=_ignore),
        ):
            await store.open()
            try:
                assert await _Recorder(store).run(steps) == expected
            finally:
                await store.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(compare(Path(folder) / "ruvd.db"))


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["turn", "join", "trim", "widen", "touch", "begin", "end", "long"]),
        st.sampled_from(["a", "b"]),
    ),
    max_size=30,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
async def test_a_turn_begins_with_the_stored_state_after_any_sequence_of_steps(
    store: Store, steps: list[tuple[str, str]]
) -> None:
    for name in ("a", "b"):
        await store.end(name)
    for number, (step, name) in enumerate(steps):
        at = await store.get(name)
        if at is None:
            await create(store, name, "first")
        elif step == "begin":
            now = number / 1000
            begun = await store.begin_turn(name, "", now)
            assert begun.session == replace(at, last_used_time=now)
            if begun.exchanges is not None:
                window = await store.exchanges(name, at.window_start)
                assert [*begun.exchanges] == [*window]
        elif step == "touch":
            await store.touch(name, number / 1000)
        elif step == "end":
            await store.end(name)
        else:
            await store.commit(_change(at, step, number))


def _change(at: Session, step: str, number: int) -> Commit:
    if step == "join":
        more = [(at.exchange_count - 1, Message(Role.TOOL, f"result {number}"))]
        return Commit(replace(at, message_count=at.message_count + 1), more)
    if step in ("trim", "widen"):
        start = min(at.window_start + 1, at.exchange_count) if step == "trim" else 0
        return Commit(replace(at, window_start=start))
    return turn(at, f"turn {number}" * (20_000 if step == "long" else 1))


async def test_a_list_and_the_counts_may_be_those_of_one_tenant(store: Store) -> None:
    await create(store, "s", "said")
    await create(store, "a/s", "said", "again")
    await create(store, "a/t", idle=5)
    await create(store, "a/b/s")

    async def of(tenant: str | None) -> list[str]:
        page, _ = await store.list(after=0, limit=9, labels={}, now=5, tenant=tenant)
        return [found.id for found in page]

    assert await of(None) == ["s", "a/s", "a/b/s"]
    assert (await of("default"), await of("a"), await of("a/b")) == (["s"], ["a/s"], ["a/b/s"])
    assert await of("b") == await of("") == []
    assert await store.counts(5) == StoreCounts(4, 3, 6)
    assert await store.counts(5, tenant="default") == StoreCounts(1, 1, 2)
    assert await store.counts(5, tenant="a") == StoreCounts(2, 1, 4)
    assert await store.counts(5, {"a/t"}, "a") == StoreCounts(2, 2, 4)
    assert await store.counts(5, tenant="a/b") == StoreCounts(1, 1, 0)
    assert await store.counts(5, tenant="b") == StoreCounts(0, 0, 0)


async def test_the_counts_of_all_tenants_come_page_by_page_in_the_order_of_names(
    store: Store,
) -> None:
    assert await store.tenants(5, "", 9) == []
    made = [
        await create(store, "s", "said"),
        await create(store, "a/s", "said", "again"),
        await create(store, "a/t", idle=5),
        await create(store, "a/b/s"),
        await create(store, "z//s", "said"),
    ]
    size = [each.size_bytes for each in made]
    expected = [
        TenantCounts("a", 2, 1, 4, size[1]),
        TenantCounts("a/b", 1, 1, 0, 0),
        TenantCounts("default", 1, 1, 2, size[0]),
        TenantCounts("z/", 1, 1, 2, size[4]),
    ]
    assert list(await store.tenants(5, "", 9)) == expected
    assert list(await store.tenants(5, "", 2)) == expected[:2]
    assert list(await store.tenants(5, "a/b", 9)) == expected[2:]
    assert list(await store.tenants(5, "z/", 9)) == []
    (first,) = await store.tenants(5, "", 1, {"a/t"})
    assert first.active == 2, "a session in a turn is active"
