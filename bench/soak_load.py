"""The load of `bench/soak.py`: the operations of its callers and their expected errors.

Each caller runs one randomly chosen operation after the other. An error counts as provoked if the
operation expects it (a refusal, an interruption, a cancellation), or if the engine was killed
shortly before or during the call and the error is ENGINE_UNAVAILABLE. Every other error is
unexpected, and so is an answer that differs from the engine's text.
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
_ENGINE_UNAVAILABLE = "ENGINE_UNAVAILABLE"
_GONE = ("SESSION_NOT_FOUND", "SESSION_EVICTED")


class WrongAnswer(Exception):
    """An answer differs from the expected one."""


class Faults:
    """The times at which an engine was killed, and how long calls may fail afterwards."""

    def __init__(self, recovery_seconds: float) -> None:
        self._recovery_seconds = recovery_seconds
        self.kills: list[float] = []

    def explain(self, began: float, ended: float) -> bool:
        """Returns whether the engine may have been down between two times (monotonic clock)."""
        return any(began <= kill + self._recovery_seconds and ended >= kill for kill in self.kills)


@dataclass
class Tally:
    """Counts of finished operations and of errors, by operation and reason."""

    done: Counter[str] = field(default_factory=Counter)
    provoked: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)


@dataclass
class Load:
    """The load on one daemon. `expected` is the text of every answer, or None if it varies."""

    name: str
    address: str
    operations: Mapping[str, int]
    options: Mapping[str, Any]
    expected: str | None
    faults: Faults
    tally: Tally

    async def run(self, callers: int, seconds: float) -> None:
        """Runs all callers, until the time is over and the last operations have ended."""
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
        """Runs one operation after the other."""
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
                engine_down = self._load.faults.explain(began, time.monotonic())
                if error.reason == _ENGINE_UNAVAILABLE and engine_down:
                    tally.provoked[f"{what} (engine killed)"] += 1
                else:
                    tally.unexpected[f"{what}: {error.message}"[:200]] += 1
            except (WrongAnswer, TimeoutError, grpc.aio.AioRpcError) as error:
                tally.unexpected[f"{name}: {type(error).__name__} {error}"[:200]] += 1
            else:
                tally.done[name] += 1
            await asyncio.sleep(self._random.expovariate(1 / _THINK_SECONDS))

    def _ask(self, session_id: str = "", **arguments: Any) -> AsyncCompletion:
        options = {**self._load.options, **arguments}
        # More sessions are used than the daemon may have, so each of them may have been evicted.
        options["recreate_if_gone"] = bool(session_id)
        return self._client.complete(TEXT, session_id=session_id, timeout=_CALL_SECONDS, **options)

    def _new_id(self) -> str:
        return f"{self._prefix}-{next(self._numbers)}"

    async def _read_to_end(self, completion: AsyncCompletion) -> None:
        async with completion:
            self._check(await completion.text())

    def _check(self, text: str) -> None:
        if self._load.expected is not None and text != self._load.expected:
            raise WrongAnswer(f"text {text[:80]!r}")

    @asynccontextmanager
    async def _provoked(self, name: str, *reasons: str) -> AsyncGenerator[None, None]:
        """Counts errors with these reasons as provoked."""
        try:
            yield
        except RuvdError as error:
            if error.reason not in reasons:
                raise
            self._load.tally.provoked[f"{name}: {error.reason}"] += 1

    async def turn(self) -> None:
        """Runs the next turn of a session and checks that it follows the last committed one."""
        completion = self._ask(f"{self._prefix}-turns")
        await self._read_to_end(completion)
        started, finished = completion.started, completion.finished
        assert finished is not None
        created = started is not None and started.session_created
        self._exchanges = 1 if created else self._exchanges + 1
        if finished.exchange_count != self._exchanges:
            expected, self._exchanges = self._exchanges, finished.exchange_count
            raise WrongAnswer(f"{finished.exchange_count} exchanges, expected {expected}")

    async def stateless(self) -> None:
        """Runs a completion without a session."""
        await self._read_to_end(self._ask())

    async def leave(self) -> None:
        """Abandons a stream after the first piece of text."""
        session_id = self._random.choice(["", f"{self._prefix}-left"])
        async with self._ask(session_id) as completion:
            await anext(completion, None)

    async def cancel(self) -> None:
        """Cancels a completion by a second call."""
        session_id = f"{self._prefix}-cancelled"
        async with self._provoked("cancel", "COMPLETION_CANCELLED"), self._ask(session_id) as it:
            await anext(it, None)
            if it.started is not None:
                await self._client.cancel_completion(it.started.completion_id)
            await it.text()

    async def resume(self) -> None:
        """Drops a stream after a few events, and resumes it."""
        complete_request = pb.CompleteRequest(
            session_id=f"{self._prefix}-resumed",
            messages=[pb.Message(role=pb.ROLE_USER, content=TEXT)],
            options=pb.CompletionOptions(**self._load.options),
            on_disconnect=pb.ON_DISCONNECT_CONTINUE,
            recreate_if_gone=True,
        )
        call = self._stub.Complete(complete_request)
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
            # Raised as the client library raises it, so that an engine's kill can explain it.
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            raise RuvdError(error.code(), _ENGINE_UNAVAILABLE, error.details() or "") from error
        finally:
            call.cancel()
        if not last.HasField("finished"):
            rest = self._client.resume_completion(completion_id, after_sequence=last.sequence)
            async with rest:
                text += [piece async for piece in rest]
        self._check("".join(text))

    async def repeat(self) -> None:
        """Sends the same request id twice, which must give one turn and the same answer."""
        session_id, request_id = f"{self._prefix}-repeated", self._new_id()
        first = self._ask(session_id, request_id=request_id)
        await self._read_to_end(first)
        again = self._ask(session_id, request_id=request_id)
        await self._read_to_end(again)
        assert first.finished is not None
        assert again.finished is not None
        if first.finished.exchange_count != again.finished.exchange_count:
            raise WrongAnswer("a request id was committed twice")

    async def busy(self) -> None:
        """Calls a busy session a second time, without waiting for it."""
        session_id = f"{self._prefix}-busy"
        async with self._ask(session_id) as first:
            await anext(first, None)
            async with self._provoked("busy", "SESSION_BUSY"):
                await self._read_to_end(self._ask(session_id, if_busy=IfBusy.IF_BUSY_REJECT))
            await first.text()

    async def interrupt(self) -> None:
        """Calls a busy session a second time, interrupting the first call."""
        session_id = f"{self._prefix}-interrupted"
        async with self._ask(session_id) as first:
            await anext(first, None)
            await self._read_to_end(self._ask(session_id, if_busy=IfBusy.IF_BUSY_INTERRUPT))
            async with self._provoked("interrupt", "COMPLETION_INTERRUPTED"):
                await first.text()

    async def end(self) -> None:
        """Ends a session while a completion is running."""
        session_id = f"{self._prefix}-ended"
        async with self._ask(session_id) as first:
            await anext(first, None)
            await self._client.end_session(session_id, allow_missing=True)
            async with self._provoked("end", "SESSION_ENDED"):
                await first.text()

    async def look(self) -> None:
        """Reads a session, which may have been evicted, and lists sessions."""
        async with self._provoked("look", *_GONE):
            await self._client.get_session(f"{self._prefix}-turns", SessionView.SESSION_VIEW_FULL)
        with suppress(StopAsyncIteration):
            await anext(self._client.list_sessions(page_size=10))

    async def fork(self) -> None:
        """Forks a session and ends the fork."""
        async with self._provoked("fork", *_GONE):
            forked = await self._client.fork_session(f"{self._prefix}-turns")
            await self._client.end_session(forked.id, allow_missing=True)

    async def batch(self) -> None:
        """Runs four completions in one batch."""
        batch = self._client.batch([request(TEXT, **self._load.options) for _ in range(4)])
        async for outcome in batch:
            self._check(outcome.text())
