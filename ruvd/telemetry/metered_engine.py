"""A wrapper that measures the engine: each generation has a span and is recorded in the metrics.

The core and the adapters know nothing of telemetry.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Tracer
from opentelemetry.util.types import AttributeValue

from ruvd.core.errors import RuvdError
from ruvd.core.ports.engine import Engine, EngineChunk, EngineDone, EngineRequest
from ruvd.core.ports.engine_wrapper import EngineWrapper
from ruvd.telemetry import genai
from ruvd.telemetry.conventions import Conventions, Provider
from ruvd.telemetry.deferred import Deferred
from ruvd.telemetry.engine_labels import ENGINE_NAME
from ruvd.telemetry.instruments import Instruments
from ruvd.telemetry.rpc_spans import end_span, trace_headers

_CANCELLED = "CANCELLED"
_CUT = "CUT"
_OTHER = "_OTHER"


class MeteredEngine(EngineWrapper):
    """An engine whose generations are spans named `chat MODEL` and counted in the GenAI metrics.

    `error.type` is the reason of the error, CANCELLED for a generation that was stopped, or CUT
    for a stream that ended without its last chunk. `name` is that of a named engine.
    """

    def __init__(
        self,
        engine: Engine,
        tracer: Tracer,
        instruments: Instruments,
        deferred: Deferred,
        provider: Provider,
        settings: Conventions,
        name: str = "",
    ) -> None:
        super().__init__(engine)
        self._engine_name = name
        self._tracer = tracer
        self._instruments = instruments
        self._deferred = deferred
        self._span_kind = SpanKind.CLIENT if provider.remote else SpanKind.INTERNAL
        self._provider = provider.attributes() | ({ENGINE_NAME: name} if name else {})
        self._settings = settings

    async def generate(self, request: EngineRequest) -> AsyncGenerator[EngineChunk, None]:
        """See `Engine.generate`."""
        model = request.options.model or self._engine.model
        span = self._tracer.start_span(f"chat {model}", kind=self._span_kind)
        generation = _Generation(span, request, model, self._settings)
        recorder, is_first, error = generation.recorder, True, _CUT
        chunk: EngineChunk | None = None
        try:
            async with aclosing(self._engine.generate(generation.request)) as chunks:
                async for chunk in chunks:  # with as little work a chunk as there can be
                    if is_first:
                        is_first = False
                        generation.mark_first_chunk()
                    if recorder:
                        recorder.add(chunk)
                    yield chunk
        except (asyncio.CancelledError, GeneratorExit):
            error = _CANCELLED
            raise
        except RuvdError as failure:
            error = failure.reason()
            raise
        except BaseException:
            error = _OTHER
            raise
        finally:
            generation.stop(chunk, error)
            self._deferred.add(self._record, generation)

    def _record(self, generation: "_Generation") -> None:
        done, error = generation.done, generation.error
        self._instruments.record_generation(
            generation.model,
            error,
            generation.seconds,
            generation.first_chunk_seconds,
            done.usage if done else None,
            generation.context,
            self._engine_name,
        )
        attributes: dict[str, AttributeValue] = {}
        if generation.span.is_recording():
            attributes = {**self._provider, **generation.attributes()}
        end_span(generation.span, attributes, error, generation.ended)


class _Generation:
    """One generation: its span, and what is recorded when it has ended.

    `request` is the request for the engine, with the trace headers of the span. `error` is empty if
    the generation succeeded.
    """

    __slots__ = ("_settings", "_started", "context", "done", "ended", "error",
                 "first_chunk_seconds", "model", "recorder", "request", "seconds",
                 "span")  # fmt: skip

    def __init__(
        self, span: Span, request: EngineRequest, model: str, settings: Conventions
    ) -> None:
        self.span = span
        self.context = trace.set_span_in_context(span, Context())
        self.model = model
        self.error = ""
        self.done: EngineDone | None = None
        self.first_chunk_seconds: float | None = None
        self.seconds = 0.0
        self.ended = 0
        self.recorder = None
        if settings.content and span.is_recording():
            self.recorder = genai.AnswerRecorder()
        headers = {**request.trace_headers, **trace_headers(self.context)}
        self.request = EngineRequest(
            request.messages,
            request.options,
            request.session_key,
            request.prefix_key,
            headers,
            request.tenant,
        )
        self._settings = settings
        self._started = time.perf_counter()

    def mark_first_chunk(self) -> None:
        """Notes the time until the first chunk."""
        self.first_chunk_seconds = time.perf_counter() - self._started

    def stop(self, last: EngineChunk | None, error: str) -> None:
        """Notes the end of the generation after the chunk `last`.

        Nothing is missing after an EngineDone: then the reader may leave, and the stream may end.
        """
        self.seconds = time.perf_counter() - self._started
        self.ended = time.time_ns()
        if isinstance(last, EngineDone):
            self.done = last
            error = "" if error in (_CUT, _CANCELLED) else error
        self.error = error

    def attributes(self) -> dict[str, AttributeValue]:
        """Returns the attributes of the span, without those of the provider."""
        names, content = self._settings.names, self._settings.content
        attributes = {
            "gen_ai.request.model": self.model,
            **genai.request_attributes(self.request, content=content),
        }
        if self.first_chunk_seconds is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = self.first_chunk_seconds
        if self.done:
            attributes |= genai.answer_attributes(self.done)
        if self.recorder:
            attributes["gen_ai.output.messages"] = self.recorder.messages(
                self.done.finish_reason if self.done else None,
                with_reason=not names.is_newest,
            )
        return attributes
