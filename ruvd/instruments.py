"""Every instrument: GenAI and RPC by the conventions, and our own under `ruvd.`.

What `Statistics` counts is read from there when somebody collects, so it is the figure that
GetSessionMetrics has; histograms are recorded as things happen. Label sets are bounded: no
session's id, and no more models than `_MODELS`, because a caller may name any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation

from ruvd import conventions
from ruvd.conventions import Conventions, Provider
from ruvd.model import Usage
from ruvd.ports import CompletionEnded, EngineTaken, Event, StoreBatch
from ruvd.telemetry import Statistics, kind

_MODELS = 50
_OTHER = "_OTHER"

Attributes = Mapping[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class Gauges:
    """What is read when somebody collects, from the collector's thread. `active_sessions` may
    ask the store; None is unknown."""

    active_sessions: Callable[[], int | None]
    active_completions: Callable[[], int]
    waiting: Callable[[], Mapping[str, int]]
    event_log_bytes: Callable[[], int]


class Instruments:
    """The instruments of one daemon. An Observer."""

    def __init__(
        self, meter: Meter, settings: Conventions, provider: Provider, statistics: Statistics
    ) -> None:
        self._meter = meter
        self._statistics = statistics
        self._newest = not settings.names.tokens_by_type
        self._provider = provider.attributes()
        self._models: set[str] = set()
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
        self._queue = self._seconds(
            "ruvd.queue.duration",
            "Time from a completion's arrival until it had its place in the engine.",
            conventions.QUEUE_SECONDS,
        )
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
        self._observe_statistics()

    def __call__(self, event: Event) -> None:
        """Record what happened."""
        match event:
            case CompletionEnded():
                self._ended(event)
            case EngineTaken():
                self._queue.record(event.queue_seconds, {"ruvd.batch": event.batch})
            case StoreBatch(writes):
                self._batch.record(writes)

    def generated(
        self,
        model: str,
        seconds: float,
        *,
        first_chunk: float | None,
        usage: Usage | None,
        error: str,
        context: Context,
    ) -> None:
        """Record a generation that ended after `seconds`; `context` has its span."""
        known = self._provider | {"gen_ai.request.model": self._model(model)}
        failed = known | {"error.type": error} if error else known
        self._duration.record(seconds, failed, context)
        if first_chunk is not None:
            self._first_chunk.record(first_chunk, known, context)
        if self._newest:
            self._count_tokens(usage, known, failed, context)
        elif usage:
            for way, count in (("input", usage.prompt_tokens), ("output", usage.completion_tokens)):
                self._input.record(count, known | {"gen_ai.token.type": way}, context)
        if usage and not error and first_chunk is not None and usage.completion_tokens > 1:
            each = (seconds - first_chunk) / (usage.completion_tokens - 1)
            self._output_token.record(each, known, context)

    def _count_tokens(
        self, usage: Usage | None, known: Attributes, failed: Attributes, context: Context
    ) -> None:
        # The newest conventions count a generation without usage as 0, of an unknown modality.
        counted = {**known, "gen_ai.token.modality": "text" if usage else "unknown"}
        usage = usage or Usage()
        self._input.record(usage.prompt_tokens, failed, context)
        self._output.record(usage.completion_tokens, failed, context)
        self._used["input_tokens"].add(usage.prompt_tokens, counted)
        self._used["output_tokens"].add(usage.completion_tokens, counted)
        if usage.cached_tokens is not None:
            self._used["cache_read.input_tokens"].add(usage.cached_tokens, counted)

    def served(self, seconds: float, attributes: Attributes, context: Context) -> None:
        """Record an RPC that ended; `context` has its span."""
        self._rpc.record(seconds, attributes, context)

    def committed(self, seconds: float, operation: str, error: str, context: Context) -> None:
        """Record a commit that ended; `context` has its span."""
        attributes = {"ruvd.store.operation": operation}
        if error:
            attributes["error.type"] = error
        self._commit.record(seconds, attributes, context)

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
        self._completion.record(event.timings.total_seconds, {"ruvd.completion.kind": kind(event)})
        first = event.timings.time_to_first_token_seconds
        if first is not None:
            known = self._provider | {"gen_ai.request.model": self._model(event.model)}
            self._first_token.record(first, known)

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
                for (kind, reason), count in dict(sums.completions).items()
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
        return self._meter.create_histogram(
            name, unit, text, explicit_bucket_boundaries_advisory=list(bounds)
        )

    def _counter(self, name: str, unit: str, text: str, read: _Read) -> None:
        self._meter.create_observable_counter(name, [_callback(read)], unit, text)

    def _gauge(self, name: str, unit: str, text: str, read: _Read) -> None:
        self._meter.create_observable_gauge(name, [_callback(read)], unit, text)


_Read = Callable[[], Iterable[tuple[float, Mapping[str, str]]]]


def _callback(read: _Read) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _: [Observation(value, dict(attributes)) for value, attributes in read()]


def _known(value: float | None) -> Iterable[tuple[float, Mapping[str, str]]]:
    return [] if value is None else [(value, {})]
