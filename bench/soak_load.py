"""The load of `bench/soak.py`: what its callers do, and what may go wrong in it.

Each caller draws one operation after the other from its part's list. An error counts as provoked if
the operation asked for it (to be refused, interrupted, cancelled), or if the call was under way
within a while of an engine's kill and says that the engine is not there. Any other error is not,
nor an answer that is not the engine's text.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
from ruvd_client import AsyncClient, AsyncCompletion, IfBusy, RuvdError, SessionView, request

from ruvd.v1 import session_service_pb2 as pb
from ruvd.v1 import session_service_pb2_grpc as pb_grpc

TEXT = "Tell me in a few words what a sidecar is, and when one is better than a library."
_THINK_SECONDS = 0.05
_CALL_SECONDS = 120.0
_NOT_THERE = "ENGINE_UNAVAILABLE"


class Wrong(Exception):
    """An answer is not what it has to be."""


class Faults:
    """When engines were killed; until when their absence may be noticed."""

    def __init__(self, recovery_seconds: float) -> None:
        self._recovery_seconds = recovery_seconds
        self.kills: list[float] = []

    def explain(self, began: float, ended: float) -> bool:
        """Whether the engine may have been away between two times of the monotonic clock."""
        return any(began <= kill + self._recovery_seconds and ended >= kill for kill in self.kills)


@dataclass
class Tally:
    """What was done and what went wrong, by operation and reason."""

    done: Counter[str] = field(default_factory=Counter)
    provoked: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)


@dataclass
class Load:
    """A part's callers. `expected` is the text of every answer, None where it differs."""

    name: str
    address: str
    operations: Mapping[str, int]
    options: Mapping[str, Any]
    expected: str | None
    faults: Faults
    tally: Tally

    async def run(self, callers: int, seconds: float) -> None:
        """Everything, until the time is over and the last operations have ended."""
        until = time.monotonic() + seconds
        async with (
            AsyncClient(self.address, timeout=_CALL_SECONDS) as client,
            grpc.aio.insecure_channel(self.address) as channel,
            asyncio.TaskGroup() as group,
        ):
            stub = pb_grpc.SessionServiceStub(channel)
            for number in range(callers):
                caller = Caller(self, client, stub, number)
                group.create_task(caller.run(until))


