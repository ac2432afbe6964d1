"""What is recorded as it happens: GenAI and RPC by the conventions, and our own under `ruvd.`.

What happens is only noted when it does (`ruvd.telemetry.histograms`), with the span it is within.
What is read when somebody collects is in `ruvd.telemetry.observables`. Label sets are bounded: no
session's id, and no more models than `_MODELS`, because a caller may name any.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

from opentelemetry.metrics import Meter

from ruvd.core.model import Usage
from ruvd.core.ports.events import CompletionEnded, EngineTaken, Event, StoreBatch
from ruvd.core.statistics import KINDS, Statistics, kind
from ruvd.telemetry import conventions
from ruvd.telemetry.conventions import Conventions, Provider
from ruvd.telemetry.histograms import Histogram, Histograms, Series
from ruvd.telemetry.observables import Gauges, ObservableInstruments
from ruvd.telemetry.spans import Attributes, Span, current

_MODELS = 50
STORE_OPERATIONS = (
    "open", "get", "exchanges", "begin", "commit", "fork", "size_at", "touch", "end", "expire",
    "list", "receipt", "completion", "created_by", "counts",
)  # fmt: skip
_OTHER = "_OTHER"


@dataclass(frozen=True, slots=True)
class _Generation:
    """What is recorded of the generations of one model that ended in one way."""

    duration: Series
    first_chunk: Series
    input: Series
    output: Series
    output_token: Series


@dataclass(slots=True)
class _Tokens:
    """The tokens of one model, by what is known of them."""

    known: Attributes
    sums: dict[str, int] = field(default_factory=dict)


class Instruments:
    """The instruments of one daemon. An Observer."""

    def __init__(
        self,
        meter: Meter,
        histograms: Histograms,
        settings: Conventions,
        provider: Provider,
        statistics: Statistics,
    ) -> None:
        self._readings = ObservableInstruments(meter)
        self._readings.observe(statistics)
        self._histograms = histograms
        self._note = histograms.notes.note
        self._newest = not settings.names.tokens_by_type
        self._provider = provider.attributes()
        self._models: set[str] = set()
        self._generations: dict[tuple[str, str], _Generation] = {}
        self._tokens: dict[tuple[str, str], _Tokens] = {}
        self._calls: dict[tuple[str, str], Series] = {}
        self._first_tokens: dict[str, Series] = {}
        names = settings.names
        self._duration = self._seconds(names.duration, "GenAI operation duration.")
        self._first_chunk = self._seconds(
            names.time_to_first_chunk,
            "Time to receive the first chunk, from the request on.",
        )
        if self._newest:
            prefix = "gen_ai.client.inference"
            self._input, self._output = (
                self._histogram(
                    f"{prefix}.operation.{way}_tokens",
                    "{token}",
                    f"Number of {way} tokens used by an operation.",
                    conventions.TOKENS,
                )
                for way in ("input", "output")
            )
            for name, text in (
                ("input_tokens", "input"),
                ("cache_read.input_tokens", "cached input"),
                ("output_tokens", "output"),
            ):
                self._readings.counter(
                    f"{prefix}.usage.{name}",
                    "{token}",
                    f"Number of {text} tokens used.",
                    partial(self._used, name),
                )
        else:
            self._input = self._output = self._histogram(
                "gen_ai.client.token.usage",
                "{token}",
                "Number of input and output tokens used.",
                conventions.TOKENS,
            )
        self._first_token = self._seconds(
            "gen_ai.server.time_to_first_token",
            "Time from a completion's arrival to its first token, of those that succeeded.",
            conventions.FIRST_TOKEN_SECONDS,
        )
        self._output_token = self._seconds(
            "gen_ai.server.time_per_output_token",
            "Time per output token after the first, of answers that are complete.",
            conventions.OUTPUT_TOKEN_SECONDS,
        )
        self._rpc = self._seconds(
            "rpc.server.call.duration", "Duration of incoming RPCs.", conventions.RPC_SECONDS
        )
        self._completion = self._seconds(
            "ruvd.completion.duration",
            "Time from a completion's arrival to its end, of those that succeeded, but for items"
            " of batches.",
        )
        self._completions = {
            kind: self._completion.at({"ruvd.completion.kind": kind}) for kind in KINDS
        }
        self._queue = self._seconds(
            "ruvd.queue.duration",
            "Time from a completion's arrival until it had its place in the engine.",
            conventions.QUEUE_SECONDS,
        )
        self._queues = [self._queue.at({"ruvd.batch": batch}) for batch in (False, True)]
        self._commit = self._seconds(
            "ruvd.store.commit.duration", "Time of a commit.", conventions.COMMIT_SECONDS
        )
        self._batches = self._histogram(
            "ruvd.store.batch.size",
            "{write}",
            "Writes that one transaction committed together.",
            conventions.BATCH_WRITES,
        ).at({})
        self._store_errors = meter.create_counter(
            "ruvd.store.errors", "{error}", "Calls of the store that failed because it is down."
        )
        for operation in STORE_OPERATIONS:  # a rate sees the first only if it comes after a 0
            self._store_errors.add(0, {"ruvd.store.operation": operation})

    def __call__(self, event: Event) -> None:
        """Record what happened."""
        if isinstance(event, CompletionEnded):
            if not event.failed and not event.batch:
                self._note(self._ended, event, current.get())
        elif isinstance(event, EngineTaken):
            self._note(self._queues[event.batch].record, event.queue_seconds, current.get())
        elif isinstance(event, StoreBatch):
            self._note(self._batches.record, event.writes, None)

    def generated(
        self,
        model: str,
        seconds: float,
        first_chunk: float | None,
        usage: Usage | None,
        span: Span,
    ) -> None:
        """Record a generation that ended after `seconds`; its span has its error."""
        self._note(self._generated, model, seconds, first_chunk, usage, span)

    def served(self, method: str, code: str, seconds: float, span: Span) -> None:
        """Record an RPC that ended; its span has its error."""
        self._note(self._served, method, code, seconds, span)

    def committed(self, operation: str, seconds: float, span: Span) -> None:
        """Record a commit that ended; its span has its error."""
        self._note(self._committed, operation, seconds, span)

    def store_failed(self, operation: str) -> None:
        """Count a call that failed because the store is down."""
        self._store_errors.add(1, {"ruvd.store.operation": operation})

    def watch(self, gauges: Gauges) -> None:
        """Observe the core, which is made after the engine that these instruments measure."""
        self._readings.watch(gauges)

    def _ended(self, event: CompletionEnded, span: Span | None) -> None:
        self._completions[kind(event)].record(event.timings.total_seconds, span)
        first = event.timings.time_to_first_token_seconds
        if first is not None:
            model = self._model(event.model)
            series = self._first_tokens.get(model)
            if series is None:
                known = self._provider | {"gen_ai.request.model": model}
                series = self._first_tokens[model] = self._first_token.at(known)
            series.record(first, span)

    def _generated(
        self, model: str, seconds: float, first: float | None, usage: Usage | None, span: Span
    ) -> None:
        model = self._model(model)
        series = self._generations.get((model, span.error))
        if series is None:
            series = self._generation(model, span.error)
            self._generations[model, span.error] = series
        series.duration.record(seconds, span)
        if first is not None:
            series.first_chunk.record(first, span)
        if self._newest:
            self._count_tokens(model, usage)
        if usage or self._newest:
            usage = usage or Usage()
            series.input.record(usage.prompt_tokens, span)
            series.output.record(usage.completion_tokens, span)
            if not span.error and first is not None and usage.completion_tokens > 1:
                each = (seconds - first) / (usage.completion_tokens - 1)
                series.output_token.record(each, span)

    def _generation(self, model: str, error: str) -> _Generation:
        known = self._provider | {"gen_ai.request.model": model}
        failed = known | {"error.type": error} if error else known
        # Before the newest conventions the direction was an attribute, and an error was not.
        ways = [
            failed if self._newest else known | {"gen_ai.token.type": way}
            for way in ("input", "output")
        ]
        return _Generation(
            duration=self._duration.at(failed),
            first_chunk=self._first_chunk.at(known),
            input=self._input.at(ways[0]),
            output=self._output.at(ways[1]),
            output_token=self._output_token.at(known),
        )

    def _count_tokens(self, model: str, usage: Usage | None) -> None:
        # The newest conventions count a generation without usage as 0, of an unknown modality.
        modality = "text" if usage else "unknown"
        tokens = self._tokens.get((model, modality))
        if tokens is None:
            known = self._provider | {"gen_ai.request.model": model}
            tokens = _Tokens(known | {"gen_ai.token.modality": modality})
            self._tokens[model, modality] = tokens
        usage = usage or Usage()
        used = {
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "cache_read.input_tokens": usage.cached_tokens,
        }
        for name, count in used.items():
            if count is not None:
                tokens.sums[name] = tokens.sums.get(name, 0) + count

    def _used(self, name: str) -> Iterable[tuple[float, Attributes]]:
        self._histograms.notes.write()
        return [
            (tokens.sums[name], tokens.known)
            for tokens in list(self._tokens.values())
            if name in tokens.sums
        ]

    def _served(self, method: str, code: str, seconds: float, span: Span) -> None:
        series = self._calls.get((method, code))
        if series is None:
            known: dict[str, str] = {
                "rpc.system.name": "grpc",
                "rpc.method": method,
                "rpc.response.status_code": code,
            }
            series = self._rpc.at(_failed(known, span))
            self._calls[method, code] = series
        series.record(seconds, span)

    def _committed(self, operation: str, seconds: float, span: Span) -> None:
        known = {"ruvd.store.operation": operation}
        self._commit.at(_failed(known, span)).record(seconds, span)

    def _model(self, name: str) -> str:
        if name not in self._models:
            if len(self._models) >= _MODELS:
                return _OTHER
            self._models.add(name)
        return name

    def _seconds(
        self, name: str, text: str, bounds: tuple[float, ...] = conventions.OPERATION_SECONDS
    ) -> Histogram:
        return self._histogram(name, "s", text, bounds)

    def _histogram(self, name: str, unit: str, text: str, bounds: tuple[float, ...]) -> Histogram:
        return self._histograms.create(name, unit, text, bounds)


def _failed(known: dict[str, str], span: Span) -> Attributes:
    return known | {"error.type": span.error} if span.error else known
