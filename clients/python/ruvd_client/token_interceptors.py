"""Interceptors that add the token to the calls of the asyncio client.

The token may come from an async function, which a call that starts at once could not wait for.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc.aio

from ruvd_client.security import Credential

Continuation = Callable[[grpc.aio.ClientCallDetails, Any], Awaitable[Any]]


def token_interceptors(credential: Credential) -> tuple[grpc.aio.ClientInterceptor, ...]:
    """Returns the interceptors for a channel, for both kinds of call that the service has."""
    return (_UnaryUnary(credential), _UnaryStream(credential))


class _Interceptor:
    def __init__(self, credential: Credential) -> None:
        self._credential = credential

    async def _start(
        self, continuation: Continuation, details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        authorization = await self._credential.async_authorization()
        metadata = grpc.aio.Metadata(*(details.metadata or ()), authorization)
        authorized = grpc.aio.ClientCallDetails(
            details.method, details.timeout, metadata, details.credentials, details.wait_for_ready
        )
        return await continuation(authorized, request)


class _UnaryUnary(_Interceptor, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await self._start(continuation, client_call_details, request)


class _UnaryStream(_Interceptor, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await self._start(continuation, client_call_details, request)
