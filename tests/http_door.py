"""The daemon's HTTP address in tests."""

from __future__ import annotations

import httpx
from running import RunningDaemon

HTTP = ("--http-listen", "127.0.0.1:0")


async def base_url(running: RunningDaemon, scheme: str = "http") -> str:
    """Returns the base URL of the API, once the daemon serves it."""
    line = await running.logged("serving HTTP")
    await running.logged("listening")
    return f"{scheme}://{line['address']}/v1"


def unix_client(path: str) -> httpx.AsyncClient:
    """Returns a client of the API at a Unix socket."""
    transport = httpx.AsyncHTTPTransport(uds=path)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost/v1", timeout=60)