class Caller:
    """One caller, with sessions of its own."""

    def __init__(self, load: Load, client: AsyncClient, stub: Any, number: int) -> None:
        self._load = load
        self._client = client
        self._stub = stub
        self._random = random.Random(f"{load.name} {number}")
        self._prefix = f"{load.name}-{number}"
        self._numbers = itertools.count()
        self._exchanges = 0

    async def run(self, until: float) -> None:
        """One operation after the other."""
        tally, names = self._load.tally, list(self._load.operations)
        weights = list(self._load.operations.values())
        while time.monotonic() < until:
            name = self._random.choices(names, weights)[0]
            operation: Callable[[], Awaitable[None]] = getattr(self, name)
            began = time.monotonic()
            try:
                async with asyncio.timeout(_CALL_SECONDS):
                    await operation()
            except RuvdError as error:
                what = f"{name}: {error.reason or error.code.name}"
                away = self._load.faults.explain(began, time.monotonic())
                if error.reason == _NOT_THERE and away:
                    tally.provoked[f"{what} (engine killed)"] += 1
                else:
                    tally.unexpected[f"{what}: {error.message}"[:200]] += 1
            except (Wrong, TimeoutError, grpc.aio.AioRpcError) as error:
                tally.unexpected[f"{name}: {type(error).__name__} {error}"[:200]] += 1
            else:
                tally.done[name] += 1
            await asyncio.sleep(self._random.expovariate(1 / _THINK_SECONDS))

    def _ask(self, session_id: str = "", **arguments: Any) -> AsyncCompletion:
        given = {**self._load.options, **arguments}
        return self._client.complete(TEXT, session_id=session_id, timeout=_CALL_SECONDS, **given)

    def _fresh(self) -> str:
        return f"{self._prefix}-{next(self._numbers)}"

    async def _whole(self, completion: AsyncCompletion) -> None:
        async with completion:
            self._check(await completion.text())

    def _check(self, text: str) -> None:
        if self._load.expected is not None and text != self._load.expected:
            raise Wrong(f"text {text[:80]!r}")

    @asynccontextmanager
    async def _provoked(self, name: str, *reasons: str) -> AsyncGenerator[None, None]:
        """Take these errors as asked for."""
        try:
            yield
        except RuvdError as error:
            if error.reason not in reasons:
                raise
            self._load.tally.provoked[f"{name}: {error.reason}"] += 1

    async def turn(self) -> None:
        """The next turn of a session; it follows the last that was committed."""
        completion = self._ask(f"{self._prefix}-turns")
        await self._whole(completion)
        started, finished = completion.started, completion.finished
        assert finished is not None
        created = started is not None and started.session_created
        self._exchanges = 1 if created else self._exchanges + 1
        if finished.exchange_count != self._exchanges:
            told, self._exchanges = self._exchanges, finished.exchange_count
            raise Wrong(f"{finished.exchange_count} exchanges after {told - 1}")

    async def stateless(self) -> None:
        await self._whole(self._ask())

    async def leave(self) -> None:
        """Go away after the first piece of text."""
        session_id = self._random.choice(["", f"{self._prefix}-left"])
        async with self._ask(session_id) as completion:
            await anext(completion, None)

    async def cancel(self) -> None:
        """Cancel from beside the stream."""
        session_id = f"{self._prefix}-cancelled"
        async with self._provoked("cancel", "COMPLETION_CANCELLED"), self._ask(session_id) as it:
            await anext(it, None)
            if it.started is not None:
                await self._client.cancel_completion(it.started.completion_id)
            await it.text()

    async def resume(self) -> None:
        """Lose the stream after a few events, and read on."""
        asked = pb.CompleteRequest(
            session_id=f"{self._prefix}-resumed",
            messages=[pb.Message(role=pb.ROLE_USER, content=TEXT)],
            options=pb.CompletionOptions(**self._load.options),
            on_disconnect=pb.ON_DISCONNECT_CONTINUE,
        )
        call = self._stub.Complete(asked)
        text, events = [], self._random.randrange(2, 8)
        last, completion_id = pb.CompletionEvent(), ""
        try:
            async for response in call:
                last = response.event
                completion_id = completion_id or last.started.completion_id
                text.append(last.delta.text)
                if last.HasField("finished") or last.sequence > events:
                    break
        except grpc.aio.AioRpcError as error:
            # Told as the client tells it, so that an engine's kill explains it.
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            raise RuvdError(error.code(), _NOT_THERE, error.details() or "") from error
        finally:
            call.cancel()
        if not last.HasField("finished"):
            rest = self._client.resume_completion(completion_id, after_sequence=last.sequence)
            async with rest:
                text += [piece async for piece in rest]
        self._check("".join(text))

    async def repeat(self) -> None:
        """The same request id twice: one turn, the same answer."""
        session_id, request_id = f"{self._prefix}-repeated", self._fresh()
        first = self._ask(session_id, request_id=request_id)
        await self._whole(first)
        again = self._ask(session_id, request_id=request_id)
        await self._whole(again)
        assert first.finished is not None
        assert again.finished is not None
        if first.finished.exchange_count != again.finished.exchange_count:
            raise Wrong("a request id was committed twice")

    async def busy(self) -> None:
        """A second caller that does not want to wait."""
        session_id = f"{self._prefix}-busy"
        async with self._ask(session_id) as first:
            await anext(first, None)
            async with self._provoked("busy", "SESSION_BUSY"):
                await self._whole(self._ask(session_id, if_busy=IfBusy.IF_BUSY_REJECT))
            await first.text()

    async def interrupt(self) -> None:
        """A second caller that takes over."""
        session_id = f"{self._prefix}-interrupted"
        async with self._ask(session_id) as first:
            await anext(first, None)
            await self._whole(self._ask(session_id, if_busy=IfBusy.IF_BUSY_INTERRUPT))
            async with self._provoked("interrupt", "COMPLETION_INTERRUPTED"):
                await first.text()

    async def end(self) -> None:
        """End a session while it answers."""
        session_id = f"{self._prefix}-ended"
        async with self._ask(session_id) as first:
            await anext(first, None)
            await self._client.end_session(session_id, allow_missing=True)
            async with self._provoked("end", "SESSION_ENDED"):
                await first.text()

    async def look(self) -> None:
        """Read; what was evicted is not there."""
        async with self._provoked("look", "SESSION_NOT_FOUND"):
            await self._client.get_session(f"{self._prefix}-turns", SessionView.SESSION_VIEW_FULL)
        with suppress(StopAsyncIteration):
            await anext(self._client.list_sessions(page_size=10))

    async def fork(self) -> None:
        """Fork a session and drop the fork."""
        async with self._provoked("fork", "SESSION_NOT_FOUND"):
            forked = await self._client.fork_session(f"{self._prefix}-turns")
            await self._client.end_session(forked.id, allow_missing=True)

    async def batch(self) -> None:
        """A few in one call."""
        batch = self._client.batch([request(TEXT, **self._load.options) for _ in range(4)])
        async for outcome in batch:
            self._check(outcome.text())
