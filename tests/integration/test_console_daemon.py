"""The console of a real daemon: its address, who sees what, and that looking on changes nothing."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from certificates import Files
from console_pages import text_of
from running import RunningDaemon, StartDaemon, start_serve
from wire import say, turn

from ruvd.config.loader import SettingsInvalid, load
from ruvd.rpc.identity import tokens
from ruvd.rpc.identity.caller import Role
from ruvd.v1 import session_service_pb2 as pb

ECHO = ("--engine", "echo")
CONSOLE = ("--console-listen", "127.0.0.1:0")


async def url_of(running: RunningDaemon, scheme: str = "http") -> str:
    return f"{scheme}://{(await running.logged('serving the console'))['address']}"


@asynccontextmanager
async def browser(
    running: RunningDaemon, token: str = "", **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """Yields a client that sends the token as browsers do."""
    auth = ("", token) if token else None
    url = await url_of(running)
    async with httpx.AsyncClient(base_url=url, auth=auth, timeout=60, **options) as client:
        yield client


class Tokens:
    """A file of tokens, and a token of each role and tenant that was asked for."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.touch()

    def new(self, tenant: str, role: Role = Role.USER) -> str:
        token, line = tokens.create(tenant, role)
        with self.file.open("a") as lines:
            lines.write(f"{line}\n")
        return token


@pytest.fixture
def known(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "tokens")


async def test_there_is_no_console_unless_it_is_asked_for(daemon: StartDaemon) -> None:
    async with daemon(*ECHO) as running:
        assert not [line for line in running.log if "console" in line["event"]]
    async with daemon(*ECHO, *CONSOLE) as running, browser(running) as pages:
        for path in ("/", "/live", "/health"):
            assert (await pages.get(path)).status_code == 200


