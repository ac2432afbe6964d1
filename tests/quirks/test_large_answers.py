"""A very long answer reaches a client with gRPC's default limits, or ends as the setting says."""

from __future__ import annotations

import json
from typing import Any

import answers
import pytest
from answers import Answer
from parts import answer_of, plain_stub
from quirk import reply
from running import StartDaemon
from upstream import serving
from wire import contents, events, say, turn

from ruvd.v1 import session_service_pb2 as pb

LONG = "Zürich " * (6_000_000 // 8)
LIMIT = 3 << 20
CJK = "\u4e2d\u6587 \N{GRINNING FACE} " * 400_000


def forms(text: str) -> list[Any]:
    """A text in the forms in which servers send it."""
    whole = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    pieces = [text[start : start + 700] for start in range(0, len(text), 700)]
    return [
        pytest.param(answers.text(*pieces), text, id="deltas"),
        pytest.param(answers.text(text), text, id="one delta"),
        pytest.param(reply(whole), text, id="one object"),
        pytest.param(reply(json.dumps(whole).encode()), text, id="one object, escaped"),
    ]


@pytest.mark.parametrize(("answer", "text"), [*forms(LONG), *forms(CJK)])
async def test_a_long_answer_reaches_a_client_with_default_limits_whole(
    daemon: StartDaemon, answer: Answer, text: str
) -> None:
    async with serving() as server:
        server.scripts.append(answer)
        flags = ("--engine", "openai", "--base-url", server.url, "--model", "m")
        async with daemon(*flags) as running, plain_stub(running) as stub:
            got = await events(stub, turn("hi", "s"))
            assert "".join(event.delta.text for event in got) == text
            assert answer_of(got).content == text
            assert got[-1].finished.finish_reason == pb.FINISH_REASON_STOP
            assert (await say(stub, "and?", "s")).message.content == "Hello there!"


@pytest.mark.parametrize(("answer", "text"), forms(LONG))
async def test_a_long_answer_ends_at_the_setting_with_its_text_and_a_reason(
    daemon: StartDaemon, answer: Answer, text: str
) -> None:
    async with serving() as server:
        server.scripts.append(answer)
        flags = ("--engine", "openai", "--base-url", server.url, "--model", "m")
        limit = ("--max-answer-bytes", str(LIMIT))
        async with daemon(*flags, *limit) as running, plain_stub(running) as stub:
            got = await events(stub, turn("hi", "s"))
            finished = got[-1].finished
            assert text.startswith(finished.message.content)
            assert LIMIT - 2 <= len(finished.message.content.encode()) <= LIMIT
            assert finished.message.content == "".join(event.delta.text for event in got)
            assert finished.finish_reason == pb.FINISH_REASON_LENGTH
            assert finished.raw_finish_reason == "max_answer_bytes"
            assert (await say(stub, "and?", "s")).message.content == "Hello there!"
            assert len(await contents(stub, "s")) == 4
