"""The engine, measured: each generation makes its span and its figures.

A wrapper with every method of the port, so that the core and the adapters know nothing of
telemetry.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from opentelemetry.trace import SpanKind

from ruvd.core.errors import RuvdError
from ruvd.core.ports.engine import Engine, EngineChunk, EngineDone, EngineRequest, PrefixCache
from ruvd.telemetry import genai
from ruvd.telemetry.conventions import Conventions, Provider
from ruvd.telemetry.instruments import Instruments
from ruvd.telemetry.rpc_spans import trace_headers
from ruvd.telemetry.spans import Attributes, Span, Tracer, Value, current

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
    def prefix_cache(self) -> PrefixCache | None:
        """See `Engine.warm`."""
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
        self.said = genai.AnswerRecorder() if settings.content and self.recorded else None
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
