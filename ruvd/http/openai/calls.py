"""One call of the API: its request, and its response as JSON or as server-sent events."""

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias
from urllib.parse import parse_qs

from ruvd.http import scopes
from ruvd.http.refusals import Refused
from ruvd.http.scopes import Message, Receive, Scope, Send

Rename: TypeAlias = Callable[[str], str]
_PIECE_BYTES = 64 << 10
_MAX_PARAMETERS = 100


class Call:
    """A call that is being handled.

    `rename` turns the path of a field in the core's words into the path in the request.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self._send = send
        self.body: dict[str, Any] = {}
        self.raw = b""
        self.has_begun = False
        self.has_ended = False
        self.rename: Rename = lambda path: path
        self._callbacks: list[Callable[[Any], None]] = []

    @property
    def path(self) -> Mapping[str, str]:
        """The parameters in the path."""
        parameters: Mapping[str, str] = self.scope.get("path_params", {})
        return parameters

    @property
    def query(self) -> dict[str, str]:
        """The parameters in the query, each with its last value. Raises Refused."""
        text = self.scope.get("query_string", b"").decode("latin-1")
        try:
            found = parse_qs(text, keep_blank_values=True, max_num_fields=_MAX_PARAMETERS)
        except ValueError:
            text = f"has more than {_MAX_PARAMETERS} parameters"
            raise Refused(400, "invalid_request", text, "query") from None
        return {name: values[-1] for name, values in found.items()}

    def header(self, name: str) -> str:
        """Returns a header, empty for none. The name is in lower case."""
        return scopes.header(self.scope, name)

    def peer(self) -> str:
        """Returns the client's address. The audit log asks for it."""
        return scopes.peer(self.scope)

    def time_remaining(self) -> float | None:
        """Returns None, as HTTP has no deadline. The audit log asks for it."""
        return None

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Calls back when the call has ended."""
        self._callbacks.append(callback)

    def end(self) -> None:
        """Makes the calls that wait for the end of this one."""
        for callback in self._callbacks:
            callback(self)
        self._callbacks.clear()

    async def respond(
        self, value: Any, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Sends a JSON value as the whole response."""
        body = json.dumps(value, separators=(",", ":")).encode()
        await self.send_body(body, status, "application/json", headers)

    async def send_body(
        self,
        body: bytes,
        status: int = 200,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Sends the whole response."""
        more = {"content-type": kind, "content-length": str(len(body)), **(headers or {})}
        await self._begin(status, more)
        # Each piece waits until the client has read most of those before it.
        for start in range(0, len(body) - _PIECE_BYTES, _PIECE_BYTES):
            piece = body[start : start + _PIECE_BYTES]
            await self._send({"type": "http.response.body", "body": piece, "more_body": True})
        self.has_ended = True
        rest = body[(len(body) - 1) // _PIECE_BYTES * _PIECE_BYTES :] if body else b""
        await self._send({"type": "http.response.body", "body": rest})

    async def begin_stream(self, headers: Mapping[str, str] | None = None) -> None:
        """Begins a response of server-sent events."""
        more = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        await self._begin(200, more | dict(headers or {}))

    async def write(self, value: Any, name: str = "") -> None:
        """Sends an event."""
        head = f"event: {name}\n" if name else ""
        text = json.dumps(value, separators=(",", ":"))
        await self._write(f"{head}data: {text}\n\n")

    async def write_done(self) -> None:
        """Sends the event that ends a stream of chat completions."""
        await self._write("data: [DONE]\n\n")

    async def end_stream(self) -> None:
        """Ends the response."""
        self.has_ended = True
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.has_begun = True
        pairs = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        message: Message = {"type": "http.response.start", "status": status, "headers": pairs}
        await self._send(message)

    async def _write(self, text: str) -> None:
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": True})
