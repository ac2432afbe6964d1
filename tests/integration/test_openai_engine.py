"""The engine `openai` on real sockets: affinity, retries, breaker, credentials, cancellation."""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from answers import CUT, STALL, Answer, deltas, http, models, refusal, streamed, text
from fakes import FrozenClock
from upstream import Upstream, deaf, serving, unused_url

from ruvd.core.errors import (
    EngineRateLimited,
    EngineRejected,
    EngineUnavailable,
    RuvdError,
)
from ruvd.core.model import FinishReason, Message, Role, Usage
from ruvd.core.options import CompletionOptions
from ruvd.core.ports.engine import EngineChunk, EngineDone, EngineRequest, EngineText
from ruvd.core.ports.events import EngineStateChanged, Event, Observer
from ruvd.engines.http.http1 import Http1Transport
from ruvd.engines.http.transport import Request, Response
from ruvd.engines.openai.engine import OpenAIEngine

Handle = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

KEY = "sk-0123456789abcdef"
PIECES = ["Hello", " there", "!"]
HELLO = "".join(PIECES)
# The time for what should happen at once, on a busy machine.
SECONDS = 20.0
# An answer after its first token.
BEGUN = streamed(deltas({"content": "Hello"})[:2], done=False)[:-1]


def ask(*, session: str = "", **options: Any) -> EngineRequest:
    return EngineRequest([Message(Role.USER, "hi")], CompletionOptions(**options), session)


@asynccontextmanager
async def engine(
    *servers: Upstream | str, observer: Observer = lambda _: None, **settings: Any
) -> AsyncIterator[OpenAIEngine]:
    """An engine with these servers. At the end, it is closed and has left no task and no socket."""
    before = asyncio.all_tasks()
    made = OpenAIEngine(
        observer=observer,
        base_urls=[each if isinstance(each, str) else each.url for each in servers],
        **{"model": "m", "connect_seconds": 1.0, "read_seconds": 2.0, **settings},
    )
    try:
        yield made
    finally:
        await made.close()
        for server in servers:
            if isinstance(server, Upstream):
                await _abandoned(server)
        async with asyncio.timeout(5):
            while left := [
                task
                for task in asyncio.all_tasks() - before
                if "upstream.py" not in str(task.get_coro())
            ]:
                await asyncio.wait(left, timeout=0.1)


async def _abandoned(server: Upstream) -> None:
    await server.until(lambda: not server.open_connections)


def text_of(chunks: Sequence[EngineChunk]) -> str:
    """The text of all chunks."""
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, EngineText))


async def collect(made: OpenAIEngine, request: EngineRequest | None = None) -> list[EngineChunk]:
    return [chunk async for chunk in made.generate(request or ask())]


async def texts(made: OpenAIEngine, request: EngineRequest | None = None) -> str:
    return text_of(await collect(made, request))


async def fails(
    made: OpenAIEngine, kind: type[RuvdError], request: EngineRequest | None = None
) -> str:
    with pytest.raises(kind) as raised:
        await collect(made, request)
    assert type(raised.value) is kind
    return str(raised.value)


# --- one server ------------------------------------------------------------------------------


async def test_an_answer_with_its_figures_over_one_connection_that_is_kept() -> None:
    async with serving() as server, engine(server) as made:
        for _ in range(3):
            chunks = await collect(made, ask(model="another"))
            assert text_of(chunks) == HELLO
            assert chunks[-1] == EngineDone(
                FinishReason.STOP, Usage(9, 4, 3), raw_finish_reason="stop"
            )
        assert server.accepted == 1
        assert [each.body["model"] for each in server.requests] == ["another"] * 3
        assert await made.models() == ["m", "another"]


# --- affinity --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("affinity", "header", "field"),
    [
        ("none", None, None),
        ("openai", None, "prompt_cache_key"),
        ("vllm", "x-session-id", None),
        ("sglang", "x-smg-routing-key", None),
        ("llama-server", None, None),
    ],
)
async def test_a_session_has_one_key_that_does_not_tell_its_id(
    affinity: str, header: str | None, field: str | None
) -> None:
    async with serving() as server, engine(server, affinity=affinity) as made:
        for session in ("ann@example.org", "ann@example.org", "bob", ""):
            await collect(made, ask(session=session))
        keys = [
            each.headers.get(header) if header else each.body.get(field or "")
            for each in server.requests
        ]
        assert all(b"ann@example.org" not in each.raw for each in server.requests)
        if header or field:
            assert re.fullmatch(r"[\w-]{32}", str(keys[0]))
            assert keys[0] == keys[1] != keys[2]
            assert keys[3] is None
        else:
            assert keys == [None] * 4
        assert {"x-session-id", "x-smg-routing-key"} & set(server.requests[0].headers) == (
            {header} if header else set()
        )


