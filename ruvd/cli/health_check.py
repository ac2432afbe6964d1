"""One call of grpc.health.v1.Health/Check, written on h2 instead of grpc, for probes.

A probe is a new process every few seconds in every pod, and most of its cost is imports. On one
core a whole `ruvd health` takes 43 ms of CPU time; the same call through grpc and its generated
stub takes 73 ms, and `import grpc` alone 58 (best of 8, 2026-11-30). So the one unary call is made
by hand, and this module imports nothing that it does not need.
"""

import socket
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import unquote

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError

_STREAM = 1
_READ_BYTES = 65_536
_STATES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
# By number, https://grpc.github.io/grpc/core/md_doc_statuscodes.html
_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip


class Answer(NamedTuple):
    """The name of a state in grpc.health.v1, and the metadata of the response."""

    state: str
    metadata: dict[str, str]


class Tls(NamedTuple):
    """The files (PEM) for TLS, and the name in the daemon's certificate; empty where unset."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""


class HealthCheckFailed(Exception):
    """There is no answer; `code` is the name of the gRPC status code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def check(address: str, service: str, timeout_seconds: float, tls: Tls | None = None) -> Answer:
    """Asks the daemon at an address for the state of a service.

    Raises as `connect` does, and ValueError if the files for TLS cannot be used.
    """
    deadline = time.monotonic() + timeout_seconds
    encrypted = _encryption(tls, address) if tls else lambda connection: connection
    with connect(address, timeout_seconds) as plain:
        try:
            with encrypted(plain) as connection:
                return _Call(connection, deadline, "https" if tls else "http").check(service)
        except TimeoutError:
            raise HealthCheckFailed(
                "DEADLINE_EXCEEDED", f"no answer from {address} in {timeout_seconds:g} s"
            ) from None
        except (OSError, ProtocolError) as error:
            raise HealthCheckFailed("INTERNAL", f"{address} does not speak gRPC: {error}") from None


def _encryption(tls: Tls, address: str) -> Callable[[socket.socket], socket.socket]:
    """Returns the function that encrypts a connection. Raises ValueError for unusable files."""
    import ssl  # noqa: PLC0415  # most probes need none, and it costs 5 ms of CPU time

    try:
        context = ssl.create_default_context(cafile=tls.ca_file or None)
        if tls.cert_file:
            context.load_cert_chain(tls.cert_file, tls.key_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"the files for TLS cannot be used: {error}") from None
    context.set_alpn_protocols(["h2"])
    name = tls.server_name or address.rpartition(":")[0].strip("[]")
    return lambda connection: context.wrap_socket(connection, server_hostname=name)


def connect(address: str, timeout_seconds: float) -> socket.socket:
    """Connects to `HOST:PORT` or `unix:PATH`.

    Raises HealthCheckFailed, or ValueError if the address has another form.
    """
    try:
        if address.startswith("unix:"):
            path = address.removeprefix("unix:")
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(timeout_seconds)
            try:
                connection.connect(path.removeprefix("//") if path.startswith("///") else path)
            except BaseException:
                connection.close()
                raise
            return connection
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65_535:  # the highest port
            raise ValueError(f"{address!r} is neither HOST:PORT nor unix:PATH")
        return socket.create_connection((host.strip("[]"), int(port)), timeout_seconds)
    except TimeoutError:
        raise HealthCheckFailed(
            "DEADLINE_EXCEEDED", f"no connection to {address} in {timeout_seconds:g} s"
        ) from None
    except OSError as error:
        raise HealthCheckFailed("UNAVAILABLE", f"no connection to {address}: {error}") from None


class _Call:
    def __init__(self, connection: socket.socket, deadline: float, scheme: str) -> None:
        self._connection = connection
        self._deadline = deadline
        self._scheme = scheme
        self._http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._metadata: dict[str, str] = {}
        self._body = b""
        self._ended = False

    def check(self, service: str) -> Answer:
        name = service.encode()
        message = b"\n" + _varint(len(name)) + name if name else b""
        self._http.initiate_connection()
        timeout_ms = max(1, int((self._deadline - time.monotonic()) * 1000))
        headers = [
            (":method", "POST"),
            (":scheme", self._scheme),
            (":path", "/grpc.health.v1.Health/Check"),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "ruvd-probe"),
            ("grpc-timeout", f"{min(timeout_ms, 99_999_999)}m"),
        ]
        self._http.send_headers(_STREAM, headers)
        self._http.send_data(_STREAM, _prefixed(message), end_stream=True)
        self._send()
        while not self._ended:
            self._limit_wait()
            data = self._connection.recv(_READ_BYTES)
            if not data:
                raise ConnectionError("the connection was closed")
            for event in self._http.receive_data(data):
                self._handle(event)
            self._send()
        return self._answer()

    def _handle(self, event: events.Event) -> None:
        match event:
            case (
                events.ResponseReceived(headers=headers) | events.TrailersReceived(headers=headers)
            ):
                self._metadata |= {str(name): str(value) for name, value in headers or ()}
            case events.DataReceived(data=data):
                self._body += data or b""
            case events.StreamEnded():
                self._ended = True
            case events.StreamReset() | events.ConnectionTerminated():
                raise ConnectionError("the call was reset")
            case _:  # settings and pings, which h2 answers
                pass

    def _answer(self) -> Answer:
        code = self._metadata.get("grpc-status", "")
        if not code.isdecimal():
            raise ConnectionError(f"HTTP status {self._metadata.get(':status')}")
        if int(code):
            name = _CODES[int(code)] if int(code) < len(_CODES) else code
            raise HealthCheckFailed(name, unquote(self._metadata.get("grpc-message", "")))
        # After 5 bytes of frame header: one field, the number of the state; 0 is left out.
        message = self._body[5:]
        if len(self._body) < 5 or (message and (message[0] != 0x08 or len(message) < 2)):
            raise ConnectionError("the answer is not a HealthCheckResponse")
        number = message[1] if message else 0
        return Answer(_STATES[number] if number < len(_STATES) else str(number), self._metadata)

    def _send(self) -> None:
        self._limit_wait()
        self._connection.sendall(self._http.data_to_send())

    def _limit_wait(self) -> None:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._connection.settimeout(remaining)


def _prefixed(message: bytes) -> bytes:
    """Returns a gRPC frame: the flag for no compression, the length, the message."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def _varint(number: int) -> bytes:
    encoded = b""
    while number > 0x7F:  # seven bits in a byte
        encoded += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return encoded + bytes((number,))
