"""Redirects of a server: which are followed, and the errors for the others."""

import httpx

from ruvd.core.errors import EngineUnavailable
from ruvd.engines.chat.retryable import Refused
from ruvd.engines.http.transport import Response

# The redirects that keep the request as it is. The others make a GET of it.
_FOLLOWED = (httpx.codes.TEMPORARY_REDIRECT, httpx.codes.PERMANENT_REDIRECT)


def redirect_target(response: Response, url: httpx.URL, origin: httpx.URL) -> httpx.URL:
    """Returns the URL to which a response redirects. Raises EngineUnavailable if the redirect is
    not followed: to another origin than `origin`, or one that would not keep the request."""
    location = response.header("location")
    words = f"the engine redirects (HTTP status {response.status})"
    try:
        target = url.join(location)
    except (httpx.InvalidURL, ValueError):
        target = None
    shown = target and target.copy_with(query=None, fragment=None)  # a query may hold a secret
    if not location or target is None:
        raise _refused(response, f"{words} and does not say where to")
    if response.status not in _FOLLOWED:
        raise _refused(response, f"{words} to {shown}, which would lose the request: set base_url")
    if _origin(target) != _origin(origin):
        text = f"{words} to another server, {shown}, which is not followed: set base_url"
        raise _refused(response, text)
    return target.copy_with(fragment=None)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    default = {"http": 80, "https": 443}.get(url.scheme)
    return url.scheme, url.host.lower(), url.port or default


def _refused(response: Response, text: str) -> EngineUnavailable:
    error = EngineUnavailable(text)
    error.__cause__ = Refused(response.status, None, "")
    return error
