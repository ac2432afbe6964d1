"""The engine and the store, measured: each call of a port makes its span and its figures.

Wrappers with every method of the port, so that the core and the adapters know nothing of
telemetry. Only commits have spans: reads are many and short.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager

from opentelemetry.trace import SpanKind

from ruvd import genai
from ruvd.conventions import Conventions, Provider
from ruvd.errors import RuvdError, StoreUnavailable
from ruvd.instruments import Instruments
from ruvd.model import Exchange, Receipt, Session
from ruvd.ports import (
    Beginning,
    Commit,
    Engine,
    EngineChunk,
    EngineDone,
    EngineRequest,
    Store,
    StoreCounts,
    Warm,
)
from ruvd.spans import Attributes, Span, Tracer, Value, current
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
        self._known = provider.attributes()
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
        call = _Generation(
            self._tracer, request, self._engine.model, self._kind, self._known, self._settings
        )
        said, is_first = call.said, True
        try:
            async with aclosing(self._engine.generate(call.request())) as chunks:
                async for chunk in chunks:
                    if is_first:
                        is_first = False
                        call.began_to_answer()
                    if said:
                        said.add(chunk)
                    if isinstance(chunk, EngineDone):
                        call.done, call.error = chunk, ""
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
            usage = call.done.usage if call.done else None
            seconds = call.seconds()
            self._instruments.generated(call.model, seconds, call.first_chunk, usage, call)
            call.end()

    async def models(self) -> Sequence[str]:
        """See `Engine.models`."""
        return await self._engine.models()

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._engine.close()


class _Generation(Span):
    """One call of the engine; `error` is what it is called if it ended now."""

    __slots__ = ("_clock", "_request", "_settings", "done", "first_chunk", "model", "said")

    def __init__(
        self,
        tracer: Tracer,
        request: EngineRequest,
        model: str,
        kind: SpanKind,
        known: Attributes,
        settings: Conventions,
    ) -> None:
        self.model = request.options.model or model
        super().__init__(tracer, f"chat {self.model}", current.get(), kind=kind, known=known)
        self.error = _CUT
        self.done: EngineDone | None = None
        self.first_chunk: float | None = None
        self.said = genai.Said() if settings.content and self.recorded else None
        self._request = request
        self._settings = settings
        self._clock = time.perf_counter()

    def request(self) -> EngineRequest:
        """What the engine is asked, within this span."""
        asked = self._request
        headers = {**asked.trace_headers, **trace_headers(self)}
        return EngineRequest(
            asked.messages, asked.options, asked.session_key, asked.prefix_key, headers
        )

    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._clock

    def began_to_answer(self) -> None:
        """The first chunk is there."""
        self.first_chunk = self.seconds()

    def facts(self) -> dict[str, Value]:
        """See `Span.facts`."""
        names, content = self._settings.names, self._settings.content
        facts = {
            **self.known,
            "gen_ai.request.model": self.model,
            **genai.request_attributes(self._request, content=content),
        }
        if self.first_chunk is not None:
            facts["gen_ai.response.time_to_first_chunk"] = self.first_chunk
        if self.done:
            facts |= genai.answer_attributes(self.done)
        if self.said:
            reason = self.done.finish_reason if self.done else None
            said = self.said.messages(reason, with_reason=names.finish_reason_in_messages)
            facts["gen_ai.output.messages"] = said
        return facts


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

    async def begin(self, session_id: str, request_id: str, now: float) -> Beginning:
        """See `Store.begin`."""
        with self._call("begin"):
            return await self._store.begin(session_id, request_id, now)

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
        known = {"ruvd.store.operation": operation, "ruvd.store.kind": self._kind}
        span = Span(self._tracer, f"ruvd.store.{operation}", current.get(), known=known)
        began, span.error = time.perf_counter(), _OTHER
        try:
            with self._call(operation):
                yield
            span.error = ""
        except asyncio.CancelledError:
            span.error = _CANCELLED
            raise
        except RuvdError as error:
            span.error = error.reason()
            raise
        finally:
            self._instruments.committed(operation, time.perf_counter() - began, span)
            span.end()
