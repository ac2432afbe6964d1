"""A client whose reader is slow, against a server that sends as fast as the client takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from scripted_service import serving

from ruvd.v1 import session_service_pb2 as pb

CLIENTS = Path(__file__).parents[2] / "clients"
SECONDS = 120.0
PIECE = "x" * (16 << 10)
COUNT = 2000
CUT = 1500
# Much more than the client and the connection hold, of which the windows of HTTP/2 are the largest.
MOST_HELD = COUNT // 4
JAVA = """import dev.ruvd.client.RuvdClient;

class Slow {
  public static void main(String[] arguments) throws Exception {
    long characters = 0;
    try (var client = new RuvdClient(); var answer = client.complete(RuvdClient.request("hi"))) {
      for (String text : answer) {
        if (characters == 0) {
          System.out.println("reading");
          System.in.read();
        }
        characters += text.length();
      }
    }
    System.out.println(characters);
  }
}
"""
pytestmark = [pytest.mark.languages, pytest.mark.timeout(300)]


class Sender:
    """A server that sends one long answer and breaks its stream once, near the end."""

    def __init__(self) -> None:
        self.address = ""
        self.sent = 0
        self.is_cut = asyncio.Event()

    async def _complete(
        self,
        request: pb.CompleteRequest,
        context: grpc.aio.ServicerContext[pb.CompleteRequest, pb.CompleteResponse],
    ) -> AsyncIterator[pb.CompleteResponse]:
        started = pb.Started(completion_id="c-1")
        yield pb.CompleteResponse(event=pb.CompletionEvent(sequence=1, started=started))
        for number in range(CUT):
            yield pb.CompleteResponse(event=_delta(number + 2))
            self.sent += 1
        self.is_cut.set()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted")

    async def _resume(
        self,
        request: pb.ResumeCompletionRequest,
        context: grpc.aio.ServicerContext[pb.ResumeCompletionRequest, pb.ResumeCompletionResponse],
    ) -> AsyncIterator[pb.ResumeCompletionResponse]:
        for sequence in range(request.after_sequence + 1, COUNT + 2):
            yield pb.ResumeCompletionResponse(event=_delta(sequence))
        message = pb.Message(role=pb.ROLE_ASSISTANT, content=PIECE * COUNT)
        finished = pb.Finished(finish_reason=pb.FINISH_REASON_STOP, message=message)
        event = pb.CompletionEvent(sequence=COUNT + 2, finished=finished)
        yield pb.ResumeCompletionResponse(event=event)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Sender]:
        """Listens on a free loopback port and sets `address`."""
        handlers: dict[str, Callable[..., Any]] = {
            "Complete": self._complete,
            "ResumeCompletion": self._resume,
        }
        async with serving(handlers, ("grpc.max_send_message_length", -1)) as self.address:
            yield self


def _delta(sequence: int) -> pb.CompletionEvent:
    return pb.CompletionEvent(sequence=sequence, delta=pb.Delta(text=PIECE))


async def test_the_java_client_takes_no_more_than_its_reader_and_a_little(tmp_path: Path) -> None:
    """The stream is cut while events wait for the reader, who gets every piece once."""
    source = tmp_path / "Slow.java"
    source.write_text(JAVA)
    async with Sender().running() as sender:
        process = await asyncio.create_subprocess_exec(
            *("java", "-cp", "java/target/classes:java/target/dependency/*", str(source)),
            cwd=CLIENTS,
            env={"PATH": "/usr/bin:/bin", "RUVD_ADDRESS": sender.address},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(SECONDS):
                assert await process.stdout.readline() == b"reading\n"
                with pytest.raises(TimeoutError):  # the time in which a client could take it all
                    await asyncio.wait_for(sender.is_cut.wait(), 3.0)
                assert sender.sent < MOST_HELD
                output, _ = await process.communicate(b"\n")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert (output, process.returncode) == (f"{len(PIECE) * COUNT}\n".encode(), 0)
