"""Streams a conversation to a browser: FastAPI in front, ruvd beside it.

    RUVD_ADDRESS=unix:/run/ruvd.sock PORT=8000 python fastapi_sse.py
    curl -N 'http://127.0.0.1:8000/chat?session=ada&message=What+is+a+sidecar%3F'

A page that is left cancels its answer. Run it as `uvicorn fastapi_sse:app` just as well.
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
    """One connection for all requests; RUVD_ADDRESS says where."""
    async with AsyncClient() as client:
        app.state.ruvd = client
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/chat")
async def chat(request: Request, session: str, message: str) -> StreamingResponse:
    """Answer one message of a session, as server-sent events."""
    return StreamingResponse(
        events(request.app.state.ruvd, session, message), media_type="text/event-stream"
    )


async def events(client: AsyncClient, session: str, message: str) -> AsyncIterator[str]:
    """The answer's texts, and how it ended."""
    try:
        async with client.complete(message, session_id=session) as answer:
            async for text in answer:
                yield f"data: {json.dumps(text)}\n\n"
        yield "event: done\ndata: {}\n\n"
    except RuvdError as error:
        told = {"reason": error.reason, "message": error.message}
        yield f"event: error\ndata: {json.dumps(told)}\n\n"


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")))
