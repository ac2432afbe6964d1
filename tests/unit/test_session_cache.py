"""What the store's thread remembers of sessions: as they are after each commit, within bounds."""

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
    """The exchanges from `first` on."""
    last = max((number for number, _ in numbered), default=-1)
    return tuple(
        tuple(message for number, message in numbered if number == each)
        for each in range(first, last + 1)
    )


@given(st.lists(st.tuples(st.lists(ROLES, max_size=4), st.integers(0, 3)), max_size=12))
def test_after_any_commits_it_has_the_exchanges_of_the_window(
    commits: list[tuple[list[Role], int]],
) -> None:
    at, whole = session("s"), list[tuple[int, Message]]()
    hot = CachedSession(at, ())
    for number, (roles, trim) in enumerate(commits):
        messages = [Message(role, f"{number} {role}") for role in roles]
        appended = window.number(at.exchange_count, messages)
        whole += appended
        count = appended[-1][0] + 1 if appended else at.exchange_count
        start = min(count, at.window_start + trim)
        joins = any(each < at.window_start for each, _ in appended)
        at = replace(at, exchange_count=count, window_start=start)
        after = hot.after(at, appended)
        if joins:  # an exchange that the window no longer has goes on
            assert after is None
            return
        assert after == CachedSession(at, grouped(whole, start))
        assert after is not None
        hot = after


def test_a_window_that_grows_backwards_is_not_known() -> None:
    at = replace(session("s"), window_start=2, exchange_count=3)
    hot = CachedSession(at, ((Message(Role.USER, "third"),),))
    assert hot.after(replace(at, window_start=1), ()) is None


def test_the_least_recently_used_go_first_and_what_is_too_large_is_not_kept() -> None:
    def of(name: str, size: int) -> CachedSession:
        return CachedSession(session(name), ((Message(Role.USER, "x" * size),),))

    hot = SessionCache(max_bytes=3000, max_session_bytes=1500)
    hot.put(of("a", 600))
    hot.put(of("b", 600))
    hot.put(of("c", 600))
    assert hot.get("a")
    hot.put(of("d", 600))
    assert [bool(hot.get(name)) for name in "abcd"] == [True, False, True, True]
    hot.put(of("a", 2000))
    assert hot.get("a") is None
    hot.drop("c")
    hot.drop("c")
    hot.put(of("e", 1200))
    assert [bool(hot.get(name)) for name in "cde"] == [False, True, True]
    hot.clear()
    hot.put(of("f", 1200))
    hot.put(of("g", 1200))
    assert [bool(hot.get(name)) for name in "dfg"] == [False, True, True]
