"""An AsyncClient with the interface of a Client, so that both run the same programs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Self

from ruvd_client import AsyncClient


class Blocking:
    """A wrapper that gives an AsyncClient the interface of a Client, with its own event loop."""

    loop = asyncio.new_event_loop()

    def __init__(self, address: str | None = None, **settings: Any) -> None:
        self._client = self._run(self._connect(address, settings))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = self._run(_awaited(method, *args, **kwargs))
            return BlockingIterator(self.loop, result) if hasattr(result, "__aiter__") else result

        return call

    async def _connect(self, address: str | None, settings: dict[str, Any]) -> AsyncClient:
        return AsyncClient(address, **settings)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)


class BlockingIterator:
    """A wrapper that makes an asynchronous iterator an ordinary one and keeps its attributes."""

    def __init__(self, loop: asyncio.AbstractEventLoop, iterator: Any) -> None:
        self._loop = loop
        self._iterator = iterator

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self._loop.run_until_complete(anext(self._iterator))
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.run_until_complete(self._iterator.__aexit__(*error))

    def text(self) -> str:
        return str(self._loop.run_until_complete(self._iterator.text()))

    def message(self) -> Any:
        return self._loop.run_until_complete(self._iterator.message())

    def events(self) -> Iterator[Any]:
        return BlockingIterator(self._loop, self._iterator.events())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._iterator, name)


async def _awaited(method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    result = method(*args, **kwargs)
    return await result if asyncio.iscoroutine(result) else result
