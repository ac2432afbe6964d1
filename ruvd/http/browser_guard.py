"""The refusal of requests that a web page of another site makes in somebody's browser.

Without identities an address on loopback trusts whoever reaches it. A page of any site can make a
browser on this machine send requests there, and by a name of its own that resolves to 127.0.0.1 it
could read the answers. Programs send no `Origin`, and name a loopback host.
"""

import ipaddress
from urllib.parse import urlsplit

from ruvd.http import scopes
from ruvd.http.scopes import ASGIApp, Receive, Scope, Send

_OF_OTHERS = "requests of web pages of other sites are refused"
_OTHER_HOST = (
    "the Host header names no loopback address, as that of a web page of another site would:"
    " call 127.0.0.1 or localhost, or give the daemon identities of its callers"
)


class BrowserGuard:
    """Refuses requests with a foreign `Origin`; if `loopback_only`, also those to other hosts."""

    def __init__(self, app: ASGIApp, *, loopback_only: bool) -> None:
        self._app = app
        self._loopback_only = loopback_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles the request, or refuses it."""
        refusal = self._refusal(scope) if scope["type"] == "http" else ""
        if refusal:
            body = refusal.encode()
            headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> str:
        """Returns why the request is refused, empty if it is not."""
        host, origin = scopes.header(scope, "host"), scopes.header(scope, "origin")
        if origin and _netloc(origin) != host.lower():
            return _OF_OTHERS
        if self._loopback_only and host and not _is_loopback(host):
            return _OTHER_HOST
        return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
