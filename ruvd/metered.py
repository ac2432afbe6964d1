"""The engine and the store, measured: each call of a port makes its span and its figures.

Wrappers with every method of the port, so that the core and the adapters know nothing of
telemetry. Only commits have spans: reads are many and short.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from ruvd import genai
from ruvd.conventions import Conventions, Provider
from ruvd.errors import RuvdError, StoreUnavailable
from ruvd.instruments import Instruments
from ruvd.model import Exchange, Receipt, Session
from ruvd.ports import (
    Commit,
    Engine,
    EngineChunk,
    EngineDone,
    EngineRequest,
    Store,
    StoreCounts,
    Warm,
)
from ruvd.tracing import trace_headers

_CANCELLED = "CANCELLED"
_CUT = "CUT"
_OTHER = "_OTHER"


class MeteredEngine:
    """An engine whose generations are spans, `chat MODEL`, and GenAI metrics.

    `error.type` is the error's reason, or CANCELLED for a generation that was stopped, or CUT for
    one that ended without its end.
    """

    def __init__(
        self,
        engine: Engine,
        tracer: Tracer,
        instruments: Instruments,
        provider: Provider,
        settings: Conventions,
    ) -> None:
        self._engine = engine
        self._tracer = tracer
        self._instruments = instruments
        self._kind = SpanKind.CLIENT if provider.remote else SpanKind.INTERNAL
        self._attributes = provider.attributes()
        self._settings = settings

    @property
    def model(self) -> str:
        """See `Engine.model`."""
        return self._engine.model

    @property
    def slots(self) -> int | None:
        """See `Engine.slots`."""
        return self._engine.slots

    @property
    def window_tokens(self) -> int | None:
        """See `Engine.window_tokens`."""
        return self._engine.window_tokens

    @property
    def warm(self) -> Warm | None:
        """See `Engine.warm`."""
        return self._engine.warm

    async def start(self) -> None:
        """See `Engine.start`."""
        await self._engine.start()

    async def ready(self) -> None:
        """See `Engine.ready`."""
        await self._engine.ready()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """See `Engine.generate`."""
        model = request.options.model or self._engine.model
        span = self._tracer.start_span(
            f"chat {model}",
            kind=self._kind,
            attributes={**self._attributes, "gen_ai.request.model": model},
        )
        call = _Generation(request, model, span, self._settings)
        try:
            async with aclosing(self._engine.generate(call.request)) as chunks:
                async for chunk in chunks:
                    call.saw(chunk)
                    yield chunk
        except (asyncio.CancelledError, GeneratorExit):
            call.error = call.error and _CANCELLED
            raise
        except RuvdError as error:
            call.error = error.reason()
            raise
        except BaseException:
            call.error = _OTHER
            raise
        finally:
            call.end(self._instruments)

    async def models(self) -> Sequence[str]:
        """See `Engine.models`."""
        return await self._engine.models()

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._engine.close()


class _Generation:
    """One call of the engine; `error` is what it is called if it ended now."""

    def __init__(
        self, request: EngineRequest, model: str, span: Span, settings: Conventions
    ) -> None:
        self.error = _CUT
        self._model = model
        self._span = span
        self._done: EngineDone | None = None
        self._first: float | None = None
        self._reason_in_messages = settings.names.finish_reason_in_messages
        recording = span.is_recording()
        self._said = genai.Said() if settings.content and recording else None
        if recording:
            span.set_attributes(genai.request_attributes(request, content=settings.content))
        headers = {**request.trace_headers, **trace_headers(span.get_span_context())}
        self.request = EngineRequest(
            request.messages, request.options, request.session_key, request.prefix_key, headers
        )
        self._began = time.perf_counter()

    def saw(self, chunk: EngineChunk) -> None:
        if self._first is None:
            self._first = time.perf_counter() - self._began
        if self._said:
            self._said.add(chunk)
        if isinstance(chunk, EngineDone):
            self._done = chunk
            self.error = ""

    def end(self, instruments: Instruments) -> None:
        seconds = time.perf_counter() - self._began
        span, done = self._span, self._done
        if self._first is not None:
            span.set_attribute("gen_ai.response.time_to_first_chunk", self._first)
        if done:
            span.set_attributes(genai.answer_attributes(done))
        if self._said:
            reason = done.finish_reason if done else None
            said = self._said.messages(reason, with_reason=self._reason_in_messages)
            span.set_attribute("gen_ai.output.messages", said)
        if self.error:
            span.set_attribute("error.type", self.error)
            span.set_status(Status(StatusCode.ERROR))
        instruments.generated(
            self._model,
            seconds,
            first_chunk=self._first,
            usage=done.usage if done else None,
            error=self.error,
            span=span.get_span_context(),
        )
        span.end()


class MeteredStore:
    """A store whose commits are spans with a duration, and whose failures are counted."""

    def __init__(self, store: Store, kind: str, tracer: Tracer, instruments: Instruments) -> None:
        self._store = store
        self._kind = kind
        self._tracer = tracer
        self._instruments = instruments

    async def open(self) -> None:
        """See `Store.open`."""
        with self._call("open"):
            await self._store.open()

    async def close(self) -> None:
        """See `Store.close`."""
        await self._store.close()

    async def get(self, session_id: str) -> Session | None:
        """See `Store.get`."""
        with self._call("get"):
            return await self._store.get(session_id)

    async def exchanges(self, session_id: str, first: int) -> Sequence[Exchange]:
        """See `Store.exchanges`."""
        with self._call("exchanges"):
            return await self._store.exchanges(session_id, first)

    async def commit(self, commit: Commit) -> Sequence[str]:
        """See `Store.commit`."""
        with self._commit("commit"):
            return await self._store.commit(commit)

    async def fork(self, commit: Commit, parent_id: str) -> Sequence[str]:
        """See `Store.fork`."""
        with self._commit("fork"):
            return await self._store.fork(commit, parent_id)

    async def size_at(self, session_id: str, exchange_count: int) -> tuple[int, int]:
        """See `Store.size_at`."""
        with self._call("size_at"):
            return await self._store.size_at(session_id, exchange_count)

    async def touch(self, session_id: str, now: float) -> bool:
        """See `Store.touch`."""
        with self._call("touch"):
            return await self._store.touch(session_id, now)

    async def end(self, session_id: str) -> bool:
        """See `Store.end`."""
        with self._call("end"):
            return await self._store.end(session_id)

    async def expire(self, now: float, protected: Collection[str]) -> Sequence[str]:
        """See `Store.expire`."""
        with self._call("expire"):
            return await self._store.expire(now, protected)

    async def list(
        self, *, after: int, limit: int, labels: Mapping[str, str], now: float
    ) -> tuple[Sequence[Session], int]:
        """See `Store.list`."""
        with self._call("list"):
            return await self._store.list(after=after, limit=limit, labels=labels, now=now)

    async def receipt(self, session_id: str, request_id: str) -> Receipt | None:
        """See `Store.receipt`."""
        with self._call("receipt"):
            return await self._store.receipt(session_id, request_id)

    async def completion(self, completion_id: str) -> tuple[str, Receipt] | None:
        """See `Store.completion`."""
        with self._call("completion"):
            return await self._store.completion(completion_id)

    async def created_by(self, request_id: str) -> tuple[str, Receipt] | None:
        """See `Store.created_by`."""
        with self._call("created_by"):
            return await self._store.created_by(request_id)

    async def counts(self, now: float) -> StoreCounts:
        """See `Store.counts`."""
        with self._call("counts"):
            return await self._store.counts(now)

    @contextmanager
    def _call(self, operation: str) -> Iterator[None]:
        try:
            yield
        except StoreUnavailable:
            self._instruments.store_failed(operation)
            raise

    @contextmanager
    def _commit(self, operation: str) -> Iterator[None]:
        attributes = {"ruvd.store.operation": operation, "ruvd.store.kind": self._kind}
        span = self._tracer.start_span(f"ruvd.store.{operation}", attributes=attributes)
        began, reason = time.perf_counter(), _OTHER
        try:
            with self._call(operation):
                yield
            reason = ""
        except asyncio.CancelledError:
            reason = _CANCELLED
            raise
        except RuvdError as error:
            reason = error.reason()
            raise
        finally:
            if reason:
                span.set_attribute("error.type", reason)
                span.set_status(Status(StatusCode.ERROR))
            seconds = time.perf_counter() - began
            self._instruments.committed(seconds, operation, reason, span.get_span_context())
            span.end()
