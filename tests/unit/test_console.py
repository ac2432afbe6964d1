"""The console's pages over the core: what they say, to whom, and what browsers may do with it."""

from __future__ import annotations

import asyncio
import base64
import time
from pathlib import Path

import pytest
from console_pages import ConsoleOfCore, text_of
from core import Core, settle
from fakes import ScriptedEngine, done

from ruvd.core.errors import Overloaded, StoreUnavailable
from ruvd.core.model import (
    FinishReason,
    Message,
    Role,
    Session,
    Timings,
    ToolCallDelta,
    Usage,
)
from ruvd.core.ports.engine import EngineDone, EngineReasoning, EngineText
from ruvd.core.ports.events import EngineStateChanged, StoreStateChanged
from ruvd.core.ports.store import Commit, StoreCounts
from ruvd.core.sessions.model import NewMessages, NewSession
from ruvd.http.console import views
from ruvd.http.console.rendering import ago, cached, until
from ruvd.rpc.identity import tokens
from ruvd.rpc.identity.authenticator import Authenticator
from ruvd.rpc.identity.caller import Identity
from ruvd.rpc.identity.caller import Role as CallerRole
from ruvd.stores.memory import MemoryStore

ANN = Identity("ann", CallerRole.USER, "ann's app", "token")
READER = Identity("ann", CallerRole.READER, "dashboard", "token")
ADMIN = Identity("ops", CallerRole.ADMIN, "olga", "token")


async def page(console: ConsoleOfCore, path: str, identity: Identity | None = None) -> str:
    async with console.browser(identity) as browser:
        response = await browser.get(path)
    assert response.status_code == 200, response.text
    return response.text


async def status(console: ConsoleOfCore, path: str, identity: Identity | None = None) -> int:
    async with console.browser(identity) as browser:
        return (await browser.get(path)).status_code


# --- sessions -------------------------------------------------------------------------------


async def test_sessions_are_listed_with_their_figures_the_last_used_first() -> None:
    console = ConsoleOfCore()
    await console.core.say(session_id="old", messages=(Message(Role.USER, "hi"),))
    console.core.clock.advance(120.0)
    console.core.engine.scripts.append([EngineText("x"), done(200, 150, 30)])
    await console.core.say(session_id="new")
    await console.core.commands.create(NewSession("labelled", labels={"app": "<b>shop</b>"}))
    console.core.clock.advance(1.0)
    said = await page(console, "/")
    assert "<b>shop" not in said
    text = text_of(said)
    assert text.index("new") < text.index("old")
    assert "200 150 (75%) 50 30" in text
    assert "app=<b>shop</b>" in text
    assert "2 min ago" in text


async def test_a_page_has_1000_sessions_and_the_next_page_has_the_others() -> None:
    console = ConsoleOfCore()
    store = console.core.store
    now = console.core.clock.now()
    for number in range(1005):
        session = Session(f"s{number:04}", now, now, 1e9)
        await store.commit(Commit(session, create=True, now=now))
    async with console.browser() as browser:
        began = time.perf_counter()
        first = (await browser.get("/")).text
        assert time.perf_counter() - began < 60  # seconds; the aim is one, see docs/console.md
        assert (first.count('href="/sessions/'), "s0999" in first) == (1000, True)
        after = first.partition('href="/?after=')[2].partition('"')[0]
        second = (await browser.get(f"/?after={after}")).text
    assert (second.count('href="/sessions/'), "s1004" in second) == (5, True)
    assert "First page" in second
    assert "Next page" not in second


async def test_a_caller_sees_only_the_sessions_of_its_tenant_whatever_its_role() -> None:
    console = ConsoleOfCore()
    await console.core.say("secret of ann", session_id="ann/s", tenant="ann")
    assert "/sessions/s" in await page(console, "/", ANN)
    for other in (ADMIN, Identity("bob"), None):
        assert "/sessions/s" not in await page(console, "/", other)
        for path in ("/sessions/s", "/sessions/s/live", "/sessions/ann%2Fs"):
            assert await status(console, path, other) == 404, path


# --- one session ----------------------------------------------------------------------------


