"""Every instrument: GenAI and RPC by the conventions, and our own under `ruvd.`.

What `Statistics` counts is read from there when somebody collects, so it is the figure that
GetSessionMetrics has; histograms are recorded as things happen. Label sets are bounded: no
session's id, and no more models than `_MODELS`, because a caller may name any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.trace import SpanContext, get_current_span

from ruvd import conventions
from ruvd.conventions import Conventions, Provider
from ruvd.histograms import Attributes, Histogram, Histograms, Series
from ruvd.model import FinishReason, Usage
from ruvd.ports import CompletionEnded, EngineTaken, Event, StoreBatch
from ruvd.telemetry import KINDS, Statistics, kind

_MODELS = 50
# A rate sees the first of a kind only if it comes after a 0.
_NONE_YET = {(kind, reason.name): 0 for kind in KINDS for reason in FinishReason}
STORE_OPERATIONS = (
    "open", "get", "exchanges", "commit", "fork", "size_at", "touch", "end", "expire", "list",
    "receipt", "completion", "created_by", "counts",
)  # fmt: skip
_OTHER = "_OTHER"


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is read when somebody collects, from the collector's thread. `active_sessions` may
    ask the store; None is unknown."""

    active_sessions: Callable[[], int | None]
    active_completions: Callable[[], int]
    waiting: Callable[[], Mapping[str, int]]
    event_log_bytes: Callable[[], int]


