"""The timeouts and pauses of the engine `openai`, in virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import answers
import pytest
from scripted_transport import NEVER, Script, ScriptedTransport
from virtual_time import in_virtual_time

from ruvd.core.errors import EngineTimeout, EngineUnavailable, RuvdError
from ruvd.core.model import Message, Role
from ruvd.core.ports.engine import EngineRequest, EngineText
from ruvd.core.ports.events import EngineStateChanged, Event
from ruvd.engines.openai.engine import OpenAIEngine

FINE = Script([*answers.deltas({"content": "Hello"}), answers.DONE])
# The role and the first token.
BEGUN = answers.deltas({"content": "Hello"})[:2]
NO_HEAD = Script(head_seconds=NEVER)
PING = b": ping\n\n"
PINGS: list[bytes | float] = [1.0, PING] * 1000


def busy(retry_after: str = "") -> Script:
    return Script([b"{}"], status=503, headers={"retry-after": retry_after})


class Engine:
    """An engine with one server, whose transport is scripted, and the time since its start."""

    def __init__(self, **settings: Any) -> None:
        self.transport = ScriptedTransport(FINE)
        self.events: list[Event] = []
        self._loop = asyncio.get_running_loop()
        self._engine = OpenAIEngine(
            observer=self.events.append,
            base_urls=["http://engine/v1"],
            transport=lambda _: self.transport,
            monotonic=self._loop.time,
            **{"model": "m", "connect_seconds": 2.0, "read_seconds": 10.0, **settings},
        )
        self.start = self._engine.start
        self.ready = self._engine.ready
        self.close = self._engine.close

    @property
    def seconds(self) -> float:
        return self._loop.time()

    async def answer(self, *scripts: Script) -> str:
        """The text of an answer, whose requests these scripts answer."""
        self.transport.scripts.extend(scripts)
        request = EngineRequest([Message(Role.USER, "hi")])
        chunks = [chunk async for chunk in self._engine.generate(request)]
        return "".join(chunk.text for chunk in chunks if isinstance(chunk, EngineText))

    async def error(self, *scripts: Script) -> RuvdError:
        with pytest.raises(RuvdError) as raised:
            await self.answer(*scripts)
        return raised.value


@in_virtual_time
async def test_silence_before_the_head_is_limited_to_connecting_and_reading() -> None:
    engine = Engine()
    error = await engine.error(NO_HEAD)
    assert isinstance(error, EngineTimeout)
    assert "silent" in str(error)
    assert engine.seconds == pytest.approx(12.0)


@in_virtual_time
async def test_silence_between_tokens_is_limited_and_pings_are_no_silence() -> None:
    engine = Engine()
    error = await engine.error(Script([*BEGUN, 9.0, PING, 9.0, PING, NEVER]))
    assert isinstance(error, EngineTimeout)
    assert "silent" in str(error)
    assert engine.seconds == pytest.approx(28.0)


@in_virtual_time
async def test_an_answer_that_never_ends_is_limited_in_all() -> None:
    engine = Engine(total_seconds=25.0)
    error = await engine.error(Script([*BEGUN, *PINGS]))
    assert isinstance(error, EngineTimeout)
    assert "in time" in str(error)
    assert engine.seconds == pytest.approx(25.0)


@in_virtual_time
async def test_the_limit_in_all_includes_the_retries() -> None:
    engine = Engine(total_seconds=30.0, read_seconds=100.0)
    assert isinstance(await engine.error(busy("20"), NO_HEAD), EngineTimeout)
    assert engine.seconds == pytest.approx(30.0)
    assert len(engine.transport.requests) == 2


@in_virtual_time
async def test_retry_after_is_waited_for() -> None:
    engine = Engine()
    assert await engine.answer(busy("7")) == "Hello"
    assert 7.0 <= engine.seconds <= 7.7


@pytest.mark.parametrize("retry_after", ["50", "61"])
@in_virtual_time
async def test_a_retry_after_beyond_the_deadline_or_a_minute_is_the_callers(
    retry_after: str,
) -> None:
    engine = Engine(total_seconds=50.0 if retry_after == "50" else 600.0)
    error = await engine.error(busy(retry_after))
    assert isinstance(error, EngineUnavailable)
    assert error.retry_after_seconds == float(retry_after)
    assert engine.seconds == 0.0
    assert len(engine.transport.requests) == 1


@in_virtual_time
async def test_without_retry_after_the_pauses_grow() -> None:
    engine = Engine(retries=2)
    await engine.error(busy(), busy(), busy())
    assert 0.25 + 0.5 <= engine.seconds <= 0.5 + 0.75
    assert len(engine.transport.requests) == 3


@in_virtual_time
async def test_done_is_waited_for_5_seconds_after_the_usage_and_then_not_needed() -> None:
    engine = Engine()
    finished = answers.deltas({"content": "Hello"})
    assert await engine.answer(Script([*finished, *PINGS])) == "Hello"
    assert engine.seconds == pytest.approx(5.0)


@in_virtual_time
async def test_text_that_comes_9_seconds_after_a_finish_reason_is_not_lost() -> None:
    """Gemini's finish reason is "stop" in every chunk."""
    engine = Engine()
    first, second = (answers.deltas({"content": word})[1:3] for word in ("Hello", " there"))
    assert await engine.answer(Script([*first, 9.0, *second, 9.0, answers.DONE])) == "Hello there"