async def test_a_session_is_shown_turn_by_turn_with_what_was_sent_and_how_long_it_took() -> None:
    console = ConsoleOfCore()
    core = console.core
    prompt, rest = asyncio.Event(), asyncio.Event()
    core.engine.scripts.append(
        [prompt, EngineReasoning("hm <i>"), EngineText("the <answer>"), rest, done(400, 300, 21)]
    )
    completion = core.start("a <question>")
    core.clock.advance(0.5)
    await settle()
    core.clock.advance(1.5)
    prompt.set()
    await settle()
    core.clock.advance(4.0)
    rest.set()
    await completion.ended()
    said = await page(console, "/sessions/s")
    assert "<answer>" not in said
    text = text_of(said)
    for part in (
        "a <question>",
        "the <answer>",
        "hm <i>",
        "waiting 500 ms",
        "prompt 1.50 s",
        "answer 4.00 s",
        "total 6.00 s",
        "400 tokens sent, 300 (75%) cached, 100 evaluated in 100 ms by the engine's clock",
        "21 generated, 5.0 a second",
        "1 messages sent",
        "ended stop, 1970-01-12 13:46:46Z",
    ):
        assert part in text
    assert 'class="prompt" x="8.333" width="25.0"' in said


async def test_exchanges_come_in_pages_and_the_last_ones_are_first_seen() -> None:
    console = ConsoleOfCore()
    for number in range(45):
        await console.core.say(f"question {number}")
    last = text_of(await page(console, "/sessions/s"))
    assert "Exchange 26 " in last
    assert "question 44" in last
    assert "Exchange 25 " not in last
    middle = await page(console, "/sessions/s?first=5")
    assert ("first=0" in middle, "first=25" in middle) == (True, True)
    assert "Exchange 25 " in text_of(middle)
    assert "Exchange 26 " not in text_of(middle)
    assert "no exchanges on this page" in text_of(await page(console, "/sessions/s?first=999"))
    assert "Exchange 45 " in text_of(await page(console, "/sessions/s?first=-1"))


async def test_messages_without_figures_say_so() -> None:
    console = ConsoleOfCore()
    told = (Message(Role.USER, "q"), Message(Role.ASSISTANT, "imported"))
    await console.core.commands.create(NewSession("s", messages=told))
    assert "No figures are stored of this message" in text_of(await page(console, "/sessions/s"))
    await console.core.say("now")
    assert text_of(await page(console, "/sessions/s")).count("No figures are stored") == 1


async def test_a_tool_call_and_its_result_are_one_exchange_with_two_turns() -> None:
    console = ConsoleOfCore()
    console.core.engine.scripts.append(
        [ToolCallDelta(0, "id1", "look_up", '{"x": 1}'), EngineDone(FinishReason.TOOL_CALLS)]
    )
    await console.core.say("what is x")
    result = Message(Role.TOOL, "it is one", tool_call_id="id1")
    await console.core.say(messages=(result,))
    said = await page(console, "/sessions/s")
    text = text_of(said)
    assert "calls look_up" in text
    assert "it is one" in text
    assert (said.count('class="bar"'), said.count('<section class="exchange"')) == (2, 1)
    assert "the engine reported no tokens" in text


async def test_a_large_session_gives_a_page_of_bounded_size() -> None:
    console = ConsoleOfCore()
    large = "x" * 900_000
    for _ in range(3):
        await console.core.say(large)
    said = await page(console, "/sessions/s")
    assert len(said) < 100_000
    assert "896,000 more characters" in text_of(said)
    assert "too large to be shown" in text_of(said)


async def test_a_reader_sees_figures_and_no_text() -> None:
    console = ConsoleOfCore()
    core = console.core
    session_id = "ann/s"
    core.engine.scripts.append([EngineText("secret answer"), done(40, 30, 2)])
    await core.commands.create(NewSession(session_id, system_prompt="secret prompt", tenant="ann"))
    await core.say("secret question", session_id, tenant="ann")
    gate = asyncio.Event()
    core.engine.scripts.append([EngineText("secret stream"), gate, done()])
    core.start("secret too", session_id, tenant="ann")
    await settle()
    for path in ("/sessions/s", "/sessions/s/live", "/live", "/live/rows"):
        said = await page(console, path, READER)
        assert "secret" not in said, path
        assert "secret stream" in await page(console, path, ANN)
    assert "40 tokens sent" in text_of(await page(console, "/sessions/s", READER))
    gate.set()
    await core.completions.wait_idle()


# --- running and health ---------------------------------------------------------------------


