"""Credentials as browsers send them.

A browser cannot be told to send a bearer token, but it asks for a name and a password and sends
them from then on. So the password of HTTP's basic authentication is taken as the token, and the
name is not looked at.
"""

import base64
import binascii

from ruvd.http.scopes import ASGIApp, Message, Receive, Scope, Send

_CHALLENGE = (
    b"www-authenticate",
    b'Basic realm="ruvd: the password is your token", charset="UTF-8"',
)
_UNAUTHORIZED = 401


def with_passwords(application: ASGIApp) -> ASGIApp:
    """Wraps an application that checks bearer tokens, so that browsers can send them."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def challenging(message: Message) -> None:
            is_start = message["type"] == "http.response.start"
            if is_start and message["status"] == _UNAUTHORIZED:
                message["headers"] = [*message.get("headers", ()), _CHALLENGE]
            await send(message)

        headers = [(name, _bearer(name, value)) for name, value in scope["headers"]]
        await application({**scope, "headers": headers}, receive, challenging)

    return wrapped


def _bearer(name: bytes, value: bytes) -> bytes:
    """Returns the value of a header; that of a password as a bearer token."""
    scheme, _, encoded = value.partition(b" ")
    if name != b"authorization" or scheme.lower() != b"basic":
        return value
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True)
    except binascii.Error:
        return value  # no credential that is known, so it is refused
    return b"Bearer " + decoded.partition(b":")[2]
