"""A wrapper that measures the engine: each generation has a span and is recorded in the metrics.

The wrapper has every method of the port, so the core and the adapters know nothing of telemetry.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

from ruvd.core.errors import RuvdError
from ruvd.core.ports.engine import Engine, EngineChunk, EngineDone, EngineRequest, PrefixCache
from ruvd.telemetry import genai
from ruvd.telemetry.conventions import Conventions, Provider
from ruvd.telemetry.instruments import Instruments
from ruvd.telemetry.rpc_spans import end_span, trace_headers

_CANCELLED = "CANCELLED"
_CUT = "CUT"
_OTHER = "_OTHER"


class MeteredEngine:
    """An engine whose generations are spans named `chat MODEL` and counted in the GenAI metrics.

    `error.type` is the reason of the error, CANCELLED for a generation that was stopped, or CUT
    for a stream that ended without its last chunk.
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
        self._span_kind = SpanKind.CLIENT if provider.remote else SpanKind.INTERNAL
        self._provider = provider.attributes()
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
    def prefix_cache(self) -> PrefixCache | None:
        """See `Engine.prefix_cache`."""
        return self._engine.prefix_cache

    async def start(self) -> None:
        """See `Engine.start`."""
        await self._engine.start()

    @property
    def is_ready(self) -> bool:
        """See `Engine.is_ready`."""
        return self._engine.is_ready

    async def ready(self) -> None:
        """See `Engine.ready`."""
        await self._engine.ready()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """See `Engine.generate`."""
        model = request.options.model or self._engine.model
        span = self._tracer.start_span(
            f"chat {model}",
            kind=self._span_kind,
            attributes={**self._provider, "gen_ai.request.model": model},
        )
        generation = _Generation(span, request, model, self._settings, self._instruments)
        recorder, error, is_first = generation.recorder, _CUT, True
        try:
            async with aclosing(self._engine.generate(generation.request)) as chunks:
                async for chunk in chunks:
                    if is_first:
                        is_first = False
                        generation.mark_first_chunk()
                    if recorder:
                        recorder.add(chunk)
                    if isinstance(chunk, EngineDone):
                        generation.done, error = chunk, ""
                    yield chunk
        except (asyncio.CancelledError, GeneratorExit):
            error = error and _CANCELLED  # the reader may leave after the last chunk
            raise
        except RuvdError as failure:
            error = failure.reason()
            raise
        except BaseException:
            error = _OTHER
            raise
        finally:
            generation.end(error)

    async def models(self) -> Sequence[str]:
        """See `Engine.models`."""
        return await self._engine.models()

    async def close(self) -> None:
        """See `Engine.close`."""
        await self._engine.close()


class _Generation:
    """One generation: its span, and what is recorded when it ends.

    `request` is the request for the engine, with the trace headers of the span.
    """

    __slots__ = ("_context", "_first_chunk", "_instruments", "_model", "_names", "_span",
                 "_started", "done", "recorder", "request")  # fmt: skip

    def __init__(
        self, span: Span, request: EngineRequest, model: str, settings: Conventions,
        instruments: Instruments,
    ) -> None:  # fmt: skip
        self.done: EngineDone | None = None
        self.recorder: genai.AnswerRecorder | None = None
        self._span = span
        self._context = trace.set_span_in_context(span, Context())
        self._model = model
        self._names = settings.names
        self._instruments = instruments
        self._first_chunk: float | None = None
        if span.is_recording():
            span.set_attributes(genai.request_attributes(request, content=settings.content))
            if settings.content:
                self.recorder = genai.AnswerRecorder()
        headers = {**request.trace_headers, **trace_headers(self._context)}
        self.request = EngineRequest(
            request.messages, request.options, request.session_key, request.prefix_key, headers
        )
        self._started = time.perf_counter()

    def mark_first_chunk(self) -> None:
        """Notes the time until the first chunk."""
        self._first_chunk = time.perf_counter() - self._started

    def end(self, error: str) -> None:
        """Ends the span and records the generation. `error` is empty if it succeeded."""
        seconds = time.perf_counter() - self._started
        usage = self.done.usage if self.done else None
        self._instruments.record_generation(
            self._model, error, seconds, self._first_chunk, usage, self._context
        )
        if self._span.is_recording():
            self._span.set_attributes(self._answer_attributes())
        end_span(self._span, error)

    def _answer_attributes(self) -> dict[str, AttributeValue]:
        attributes = genai.answer_attributes(self.done) if self.done else {}
        if self._first_chunk is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = self._first_chunk
        if self.recorder:
            reason = self.done.finish_reason if self.done else None
            attributes["gen_ai.output.messages"] = self.recorder.messages(
                reason, with_reason=self._names.finish_reason_in_messages
            )
        return attributes
