"""The protection of the pages from other pages that the same browser shows.

The headers let the pages load and show nothing but what is theirs, and other pages can neither load
nor frame them. `ruvd.http.browser_guard` refuses requests under foreign host names.
"""

from starlette.responses import PlainTextResponse

from ruvd.http.scopes import ASGIApp, Message, Receive, Scope, Send

_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self';"
    b" connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = [
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
_METHODS = ("GET", "HEAD")


def protected(application: ASGIApp) -> ASGIApp:
    """Wraps an application: it can only be read, and its responses have the headers."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        answering = application
        if scope["method"] not in _METHODS:
            answering = PlainTextResponse("the console is read-only", 405, {"allow": "GET, HEAD"})
        await answering(scope, receive, with_headers)

    return wrapped
