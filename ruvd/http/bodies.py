"""Bodies of requests: bounded in size and time, and parsed as JSON that cannot fill the memory."""

import asyncio
import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

from ruvd.core.errors import FieldViolation, InvalidRequest
from ruvd.http import scopes
from ruvd.http.refusals import ClientGone, Refused
from ruvd.http.scopes import Receive, Scope
from ruvd.rpc.wire import LARGE_BYTES, MAX_ELEMENTS

BODY_SECONDS = 60.0
_MAX_DIGITS = 20
# A string, or the rest of a text with an unpaired quote, so that it takes linear time.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)', re.DOTALL)
_SEPARATOR = re.compile(rb"[\[{,]")


async def read(
    scope: Scope, receive: Receive, max_bytes: int, hold: Callable[[int], None]
) -> bytes:
    """Returns the body. Raises Refused and ClientGone.

    While a large body grows, `hold` is called with the sizes of its next parts before their memory
    is taken, and may raise Overloaded. So a client that sends slowly holds little.
    """
    length = scopes.header(scope, "content-length")
    declared = int(length[:_MAX_DIGITS]) if length.isascii() and length.isdigit() else max_bytes
    if length and declared > max_bytes:
        raise _too_large(max_bytes)
    body, held = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
                if len(body) >= LARGE_BYTES and len(body) > held:
                    more = max(min(2 * len(body), declared), len(body)) - held
                    hold(more)
                    held += more
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        text = f"the body did not come within {BODY_SECONDS:g} s"
        raise Refused(408, "request_timeout", text) from None


def _too_large(max_bytes: int) -> Refused:
    text = f"the body has more than {max_bytes} bytes (max_request_bytes)"
    return Refused(413, "request_too_large", text)


async def parse(body: bytes) -> dict[str, Any]:
    """Returns the JSON object in a body. Raises InvalidRequest."""
    if len(body) < LARGE_BYTES:
        return _parse(body)
    return await asyncio.to_thread(_parse, body)


def _parse(body: bytes) -> dict[str, Any]:
    if len(body) >= LARGE_BYTES:
        count = len(_SEPARATOR.findall(_STRING.sub(b"", body)))
        if count > MAX_ELEMENTS:
            raise _wrong(f"has more than {MAX_ELEMENTS} values")
    try:
        # json would take UTF-16 and UTF-32, too, whose values cannot be counted as above.
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
    except RecursionError:
        raise _wrong("is nested too deeply") from None
    except ValueError as error:  # also bytes that are no UTF-8
        raise _wrong(f"is not JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise _wrong("must be a JSON object")
    return value


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _wrong(description: str) -> InvalidRequest:
    return InvalidRequest([FieldViolation("body", description)])
