"""The session cache: up to date after each commit, and bounded."""

from __future__ import annotations

from dataclasses import replace

from conversations import session
from hypothesis import given
from hypothesis import strategies as st

from ruvd.core.model import Exchange, Message, Role
from ruvd.core.sessions import window
from ruvd.stores.sqlite.session_cache import CachedSession, SessionCache

ROLES = st.sampled_from([Role.USER, Role.ASSISTANT, Role.TOOL])


def grouped(numbered: list[tuple[int, Message]], first: int) -> tuple[Exchange, ...]:
    """Returns the exchanges from `first` on."""
    last = max((number for number, _ in numbered), default=-1)
    return tuple(
        tuple(message for number, message in numbered if number == each)
        for each in range(first, last + 1)
    )


@given(st.lists(st.tuples(st.lists(ROLES, max_size=4), st.integers(0, 3)), max_size=12))
def test_after_any_commits_an_entry_has_the_exchanges_of_the_window(
    commits: list[tuple[list[Role], int]],
) -> None:
    at, whole = session("s"), list[tuple[int, Message]]()
    cached = CachedSession(at, ())
    for number, (roles, trim) in enumerate(commits):
        messages = [Message(role, f"{number} {role}") for role in roles]
        appended = window.number(at.exchange_count, messages)
        whole += appended
        count = appended[-1][0] + 1 if appended else at.exchange_count
        start = min(count, at.window_start + trim)
        joins = any(each < at.window_start for each, _ in appended)
        at = replace(at, exchange_count=count, window_start=start)
        after = cached.after(at, appended)
        if joins:  # the messages continue an exchange that the window has dropped
            assert after is None
            return
        assert after == CachedSession(at, grouped(whole, start))
        assert after is not None
        cached = after


def test_a_window_that_grows_backwards_has_no_entry() -> None:
    at = replace(session("s"), window_start=2, exchange_count=3)
    cached = CachedSession(at, ((Message(Role.USER, "third"),),))
    assert cached.after(replace(at, window_start=1), ()) is None


def test_the_least_recently_used_are_dropped_and_a_large_session_is_not_cached() -> None:
    def of(name: str, size: int) -> CachedSession:
        return CachedSession(session(name), ((Message(Role.USER, "x" * size),),))

    cached = SessionCache(max_bytes=3000, max_session_bytes=1500)
    cached.put(of("a", 600))
    cached.put(of("b", 600))
    cached.put(of("c", 600))
    assert cached.get("a")
    cached.put(of("d", 600))
    assert [bool(cached.get(name)) for name in "abcd"] == [True, False, True, True]
    cached.put(of("a", 2000))
    assert cached.get("a") is None
    cached.drop("c")
    cached.drop("c")
    cached.put(of("e", 1200))
    assert [bool(cached.get(name)) for name in "cde"] == [False, True, True]
    cached.clear()
    cached.put(of("f", 1200))
    cached.put(of("g", 1200))
    assert [bool(cached.get(name)) for name in "dfg"] == [False, True, True]