async def test_an_administrator_sees_that_others_work_and_nothing_of_what_is_said() -> None:
    console = ConsoleOfCore()
    core = console.core
    gate = asyncio.Event()
    core.engine.scripts.append([EngineText("ann's secret"), gate, done()])
    core.start("hello", "ann/s", tenant="ann")
    await settle()
    said = await page(console, "/live", ADMIN)
    assert "secret" not in said
    assert "/sessions/s" not in said
    assert "tenant ann" in text_of(said)
    assert "1 run or wait" in text_of(said)
    assert "Nothing runs" in await page(console, "/live", Identity("bob"))
    assert "run or wait" not in await page(console, "/live", ANN)
    gate.set()
    await core.completions.wait_idle()


async def test_the_page_of_a_session_says_when_there_are_new_exchanges() -> None:
    console = ConsoleOfCore()
    await console.core.say()
    assert "new exchanges" not in await page(console, "/sessions/s/live?exchanges=1")
    assert "new exchanges" in await page(console, "/sessions/s/live?exchanges=0")


async def test_health_is_that_of_the_store_and_the_engine() -> None:
    console = ConsoleOfCore()
    core = console.core
    core.observe(StoreStateChanged(up=True, detail="sqlite"))
    core.observe(EngineStateChanged(up=True, detail="is up"))
    core.engine.scripts.append([EngineText("x"), done(200, 150, 30)])
    await core.say()
    core.clock.advance(90.0)
    text = text_of(await page(console, "/health"))
    for part in ("1.2.3, ready", "store up for 0 s", "1 active", "75.0 %", "100 of 512 MiB"):
        assert part in text
    core.observe(EngineStateChanged(up=False, detail="no answer", engine="lab"))
    assert "lab: down" in text_of(await page(console, "/health"))
    core.observe(EngineStateChanged(up=False, detail="exit code 7"))
    text = text_of(await page(console, "/health/facts"))
    assert "not ready" in text
    assert "engine down for 0 s: exit code 7" in text
    text = text_of(await page(console, "/health", ANN))
    assert "exit code 7" not in text
    assert "512 MiB" not in text
    assert "0 active" in text


class DownStore(MemoryStore):
    """A store that cannot be read."""

    async def get(self, session_id: str) -> Session | None:
        raise StoreUnavailable("the disk is gone")

    async def counts(self, *_: object, **__: object) -> StoreCounts:
        raise StoreUnavailable("the disk is gone")


async def test_while_the_store_is_down_its_pages_say_so_and_health_is_shown() -> None:
    console = ConsoleOfCore(Core(store=DownStore()))
    async with console.browser() as browser:
        response = await browser.get("/sessions/s")
        assert response.status_code == 503
        assert "the disk is gone" in text_of(response.text)
    assert "the store is down" in text_of(await page(console, "/health"))


async def test_a_session_that_its_first_turn_creates_is_shown_while_that_runs() -> None:
    console = ConsoleOfCore()
    gate = asyncio.Event()
    console.core.engine.scripts.append([EngineText("just begun"), gate, done()])
    console.core.start()
    await settle()
    text = text_of(await page(console, "/sessions/s"))
    assert "just begun" in text
    assert "There are no exchanges" in text
    gate.set()
    await console.core.completions.wait_idle()
    assert "new exchanges" in await page(console, "/sessions/s/live?exchanges=0")


async def test_while_memory_is_nearly_used_up_large_pages_are_refused_and_health_is_shown() -> None:
    def check_memory() -> None:
        raise Overloaded("the memory is nearly used up")

    console = ConsoleOfCore(check_memory=check_memory)
    await console.core.say()
    for path in ("/", "/sessions/s"):
        assert await status(console, path) == 503
    for path in ("/live", "/health", "/static/console.js"):
        assert await status(console, path) == 200


class BuggyStore(MemoryStore):
    """A store with a fault in its code."""

    async def get(self, session_id: str) -> Session | None:
        raise ZeroDivisionError("a detail of the code")


async def test_a_fault_is_logged_and_its_page_tells_no_detail(
    caplog: pytest.LogCaptureFixture,
) -> None:
    console = ConsoleOfCore(Core(store=BuggyStore()))
    async with console.browser() as browser:
        response = await browser.get("/sessions/s")
    assert response.status_code == 500
    assert "log has the details" in text_of(response.text)
    assert "a detail of the code" not in response.text
    assert "content-security-policy" in response.headers
    assert "a detail of the code" in caplog.text


# --- a browser ------------------------------------------------------------------------------