@in_virtual_time
async def test_text_that_goes_on_after_a_confirmed_end_is_not_cut() -> None:
    """A server that says after every word that it has finished, with its usage."""
    engine = Engine()
    word = answers.deltas({"content": "a"})[1:]
    script: list[bytes | float] = [*word, 4.0] * 5
    assert await engine.answer(Script([*script, answers.DONE])) == "aaaaa"


@in_virtual_time
async def test_a_finish_reason_that_nothing_confirms_is_no_success() -> None:
    engine = Engine()
    error = await engine.error(Script([*answers.deltas({"content": "Hello"})[:3], NEVER]))
    assert isinstance(error, EngineTimeout)
    assert engine.seconds == pytest.approx(10.0)


@in_virtual_time
async def test_the_end_of_the_response_is_waited_for_a_tenth_of_a_second_after_done() -> None:
    engine = Engine()
    whole = answers.deltas({"content": "Hello"})
    assert await engine.answer(Script([*whole, answers.DONE, NEVER])) == "Hello"
    assert engine.seconds == pytest.approx(0.1)


@in_virtual_time
async def test_the_timeout_of_the_whole_says_nothing_about_the_server_but_a_silence_does() -> None:
    settings: dict[str, Any] = {"retries": 0, "breaker_failures": 1, "breaker_seconds": 60.0}
    engine = Engine(total_seconds=5.0, **settings)
    assert isinstance(await engine.error(NO_HEAD), EngineTimeout)
    assert await engine.answer() == "Hello"
    engine = Engine(**settings)
    assert isinstance(await engine.error(NO_HEAD), EngineTimeout)
    error = await engine.error()
    assert isinstance(error, EngineUnavailable)
    assert error.retry_after_seconds == pytest.approx(60.0)
    await asyncio.sleep(60.0)
    assert await engine.answer() == "Hello"


@in_virtual_time
async def test_a_server_that_is_down_is_checked_every_second_and_one_that_is_up_every_10() -> None:
    engine = Engine()
    engine.transport.script = busy()
    await engine.start()
    await asyncio.sleep(5.0)
    down = len(engine.transport.requests)
    assert 4 <= down <= 5  # an interval is 1.2 s
    engine.transport.script = FINE
    await asyncio.sleep(1.2)
    assert [e.up for e in engine.events if isinstance(e, EngineStateChanged)] == [False, True]
    await asyncio.sleep(100.0)
    assert 9 <= len(engine.transport.requests) - down <= 11
    await engine.close()