async def test_a_turn_is_shown_while_it_runs_and_afterwards_and_is_not_changed_by_that(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    store = ("--store", f"sqlite:{tmp_path}/s.db")
    slow = ("--echo-delay-seconds", "0.02")
    text = " ".join(f"word{number}" for number in range(60))
    async with (
        daemon(*ECHO, *CONSOLE, *store, *slow) as running,
        running.stub() as stub,
        browser(running) as pages,
    ):
        await say(stub, "one two three", "talk")
        seen: list[str] = []
        call = stub.Complete(turn(text, "talk"))
        events = []
        async for response in call:
            events.append(response.event)
            seen += [(await pages.get(path)).text for path in ("/live/rows", "/sessions/talk/live")]
        assert any("word1" in each and "answer" in each for each in seen)
        finished = events[-1].finished
        assert finished.message.content == text
        assert "".join(each.delta.text for each in events) == text
        page = text_of((await pages.get("/sessions/talk")).text)
        usage = finished.usage
        evaluated = usage.prompt_tokens - usage.cached_tokens
        assert f"{usage.prompt_tokens} tokens sent, {usage.cached_tokens} (" in page
        assert f"cached, {evaluated} evaluated" in page
        assert "3 messages sent" in page
        assert "Nothing runs" in (await pages.get("/live/rows")).text
        before = (await stub.GetSession(pb.GetSessionRequest(session_id="talk"))).session
        await pages.get("/sessions/talk")
        after = (await stub.GetSession(pb.GetSessionRequest(session_id="talk"))).session
        assert after.last_used_time == before.last_used_time


async def test_nothing_is_shown_without_an_identity_and_each_sees_its_own_tenant(
    daemon: StartDaemon, known: Tokens
) -> None:
    ann, bob, reader = known.new("ann"), known.new("bob"), known.new("ann", Role.READER)
    async with (
        daemon(*ECHO, *CONSOLE, "--tokens-file", str(known.file)) as running,
        running.stub() as stub,
    ):
        metadata = (("authorization", f"Bearer {ann}"),)
        call = stub.Complete(turn("secret words", "talk"), metadata=metadata)
        assert [event async for event in call]
        for token in ("", "ruvd_wrong", "x"):
            async with browser(running, token) as pages:
                for path in (
                    "/", "/live", "/live/rows", "/health", "/health/facts", "/sessions/talk",
                    "/sessions/talk/live", "/static/console.js", "/none",
                ):  # fmt: skip
                    response = await pages.get(path)
                    assert response.status_code == 401, path
                    assert response.headers["www-authenticate"].startswith("Basic ")
                    for fact in ("talk", "secret", "echo", "up"):
                        assert fact not in text_of(response.text).split(), path
        async with browser(running, ann) as pages:
            assert "talk" in (await pages.get("/")).text
            assert "secret words" in (await pages.get("/sessions/talk")).text
            assert "user of ann" in (await pages.get("/health")).text
        async with browser(running, bob) as pages:
            assert "talk" not in (await pages.get("/")).text
            assert (await pages.get("/sessions/talk")).status_code == 404
        async with browser(running, reader) as pages:
            assert "secret" not in (await pages.get("/sessions/talk")).text
        async with browser(running, headers={"authorization": f"Bearer {ann}"}) as pages:
            assert (await pages.get("/")).status_code == 200


async def test_who_looked_at_which_session_is_in_the_audit_log(
    daemon: StartDaemon, known: Tokens, tmp_path: Path
) -> None:
    ann, log = known.new("ann"), tmp_path / "audit.log"
    flags = ("--tokens-file", str(known.file), "--audit-log", str(log))
    async with daemon(*ECHO, *CONSOLE, *flags) as running:
        async with browser(running, ann) as pages:
            await pages.get("/sessions/talk")
            await pages.get("/live/rows")
        async with browser(running) as pages:
            await pages.get("/")
    records = [json.loads(line) for line in log.read_text().splitlines()]
    calls = {each["method"]: each for each in records if each.get("event") == "call"}
    looked = calls["HTTP GET /sessions/{session_id}"]
    assert (looked["session_id"], looked["tenant"], looked["code"]) == ("talk", "ann", "NOT_FOUND")
    assert calls["HTTP GET /"]["code"] == "UNAUTHENTICATED"
    assert len(calls) == 2


async def test_a_page_of_another_site_reads_nothing(daemon: StartDaemon) -> None:
    async with daemon(*ECHO, *CONSOLE) as running, browser(running) as pages:
        for headers in ({"host": "rebound.example"}, {"origin": "https://evil.example"}):
            response = await pages.get("/", headers=headers)
            assert (response.status_code, "sessions" in response.text.lower()) == (403, False)


async def test_the_console_has_the_tls_of_the_api_and_knows_certificates(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    files = Files(tmp_path)
    certificate, key = files.issue("ann", "spiffe://test/ann")
    trusting = ssl.create_default_context(cafile=files.ca)
    async with daemon(*ECHO, *CONSOLE, *files.flags, "--client-ca-file", str(files.ca)) as running:
        url = await url_of(running, "https")
        async with httpx.AsyncClient(base_url=url, verify=trusting) as pages:
            with pytest.raises(httpx.TransportError):
                await pages.get("/")
        trusting.load_cert_chain(certificate, key)
        async with httpx.AsyncClient(base_url=url, verify=trusting) as pages:
            response = await pages.get("/")
    assert response.status_code == 200
    assert "user of spiffe://test/ann" in response.text


async def test_a_daemon_drains_while_pages_are_open(daemon: StartDaemon) -> None:
    async with daemon(*ECHO, *CONSOLE) as running, browser(running) as pages:
        assert (await pages.get("/live")).status_code == 200
        assert await running.stop() == 0


async def test_a_port_that_is_taken_stops_the_start(daemon: StartDaemon, tmp_path: Path) -> None:
    async with daemon(*ECHO, *CONSOLE) as running:
        address = (await url_of(running)).removeprefix("http://")
        other = await start_serve(
            *ECHO, "--store", "memory", "--listen", f"unix:{tmp_path}/s", "--admin-listen", "none",
            "--console-listen", address, folder=tmp_path,
        )  # fmt: skip
        async with asyncio.timeout(60):
            assert await other.process.wait() == 3


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({"console_listen": "0.0.0.0:8090"}, "needs TLS"),
        ({"console_listen": "10.0.0.1:8090", "tokens_file": "t"}, "needs TLS"),
        ({"console_listen": "unix:/r.sock"}, "must be host:port"),
        ({"console_listen": "8090"}, "neither host:port"),
    ],
)
def test_an_address_that_others_can_reach_needs_tls_and_identity(
    flags: dict[str, str], complaint: str
) -> None:
    with pytest.raises(SettingsInvalid, match=complaint):
        load(flags)


def test_an_open_address_can_be_allowed() -> None:
    settings, _ = load({"console_listen": "0.0.0.0:8090", "allow_remote_insecure": True})
    assert settings.console_listen == "0.0.0.0:8090"