async def test_another_header_and_another_salt_give_another_key() -> None:
    keys = set()
    for salt in ("pepper-1", "pepper-2"):
        settings: dict[str, Any] = {
            "affinity": "vllm",
            "affinity_header": "X-User-ID",
            "cache_salt": salt,
        }
        async with serving() as server, engine(server, **settings) as made:
            await collect(made, ask(session="s"))
            assert server.requests[0].body["cache_salt"] == salt
            assert "x-session-id" not in server.requests[0].headers
            keys.add(server.requests[0].headers["x-user-id"])
    assert len(keys) == 2


@pytest.mark.parametrize("affinity", ["vllm", "sglang"])
async def test_what_bypasses_the_cache_has_a_salt_of_its_own(affinity: str) -> None:
    async with (
        serving() as server,
        engine(server, affinity=affinity, cache_salt="pepper") as made,
    ):
        for _ in range(2):
            await collect(made, ask(bypass_cache=True))
        salts = {each.body["cache_salt"] for each in server.requests}
        assert len(salts) == 2
        assert "pepper" not in salts


@pytest.mark.parametrize("affinity", ["none", "openai", "llama-server"])
async def test_bypassing_the_cache_is_refused_where_it_cannot_be_had(affinity: str) -> None:
    async with serving() as server, engine(server, affinity=affinity) as made:
        assert "bypass_cache" in await fails(made, EngineRejected, ask(bypass_cache=True))
        assert not server.requests


# --- retries ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first",
    [
        [CUT],
        refusal("503 Busy", "later", Retry_After="0"),
        refusal("429 Busy", "later", Retry_After="0"),
        refusal("502 Bad Gateway", "later"),
    ],
)
async def test_what_was_not_answered_is_asked_again(first: Answer) -> None:
    async with serving() as server, engine(server) as made:
        server.scripts.append(first)
        assert await texts(made) == HELLO
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("first", "error"),
    [
        (refusal("400 Bad Request", "no"), EngineRejected),
        (refusal("500 Oops", "boom"), EngineUnavailable),
        (refusal("504 Gateway Timeout", "slow"), EngineUnavailable),
        (http(b"<html>", kind="text/html"), EngineUnavailable),
        (refusal("429 Busy", "later", Retry_After="30"), EngineRateLimited),
    ],
)
async def test_what_was_answered_is_not_asked_again(first: Answer, error: type[RuvdError]) -> None:
    async with serving() as server, engine(server, total_seconds=5.0) as made:
        server.scripts.append(first)
        await fails(made, error)
        assert len(server.requests) == 1


async def test_nothing_is_asked_again_after_the_first_token() -> None:
    async with serving() as server, engine(server) as made:
        server.scripts.append([*BEGUN, CUT])
        stream = made.generate(ask())
        assert await anext(stream) == EngineText("Hello")
        with pytest.raises(EngineUnavailable):
            await anext(stream)
        assert len(server.requests) == 1


async def test_an_outage_is_not_doubled() -> None:
    """There are ten retries, then one for every fifth call."""
    async with serving() as server, engine(server, retries=10, breaker_failures=10_000) as made:
        server.answer = lambda _: refusal("503 Busy", "later", Retry_After="0")
        for _ in range(40):
            await fails(made, EngineUnavailable)
        assert 40 + 10 <= len(server.requests) <= 40 + 10 + 8 + 1


# --- several servers -------------------------------------------------------------------------


async def test_the_next_server_is_asked_at_once_when_one_is_down() -> None:
    events: list[Event] = []
    async with serving() as second:
        first = unused_url()
        async with engine(first, second, observer=events.append, retries=0) as made:
            assert await texts(made) == HELLO
            await made.start()
            await made.ready()
            assert await made.models() == ["m", "another"]
            assert await texts(made) == HELLO
            (told,) = [event for event in events if isinstance(event, EngineStateChanged)]
            assert told.up
            assert second.url in told.detail


async def test_a_server_that_refuses_the_key_is_passed_over_and_one_that_rejects_is_not() -> None:
    async with (
        serving() as first,
        serving() as second,
        engine(first, second, retries=0) as made,
    ):
        first.scripts.append(refusal("401 Unauthorized", "who are you?"))
        assert await texts(made) == HELLO
        assert len(second.requests) == 1
        first.scripts.append(refusal("404 Not Found", "no such model"))
        assert await fails(made, EngineRejected) == "no such model"
        assert len(second.requests) == 1


