"""A very long answer reaches a client with gRPC's default limits, as far as the setting allows."""

from __future__ import annotations

import answers
import grpc
import pytest
from answers import Answer
from quirk import reply
from running import StartDaemon
from upstream import serving
from wire import contents, events, say, turn

from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

LONG = "Zürich " * (6_000_000 // 8)
LIMIT = 3 << 20
WHOLE = {"choices": [{"message": {"content": LONG}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(
            answers.text(*(LONG[i : i + 700] for i in range(0, len(LONG), 700))), id="deltas"
        ),
        pytest.param(answers.text(LONG), id="one delta"),
        pytest.param(reply(WHOLE), id="one object"),
    ],
)
async def test_a_long_answer_ends_at_the_setting_with_its_text_and_a_reason(
    daemon: StartDaemon, answer: Answer
) -> None:
    async with serving() as server:
        server.scripts.append(answer)
        flags = ("--engine", "openai", "--base-url", server.url, "--model", "m")
        async with (
            daemon(*flags, "--max-answer-bytes", str(LIMIT)) as running,
            grpc.aio.insecure_channel(running.socket) as channel,
        ):
            stub = pb_grpc.SessionServiceStub(channel)
            got = await events(stub, turn("hi", "s"))
            finished = got[-1].finished
            text = finished.message.content
            assert LONG.startswith(text)
            assert LIMIT - 2 <= len(text.encode()) <= LIMIT
            # A delta that is larger than the events that are kept comes with `Finished` alone.
            assert text.startswith("".join(event.delta.text for event in got))
            assert finished.finish_reason == pb.FINISH_REASON_LENGTH
            assert finished.raw_finish_reason == "max_answer_bytes"
            assert (await say(stub, "and?", "s")).message.content == "Hello there!"
            assert len(await contents(stub, "s")) == 4
