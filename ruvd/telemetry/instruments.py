"""The instruments that are written as things happen: the GenAI and RPC metrics of the semantic
conventions, and our own under `ruvd.`.

The instruments that are read when somebody collects are in `ruvd.telemetry.observables`. Label
sets are bounded: no label holds a session's id, and at most `_MAX_MODELS` models are told apart,
because a caller may name any model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from opentelemetry.context import Context, get_current
from opentelemetry.metrics import Histogram

from ruvd.core.model import Usage
from ruvd.core.ports.events import CompletionEnded, EngineTaken, StoreBatch
from ruvd.core.statistics import KINDS, Statistics, kind
from ruvd.telemetry import conventions
from ruvd.telemetry.compaction_observables import observe_compaction
from ruvd.telemetry.conventions import Conventions, Provider
from ruvd.telemetry.deferred import Deferred
from ruvd.telemetry.dispatch import Handlers
from ruvd.telemetry.engine_labels import OTHER, EngineLabels
from ruvd.telemetry.histograms import GetMeter, LabelledHistogram, Labels
from ruvd.telemetry.observables import ObservableInstruments
from ruvd.telemetry.peer_observables import observe_peers

_MAX_MODELS = 50
STORE_OPERATIONS = (
    "open", "get", "exchanges", "messages", "begin", "commit", "fork", "size_at", "touch", "end",
    "gone", "usage", "expire", "list", "receipt", "completion", "created_by", "counts", "tenants",
    "turns",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _GenerationSeries:
    """The series of the generations of one model that ended in the same way."""

    model: Labels
    duration: Histogram
    first_chunk: Histogram
    input: Histogram
    output: Histogram
    output_token: Histogram
    first_token: Histogram


class Instruments:
    """The instruments of one daemon.

    `handlers` record the events of the core later, with the current span as the exemplar; the
    methods record at once, with the span of `context`. The numbers of tokens and what follows from
    them have no exemplars: those of the durations lead to the same spans.
    """

    def __init__(
        self,
        get_meter: GetMeter,
        deferred: Deferred,
        settings: Conventions,
        provider: Provider,
        statistics: Statistics,
    ) -> None:
        self._get_meter = get_meter
        meter = get_meter(None)
        self._defer = deferred.add
        self.observables = ObservableInstruments(meter)
        self.observables.observe(statistics)
        observe_compaction(self.observables, statistics)
        observe_peers(self.observables, statistics)
        self._newest = settings.names.is_newest
        self._engines = EngineLabels(provider)
        self._models: set[str] = set()
        self._generations: dict[tuple[str, str, str], _GenerationSeries] = {}
        self._rpcs: dict[tuple[str, str], Histogram] = {}
        self._commits: dict[tuple[str, str], Histogram] = {}
        self.handlers: Handlers = {
            CompletionEnded: self._on_ended,
            EngineTaken: self._on_engine_taken,
            StoreBatch: self._on_store_batch,
        }
        names = settings.names
        self._duration = self._seconds(
            names.duration, "The duration of a generation, from the request to the end."
        )
        self._first_chunk = self._seconds(
            names.time_to_first_chunk,
            "The time from a request to the engine until the first chunk of the answer.",
        )
        if self._newest:
            prefix = "gen_ai.client.inference"
            self._input, self._output = (
                self._histogram(
                    f"{prefix}.operation.{direction}_tokens",
                    "{token}",
                    f"The number of {direction} tokens of a generation.",
                    conventions.TOKENS,
                )
                for direction in ("input", "output")
            )
            self._input_used, self._cached_used, self._output_used = (
                meter.create_counter(
                    f"{prefix}.usage.{name}",
                    "{token}",
                    f"The number of {text} tokens of all generations.",
                )
                for name, text in (
                    ("input_tokens", "input"),
                    ("cache_read.input_tokens", "cached input"),
                    ("output_tokens", "output"),
                )
            )
        else:
            self._input = self._output = self._histogram(
                "gen_ai.client.token.usage",
                "{token}",
                "The number of tokens of a generation, by direction: input or output.",
                conventions.TOKENS,
            )
        self._first_token = self._seconds(
            "gen_ai.server.time_to_first_token",
            "The time from the arrival of a completion to its first token. Failed completions do"
            " not count.",
            conventions.FIRST_TOKEN_SECONDS,
        )
        self._output_token = self._seconds(
            "gen_ai.server.time_per_output_token",
            "The time per output token after the first. Failed generations do not count.",
            conventions.OUTPUT_TOKEN_SECONDS,
        )
        self._rpc = self._seconds(
            "rpc.server.call.duration", "The duration of an incoming RPC.", conventions.RPC_SECONDS
        )
        completion = self._seconds(
            "ruvd.completion.duration",
            "The time from the arrival of a completion to its end. Failed completions and items of"
            " batches do not count.",
        )
        self._completions = {
            kind: completion.series({"ruvd.completion.kind": kind}) for kind in KINDS
        }
        queue = self._seconds(
            "ruvd.queue.duration",
            "The time from the arrival of a completion until the engine took it.",
            conventions.QUEUE_SECONDS,
        )
        self._queue = [queue.series({"ruvd.batch": is_batch}) for is_batch in (False, True)]
        self._commit = self._seconds(
            "ruvd.store.commit.duration",
            "The duration of a commit of a turn or a fork to the store.",
            conventions.COMMIT_SECONDS,
        )
        self._batches = self._histogram(
            "ruvd.store.batch.size",
            "{write}",
            "The number of writes that one transaction of the store committed together.",
            conventions.BATCH_WRITES,
        ).series({})
        self._store_errors = meter.create_counter(
            "ruvd.store.errors",
            "{error}",
            "The number of calls of the store that failed because it was unavailable.",
        )
        for operation in STORE_OPERATIONS:  # a rate misses the first error unless it follows a 0
            self._store_errors.add(0, {"ruvd.store.operation": operation})

    def label_engine(self, name: str, provider: Provider, model: str) -> None:
        """Sets the provider and the default model of an engine with a name."""
        self._engines.add(name, provider, model)
        for key in [key for key in list(self._generations) if key[0] == name]:
            del self._generations[key]

    def _on_ended(self, event: CompletionEnded) -> None:
        if not event.failed and not event.batch:
            self._defer(self._record_completion, event, get_current())

    def _on_engine_taken(self, event: EngineTaken) -> None:
        record = self._queue[event.batch].record
        self._defer(record, event.queue_seconds, None, get_current())

    def _on_store_batch(self, event: StoreBatch) -> None:
        self._defer(self._batches.record, event.writes)

    def record_generation(
        self,
        model: str,
        error: str,
        seconds: float,
        first_chunk: float | None,
        usage: Usage | None,
        context: Context,
        engine: str = "",
    ) -> None:
        """Records a generation that ended after `seconds`. `error` is empty if it succeeded,
        `first_chunk` is the time until the first chunk, in seconds."""
        series = self._series(engine, self._model(model), error)
        series.duration.record(seconds, None, context)
        if first_chunk is not None:
            series.first_chunk.record(first_chunk, None, context)
        if self._newest:
            self._count_tokens(series.model, usage)
        if usage or self._newest:
            usage = usage or Usage()
            series.input.record(usage.prompt_tokens)
            series.output.record(usage.completion_tokens)
            if not error and first_chunk is not None and usage.completion_tokens > 1:
                per_token = (seconds - first_chunk) / (usage.completion_tokens - 1)
                series.output_token.record(per_token)

    def record_rpc(
        self, method: str, code: str, error: str, seconds: float, context: Context
    ) -> None:
        """Records an RPC that ended with the status `code`. `error` is empty unless the server is
        to blame."""
        series = self._rpcs.get((method, code))
        if series is None:
            labels = {
                "rpc.system.name": "grpc",
                "rpc.method": method,
                "rpc.response.status_code": code,
            } | _error(error)
            self._rpcs[method, code] = series = self._rpc.series(labels)
        series.record(seconds, None, context)

    def record_commit(self, operation: str, error: str, seconds: float, context: Context) -> None:
        """Records a commit that ended. `error` is empty if it succeeded."""
        series = self._commits.get((operation, error))
        if series is None:
            series = self._commit.series({"ruvd.store.operation": operation} | _error(error))
            self._commits[operation, error] = series
        series.record(seconds, None, context)

    def count_store_error(self, operation: str) -> None:
        """Counts a call that failed because the store was unavailable."""
        self._store_errors.add(1, {"ruvd.store.operation": operation})

    def _record_completion(self, event: CompletionEnded, context: Context) -> None:
        timings = event.timings
        self._completions[kind(event)].record(timings.total_seconds, None, context)
        if timings.time_to_first_token_seconds is not None:
            model = self._model(self._engines.own_model(event.engine, event.model))
            series = self._series(event.engine, model, "").first_token
            series.record(timings.time_to_first_token_seconds, None, context)

    def _series(self, engine: str, model: str, error: str) -> _GenerationSeries:
        series = self._generations.get((engine, model, error))
        if series is None:
            known = self._engines.of(engine) | {"gen_ai.request.model": model}
            outcome = known | _error(error)
            # v1.41.1 has the direction of tokens as an attribute, the newest has the error.
            sent, received = (
                outcome if self._newest else known | {"gen_ai.token.type": direction}
                for direction in ("input", "output")
            )
            series = _GenerationSeries(
                model=known,
                duration=self._duration.series(outcome),
                first_chunk=self._first_chunk.series(known),
                input=self._input.series(sent),
                output=self._output.series(received),
                output_token=self._output_token.series(known),
                first_token=self._first_token.series(known),
            )
            self._generations[engine, model, error] = series
        return series

    def _count_tokens(self, model: Labels, usage: Usage | None) -> None:
        # The newest conventions count a generation without usage as 0, of an unknown modality.
        labels = {**model, "gen_ai.token.modality": "text" if usage else "unknown"}
        usage = usage or Usage()
        self._input_used.add(usage.prompt_tokens, labels)
        self._output_used.add(usage.completion_tokens, labels)
        if usage.cached_tokens is not None:
            self._cached_used.add(usage.cached_tokens, labels)

    def _model(self, name: str) -> str:
        if name not in self._models:
            if len(self._models) >= _MAX_MODELS:
                return OTHER
            self._models.add(name)
        return name

    def _seconds(
        self, name: str, text: str, bounds: Sequence[float] = conventions.OPERATION_SECONDS
    ) -> LabelledHistogram:
        return self._histogram(name, "s", text, bounds)

    def _histogram(
        self, name: str, unit: str, text: str, bounds: Sequence[float]
    ) -> LabelledHistogram:
        return LabelledHistogram(self._get_meter, name, unit, text, bounds)


def _error(error: str) -> dict[str, str | int]:
    return {"error.type": error} if error else {}
