"""A minimal service of a pod: it passes each request on to its sidecar.

    python pod_app.py ADDRESS

A line on stdin is a request, a line on stdout an event of one. After SIGTERM and the end of stdin
it waits for the requests in flight and exits, as a service should.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

from ruvd_client import AsyncClient, RuvdError


def emit(event: str, **fields: object) -> None:
    """Writes an event to stdout."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


async def answer(client: AsyncClient, request_id: str, session_id: str, text: str) -> None:
    """Runs one turn, streamed to its end, and reports its outcome."""
    completion = client.complete(text, session_id=session_id, request_id=request_id)
    text_so_far = ""
    try:
        async for piece in completion:
            if not text_so_far:
                emit("streaming", request_id=request_id)
            text_so_far += piece
    except RuvdError as error:
        reason = error.reason or error.code.name
        emit("failed", request_id=request_id, reason=reason, begun=completion.last_sequence > 0)
        return
    if completion.finished is None or completion.finished.message.content != text_so_far:
        emit("failed", request_id=request_id, reason="CUT", begun=True)
        return
    emit("finished", request_id=request_id, text=text_so_far)


async def main(address: str) -> None:
    """Serves requests until SIGTERM and the end of stdin."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    running: set[asyncio.Task[None]] = set()

    async def serve(client: AsyncClient) -> None:
        async for line in lines:
            task = asyncio.create_task(answer(client, **json.loads(line)))
            running.add(task)
            task.add_done_callback(running.discard)

    async with AsyncClient(address) as client:
        serving = asyncio.create_task(serve(client))
        emit("up")
        await serving
        await asyncio.gather(*running)
        await stopping.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
