"""The way of one request to a server: the key, redirects, stale connections, refusals."""

from contextlib import aclosing
from dataclasses import replace
from functools import partial

import httpx

from ruvd.core.errors import EngineUnavailable
from ruvd.engines.chat.credentials import ApiKey
from ruvd.engines.chat.errors import EngineErrorTranslator, response_error
from ruvd.engines.chat.redirects import redirect_target
from ruvd.engines.chat.retryable import was_stale
from ruvd.engines.http.content_encoding import decoded
from ruvd.engines.http.timeouts import ReadTimeout
from ruvd.engines.http.transport import Request, Response, Transport

_MAX_ERROR_BYTES = 65_536
_MAX_REDIRECTS = 4
# The number of idle connections that may turn out to be closed, one after the other.
_MAX_STALE_CONNECTIONS = 2
_BODILESS = (204, 205)


class RequestSender:
    """Sends requests over a transport, which it closes, until one is answered with a 2xx status.

    The parameters are those of the client.
    """

    def __init__(
        self,
        transport: Transport,
        api_key: ApiKey,
        *,
        connect_seconds: float,
        max_retry_after_seconds: float,
    ) -> None:
        self._transport = transport
        self._api_key = api_key
        self._connect_seconds = connect_seconds
        self._max_retry_after_seconds = max_retry_after_seconds
        self._translated_head_errors = EngineErrorTranslator(api_key.redact, before_head=True)
        self._is_closed = False

    async def send(self, request: Request, timeout: ReadTimeout) -> Response:
        """Returns the response, whose status is 2xx and which has a body.

        Must be called in an EngineErrorTranslator. Raises the error of any other response.
        """
        if key := await timeout.wait(self._api_key.current):
            request.headers = (*request.headers, (b"Authorization", b"Bearer %s" % key.encode()))
        self._check_open()
        response = await self._send_following(request, timeout)
        if httpx.codes.is_success(response.status) and response.status not in _BODILESS:
            return response
        async with aclosing(response):
            content = await read_body(response, _MAX_ERROR_BYTES, timeout)
        raise response_error(
            response.status,
            content,
            content_type=response.header("content-type"),
            retry_after=response.header("retry-after"),
            date=response.header("date"),
            max_retry_after_seconds=self._max_retry_after_seconds,
        )

    async def close(self) -> None:
        """Closes every connection. Idempotent."""
        self._is_closed = True
        await self._transport.aclose()

    async def _send_following(self, request: Request, timeout: ReadTimeout) -> Response:
        """Returns the decoded response, after redirects that keep the method, the body and the
        origin. Another origin must get neither the key nor the conversation."""
        origin = request.url
        for _ in range(_MAX_REDIRECTS):
            response = await self._send_replacing_stale(request, timeout)
            try:
                response = decoded(response)
                if not httpx.codes.is_redirect(response.status):
                    return response
                request = replace(request, url=redirect_target(response, request.url, origin))
            except BaseException:
                await response.aclose()
                raise
            await response.aclose()
        raise EngineUnavailable(f"the engine redirects in a circle, to {request.url.path}")

    async def _send_replacing_stale(self, request: Request, timeout: ReadTimeout) -> Response:
        """Returns the response, over another connection if the server has closed an idle one.

        A stale connection is no failure of the server, so it takes nothing from the retries.
        """
        for _ in range(_MAX_STALE_CONNECTIONS):
            try:
                return await self._send_once(request, timeout)
            except EngineUnavailable as error:
                if not was_stale(error):
                    raise
                self._check_open()
        return await self._send_once(request, timeout)

    async def _send_once(self, request: Request, timeout: ReadTimeout) -> Response:
        with self._translated_head_errors:
            return await timeout.wait(
                partial(self._transport.send, request),
                first_read_extra_seconds=self._connect_seconds,
            )

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineUnavailable("the connection to the engine is closed")


async def read_body(response: Response, max_bytes: int, timeout: ReadTimeout) -> bytes:
    """Returns the body, or about its first `max_bytes`."""
    content = b""
    while len(content) < max_bytes and (part := await timeout.wait(response.read)):
        content += part
    return content