async def test_the_observer_hears_once_when_all_are_down_and_once_when_one_is_back() -> None:
    told: asyncio.Queue[Event] = asyncio.Queue()
    async with serving() as server, engine(server, observer=told.put_nowait) as made:
        await made.start()
        await made.ready()
        assert (await told.get()) == EngineStateChanged(up=True, detail=f"m at {server.url}")
        await server.stop()
        await fails(made, EngineUnavailable)
        down = await asyncio.wait_for(told.get(), SECONDS)
        assert isinstance(down, EngineStateChanged)
        assert not down.up
        with pytest.raises(EngineUnavailable, match=r"no server of the engine is up: http://"):
            await made.ready()
        await server.start()
        assert (await asyncio.wait_for(told.get(), SECONDS)) == EngineStateChanged(
            up=True, detail=f"m at {server.url}"
        )
        await made.ready()
        assert await texts(made) == HELLO
        assert told.empty()


async def test_any_answer_below_500_is_alive_and_a_refused_key_is_told() -> None:
    events: list[Event] = []
    async with serving() as server, engine(server, observer=events.append) as made:
        server.lookup = lambda _: refusal("401 Unauthorized", "who are you?")
        await made.start()
        await made.ready()
        (told,) = [event for event in events if isinstance(event, EngineStateChanged)]
        assert told.up
        assert "credentials" in told.detail
        assert await texts(made) == HELLO


async def test_an_open_circuit_rejects_calls_at_once_until_a_probe_has_shown_that_all_is_well() -> (
    None
):
    clock = FrozenClock()
    settings: dict[str, Any] = {
        "retries": 0, "breaker_failures": 2, "breaker_seconds": 10.0, "monotonic": clock.monotonic
    }  # fmt: skip
    async with serving() as server, engine(server, **settings) as made:
        server.answer = lambda _: refusal("500 Oops", "boom")
        for _ in range(2):
            assert await fails(made, EngineUnavailable) == "boom"
        clock.advance(9.0)
        assert server.url in await fails(made, EngineUnavailable)
        assert len(server.requests) == 2
        clock.advance(1.0)
        go = asyncio.Event()
        server.answer = lambda _: [go, *text(*PIECES)]
        probe = asyncio.create_task(texts(made))
        await server.asked(3)
        await fails(made, EngineUnavailable)
        go.set()
        assert await probe == HELLO
        assert await texts(made) == HELLO
        assert len(server.requests) == 4


async def test_a_probe_that_says_nothing_about_the_server_leaves_the_next_call_to_probe() -> None:
    clock = FrozenClock()
    settings: dict[str, Any] = {
        "retries": 0, "breaker_failures": 1, "breaker_seconds": 10.0, "monotonic": clock.monotonic
    }  # fmt: skip
    async with serving() as server, engine(server, **settings) as made:
        server.scripts.append(refusal("500 Oops", "boom"))
        await fails(made, EngineUnavailable)
        clock.advance(10.0)
        # The caller's own error, before anything is sent.
        assert "extra_body" in await fails(made, EngineRejected, ask(extra_body={"stream": False}))
        server.scripts.append([STALL])
        task = asyncio.create_task(collect(made))
        await server.asked(2)
        task.cancel()
        await asyncio.wait([task])
        assert await texts(made) == HELLO
        assert len(server.requests) == 3


async def test_only_one_call_at_a_time_probes_a_server_whose_circuit_is_half_open() -> None:
    """Two calls that first try another server do not both become the probe."""
    clock = FrozenClock()
    settings: dict[str, Any] = {
        "retries": 0, "breaker_failures": 1, "breaker_seconds": 10.0, "monotonic": clock.monotonic
    }  # fmt: skip
    async with serving() as first, serving() as second, engine(first, second, **settings) as made:
        first.answer = lambda _: refusal(
            "429 Busy", "later"
        )  # the server is well, another is asked
        second.scripts.append(refusal("500 Oops", "boom"))
        await fails(made, EngineUnavailable)
        await fails(made, EngineRateLimited)  # the circuit of the second server is open
        assert len(second.requests) == 1
        clock.advance(10.0)
        leave_first, answer_probe = asyncio.Event(), asyncio.Event()
        first.answer = lambda _: [leave_first, *refusal("429 Busy", "later")]
        second.answer = lambda _: [answer_probe, *text(*PIECES)]
        calls = [asyncio.create_task(texts(made)) for _ in range(2)]
        await first.asked(4)
        leave_first.set()
        (rejected,), (probe,) = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert isinstance(rejected.exception(), EngineRateLimited)
        answer_probe.set()
        assert await probe == HELLO
        assert len(second.requests) == 2


