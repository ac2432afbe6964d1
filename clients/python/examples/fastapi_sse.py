"""An example that streams a conversation to a browser, with FastAPI and ruvd.

    RUVD_ADDRESS=unix:/run/ruvd.sock PORT=8000 python fastapi_sse.py
    curl -N 'http://127.0.0.1:8000/chat?session=ada&message=What+is+a+sidecar%3F'

Leaving the page cancels its answer. It can also be run with `uvicorn fastapi_sse:app`.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from ruvd_client import AsyncClient, RuvdError


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Opens one connection to RUVD_ADDRESS for all requests."""
    async with AsyncClient() as client:
        app.state.ruvd = client
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/chat")
async def chat(request: Request, session: str, message: str) -> StreamingResponse:
    """Answers one message of a session with server-sent events."""
    return StreamingResponse(
        events(request.app.state.ruvd, session, message), media_type="text/event-stream"
    )


async def events(client: AsyncClient, session: str, message: str) -> AsyncIterator[str]:
    """Yields the pieces of the answer, then an event that says whether it succeeded."""
    try:
        async with client.complete(message, session_id=session) as answer:
            async for text in answer:
                yield f"data: {json.dumps(text)}\n\n"
        yield "event: done\ndata: {}\n\n"
    except RuvdError as error:
        details = {"reason": error.reason, "message": error.message}
        yield f"event: error\ndata: {json.dumps(details)}\n\n"


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
