"""What every engine promises, run on the deterministic one and on the real llama.cpp."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest
import pytest_asyncio

from ruvd.engines.echo import EchoEngine
from ruvd.engines.llama import LlamaEngine
from ruvd.errors import EngineUnavailable
from ruvd.model import FinishReason, Message, Role
from ruvd.options import CompletionOptions
from ruvd.ports import (
    Engine,
    EngineDone,
    EngineRequest,
    EngineStateChanged,
    EngineText,
    Event,
    Observer,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

Make = Callable[[Observer], Engine]


def make_echo(observer: Observer) -> Engine:
    return EchoEngine(delay_seconds=0.001, observer=observer)


def make_llama(observer: Observer) -> Engine:
    return LlamaEngine(
        observer=observer, context_tokens=1024, answer_tokens=256, slots=2, threads=1
    )


@pytest.fixture(params=[make_echo, make_llama], ids=["echo", "llama"], scope="module")
def make(request: pytest.FixtureRequest) -> Make:
    made: Make = request.param
    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(make: Make) -> AsyncIterator[Engine]:
    engine = make(lambda _: None)
    await engine.start()
    await engine.ready()
    yield engine
    await engine.close()


def user(text: str) -> Message:
    return Message(Role.USER, text)


def ask(*messages: Message, **options: object) -> EngineRequest:
    settings = {"max_tokens": 12, "temperature": 0.0, **options}
    return EngineRequest(messages, CompletionOptions(**settings))  # type: ignore[arg-type]


async def collect(engine: Engine, request: EngineRequest) -> tuple[str, EngineDone]:
    chunks = [chunk async for chunk in engine.generate(request)]
    *texts, done = chunks
    assert isinstance(done, EngineDone)
    assert all(isinstance(chunk, EngineText) and chunk.text for chunk in texts)
    return "".join(chunk.text for chunk in texts if isinstance(chunk, EngineText)), done


def cached_tokens(done: EngineDone) -> int:
    assert done.usage is not None
    assert done.usage.cached_tokens is not None
    return done.usage.cached_tokens


async def test_an_answer_is_texts_that_are_not_empty_and_then_one_done(engine: Engine) -> None:
    text, done = await collect(engine, ask(user("Name three colours of the rainbow")))
    assert text
    assert done.finish_reason in {FinishReason.STOP, FinishReason.LENGTH}
    assert done.usage is not None
    assert done.usage.prompt_tokens >= 6
    assert 0 < done.usage.completion_tokens <= 12


async def test_cached_tokens_grow_from_turn_to_turn(engine: Engine) -> None:
    messages = [Message(Role.SYSTEM, "You answer in short sentences about the harbour.")]
    cached = []
    for question in ("Which ships are there?", "Which is the oldest?", "Who sails on it?"):
        messages.append(user(question))
        text, done = await collect(engine, ask(*messages))
        messages.append(Message(Role.ASSISTANT, text))
        cached.append(cached_tokens(done))
    assert cached[0] < cached[1] < cached[2]


async def test_max_tokens_ends_the_answer_with_length(engine: Engine) -> None:
    text, done = await collect(engine, ask(user("Tell me a long story of a cat"), max_tokens=3))
    assert text
    assert done.finish_reason is FinishReason.LENGTH
    assert done.usage is not None
    assert done.usage.completion_tokens == 3


async def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(engine: Engine) -> None:
    stops = (" the", " a", " is", " story", ".")
    request = ask(user("Tell me the story of a dog."), stop=stops, max_tokens=60)
    text, done = await collect(engine, request)
    assert not any(stop in text for stop in stops)
    assert done.finish_reason is FinishReason.STOP


async def test_greedy_answers_to_the_same_prompt_are_the_same(engine: Engine) -> None:
    first, _ = await collect(engine, ask(user("What is a lighthouse?"), seed=1))
    again, _ = await collect(engine, ask(user("What is a lighthouse?"), seed=1))
    assert first == again


async def test_several_generations_run_side_by_side(engine: Engine) -> None:
    questions = [user(f"Say the number {number} in words") for number in range(3)]
    answers = await asyncio.gather(*(collect(engine, ask(question)) for question in questions))
    assert all(text for text, _ in answers)


async def test_a_closed_generator_gives_nothing_more_and_leaves_the_engine_usable(
    engine: Engine,
) -> None:
    request = ask(user("Count from one to one hundred, one number after the other"), max_tokens=200)
    async with aclosing(engine.generate(request)) as chunks:
        assert isinstance(await anext(chunks), EngineText)
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)
    text, _ = await collect(engine, ask(user("Say hello")))
    assert text


async def test_a_cancelled_generation_ends_at_once_and_leaves_the_engine_usable(
    engine: Engine,
) -> None:
    task = asyncio.create_task(collect(engine, ask(user("why " * 500), max_tokens=200)))
    await asyncio.sleep(0)
    task.cancel()
    _, pending = await asyncio.wait([task], timeout=0.5)
    assert not pending
    assert task.cancelled()
    text, _ = await collect(engine, ask(user("Say hello")))
    assert text


async def test_bypass_cache_neither_reuses_nor_leaves(engine: Engine) -> None:
    private = user("The secret of the house is that nobody has ever lived in it for long. " * 4)
    for _ in range(2):
        _, done = await collect(engine, ask(private, bypass_cache=True))
        assert cached_tokens(done) == 0
    _, done = await collect(engine, ask(private))
    seen = cached_tokens(done)
    _, done = await collect(engine, ask(private, bypass_cache=True))
    assert cached_tokens(done) == 0
    _, done = await collect(engine, ask(private))
    # A chat template begins every prompt with the same tokens; the message must not be seen.
    assert done.usage is not None
    assert seen < done.usage.prompt_tokens / 2


async def test_the_observer_hears_that_the_engine_is_up_and_a_closed_one_refuses(
    make: Make,
) -> None:
    """An engine tells once when it is up, closes twice without harm, and then refuses."""
    events: list[Event] = []
    engine = make(events.append)
    await engine.start()
    await engine.ready()
    assert [e.up for e in events if isinstance(e, EngineStateChanged)] == [True]
    await engine.close()
    await engine.close()
    with pytest.raises(EngineUnavailable):
        await engine.ready()
    with pytest.raises(EngineUnavailable):
        await collect(engine, ask(user("Say hello")))