async def test_a_cancelled_call_says_nothing_about_the_server() -> None:
    settings: dict[str, Any] = {"retries": 0, "breaker_failures": 1}
    async with serving() as server, engine(server, **settings) as made:
        server.scripts.append([STALL])
        task = asyncio.create_task(collect(made))
        await server.asked()
        task.cancel()
        await asyncio.wait([task])
        assert await texts(made) == HELLO


# --- connecting and cancellation -------------------------------------------------------------


class AnnouncedTransport:
    """HTTP/1.1 with an event that is set when a request is being sent."""

    def __init__(self) -> None:
        self.sending = asyncio.Event()
        self._transport = Http1Transport()
        self.aclose = self._transport.aclose

    async def send(self, request: Request) -> Response:
        self.sending.set()
        return await self._transport.send(request)


async def test_connecting_is_limited() -> None:
    with deaf() as url:
        async with engine(url, connect_seconds=0.2, read_seconds=60.0, retries=0) as made:
            assert "no connection within 0.2 s" in await fails(made, EngineUnavailable)


@pytest.mark.parametrize("phase", ["connect", "headers", "stream", "back-off"])
async def test_cancelling_ends_everything_in_every_phase(phase: str) -> None:
    """Without the cancellation, nothing would end for a minute."""
    scripts: dict[str, Answer] = {
        "headers": [STALL],
        "stream": [*BEGUN, STALL],
        "back-off": refusal("503 Busy", "later", Retry_After="60"),
    }
    announced = AnnouncedTransport()
    async with serving() as server:
        with deaf() as url:
            settings: dict[str, Any] = {
                "connect_seconds": 60.0,
                "read_seconds": 60.0,
                "transport": lambda _: announced,
            }
            async with engine(url if phase == "connect" else server, **settings) as made:
                server.answer = lambda _: scripts[phase]
                task = asyncio.create_task(collect(made))
                await announced.sending.wait()
                if phase != "connect":
                    request = await server.asked()
                if phase == "back-off":
                    await request.answered.wait()
                task.cancel()
                await asyncio.wait([task], timeout=SECONDS)
                assert task.cancelled()
                if phase in ("headers", "stream"):
                    await asyncio.wait_for(request.left.wait(), SECONDS)
                assert len(server.requests) == (phase != "connect")


async def test_closing_the_generator_closes_the_connection() -> None:
    async with serving() as server, engine(server, read_seconds=60.0) as made:
        server.scripts.append([*BEGUN, STALL])
        async with aclosing(made.generate(ask())) as chunks:
            await anext(chunks)
        await asyncio.wait_for(server.requests[0].left.wait(), SECONDS)


async def test_a_closed_engine_refuses_and_ends_what_runs() -> None:
    async with serving() as server, engine(server, read_seconds=60.0) as made:
        await made.start()
        await made.ready()
        server.scripts.append([STALL])
        task = asyncio.create_task(fails(made, EngineUnavailable))
        await server.asked()
        await made.close()
        await asyncio.wait_for(task, SECONDS)
        await fails(made, EngineUnavailable)
        with pytest.raises(EngineUnavailable, match="closed"):
            await made.ready()
        with pytest.raises(EngineUnavailable, match="closed"):
            await made.models()


# --- credentials and transport ---------------------------------------------------------------


async def test_the_key_is_sent_and_no_error_or_log_has_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving() as server, engine(server, api_key=KEY, retries=0) as made:
        server.lookup = lambda _: refusal("401 Unauthorized", f"{KEY} is no key")
        await made.start()
        await made.ready()
        for status in ("401 Unauthorized", "400 Bad", "500 Oops"):
            server.scripts.append(refusal(status, f"I know {KEY}"))
            error = EngineRejected if status == "400 Bad" else EngineUnavailable
            assert "I know (hidden)" in await fails(made, error)
        assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
        assert KEY not in repr(vars(made))
    assert "credentials" in caplog.text
    assert KEY not in caplog.text


async def test_the_first_checks_of_all_servers_have_the_key_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(KEY)
    async with serving() as one, serving() as two:
        async with engine(one, two, api_key_file=path) as made:
            await made.start()
            await made.ready()
        for server in (one, two):
            assert server.lookups[0].headers["authorization"] == f"Bearer {KEY}"


