"""The deterministic engine's own rules."""

from __future__ import annotations

import re

from ruvd.engines.echo import EchoEngine
from ruvd.model import FinishReason, Message, Role, Usage
from ruvd.options import CompletionOptions
from ruvd.ports import EngineDone, EngineRequest, EngineText

PLAIN = CompletionOptions()


def engine(*, nonce: bool = False) -> EchoEngine:
    return EchoEngine(nonce=nonce, observer=lambda _: None)


async def say(
    engine: EchoEngine, *texts: str, options: CompletionOptions = PLAIN
) -> tuple[list[str], EngineDone]:
    """User and assistant take turns in `texts`."""
    messages = [
        Message(Role.ASSISTANT if index % 2 else Role.USER, text)
        for index, text in enumerate(texts)
    ]
    chunks = [chunk async for chunk in engine.generate(EngineRequest(messages, options))]
    done = chunks.pop()
    assert isinstance(done, EngineDone)
    return [chunk.text for chunk in chunks if isinstance(chunk, EngineText)], done


async def test_the_answer_is_the_last_user_message_with_its_spaces() -> None:
    for text in ("one two", "  one\n\n two\t three  ", "", "   ", "one"):
        words, done = await say(engine(), text)
        assert "".join(words) == text
        assert done.finish_reason is FinishReason.STOP


async def test_a_word_is_a_token() -> None:
    words, done = await say(engine(), "one two three")
    assert words == ["one", " two", " three"]
    assert done.usage == Usage(3, 0, 3)


async def test_the_longest_prefix_seen_of_a_prompt_and_its_answer_is_cached() -> None:
    echo = engine()
    await say(echo, "a b c")
    _, done = await say(echo, "a b c", "a b c", "d e")
    assert done.usage == Usage(8, 6, 2)
    _, done = await say(echo, "a b x")
    assert done.usage == Usage(3, 2, 3)


async def test_the_same_words_in_another_role_are_not_cached() -> None:
    echo = engine()
    await say(echo, "a b")
    _, done = await say(echo, "a", "b", "c")
    assert done.usage is not None
    assert done.usage.cached_tokens == 1


async def test_a_nonce_tells_two_generations_apart() -> None:
    echo = engine(nonce=True)
    first, _ = await say(echo, "hello there")
    second, _ = await say(echo, "hello there")
    assert re.fullmatch(r"hello there #[0-9a-f]{8}", "".join(first))
    assert first != second


async def test_max_tokens_cuts_after_that_many_words() -> None:
    words, done = await say(engine(), "a b c", options=CompletionOptions(max_tokens=2))
    assert words == ["a", " b"]
    assert done.finish_reason is FinishReason.LENGTH
    _, done = await say(engine(), "a b c", options=CompletionOptions(max_tokens=3))
    assert done.finish_reason is FinishReason.STOP


async def test_the_first_stop_string_ends_the_answer() -> None:
    words, done = await say(engine(), "a b c d", options=CompletionOptions(stop=("d", "c")))
    assert "".join(words) == "a b "
    assert done.finish_reason is FinishReason.STOP
