"""The types of ASGI, and what the scope of a request tells."""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, TypeAlias

from ruvd.http.connection import CLIENT_CERTIFICATE

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


def headers(scope: Scope) -> list[tuple[str, str]]:
    """Returns the headers, with their names in lower case."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]


def header(scope: Scope, name: str) -> str:
    """Returns the first header of a name, empty for none. The name is in lower case."""
    wanted = name.encode()
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == wanted), "")


def auth_context(scope: Scope) -> dict[str, Iterable[bytes]]:
    """Returns the client's certificate as gRPC's `auth_context` has it."""
    certificate = scope.get("extensions", {}).get(CLIENT_CERTIFICATE, b"")
    return {"x509_pem_cert": [certificate]} if certificate else {}


def peer(scope: Scope) -> str:
    """Returns the address of the client as gRPC writes it: `ipv4:127.0.0.1:4711` or `unix:`."""
    client = scope.get("client")
    if not client:
        return "unix:"
    host, port = client[0], client[1]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