async def test_a_key_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "key"
    (tmp_path / "one").write_text("sk-one-one-one\n")
    (tmp_path / "two").write_text("sk-two-two-two\n")
    async with serving() as server, engine(server, api_key_file=path, retries=0) as made:
        assert "api_key_file" in await fails(made, EngineUnavailable)
        path.symlink_to("one")
        await collect(made)
        (tmp_path / "new").symlink_to("two")
        (tmp_path / "new").rename(path)  # as Kubernetes does
        server.scripts.append(refusal("401 Unauthorized", "old"))
        await fails(made, EngineUnavailable)  # after this, the file is checked at once
        await collect(made)
        path.unlink()
        await collect(made)
        keys = [each.headers["authorization"] for each in server.requests]
        one, two = "Bearer sk-one-one-one", "Bearer sk-two-two-two"
        assert keys == [one, one, two, two]


async def test_servers_are_asked_through_the_proxy_unless_they_are_in_no_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as proxy, serving() as server:
        set_proxy(monkeypatch, "http", f"http://127.0.0.1:{proxy.port}", "example.org, 127.0.0.1")
        other = server.url.replace("127.0.0.1", "localhost")
        async with engine(other, proxy) as made:
            assert await texts(made) == HELLO
            assert proxy.requests[0].path == f"{other}/chat/completions"
            assert not server.requests
        async with engine(server) as made:
            assert await texts(made) == HELLO
            assert server.requests[0].path == "/v1/chat/completions"
            assert len(proxy.requests) == 1


async def test_no_proxy_may_name_a_host_with_its_port(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as proxy, serving() as one, serving() as another:
        exception = one.url.removeprefix("http://").removesuffix("/v1")
        set_proxy(monkeypatch, "http", f"127.0.0.1:{proxy.port}", exception)
        async with engine(one) as made:
            assert await texts(made) == HELLO
            assert not proxy.requests
        async with engine(another, proxy) as made:
            assert await texts(made) == HELLO
            assert len(proxy.requests) == 1


async def test_https_goes_through_a_tunnel_unless_the_server_is_in_no_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tunnels: list[bytes] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        tunnels.append(head.split(b"\r\n")[0])
        upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await asyncio.gather(pump(reader, upstream), pump(upstream_reader, writer))

    ca, key = await asyncio.to_thread(certificate, tmp_path, "server")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(ca, key)
    async with serving_tls(context) as port, listening(tunnel) as proxy_port:
        set_proxy(monkeypatch, "https", f"http://127.0.0.1:{proxy_port}", "127.0.0.1")
        async with engine(f"https://localhost:{port}/v1", ca_file=ca) as made:
            assert await texts(made) == HELLO
        assert tunnels == [b"CONNECT localhost:%d HTTP/1.1" % port]
        async with engine(f"https://127.0.0.1:{port}/v1", ca_file=ca) as made:
            assert await texts(made) == HELLO
        assert len(tunnels) == 1


def set_proxy(monkeypatch: pytest.MonkeyPatch, scheme: str, url: str, no_proxy: str) -> None:
    """Set HTTP_PROXY or HTTPS_PROXY, and NO_PROXY."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", url)
    monkeypatch.setenv("NO_PROXY", no_proxy)


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate that signs itself, and its key."""
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", f"/CN={name}",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost",
         "-out", str(paths[0]), "-keyout", str(paths[1])],
        check=True, capture_output=True,
    )  # fmt: skip
    return paths


@asynccontextmanager
async def listening(handle: Handle, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """The port of a server."""
    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def serving_tls(context: ssl.SSLContext) -> AsyncIterator[int]:
    """The port of an HTTPS server, which answers one completion on each connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            for step in text(*PIECES, chunked=False):
                if isinstance(step, bytes):
                    writer.write(step)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async with listening(handle, context) as port:
        yield port


async def test_tls_is_verified_and_may_show_a_certificate(tmp_path: Path) -> None:
    ca, key = await asyncio.to_thread(certificate, tmp_path, "server")
    client, client_key = await asyncio.to_thread(certificate, tmp_path, "client")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(client))
    context.load_cert_chain(ca, key)
    context.verify_mode = ssl.CERT_REQUIRED
    files: dict[str, Any] = {
        "ca_file": ca,
        "client_cert_file": client,
        "client_key_file": client_key,
    }
    async with serving_tls(context) as port:
        url = f"https://127.0.0.1:{port}/v1"
        async with engine(url, **files) as made:
            assert await texts(made) == HELLO
        async with engine(url, retries=0) as made:
            assert "certificate" in await fails(made, EngineUnavailable)
        async with engine(url, ca_file=tmp_path / "none") as made:
            assert "ca_file" in await fails(made, EngineUnavailable)


async def test_models_are_of_the_first_server_that_answers() -> None:
    async with serving() as first, serving() as second, engine(first, second) as made:
        first.lookup = lambda _: refusal("500 Oops", "boom")
        second.lookup = lambda _: models("a", "b")
        assert await made.models() == ["a", "b"]
