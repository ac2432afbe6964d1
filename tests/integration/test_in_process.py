"""The whole daemon in this process, so that a blocking call on its event loop fails the test."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Literal

import grpc
import pytest
from wire import contents, say, turn

from ruvd.config.loader import Settings
from ruvd.server.daemon import Daemon
from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc


@pytest.mark.parametrize("engine", ["echo", "llama"])
async def test_every_rpc_runs_without_blocking_the_event_loop(
    engine: Literal["llama", "echo"],
) -> None:
    with tempfile.TemporaryDirectory(prefix="ruvd-") as folder:
        address = f"unix:{folder}/r.sock"
        settings = Settings(
            engine=engine,
            llama_threads=1,
            store=f"sqlite:{folder}/s.db",
            listen=[address],
            # The process has the memory of all tests before this one, too.
            max_memory_bytes=16 << 30,
        )
        daemon = Daemon(settings)
        running = asyncio.create_task(daemon.run())
        started = asyncio.create_task(daemon.started.wait())
        await asyncio.wait([running, started], return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        options = pb.CompletionOptions(max_tokens=4)
        async with grpc.aio.insecure_channel(address) as channel:
            stub = pb_grpc.SessionServiceStub(channel)
            await stub.CreateSession(pb.CreateSessionRequest(session_id="s"))
            await say(stub, "hello", "s", options=options, request_id="r")
            await say(stub, "hello", "s", options=options, request_id="r")
            await say(stub, "hello", options=options)
            assert len(await contents(stub, "s")) == 2
            message = pb.Message(role=pb.ROLE_USER, content="more")
            await stub.AppendMessages(pb.AppendMessagesRequest(session_id="s", messages=[message]))
            await stub.UpdateSession(pb.UpdateSessionRequest(session_id="s", labels={"a": "b"}))
            await stub.ForkSession(pb.ForkSessionRequest(session_id="s", new_session_id="f"))
            assert len((await stub.ListSessions(pb.ListSessionsRequest())).sessions) == 2
            resume = pb.ResumeCompletionRequest(session_id="s", request_id="r")
            assert [response async for response in stub.ResumeCompletion(resume)]
            call = stub.Complete(turn("word " * 50, "f"))
            await anext(aiter(call))
            call.cancel()
            await stub.GetSessionMetrics(pb.GetSessionMetricsRequest())
            await stub.EndSession(pb.EndSessionRequest(session_id="s"))
        daemon.stop()
        assert await running == 0
        assert not await asyncio.to_thread(Path(f"{folder}/r.sock").exists)
