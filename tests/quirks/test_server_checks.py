"""Whether a server can be reached is judged by what is needed: by completions, not by its models."""

from __future__ import annotations

import asyncio

import pytest
from answers import CUT, RESET, STALL, refusal, text
from fakes import FrozenClock
from quirk import Quirk, check, reply, say, stream, table
from upstream import serving, unused_url

from ruvd.core.errors import EngineUnavailable
from ruvd.core.model import Message, Role
from ruvd.core.ports.engine import EngineRequest
from ruvd.core.ports.events import EngineStateChanged, Event
from ruvd.engines.openai.engine import OpenAIEngine

HI = stream(say("Hi", "stop"))


@table(
    Quirk("models: 404", HI, text="Hi", models=reply(b"", "404 Not Found")),
    Quirk("models: 401", HI, text="Hi", models=reply(b"", "401 Unauthorized")),
    Quirk("models: 405", HI, text="Hi", models=reply(b"", "405 Method Not Allowed")),
    Quirk("models: 500", HI, text="Hi", models=reply(b"", "500 Oops")),
    Quirk("models: 501", HI, text="Hi", models=reply(b"", "501 Not Implemented")),
    Quirk("models: 502", HI, text="Hi", models=reply(b"<html>", "502 Bad Gateway", "text/html")),
    Quirk("models: 503", HI, text="Hi", models=reply({"error": "no"}, "503 Unavailable")),
    Quirk("models: 504", HI, text="Hi", models=reply(b"", "504 Timeout")),
    Quirk("models: silence", HI, text="Hi", models=[STALL]),
    Quirk("models: half an answer", HI, text="Hi", models=[b"HTTP/1.1 200 OK\r\n", STALL]),
    Quirk("models: a closed connection", HI, text="Hi", models=[CUT]),
    Quirk("models: a reset connection", HI, text="Hi", models=[RESET]),
    Quirk("models: no HTTP", HI, text="Hi", models=[b"\x00\x01\r\n\r\n", CUT]),
    Quirk("models: a page", HI, text="Hi", models=reply(b"<html>", kind="text/html")),
    Quirk("models: a redirect", HI, text="Hi", models=reply(b"", "302 Found", Location="/login")),
)
async def test_completions_are_served_whatever_becomes_of_the_models(quirk: Quirk) -> None:
    await check(quirk)


async def _answer(engine: OpenAIEngine) -> str:
    request = EngineRequest([Message(Role.USER, "hi")])
    return "".join([getattr(part, "text", "") async for part in engine.generate(request)])


async def test_a_server_whose_completions_work_stays_up_until_they_fail() -> None:
    states: asyncio.Queue[Event] = asyncio.Queue()
    clock = FrozenClock()  # the circuit breaker stays closed or open
    async with serving() as server:
        engine = OpenAIEngine(
            observer=states.put_nowait, base_urls=[server.url], model="m", retries=0,
            health_check_seconds=0.01, monotonic=clock.monotonic,
        )  # fmt: skip
        server.lookup = lambda _: refusal("503 Unavailable", "no models here")
        await engine.start()
        async with asyncio.timeout(60.0):
            down = await states.get()
            assert isinstance(down, EngineStateChanged)
            assert not down.up
            assert "no models here" in down.detail
            assert engine.is_ready  # it answers, so calls are let through
            assert await _answer(engine) == "Hello there!"
            up = await states.get()
            assert isinstance(up, EngineStateChanged)
            assert up.up
            seen = len(server.lookups)
            await server.until(lambda: len(server.lookups) >= seen + 3, seconds=60.0)
            assert states.empty()
            server.scripts.append(refusal("503 Unavailable", "gone"))
            with pytest.raises(EngineUnavailable, match="gone"):
                await _answer(engine)
            down = await states.get()
            assert isinstance(down, EngineStateChanged)
            assert not down.up
            server.answer = lambda _: text("back")
            assert await _answer(engine) == "back"
            assert (await states.get()) == EngineStateChanged(up=True, detail=f"m at {server.url}")
        await engine.close()


async def test_a_server_that_cannot_be_reached_is_down_and_nothing_is_sent_to_it() -> None:
    engine = OpenAIEngine(observer=lambda _: None, base_urls=[unused_url()], model="m")
    await engine.start()
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        await engine.ready()
    assert not engine.is_ready
    await engine.close()
