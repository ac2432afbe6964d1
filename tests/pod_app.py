"""The service of a pod, as small as it can be: a process that asks its sidecar what it is asked.

    python pod_app.py ADDRESS

A line on stdin is a request, a line on stdout what becomes of one. After SIGTERM, and once nobody
sends any more, it ends as a service should: when what it was asked has ended.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys

from ruvd_client import AsyncClient, RuvdError


def tell(event: str, **fields: object) -> None:
    """One line to whoever asked."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


async def answer(client: AsyncClient, request_id: str, session_id: str, text: str) -> None:
    """One turn, streamed to its end."""
    completion = client.complete(text, session_id=session_id, request_id=request_id)
    said = ""
    try:
        async for piece in completion:
            if not said:
                tell("streaming", request_id=request_id)
            said += piece
    except RuvdError as error:
        reason = error.reason or error.code.name
        tell("failed", request_id=request_id, reason=reason, begun=completion.last_sequence > 0)
        return
    if completion.finished is None or completion.finished.message.content != said:
        tell("failed", request_id=request_id, reason="CUT", begun=True)
        return
    tell("finished", request_id=request_id, text=said)


async def main(address: str) -> None:
    """Answer until SIGTERM and the end of stdin."""
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    running: set[asyncio.Task[None]] = set()

    async def take(client: AsyncClient) -> None:
        async for line in lines:
            task = asyncio.create_task(answer(client, **json.loads(line)))
            running.add(task)
            task.add_done_callback(running.discard)

    async with AsyncClient(address) as client:
        taking = asyncio.create_task(take(client))
        tell("up")
        await taking
        await asyncio.gather(*running)
        await ending.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
