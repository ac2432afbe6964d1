"""An ASGI application at one address, served by uvicorn in the daemon's event loop.

uvicorn parses HTTP and runs the application. Its server is not used, because that takes the
process's signals, polls ten times a second and cannot take a renewed certificate. Logging stays the
daemon's: uvicorn sets up none, and it reports only errors.
"""

import asyncio
import socket
from functools import partial
from typing import Any

from uvicorn.config import Config
from uvicorn.server import ServerState

from ruvd.http.connection import KEEP_ALIVE_SECONDS, BoundedConnection
from ruvd.http.scopes import ASGIApp, Receive, Scope, Send
from ruvd.http.tls import ListenerTls

_HANDSHAKE_SECONDS = 20.0
_BACKLOG = 512


class HttpListener:
    """Serves an application at a bound socket, which it owns.

    `run` belongs into the supervised background tasks; it may be called again after it has failed.
    """

    def __init__(self, app: ASGIApp, bound: socket.socket, tls: ListenerTls | None = None) -> None:
        self._app = app
        self._bound = bound
        self._tls = tls
        self._changed = asyncio.Event()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._state = ServerState()
        handle: Any = self._handle  # uvicorn's types of ASGI are its own
        config = Config(
            handle,
            http=BoundedConnection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            reset_contextvars=True,  # a pipelined request must not see the identity of another
        )
        config.load()
        self._connect = partial(BoundedConnection, config, self._state, {})

    async def run(self) -> None:
        """Accepts connections, until it is cancelled or the listener is closed."""
        self._loop = loop = asyncio.get_running_loop()
        if self._tls:
            self._tls.on_change = self._take_context
        while not self._closed:
            self._changed.clear()
            tls = self._tls
            # A server closes its socket, and this one has to stay open for the next server.
            self._server = server = await loop.create_server(
                self._connect,
                sock=self._bound.dup(),
                backlog=_BACKLOG,
                ssl=tls.context if tls else None,
                ssl_handshake_timeout=_HANDSHAKE_SECONDS if tls else None,
            )
            try:
                await self._changed.wait()
            finally:
                server.close()

    def _take_context(self) -> None:
        """Begins a new server with the new context. Any thread may call it."""
        if self._loop and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    async def close(self, grace_seconds: float) -> None:
        """Accepts no more connections, and cancels the requests that run after the grace period."""
        self._closed = True
        self._changed.set()
        if self._server:
            self._server.close()
        self._bound.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        tasks = set(self._state.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=grace_seconds)
        # Without its connection uvicorn does not report a cancelled request as a failure.
        for connection in list(self._state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._closed:
                raise
