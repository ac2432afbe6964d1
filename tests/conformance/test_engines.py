"""The contract of every engine: the deterministic one, the embedded one, a remote llama-server,
several behind one, and one of several."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest
import pytest_asyncio
from llama_http import API_KEY, MODEL, llama_server

from ruvd.core.errors import EngineRejected, EngineUnavailable
from ruvd.core.model import FinishReason, Message, Role, ToolCall, ToolCallDelta
from ruvd.core.options import CompletionOptions, ResponseFormat, Tool, ToolChoiceMode
from ruvd.core.ports.engine import (
    Engine,
    EngineChunk,
    EngineDone,
    EngineReasoning,
    EngineRequest,
    EngineText,
)
from ruvd.core.ports.events import EngineStateChanged, Event, Observer
from ruvd.engines.echo.engine import EchoEngine
from ruvd.engines.llama.engine import LlamaEngine
from ruvd.engines.openai.engine import OpenAIEngine
from ruvd.engines.routing.engine import RoutingEngine
from ruvd.engines.routing.named_engine import NamedEngine

pytestmark = pytest.mark.asyncio(loop_scope="module")

Make = Callable[[Observer], Engine]

# Characters of one to four bytes in UTF-8, and some of several code points. Some of the model's
# tokens end within a character.
UNICODE = "na\u00efve \u65e5\u672c\u8a9e \U0001f600\U0001f468\u200d\U0001f469 e\u0301"
WEATHER = Tool(
    "get_weather",
    "The weather in a city",
    '{"type":"object","properties":{"city":{"type":"string"}},"required":["city"]}',
)


def make_echo(observer: Observer) -> Engine:
    return EchoEngine(delay_seconds=0.001, observer=observer)


def make_routing(observer: Observer) -> Engine:
    router = RoutingEngine(make_echo(observer), has_one_model=True)
    router.exchange([(NamedEngine("other", make_echo(lambda _: None)), ["x"])])
    return router


def make_named(observer: Observer) -> Engine:
    return NamedEngine("name", make_echo(observer), ("echo",))


OF_ECHO = {"echo": make_echo, "routing": make_routing, "named": make_named}


def make_llama(observer: Observer) -> Engine:
    return LlamaEngine(
        observer=observer, context_tokens=1024, answer_tokens=256, slots=2, threads=1
    )


@pytest_asyncio.fixture(params=[*OF_ECHO, "llama", "openai"], scope="module", loop_scope="module")
async def make(request: pytest.FixtureRequest) -> AsyncIterator[Make]:
    if request.param in OF_ECHO:
        yield OF_ECHO[request.param]
    elif request.param == "llama":
        yield make_llama
    else:
        async with llama_server() as server:
            yield lambda observer: OpenAIEngine(
                observer=observer,
                base_urls=[server.url],
                model=MODEL,
                api_key=API_KEY,
                affinity="llama-server",
            )


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


async def answer(engine: Engine, request: EngineRequest) -> Message:
    """The whole answer as a message, with its tool calls assembled from their deltas."""
    chunks = [chunk async for chunk in engine.generate(request)]
    assert isinstance(chunks[-1], EngineDone)
    calls: list[ToolCall] = []
    for chunk in chunks:
        if isinstance(chunk, ToolCallDelta):
            if chunk.index == len(calls):
                assert chunk.id
                assert chunk.name
                calls.append(ToolCall(chunk.id, chunk.name, chunk.arguments))
            else:
                call = calls[chunk.index]
                calls[chunk.index] = ToolCall(call.id, call.name, call.arguments + chunk.arguments)
    assert bool(calls) == (chunks[-1].finish_reason is FinishReason.TOOL_CALLS)
    text = "".join(chunk.text for chunk in chunks if isinstance(chunk, EngineText))
    reasoning = "".join(chunk.text for chunk in chunks if isinstance(chunk, EngineReasoning))
    return Message(Role.ASSISTANT, text, tuple(calls), reasoning=reasoning)


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


async def test_bypass_cache_neither_reuses_nor_leaves_or_is_refused(engine: Engine) -> None:
    private = user("The secret of the house is that nobody has ever lived in it for long. " * 4)
    if isinstance(engine, OpenAIEngine):  # llama-server would keep what it has evaluated
        with pytest.raises(EngineRejected, match="bypass_cache"):
            await collect(engine, ask(private, bypass_cache=True))
        return
    for _ in range(2):
        _, done = await collect(engine, ask(private, bypass_cache=True))
        assert cached_tokens(done) == 0
    _, done = await collect(engine, ask(private))
    seen = cached_tokens(done)
    _, done = await collect(engine, ask(private, bypass_cache=True))
    assert cached_tokens(done) == 0
    _, done = await collect(engine, ask(private))
    # Only the tokens with which the chat template begins every prompt may be cached.
    assert done.usage is not None
    assert seen < done.usage.prompt_tokens / 2


async def test_a_generation_that_has_run_out_of_time_ends_at_once(engine: Engine) -> None:
    """Before the first chunk and between chunks. The engine then serves the next request."""
    loop = asyncio.get_running_loop()
    story = "Tell me a long story of a cat" + (" and on" * 100 if engine.model == "echo" else "")
    for chunks_before in (0, 3):
        async with aclosing(engine.generate(ask(user(story), max_tokens=300))) as chunks:
            for _ in range(chunks_before):
                await anext(chunks)
            deadline = loop.time() + 0.05
            with pytest.raises(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    async for _ in chunks:
                        pass
            assert loop.time() - deadline < 0.5
    text, _ = await collect(engine, ask(user("Say hello")))
    assert text


async def test_letters_that_are_cut_between_chunks_come_whole(engine: Engine) -> None:
    """No chunk has a part of a character, or a replacement character for one."""
    if engine.model == "echo":
        request = ask(user(UNICODE))
        expected = UNICODE
    else:
        expected = json.dumps(UNICODE, ensure_ascii=False)
        form = ResponseFormat(json.dumps({"const": UNICODE}))
        request = ask(user("Say it"), response_format=form, max_tokens=60)
    chunks = [chunk async for chunk in engine.generate(request)]
    texts = [chunk.text for chunk in chunks if isinstance(chunk, EngineText)]
    assert len(texts) > 1
    assert all(texts)
    assert "\ufffd" not in "".join(texts)
    assert "".join(texts) == expected


async def test_an_answer_may_be_empty(engine: Engine) -> None:
    question = user("Name three colours of the rainbow")
    text, _ = await collect(engine, ask(question))
    empty, done = await collect(engine, ask(question, stop=(text[:1],)))
    assert (empty, done.finish_reason) == ("", FinishReason.STOP)


async def test_an_answer_follows_its_json_schema(engine: Engine) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}, "big": {"type": "boolean"}},
        "required": ["city", "big"],
        "additionalProperties": False,
    }
    form = ResponseFormat(json.dumps(schema), name="place", strict=True)
    question = user("Name a city.")
    text, done = await collect(engine, ask(question, response_format=form, max_tokens=60))
    assert done.finish_reason is FinishReason.STOP
    decoded = json.loads(text)
    assert decoded["city"] in ("Rome", "Oslo")
    assert isinstance(decoded["big"], bool)


async def test_a_tool_is_called_or_refused_where_the_model_has_none(engine: Engine) -> None:
    question = user("What is the weather in Paris?")
    required = ask(
        question,
        tools=(WEATHER,),
        tool_choice=ToolChoiceMode.REQUIRED,
        parallel_tool_calls=False,
        max_tokens=40,
    )
    if isinstance(engine, LlamaEngine):  # SmolLM2's own chat template has no tools
        with pytest.raises(EngineRejected, match="no tools"):
            await answer(engine, required)
        return
    said = await answer(engine, required)
    (call,) = said.tool_calls
    assert call.name == "get_weather"
    arguments = json.loads(call.arguments)
    if engine.model == "echo":
        assert arguments == {"text": question.content}
    else:
        assert isinstance(arguments["city"], str)
    none = ask(question, tools=(WEATHER,), tool_choice=ToolChoiceMode.NONE, max_tokens=5)
    said = await answer(engine, none)
    assert said.content
    assert not said.tool_calls


async def test_a_tools_call_and_its_result_are_part_of_the_prompt(engine: Engine) -> None:
    question = user("What is the weather in Paris?")
    call = ToolCall("call_1", "get_weather", '{"city": "Paris"}')
    before = ask(question, max_tokens=1)
    after = ask(
        question,
        Message(Role.ASSISTANT, "", (call,)),
        Message(Role.TOOL, "It is raining, and there are twelve degrees", tool_call_id="call_1"),
    )
    _, alone = await collect(engine, before)
    text, done = await collect(engine, after)
    assert text
    assert alone.usage is not None
    assert done.usage is not None
    assert done.usage.prompt_tokens >= alone.usage.prompt_tokens + 8


async def test_the_models_of_an_engine_have_its_own_among_them(engine: Engine) -> None:
    assert engine.model in await engine.models()
    text, _ = await collect(engine, ask(user("Say hello"), model=engine.model))
    assert text


async def test_chunks_are_text_reasoning_or_calls_and_done_comes_once_and_last(
    engine: Engine,
) -> None:
    chunks: list[EngineChunk] = [
        chunk async for chunk in engine.generate(ask(user("Say something short")))
    ]
    assert [isinstance(chunk, EngineDone) for chunk in chunks] == [False] * (len(chunks) - 1) + [
        True
    ]


async def test_the_observer_hears_that_the_engine_is_up_and_a_closed_one_refuses(
    make: Make,
) -> None:
    """An engine reports once that it is up. It may be closed twice, and then refuses."""
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