async def test_every_response_forbids_what_the_pages_do_not_need() -> None:
    console = ConsoleOfCore()
    async with console.browser() as browser:
        for path in ("/", "/live", "/health", "/none", "/static/console.js", "/sessions/none"):
            headers = (await browser.get(path)).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy, path
            assert "unsafe" not in policy
            assert "frame-ancestors 'none'" in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            assert headers["cross-origin-resource-policy"] == "same-origin"
        for path in ("/", "/live", "/health"):
            said = (await browser.get(path)).text
            assert "http://" not in said.replace("http://www.w3.org/2000/svg", "")
            assert " style=" not in said
            assert " on" not in said.partition("<script")[2]


async def test_nothing_but_reading_is_answered() -> None:
    console = ConsoleOfCore()
    async with console.browser() as browser:
        for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
            assert (await browser.request(method, "/")).status_code == 405
        assert (await browser.head("/")).status_code == 200


async def test_a_path_that_is_none_and_numbers_that_are_none_are_harmless() -> None:
    console = ConsoleOfCore(Core(ScriptedEngine()))
    assert await status(console, "/../etc/passwd") == 404
    assert await status(console, "/static/../app.py") == 404
    assert await status(console, "/static/") == 404
    for number in ("x", "-1", "1e9", "٣", "9" * 30, "9223372036854775807"):
        assert await status(console, f"/?after={number}") == 200, number


# --- figures --------------------------------------------------------------------------------


def test_the_bar_of_a_turn_covers_its_whole_duration() -> None:
    with_first = views.segments(Timings(1.0, 3.0, 4.0, 0.5), 8.0)
    assert [(each.name, each.seconds) for each in with_first] == [
        ("waiting", 1.0), ("prompt", 2.0), ("answer", 1.0)
    ]  # fmt: skip
    assert [(each.start, each.width) for each in with_first] == [
        (0, 12.5),
        (12.5, 25),
        (37.5, 12.5),
    ]
    without = views.segments(Timings(1.0, None, 4.0, None), 4.0)
    assert [(each.name, each.width) for each in without] == [("waiting", 25), ("engine", 75)]
    assert {each.width for each in views.segments(Timings(0.0, 0.0, 0.0, None), 0.0)} == {0}


def test_unknown_figures_are_dashes_and_times_are_short() -> None:
    assert cached(Usage(10, None, 1)) == "-"
    assert cached(Usage(0, 0, 0)) == "0"
    assert cached(Usage(10, 5, 1)) == "5 (50%)"
    assert (ago(1.0, 0.0), ago(0.0, 59.0), ago(0.0, 7200.0)) == ("0 s ago", "59 s ago", "2.0 h ago")
    assert (until(86_400 * 3, 0.0), until(1.0, 2.0)) == ("in 3.0 days", "expired")


def test_labels_are_bounded_in_number_and_length() -> None:
    shown = views.labels({f"key{number:02}": "v" * 500 for number in range(20)})
    assert (len(shown), shown[-1]) == (9, "and 12 more")
    assert max(len(each) for each in shown) == 60


async def test_appended_messages_and_a_pinned_one_are_shown() -> None:
    console = ConsoleOfCore()
    await console.core.say()
    await console.core.commands.add(
        "s", NewMessages((Message(Role.USER, "remember", pinned=True),))
    )
    assert "user, pinned" in text_of(await page(console, "/sessions/s"))


# --- identities of browsers -----------------------------------------------------------------


async def test_the_password_that_a_browser_sends_is_the_token(tmp_path: Path) -> None:
    token, line = tokens.create("ann", CallerRole.USER)
    file = tmp_path / "tokens"
    file.write_text(f"{line}\n")
    console = ConsoleOfCore()
    known = await asyncio.to_thread(tokens.TokenFile, file)
    async with console.browser(callers=Authenticator(tokens=known)) as browser:
        for user in ("", "ann", "whoever"):
            assert (await browser.get("/", auth=(user, token))).status_code == 200
        for value in (
            "Basic", "Basic %%%", "Basic " + base64.b64encode(b"no colon").decode(),
            "Basic " + base64.b64encode(b"ann:" + token.encode() + b"x").decode(),
            "Basic " + base64.b64encode(b"ann:\xff\n").decode(), "Bearer", "",
        ):  # fmt: skip
            response = await browser.get("/", headers={"authorization": value})
            assert response.status_code == 401, value
            assert response.headers["www-authenticate"].startswith("Basic ")