@dataclass(frozen=True, slots=True)
class _Generation:
    """What is recorded of the generations of one model that ended in one way."""

    known: Attributes
    duration: Series
    first_chunk: Series
    input: Series
    output: Series
    output_token: Series


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
        self._meter = meter
        self._histograms = histograms
        self._statistics = statistics
        self._newest = not settings.names.tokens_by_type
        self._provider = provider.attributes()
        self._models: set[str] = set()
        self._generations: dict[tuple[str, str], _Generation] = {}
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
            self._used = {
                name: meter.create_counter(
                    f"{prefix}.usage.{name}", "{token}", f"Number of {text} tokens used."
                )
                for name, text in (
                    ("input_tokens", "input"),
                    ("cache_read.input_tokens", "cached input"),
                    ("output_tokens", "output"),
                )
            }
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
        self._batch = self._histogram(
            "ruvd.store.batch.size",
            "{write}",
            "Writes that one transaction committed together.",
            conventions.BATCH_WRITES,
        )
        self._store_errors = meter.create_counter(
            "ruvd.store.errors", "{error}", "Calls of the store that failed because it is down."
        )
        for operation in STORE_OPERATIONS:  # a rate sees the first only if it comes after a 0
            self._store_errors.add(0, {"ruvd.store.operation": operation})
        self._observe_statistics()

    def __call__(self, event: Event) -> None:
        """Record what happened."""
        if isinstance(event, CompletionEnded):
            self._ended(event)
        elif isinstance(event, EngineTaken):
            self._queues[event.batch].record(event.queue_seconds)
        elif isinstance(event, StoreBatch):
            self._batch.record(event.writes)

    def generated(
        self,
        model: str,
        seconds: float,
        *,
        first_chunk: float | None,
        usage: Usage | None,
        error: str,
        span: SpanContext,
    ) -> None:
        """Record a generation that ended after `seconds`."""
        model = self._model(model)
        series = self._generations.get((model, error))
        if series is None:
            series = self._generations[model, error] = self._generation(model, error)
        series.duration.record(seconds, span)
        if first_chunk is not None:
            series.first_chunk.record(first_chunk, span)
        if self._newest:
            self._count_tokens(usage, series)
        if usage or self._newest:
            usage = usage or Usage()
            series.input.record(usage.prompt_tokens, span)
            series.output.record(usage.completion_tokens, span)
            if not error and first_chunk is not None and usage.completion_tokens > 1:
                each = (seconds - first_chunk) / (usage.completion_tokens - 1)
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
            known,
            duration=self._duration.at(failed),
            first_chunk=self._first_chunk.at(known),
            input=self._input.at(ways[0]),
            output=self._output.at(ways[1]),
            output_token=self._output_token.at(known),
        )

    def _count_tokens(self, usage: Usage | None, series: _Generation) -> None:
        # The newest conventions count a generation without usage as 0, of an unknown modality.
        counted = {**series.known, "gen_ai.token.modality": "text" if usage else "unknown"}
        usage = usage or Usage()
        self._used["input_tokens"].add(usage.prompt_tokens, counted)
        self._used["output_tokens"].add(usage.completion_tokens, counted)
        if usage.cached_tokens is not None:
            self._used["cache_read.input_tokens"].add(usage.cached_tokens, counted)

    def served(self, seconds: float, method: str, code: str, error: str, span: SpanContext) -> None:
        """Record an RPC that ended."""
        series = self._calls.get((method, code))
        if series is None:
            attributes = {
                "rpc.system.name": "grpc",
                "rpc.method": method,
                "rpc.response.status_code": code,
            }
            if error:
                attributes["error.type"] = error
            series = self._calls[method, code] = self._rpc.at(attributes)
        series.record(seconds, span)

    def committed(self, seconds: float, operation: str, error: str, span: SpanContext) -> None:
        """Record a commit that ended."""
        attributes = {"ruvd.store.operation": operation}
        if error:
            attributes["error.type"] = error
        self._commit.record(seconds, attributes, span)

    def store_failed(self, operation: str) -> None:
        """Count a call that failed because the store is down."""
        self._store_errors.add(1, {"ruvd.store.operation": operation})

    def watch(self, gauges: Gauges) -> None:
        """Observe the core, which is made after the engine that these instruments measure."""
        self._gauge(
            "ruvd.sessions.active",
            "{session}",
            "Sessions in the store that have not expired.",
            lambda: _known(gauges.active_sessions()),
        )
        self._gauge(
            "ruvd.completions.active",
            "{completion}",
            "Completions that run or wait.",
            lambda: [(gauges.active_completions(), {})],
        )
        self._gauge(
            "ruvd.queue.size",
            "{completion}",
            "Who waits, by what for: the engine, the engine as an item of a batch, or a session.",
            lambda: [
                (count, {"ruvd.queue.name": name}) for name, count in gauges.waiting().items()
            ],
        )
        self._gauge(
            "ruvd.event_log.size",
            "By",
            "Memory for the events of completions that run or can be resumed.",
            lambda: [(gauges.event_log_bytes(), {})],
        )

    def _ended(self, event: CompletionEnded) -> None:
        if event.failed or event.batch:
            return
        span = get_current_span().get_span_context()
        self._completions[kind(event)].record(event.timings.total_seconds, span)
        first = event.timings.time_to_first_token_seconds
        if first is not None:
            model = self._model(event.model)
            series = self._first_tokens.get(model)
            if series is None:
                known = self._provider | {"gen_ai.request.model": model}
                series = self._first_tokens[model] = self._first_token.at(known)
            series.record(first, span)

    def _model(self, name: str) -> str:
        if name not in self._models:
            if len(self._models) >= _MODELS:
                return _OTHER
            self._models.add(name)
        return name

    def _observe_statistics(self) -> None:
        sums, sessions = self._statistics, "{session}"
        self._counter(
            "ruvd.completions",
            "{completion}",
            "Completions that ended, by how.",
            lambda: [
                (count, {"ruvd.completion.kind": kind, "ruvd.completion.reason": reason})
                for (kind, reason), count in {**_NONE_YET, **sums.completions}.items()
            ],
        )
        self._counter(
            "ruvd.sessions.created",
            sessions,
            "Sessions that were committed for the first time.",
            lambda: [(sums.sessions_created, {})],
        )
        self._counter(
            "ruvd.sessions.ended",
            sessions,
            "Sessions that are no longer: idle, displaced at capacity, or ended by a client.",
            lambda: [
                (sums.sessions_ended[reason], {"ruvd.session.end_reason": reason})
                for reason in ("idle", "capacity", "client")
            ],
        )
        self._counter(
            "ruvd.context.trims",
            "{completion}",
            "Completions whose context window was trimmed.",
            lambda: [(sums.context_trims, {})],
        )
        self._counter(
            "ruvd.completions.resumed",
            "{call}",
            "Calls that resumed a completion.",
            lambda: [(sums.resumed, {})],
        )
        self._counter(
            "ruvd.completions.deduplicated",
            "{call}",
            "Calls whose request id had a completion already.",
            lambda: [(sums.deduplicated, {})],
        )
        self._counter(
            "ruvd.engine.restarts",
            "{restart}",
            "How often the engine came up again.",
            lambda: [(sums.engine_restarts, {})],
        )
        self._counter(
            "ruvd.prompt.tokens",
            "{token}",
            "Prompt tokens of session completions for which the engine reported what was cached.",
            lambda: [(sums.prompt_tokens, {})],
        )
        self._counter(
            "ruvd.prompt.cached_tokens",
            "{token}",
            "Those of them that were cached.",
            lambda: [(sums.cached_tokens, {})],
        )
        self._counter(
            "ruvd.prefill.spent",
            "s",
            "Prefill time of session completions, by the engine's clock.",
            lambda: [(sums.session_prefill_seconds, {})],
        )
        self._gauge(
            "ruvd.prefill.saved",
            "s",
            "What the cached tokens would have cost, by the mean over all evaluated tokens.",
            lambda: _known(sums.prefill_saved_seconds),
        )
        self._gauge(
            "ruvd.engine.up", "", "Whether the engine is up.", lambda: [(int(sums.engine_up), {})]
        )
        self._gauge(
            "ruvd.store.up", "", "Whether the store is up.", lambda: [(int(sums.store_up), {})]
        )

    def _seconds(
        self, name: str, text: str, bounds: tuple[float, ...] = conventions.OPERATION_SECONDS
    ) -> Histogram:
        return self._histogram(name, "s", text, bounds)

    def _histogram(self, name: str, unit: str, text: str, bounds: tuple[float, ...]) -> Histogram:
        return self._histograms.create(name, unit, text, bounds)

    def _counter(self, name: str, unit: str, text: str, read: _Read) -> None:
        self._meter.create_observable_counter(name, [_callback(read)], unit, text)

    def _gauge(self, name: str, unit: str, text: str, read: _Read) -> None:
        self._meter.create_observable_gauge(name, [_callback(read)], unit, text)


_Read = Callable[[], Iterable[tuple[float, Mapping[str, str]]]]


def _callback(read: _Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: [Observation(value, dict(attributes)) for value, attributes in read()]


def _known(value: float | None) -> Iterable[tuple[float, Mapping[str, str]]]:
    return [] if value is None else [(value, {})]
